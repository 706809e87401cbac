"""Start an adapter from the principal part of each weight (PiSSA, Meng et al., 2024).

PiSSA trains `W - s B0 A0 + s B A`, where `s B0 A0` is the part of W with the largest singular
values, and A and B begin as A0 and B0. PEFT takes that part out of the base's weights. Here the
base stays as it is, in four bits, too, and the part is subtracted in each forward: the same model,
but for rounding, and one that A, B and their beginnings describe on the original base. As LoRA of
twice the rank, `s [B, -B0] [A; A0]`, they are what a run leaves.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_sft.errors import require
from lit_sft.model.adapter import Lora

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "default"
"""As PEFT calls the one that there is."""


def start_from_principal(model: "PeftModel", lora: Lora) -> None:
    """Let the LoRA layers of a model begin with the principal part of their weights.

    Args:
        model: With a fresh adapter. `svd_lowrank` draws by torch's random state.
        lora: Its shape, which names the decomposition.

    Raises:
        InputError: If a layer is not linear, or is smaller than the rank.
    """
    iterations = lora.init_weights.rpartition("_niter_")[2]
    for name, layer in list_layers(model):
        base = layer.get_base_layer()
        require(
            isinstance(base, nn.Linear) and lora.r <= min(base.in_features, base.out_features),
            f"lora.init_weights: pissa takes linear layers of no less than the rank {lora.r}, and "
            f"{name} is {base}",
        )
        weight = _read_weight(base)
        if iterations.isdigit():
            u, s, v = torch.svd_lowrank(weight, lora.r, niter=int(iterations))
            vh = v.T
        else:
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        root = (s[: lora.r] / lora.scaling).sqrt()
        _begin(layer, root[:, None] * vh[: lora.r], u[:, : lora.r] * root)
    config: Any = model.peft_config[ADAPTER]
    config.init_lora_weights = lora.init_weights  # by which PEFT knows what A and B are part of


def read_starts(model: nn.Module) -> dict[str, Tensor]:
    """Return A0 and B0 of all layers, by the names that A and B have; empty for other starts."""
    return {
        f"{name}.lora_{half}.{ADAPTER}.weight": getattr(layer, f"start_{half}")
        for name, layer in list_layers(model)
        for half in ("A", "B")
        if hasattr(layer, "start_A")
    }


def put_starts(model: nn.Module, starts: Mapping[str, Tensor]) -> None:
    """Give the layers of a model the beginnings of a checkpoint, as `read_starts` returns them.

    Another machine may decompose a weight otherwise in the last bits.
    """
    for name, start in read_starts(model).items():
        start.copy_(starts[name])


def double_rank(lora: Lora) -> Lora:
    """Return the shape of the plain LoRA that `join_starts` makes of a trained adapter."""
    return replace(lora, r=2 * lora.r, alpha=2 * lora.alpha, init_weights="default")


def join_starts(state: Mapping[str, Tensor], starts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the plain LoRA that an adapter and its beginnings come to.

    The arithmetic is that of PEFT's `path_initial_model_for_weight_conversion`.

    Args:
        state: A `[r, in]` and B `[out, r]` of all layers, and other tensors.
        starts: A0 and B0, by the same names.
    """
    joined = dict(state)
    for name, start in starts.items():
        is_a = ".lora_A." in name
        parts = [state[name], start if is_a else -start]
        joined[name] = torch.cat([x.to(start.device) for x in parts], 0 if is_a else 1)
    return joined


def list_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the LoRA layers of a model by their names."""
    from peft.tuners.lora import LoraLayer

    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def subtract_start(layer: Any, result: Tensor, x: Tensor) -> Tensor:
    """Return what a base layer gives without its principal part.

    Args:
        layer: With a beginning.
        result: Of the base layer, `[..., out]`.
        x: Its input, `[..., in]`.
    """
    a, b = (start.to(result.dtype) for start in (layer.start_A, layer.start_B))
    reduced = functional.linear(x.to(result.dtype), a)
    rest: Tensor = result - functional.linear(reduced, b * layer.scaling[ADAPTER])
    return rest


def _begin(layer: Any, a: Tensor, b: Tensor) -> None:
    """Set A and B, and keep what they begin with; PEFT's merge then subtracts it, too."""
    for half, start in (("A", a), ("B", b)):
        weight = getattr(layer, f"lora_{half}")[ADAPTER].weight
        weight.data = start.to(weight.dtype).contiguous()
        layer.register_buffer(f"start_{half}", weight.data.float().clone(), persistent=False)
    layer.get_delta_weight = MethodType(_get_delta_weight, layer)


def _get_delta_weight(layer: Any, adapter: str) -> Tensor:
    """Stand for the method of PEFT's layer."""
    whole: Tensor = type(layer).get_delta_weight(layer, adapter)
    start: Tensor = layer.start_B @ layer.start_A * layer.scaling[adapter]
    return whole - start.to(whole.dtype)


def _read_weight(base: nn.Linear) -> Tensor:
    """Return the weight that a frozen layer computes with, float32 `[out, in]`."""
    weight: Any = base.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, weight.quant_state)
    values: Tensor = weight.detach().float()
    return values
