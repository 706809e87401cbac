"""Which checkpoints a run goes on from, also those of earlier releases, and which it refuses."""

import hashlib
import json

import lightning.pytorch as pl
import pytest
import torch

from lit_sft import Lora, Schedule, SFTDataModule, SFTModule, WordProblems
from lit_sft.data.splits import read_conversations, read_split
from lit_sft.errors import InputError

STEPS, SAVED_AT = 4, 2


class SaveOnce(pl.Callback):
    """Keeps the checkpoint of a step."""

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == SAVED_AT:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/new.ckpt")


def train(base, root, checkpoint=None, data_options=None, limit=1.0, **options) -> SFTModule:
    options = {"lora": Lora(r=4, alpha=8), "learning_rate": 1e-2} | options
    module = SFTModule(str(base), **options)
    task = WordProblems(train_rows=40)
    sizes = {"batch_size": 2, "accumulate_grad_batches": 2, "val_rows": 0, "max_length": 600}
    trainer = pl.Trainer(
        max_steps=STEPS,
        default_root_dir=root,
        accelerator="cpu",
        precision="32-true",
        limit_train_batches=limit,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[] if checkpoint else [SaveOnce()],
    )
    data = SFTDataModule(task, **sizes | (data_options or {}))
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module


@pytest.fixture(scope="module")
def whole(tiny_base, tmp_path_factory):
    """A run of four steps, and what it saved after two."""
    root = tmp_path_factory.mktemp("whole")
    module = train(tiny_base, root)
    return module, torch.load(root / "new.ckpt", weights_only=True)


def write(path, checkpoint, **changed):
    torch.save(checkpoint | changed, path)
    return str(path)


def without(checkpoint, *names) -> dict:
    return {name: value for name, value in checkpoint["run"].items() if name not in names}


def is_whole(module, whole) -> bool:
    trained = whole[0].trained_parameters
    return all(torch.equal(p, trained[name]) for name, p in module.trained_parameters.items())


@pytest.fixture
def first_form(whole, tmp_path) -> str:
    """A checkpoint as the first release wrote it."""
    module, new = whole
    data = module.trainer.datamodule
    digest = hashlib.sha256(b"2 600 drop\n")
    backend = data.tokenizer.backend_tokenizer.to_str()
    digest.update(hashlib.sha256(backend.encode()).digest())
    digest.update(data.tokenizer.chat_template.encode())
    digest.update(json.dumps(data.tokenizer.special_tokens_map, sort_keys=True).encode())
    for _, messages in read_conversations(data.task, read_split(data.task, "train", 0)):
        digest.update(json.dumps(messages).encode())
    run = {
        "data.rows": digest.hexdigest(),
        "data.chat_template": hashlib.sha256(data.tokenizer.chat_template.encode()).hexdigest(),
        "data.batch_size": 2,
        "data.accumulate_grad_batches": 2,
        "data.seed": 0,
        "data.dedup": False,
        "model.base_model": new["run"]["model.base_model"],
        "model.quantization": "nf4, double_quant=True",
        "model.lora": "Lora(r=4, alpha=8, dropout=0.1, "
        "target_modules=('q_proj', 'k_proj', 'v_proj', 'o_proj'))",
        "model.trainable_tokens": "",
        "model.speed": "Speed(fused_head=True, fused_lora=True, flat_optimizer=True, "
        "compile=False)",
        "model.optimizer": "paged_adamw_32bit",
        "model.seed": 0,
        "trainer.precision": "32-true",
        "trainer.devices": 1,
    }
    old = {name: value for name, value in new.items() if name != "optimizer_parameters"}
    return write(tmp_path / "old.ckpt", old, run=run)


def test_a_checkpoint_of_the_first_release_goes_on_to_the_same_bits(
    tiny_base, tmp_path, whole, first_form, caplog
):
    caplog.set_level("INFO", "lightning.pytorch")
    assert is_whole(train(tiny_base, tmp_path, first_form), whole)
    assert "may differ in: data.batching, data.max_tokens_per_pass, trainer.limit" in caplog.text


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"lora": Lora(r=4, alpha=9)}, "model.lora.alpha: was 8, is now 9"),
        ({"lora": Lora(r=4, alpha=8, target_modules=("q_proj",))}, "model.lora.target_modules: "),
        ({"optimizer": "adamw"}, "model.optimizer: was paged_adamw_32bit, is now adamw"),
        ({"data_options": {"max_length": 400}}, "data.rows: was "),
        ({"data_options": {"seed": 1}}, "data.seed: was 0, is now 1"),
    ],
    ids=str,
)
def test_a_checkpoint_of_the_first_release_is_refused_with_what_differs(
    tiny_base, tmp_path, first_form, changed, says
):
    with pytest.raises(InputError) as error:
        train(tiny_base, tmp_path, first_form, **changed)
    assert f"\n  {says}" in str(error.value)
    assert str(error.value).count("\n  ") == 1


def test_an_option_that_is_new_since_had_its_default(tiny_base, tmp_path, whole):
    run = without(whole[1], "model.lora.dropout")
    path = write(tmp_path / "x.ckpt", whole[1], run=run)
    assert is_whole(train(tiny_base, tmp_path, path), whole)
    with pytest.raises(InputError, match=r"dropout: was 0\.1, is now 0\.2"):
        train(tiny_base, tmp_path, path, lora=Lora(r=4, alpha=8, dropout=0.2))


@pytest.mark.parametrize("field", ["fused_head", "fused_lora", "flat_optimizer"])
def test_an_option_that_every_run_has_now_is_compared_with_what_it_was(
    tiny_base, tmp_path, whole, first_form, field
):
    name = f"model.speed.{field}"
    same = write(tmp_path / "same.ckpt", whole[1], run={**whole[1]["run"], name: True})
    assert is_whole(train(tiny_base, tmp_path, same), whole)
    old = torch.load(first_form, weights_only=True)
    speed = old["run"]["model.speed"].replace(f"{field}=True", f"{field}=False")
    for run in ({**whole[1]["run"], name: False}, {**old["run"], "model.speed": speed}):
        path = write(tmp_path / "other.ckpt", whole[1], run=run)
        with pytest.raises(InputError, match=rf"{name}: was False, is now True") as error:
            train(tiny_base, tmp_path, path)
        assert str(error.value).count("\n  ") == 1
        train(tiny_base, tmp_path, path, accept_changes=[name])


def test_all_that_decides_the_bits_is_compared(tiny_base, tmp_path, whole):
    path = write(tmp_path / "x.ckpt", whole[1])
    for options, says in [
        ({"data_options": {"batching": "padded"}}, "data.batching: was padding_free, is now pad"),
        ({"data_options": {"max_tokens_per_pass": 601}}, "max_tokens_per_pass: was 1200, is now 6"),
        ({"limit": 3}, "trainer.limit_train_batches: was all, is now 3"),
        ({"limit": 0.5}, "trainer.limit_train_batches: was all, is now 5"),
    ]:
        with pytest.raises(InputError) as error:
            train(tiny_base, tmp_path, path, **options)
        assert says in str(error.value)
    same = train(tiny_base, tmp_path, path, {"max_tokens_per_pass": 1200}, limit=10)
    assert is_whole(same, whole), "these are what the defaults come to"
    held = whole[1]["run"]
    assert {type(value) for value in held.values()} <= {str, int, float, bool, list}
    assert held["model.lora.target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_variants_go_on_to_the_same_bits(tiny_base, tmp_path):
    """What noise draws, as dropout, and the rates of both halves are functions of the step."""
    variant = {
        "lora": Lora(4, 8, target_modules="all-linear", use_rslora=True, loraplus_lr_ratio=4.0),
        "optimizer": "torch.optim.NAdam",
        "optimizer_args": {"betas": (0.8, 0.9)},
        "schedule": Schedule("linear", warmup_steps=1, min_lr_ratio=0.1),
        "neftune_noise_alpha": 5.0,
    }
    whole = train(tiny_base, tmp_path, **variant), None
    path = str(tmp_path / "new.ckpt")
    assert is_whole(train(tiny_base, tmp_path, path, **variant), whole)
    for named in ("neftune_noise_alpha", "schedule", "optimizer_args"):
        with pytest.raises(InputError, match=rf"model\.{named}[a-z_.]*: was "):
            train(tiny_base, tmp_path, path, **{k: v for k, v in variant.items() if k != named})
    plain = Lora(4, 8, target_modules="all-linear")
    with pytest.raises(InputError, match=r"loraplus_lr_ratio: was 4\.0, is now 1\.0") as error:
        train(tiny_base, tmp_path, path, **variant | {"lora": plain})
    assert "model.lora.use_rslora: was True, is now False" in str(error.value)
    accepted = variant | {"lora": plain, "accept_changes": ["model.lora"]}
    with pytest.raises(InputError, match=r"optimizer knows groups of \[14, 14\] tensors, here"):
        train(tiny_base, tmp_path, path, **accepted)


@pytest.mark.parametrize(
    "options",
    [
        {"lora": Lora(4, 8, use_rslora=True)},
        {"lora": Lora(4, 8, loraplus_lr_ratio=2.0)},
        {"schedule": Schedule(warmup_steps=1)},
        {"neftune_noise_alpha": 5.0},
        {"optimizer_args": {"eps": 1e-6}},
    ],
    ids=str,
)
def test_a_variant_is_no_way_on_from_a_checkpoint_of_before(tiny_base, tmp_path, whole, options):
    new = "use_rslora", "loraplus_lr_ratio"
    names = [f"model.lora.{name}" for name in new]
    names += ["model.neftune_noise_alpha", "model.optimizer_args"]
    names += [name for name in whole[1]["run"] if name.startswith("model.schedule.")]
    path = write(tmp_path / "x.ckpt", whole[1], run=without(whole[1], *names))
    with pytest.raises(InputError, match="the checkpoint is of another run") as error:
        train(tiny_base, tmp_path, path, **options)
    assert str(error.value).count("\n  ") == 1


def test_several_options_are_accepted_by_the_name_of_their_group(tiny_base, tmp_path, whole):
    path = write(tmp_path / "x.ckpt", whole[1])
    lora = Lora(r=4, alpha=9, dropout=0.0)
    with pytest.raises(InputError, match=r"'\[model\.lora\.alpha, model\.lora\.dropout\]'"):
        train(tiny_base, tmp_path, path, lora=lora)
    train(tiny_base, tmp_path, path, lora=lora, accept_changes=["model.lora"])


def test_an_optimizer_whose_parameters_stand_in_another_order_is_refused(
    tiny_base, tmp_path, whole
):
    names = whole[1]["optimizer_parameters"]
    assert names == list(whole[0].trained_parameters)
    swapped = [*reversed(names[:2]), *names[2:]]
    by_name = write(tmp_path / "a.ckpt", whole[1], optimizer_parameters=swapped)
    weights = {name: whole[1]["state_dict"][name] for name in swapped}
    older = {name: value for name, value in whole[1].items() if name != "optimizer_parameters"}
    for path in (by_name, write(tmp_path / "b.ckpt", older, state_dict=weights)):
        with pytest.raises(InputError, match=r"in another order: at 2 of 16 places"):
            train(tiny_base, tmp_path, path)


def test_a_checkpoint_that_names_no_run_is_refused(tiny_base, tmp_path, whole):
    nameless = {name: value for name, value in whole[1].items() if name != "run"}
    with pytest.raises(InputError, match="none of this trainer's"):
        train(tiny_base, tmp_path, write(tmp_path / "x.ckpt", nameless))
