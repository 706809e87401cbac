"""A frozen 4-bit layer whose codes and scales are a plain parameter, which FSDP can shard.

bitsandbytes keeps them in a tensor of its own class, whose pieces are no weights. Here both are
read when the layer is called: they stand whole in memory then, and at no other time. They are one
parameter, as FSDP takes its time in Python for each that it gathers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lit_sft.model.fast.quantized import Packed, multiply_packed

ALIGNMENT = 512
"""Bytes, to whole multiples of which torch rounds all memory of a card."""


class PackedLinear(nn.Linear):
    """Computes `x @ weight.T + bias` of a weight in four bits, as `bitsandbytes.nn.Linear4bit`.

    Args:
        packed: The weight, `[out, in]`.
        bias: Frozen, `[out]`.
        dtype: What is computed in.
    """

    def __init__(self, packed: Packed, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        width, height = packed.shape
        super().__init__(height, width, bias=False, device="meta")
        held, self._start = _hold(packed.codes, packed.scales)
        self.weight = nn.Parameter(held, requires_grad=False)
        self._held = packed.codes.numel(), packed.scales.nbytes, packed.scales.dtype
        if bias is not None:
            self.bias = bias
        self.compute_dtype = dtype
        self._rest = packed[2:]

    @property
    def count(self) -> int:
        """The weights; a number, as its parameter holds two in a byte, and their scales."""
        return self.in_features * self.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., out]` of `[..., in]`, in its dtype."""
        codes, scales, kind = self._held
        held = self.weight.view(-1).view(torch.uint8)
        packed = Packed(
            held[:codes].view(-1, 1),
            held[self._start : self._start + scales].view(kind),
            *self._rest,
        )
        with torch.autocast(x.device.type, enabled=False):
            result = multiply_packed(x.to(self.compute_dtype), packed, self.bias)
        return result.to(x.dtype)


def _hold(codes: Tensor, scales: Tensor) -> tuple[Tensor, int]:
    """Return the bytes of both as float32, `[some, 1]`, and where the second begin.

    FSDP of torch 2.11 takes no integers. Nor may it be bfloat16: FSDP gathers by
    `torch._foreach_copy_`, whose CUDA kernel converts that to float32 and back, and makes one NaN
    of all (pytorch#159333, bitsandbytes#1945): one of 1,400 pairs of codes would be another. It has
    two dimensions, as the fingerprint of a base is made of the parameters that have one.
    """
    parts = [x.flatten().view(torch.uint8) for x in (codes, scales)]
    whole = [functional.pad(part, (0, -part.numel() % ALIGNMENT)) for part in parts]
    return torch.cat(whole).view(torch.float32).view(-1, 1), whole[0].numel()


def count_parameters(model: PreTrainedModel) -> int:
    """Return how many numbers a model has, however they are stored.

    Args:
        model: Of transformers, whose own count knows the 4-bit layers of bitsandbytes.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    held = sum(layer.weight.numel() for layer in layers)
    return model.num_parameters() - held + sum(layer.count for layer in layers)
