"""A skipped step is counted, and leaves no trace in the weights and the optimizer."""

import copy
from typing import get_args

import lightning.pytorch as pl
import pytest
from killers import Diverge
from test_module import make_run, make_trainer
from torch.testing import assert_close

from lit_sft.model.optim import OptimizerName


class States(pl.Callback):
    """Keeps what the optimizer can change, as it is before each step."""

    def __init__(self) -> None:
        self.before = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        weights = {name: p.detach() for name, p in pl_module.trained_parameters.items()}
        state = pl_module.optimizers().optimizer.state_dict()["state"]
        self.before.append(copy.deepcopy((weights, state)))


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_a_skipped_step_changes_neither_weights_nor_optimizer(tiny_base, tmp_path, optimizer):
    module, data = make_run(tiny_base, nonfinite="skip", optimizer=optimizer)
    states = States()
    trainer = make_trainer(tmp_path, steps=4, callbacks=[states, Diverge([0, 2])])
    trainer.fit(module, data)
    assert (trainer.global_step, module.nonfinite.skipped) == (4, 2)
    first, second, third, fourth = states.before
    assert_close(first, second, rtol=0, atol=0)
    assert_close(third, fourth, rtol=0, atol=0)
    with pytest.raises(AssertionError):
        assert_close(second, third, rtol=0, atol=0)
