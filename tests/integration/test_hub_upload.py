"""HubUpload, with the real client of the Hub against a server on the loopback interface."""

import itertools
import json
from functools import partial
from pathlib import Path

import pytest
from command import Outcome, lit_sft
from hub_server import DROP, VANISH, HubServer, serve_hub
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load
from small_run import fit_options, isolated
from transformers import AutoModelForCausalLM

from lit_sft.run.checkpoint_io import AtomicCheckpointIO


@pytest.fixture(scope="module")
def hub():
    with serve_hub() as server:
        yield server


@pytest.fixture(scope="module")
def start(hub: HubServer, tmp_path_factory):
    """Run a command line that knows the server as the Hub."""
    home = tmp_path_factory.mktemp("home")
    environment = isolated(home, HF_ENDPOINT=hub.url, HF_TOKEN="hf_" + "x" * 34)
    return partial(lit_sft, imported_with=environment)


@pytest.fixture(scope="module")
def uploaded(hub: HubServer, start, tiny_base: Path, tmp_path_factory) -> tuple[Path, Outcome]:
    """The folder and the outcome of a run whose upload fails three times before it succeeds."""
    folder = tmp_path_factory.mktemp("uploaded")
    hub.faults["me/happy commit"] = iter([500, 429, DROP])
    options = [*fit_options(tiny_base, folder / "run"), *upload_to("me/happy")]
    return folder / "run", start("fit", *options)


@pytest.fixture(scope="module")
def failed(hub, start, tiny_base, tmp_path_factory) -> dict[str, tuple[Path, Outcome]]:
    """By repository: the folder and the outcome of a run that the Hub fails for good."""
    root = tmp_path_factory.mktemp("failed")
    hub.faults |= {
        "me/unknown create": iter([401]),
        "me/readonly create": iter([403]),
        # The client takes a refusal to create as a yes where there is such a repository to see.
        "other/public create": iter([403]),
        "other/public auth": iter([403]),
        "me/broken commit": itertools.repeat(500),
        "me/revoked commit": itertools.repeat(403),
        "me/vanished commit": iter([VANISH]),
    }
    hub.repositories["other/public"] = False
    # The last one starts when the server has vanished.
    repositories = ["me/unknown", "me/readonly", "other/public"]
    repositories += ["me/broken", "me/revoked", "me/vanished", "me/late"]
    return {
        name: (root / name, start("fit", *fit_options(tiny_base, root / name), *upload_to(name)))
        for name in repositories
    }


def upload_to(repository: str) -> list[str]:
    upload = {"repo_id": repository, "retries": 3, "wait_seconds": 0.05}
    callback = {"class_path": "lit_sft.HubUpload", "init_args": upload}
    return [f"--trainer.callbacks={json.dumps([callback])}"]


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_commit_is_repeated_until_the_adapter_is_there(hub, uploaded):
    folder, outcome = uploaded
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr.count("the upload failed") == 3
    assert hub.files["me/happy"] == read_folder(folder / "adapter")
    assert hub.repositories["me/happy"] is True, "must be private"


def test_rights_are_asked_for_first_and_nothing_else_is(hub, uploaded):
    assert hub.requests[:2] == ["create", "auth"]
    assert hub.requests.count("lfs") == 1, "a repeated commit must not send the weights again"
    assert "unknown" not in hub.requests


def test_what_was_uploaded_loads_with_plain_peft(hub, uploaded, tiny_base, tmp_path):
    for name, content in hub.files["me/happy"].items():
        (tmp_path / name).write_bytes(content)
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    model = PeftModel.from_pretrained(base, tmp_path)
    assert any(p.any() for name, p in model.named_parameters() if "lora_B" in name)


def test_uploaded_card_has_metrics_and_config_and_no_place(hub, uploaded, tiny_base):
    card = ModelCard(hub.files["me/happy"]["README.md"].decode())
    names = {result.metric_name for result in card.data.eval_results}
    assert "val/loss" in names
    assert "max_steps: 4" in card.text
    assert str(tiny_base.parent) not in card.content


def test_a_resumed_run_with_no_step_left_uploads_the_adapter_it_ended_with(
    hub, start, tiny_base, tmp_path
):
    root = tmp_path / "run"
    earlier = root / "checkpoints" / "previous.ckpt"
    first = start("fit", *fit_options(tiny_base, root, 6))
    again = [f"--ckpt_path={earlier}", *upload_to("me/back")]
    second = start("fit", *fit_options(tiny_base, root), *again)
    assert (first.status, second.status) == (0, 0), second.stderr
    assert "for 4 optimizer steps" in hub.files["me/back"]["README.md"].decode()
    uploaded = load(hub.files["me/back"]["adapter_model.safetensors"])
    state = AtomicCheckpointIO().load_checkpoint(earlier)["state_dict"]
    for name, weight in uploaded.items():
        if "lora_" in name:
            assert weight.equal(state[f"_model.{name.replace('.weight', '.default.weight')}"]), name


@pytest.mark.parametrize(
    ("repository", "reason"),
    [
        ("me/unknown", "hf auth login"),
        ("me/readonly", "write access"),
        ("other/public", "write access"),
        ("me/late", "cannot be reached"),
    ],
)
def test_refusal_is_found_before_the_model_loads(failed, repository, reason):
    folder, outcome = failed[repository]
    assert outcome.status == 2
    (line,) = (line for line in outcome.stderr.splitlines() if line.startswith("error: "))
    assert repository in line
    assert reason in line
    assert "Traceback" not in outcome.stderr
    assert "training" not in outcome.stdout
    left = [path.name for path in folder.iterdir()]
    assert left == [".fit.lock"], "a second attempt must not find a run there"


@pytest.mark.parametrize(
    ("repository", "retries"), [("me/broken", 3), ("me/revoked", 0), ("me/vanished", 3)]
)
def test_failed_upload_keeps_the_adapter_and_says_what_to_do(
    failed, tiny_base, repository, retries
):
    folder, outcome = failed[repository]
    assert outcome.status == 1
    assert outcome.stderr.count("the upload failed") == retries, "a refusal is not worth a retry"
    assert f"lit-sft push {folder / 'adapter'} {repository}" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert f"wrote {folder / 'adapter'}" in outcome.stdout
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder / "adapter")
