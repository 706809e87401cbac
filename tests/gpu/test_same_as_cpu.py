"""On a GPU each architecture is run as on a CPU: what is packed there is packed here."""

import pytest
import torch
from architectures import CONFIGS, build

from lit_sft import Lora
from lit_sft.model.adapter import attach_lora
from lit_sft.model.fast.embedding import fuse_token_rows
from lit_sft.model.fast.lora import fuse_lora
from lit_sft.model.probe import probe_model

DEPENDS_ON_LAYOUT = ("JetMoe",)
"""Its experts take a view that some kernels' results allow."""


def probe(name, device, dtype):
    base = build(name, vocabulary=97).to(device, dtype).requires_grad_(False)
    model = attach_lora(base, Lora(r=4, alpha=8), [3, 40])
    fuse_lora(model)
    fuse_token_rows(model)
    with torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16):
        return probe_model(model, packed=True, fused=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_run_as_on_a_cpu(name, device, dtype):
    there = probe(name, torch.device("cpu"), torch.float32)
    here = probe(name, device, dtype)
    assert here.logit_scale == there.logit_scale
    assert here.packs == there.packs or name in DEPENDS_ON_LAYOUT
