"""A frozen 4-bit layer whose codes and scales are a plain parameter, which FSDP can shard.

bitsandbytes keeps them in a tensor of its own class, whose pieces are no weights. Here both are
read when the layer is called: they stand whole in memory then, and at no other time.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_sft.model.fast.quantized import Packed, join, multiply_packed


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
        joined = join(packed)
        self.weight = nn.Parameter(joined.codes, requires_grad=False)
        self._rest = joined[1:]
        if bias is not None:
            self.bias = bias
        self.compute_dtype = dtype

    @property
    def count(self) -> int:
        """The weights; a number, as its parameter holds two in a byte, and their scales."""
        return self.in_features * self.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., out]` of `[..., in]`, in its dtype."""
        packed = Packed(self.weight, *self._rest)
        with torch.autocast(x.device.type, enabled=False):
            result = multiply_packed(x.to(self.compute_dtype), packed, self.bias)
        return result.to(x.dtype)


def count_parameters(model: PreTrainedModel) -> int:
    """Return how many numbers a model has, however they are stored.

    Args:
        model: Of transformers, whose own count knows the 4-bit layers of bitsandbytes.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    held = sum(layer.weight.numel() for layer in layers)
    return model.num_parameters() - held + sum(layer.count for layer in layers)
