"""Eval mode without gradients that leaves no trace in training."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode without gradients, and afterwards leave no trace in training.

    Restored, also after an error: the training flag of every module by itself (a model that trains
    with some modules in eval mode gets exactly those back), and the random states of Python, NumPy,
    torch and every CUDA device.

    One trace cannot be removed here: on a CPU with AVX512-BF16, the first eval-mode forward of a
    bitsandbytes four-bit layer packs its weights in a layout that has no backward, and later
    training silently loses the gradient through it. `lit_sft.model.base_model.forbid_packing`
    keeps it from that; call it for a four-bit model that `load_base` has not loaded.
    """
    training = [(module, module.training) for module in model.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, flag in training:
            # Not `train(flag)`, which modules override and which reaches below.
            module.training = flag
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
