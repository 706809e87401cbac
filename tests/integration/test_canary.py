"""The tokens of the Hub and of W&B are in nothing that a run leaves behind, prints or uploads."""

import gzip
from pathlib import Path

import pytest
from command import Outcome, lit_sft_from_scratch
from hub_server import HubServer, serve_hub
from small_run import NOBODY, fit_options, isolated

HF_TOKEN = "hf_CanaryOfTheHubThatNobodyShouldSee"
WANDB_KEY = "wandb_v1_CanaryOfWandb" + "0123456789abcdef" * 4
CANARIES = (HF_TOKEN.removeprefix("hf_").encode(), WANDB_KEY.split("_v1_")[1].encode())


@pytest.fixture(scope="module")
def run(tiny_base, tmp_path_factory) -> tuple[Path, Outcome, HubServer]:
    """A run with both tokens, a Hub that takes the adapter, and W&B unreachable."""
    root = tmp_path_factory.mktemp("canary")
    (root / "tmp").mkdir()
    with serve_hub() as hub:
        outcome = lit_sft_from_scratch(
            "fit",
            *fit_options(tiny_base, root / "run"),
            "--trainer.callbacks=lit_sft.HubUpload",
            "--trainer.callbacks.repo_id=me/canary",
            "--trainer.logger=lit_sft.WandbRun",
            "--trainer.logger.init_timeout=1",
            env=isolated(
                root / "home",
                HF_ENDPOINT=hub.url,
                HF_TOKEN=HF_TOKEN,
                TMPDIR=str(root / "tmp"),
                WANDB_API_KEY=WANDB_KEY,
                WANDB_BASE_URL=NOBODY,
            ),
        )
        yield root, outcome, hub


def test_run_used_the_token_and_ended_well(run):
    _, outcome, hub = run
    assert outcome.status == 0, outcome.stderr
    assert f"Bearer {HF_TOKEN}" in hub.tokens, "or the search below proves nothing"
    assert "WANDB_API_KEY" in outcome.stderr


def test_no_file_holds_a_token(run):
    root, _, _ = run
    files = [path for path in root.rglob("*") if path.is_file()]
    found = {path.suffix for path in files}
    assert {".wandb", ".log", ".ckpt", ".yaml", ".csv", ".safetensors"} <= found
    for path in files:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        assert not any(canary in content for canary in CANARIES), path


def test_nothing_printed_or_uploaded_holds_a_token(run):
    _, outcome, hub = run
    texts = [outcome.stdout.encode(), outcome.stderr.encode(), *hub.files["me/canary"].values()]
    assert not any(canary in text for canary in CANARIES for text in texts)
