"""What leaves a run: the weights that measured best, whatever came after them."""

import json
import shutil

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file

import lit_sft
from lit_sft.errors import InputError
from lit_sft.run.best_checkpoint import best_of_folder, choose_best
from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder
from lit_sft.run.metrics_file import read_metrics

ROWS = 4
RIGHT = (0, 1, 3, 2, 2, 2, 2)
"""Of each evaluation, how many answers are graded as right: the best is the third."""


class Scripted(lit_sft.ChatTask):
    """Grades by the number of the evaluation, whatever was answered."""

    def __init__(self, right=RIGHT):
        self.right, self.calls = right, -ROWS  # the rows are tried out once

    def rows(self, split):
        return [{"n": n} for n in range(ROWS if split == "val" else 40)]

    def messages(self, row):
        said = str(row["n"])
        return [{"role": "user", "content": said}, {"role": "assistant", "content": said}]

    def grade(self, row, text):
        evaluation, number = divmod(self.calls, ROWS)
        self.calls += 1
        return evaluation >= 0 and number < self.right[evaluation]


def train(base, root, callbacks, right=RIGHT, ckpt_path=None, **options):
    trainer = lit_sft.make_trainer(
        callbacks=callbacks, default_root_dir=root, accelerator="cpu", precision="32-true",
        **{"max_steps": 12, "limit_val_batches": 0} | options,
    )  # fmt: skip
    data = lit_sft.SFTDataModule(
        Scripted(right), val_rows=ROWS, batch_size=2, accumulate_grad_batches=1
    )
    module = lit_sft.SFTModule(
        str(base), lora=lit_sft.Lora(r=4, alpha=8), max_new_tokens=2, learning_rate=1e-2
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, module


def graded(**arguments):
    return lit_sft.GenerationEval(every_n_steps=2, **arguments)


def keeping(**arguments):
    options = {"monitor": "val/exact_match", "mode": "max", "every_n_train_steps": 2}
    return ModelCheckpoint(**options | arguments, filename="best-{step}")


def stopping():
    return EarlyStopping("val/exact_match", mode="max", patience=2)


def require_adapter_of(folder, checkpoint):
    adapter = load_file(folder.adapter / "adapter_model.safetensors")
    state = AtomicCheckpointIO().load_checkpoint(checkpoint)["state_dict"]
    trained = {name.removeprefix("_model.").replace(".default", ""): w for name, w in state.items()}
    shared = adapter.keys() & trained.keys()
    assert len(shared) >= 16
    assert all(adapter[name].equal(trained[name]) for name in shared)


ORDERS = {
    "after": lambda: [graded(), stopping(), keeping()],
    "before": lambda: [keeping(), stopping(), graded()],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("validation", [{}, {"limit_val_batches": 1.0, "val_check_interval": 1}])
def test_early_stopping_counts_evaluations_and_the_best_one_leaves(
    tiny_base, tmp_path, order, validation, capsys
):
    """Evaluations at steps 2, 4, 6 and 8; the two last are no better than that at 4."""
    trainer, module = train(tiny_base, tmp_path, ORDERS[order](), **validation)
    assert trainer.global_step == 8
    folder = RunFolder(tmp_path)
    best = folder.last_checkpoint.with_name("best-step=4.ckpt")
    require_adapter_of(folder, best)
    assert choose_best(folder) == str(best)
    said = json.loads((folder.adapter / "lit_sft.json").read_text())
    assert (said["step"], said["steps_taken"], said["best_by"]) == (4, 8, "val/exact_match")
    assert said["metrics"]["val/exact_match"] == 0.75
    card = (folder.adapter / "README.md").read_text()
    assert "Fine-tuned for 4 optimizer steps" in card
    assert "Of the 8 steps of the run, these weights measured best by `val/exact_match`" in card
    assert "the adapter is that of step 4 of 8" in capsys.readouterr().out
    last = AtomicCheckpointIO().load_checkpoint(folder.last_checkpoint)["state_dict"]
    own = module.trained_parameters
    assert all(own[name].equal(weight) for name, weight in last.items()), "the model keeps its own"


def test_a_run_that_was_stopped_early_ends_where_it_did_when_it_is_resumed(tiny_base, tmp_path):
    train(tiny_base, tmp_path, ORDERS["before"]())
    folder = RunFolder(tmp_path)
    shutil.rmtree(folder.adapter)
    trainer, _ = train(
        tiny_base, tmp_path, ORDERS["before"](), ckpt_path=lit_sft.last_checkpoint(tmp_path)
    )
    assert trainer.global_step == 8
    require_adapter_of(folder, folder.last_checkpoint.with_name("best-step=4.ckpt"))


def test_a_last_step_that_measured_best_is_the_best_though_none_kept_it(tiny_base, tmp_path):
    train(tiny_base, tmp_path, [graded(), keeping()], right=(0, 1, 2, 3), max_steps=5)
    folder = RunFolder(tmp_path)
    require_adapter_of(folder, folder.last_checkpoint)
    best = best_of_folder(folder)
    assert (best.path, best.value) == (folder.last_checkpoint, 0.75)


def test_what_was_kept_is_found_in_a_folder_that_was_moved(tiny_base, tmp_path):
    train(tiny_base, tmp_path / "here", [graded(), keeping()], max_steps=6)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = RunFolder(tmp_path / "there")
    assert choose_best(moved) == str(moved.last_checkpoint.with_name("best-step=4.ckpt"))


def test_weights_that_nobody_measures_are_not_kept_as_the_best(tiny_base, tmp_path):
    with pytest.raises(InputError, match="every_n_train_steps=3 would keep weights that are not"):
        train(tiny_base, tmp_path, [graded(), keeping(every_n_train_steps=3)])


def test_the_lowest_is_the_best_of_a_loss(tiny_base, tmp_path):
    keep = keeping(monitor="val/unfinished", mode="min")
    train(tiny_base, tmp_path, [graded(), keep], max_steps=4)
    best = best_of_folder(RunFolder(tmp_path))
    assert best.monitor == "val/unfinished"
    _, rows = read_metrics(RunFolder(tmp_path).metrics)
    unfinished = {step: float(rows[step]["val/unfinished"]) for step in (2, 4)}
    lowest = min(unfinished, key=unfinished.get)  # of equal ones, the first is kept
    assert (best.path.name, best.value) == (f"best-step={lowest}.ckpt", unfinished[lowest])
