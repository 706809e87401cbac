"""What the optimizer of a checkpoint has to be for a run to go on from it."""

import pytest
import torch
from torch import nn

from lit_sft.errors import InputError
from lit_sft.model.fast.flat_parameters import FlatParameters
from lit_sft.model.resume import require_same_layout


def test_a_saved_optimizer_of_another_form_is_refused():
    layer = nn.Linear(3, 2)
    plain = torch.optim.SGD(layer.parameters(), lr=0.5).state_dict()
    with pytest.raises(InputError, match=r"model\.speed\.flat_optimizer: was False in the check"):
        require_same_layout([plain])
    flat = FlatParameters(list(layer.parameters()))
    require_same_layout([torch.optim.SGD([flat.parameter], lr=0.5).state_dict()])
