"""What a run is read from."""

import pytest
import torch

from lit_sft.errors import InputError
from lit_sft.export.trained_run import read_run


def test_a_checkpoint_of_another_trainer_is_a_line(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": {}, "global_step": 1}, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(InputError, match="is none of this trainer's: it is a dict without"):
        read_run(tmp_path)
