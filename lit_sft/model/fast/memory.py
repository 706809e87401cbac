"""Memory against arithmetic: weights that are kept dequantised, activations that are made again.

bitsandbytes makes the weights of a frozen base anew in every forward, every backward, and every
recomputed forward. They never change, so that once is enough where memory allows it. The numbers
stay the same, to the bit wherever bitsandbytes multiplies with what it dequantises; for the few
tokens of a decoding step on CUDA it has a kernel that rounds otherwise. Which layers keep their
activations, and which compute them again (Chen et al., 2016), changes no number at all.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_sft.data.batching import pack_batch, pad_batch
from lit_sft.errors import InputError
from lit_sft.model.figures import GIB
from lit_sft.model.loss import sum_supervised_loss
from lit_sft.types import Example

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WeightCache = Literal["auto", "none", "bf16"]
AFFORDABLE = 0.5
"""The share of the free memory that `auto` takes at most; activations need the rest."""
Policy = Literal["auto", "all", "none", "every_n"]
PROBED_TOKENS = 64
RESERVED_BYTES = 2 * GIB
"""For the logits of a chunk, the gradients, and what the optimizer holds from its first step on."""
USABLE = 0.85
"""The share of the rest of the free memory that activations may take; blocks are never packed."""


def free_memory_bytes(device: torch.device) -> float:
    """Return the memory that a device could still give; on a CPU, the machine's.

    Args:
        device: Of a GPU, what `torch.cuda.set_per_process_memory_fraction` allows is a limit, too.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated = torch.cuda.memory_allocated(device)
        unused = torch.cuda.memory_reserved(device) - allocated
        allowed = total * torch.cuda.get_per_process_memory_fraction(device)
        return int(min(free + unused, allowed - allocated))
    return min(int(psutil.virtual_memory().available), _free_in_container())


def _free_in_container() -> float:
    """Return what is left below the limit of a Linux control group; infinite without one."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / f"memory.{x}").read_text() for x in ("max", "current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # no such file, or the limit reads "max"
        return float("inf")


def cache_weights(
    base: nn.Module, cache: WeightCache, dtype: torch.dtype, device: torch.device
) -> int:
    """Replace the 4-bit layers of a base by plain ones that hold the rounded weights.

    Args:
        base: Before an adapter is attached.
        cache: `auto` does it where it takes up to half of the free memory.
        dtype: What the base is computed in.
        device: Where it is.

    Returns:
        The bytes that the weights take now; 0 where nothing was done.

    Raises:
        InputError: If `bf16` is asked for and there is no memory for it, or another dtype.
    """
    layers = find_quantized_layers(base)
    needed = sum(layer.in_features * layer.out_features for _, _, layer in layers) * dtype.itemsize
    if not decide_cache(cache, needed, dtype, device, free_memory_bytes(device)):
        return 0
    for parent, name, layer in layers:
        setattr(parent, name, _dequantize(layer, dtype))
    return needed


def decide_cache(
    cache: WeightCache, needed: int, dtype: torch.dtype, device: torch.device, free: float
) -> bool:
    """Return whether weights are dequantised for good.

    Args:
        cache: As `cache_weights` takes it, and the next two.
        needed: Bytes that they would take; 0 where there are none.
        dtype: What the base is computed in.
        device: Where it is.
        free: Bytes there.

    Raises:
        InputError: As `cache_weights`.
    """
    if cache == "none" or not needed or (cache == "auto" and needed > AFFORDABLE * free):
        return False
    if cache == "bf16" and dtype != torch.bfloat16:
        raise InputError(
            "model.quantization.weight_cache: bf16 goes with trainer.precision bf16-mixed; auto "
            "keeps the weights in the dtype of any other"
        )
    if needed > free:
        raise InputError(
            f"model.quantization.weight_cache: bf16 takes {needed / GIB:.1f} GiB, and "
            f"{free / GIB:.1f} GiB are free on {device}; use auto or none"
        )
    return True


def find_quantized_layers(base: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Return the 4-bit layers of a model, each behind its parent and its name there."""
    return [
        (parent, name, child)
        for parent in base.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and hasattr(child.weight, "quant_state")
    ]


def _dequantize(layer: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit

    quantized: Any = layer.weight
    weight = dequantize_4bit(quantized.data, quantized.quant_state).to(dtype)
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = layer.bias
    return plain.train(layer.training)


def recompute_layers(model: "PreTrainedModel | PeftModel", count: int) -> None:
    """Let evenly spread layers keep their input alone, and the others all that they need.

    Args:
        model: A model of transformers, or a `peft.PeftModel`; it applies in training mode alone.
        count: How many layers compute their forward again.
    """
    layers = find_layers(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = (index + 1) * count // len(layers) > (
            index * count // len(layers)
        )


def find_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the layers that can compute their forward again."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def exchange_call(layer: nn.Module, call: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return what a layer is called by: its own forward with its hooks, or that compiled.

    Hooks of FSDP wait for other ranks: they stay as they are, and have but the forward exchanged.

    Args:
        layer: Whose place in torch for that is private.
        call: What it is called by from now on; None is its own forward.
    """
    if hasattr(layer, "unshard"):
        forward: Callable[..., Any] = layer.forward
        vars(layer).pop("forward", None)
        if call is not None:
            layer.forward = call
        return forward
    was: Callable[..., Any] = layer._compiled_call_impl or layer._call_impl
    layer._compiled_call_impl = call
    return was


def recompute_from_outside(
    layers: Iterable[nn.Module],
) -> list[tuple[nn.Module, Callable[..., Any]]]:
    """Let layers keep their input alone in training; what is compiled of them has no part in it.

    What transformers does is a part of their forward, which could then not be compiled.

    Returns:
        The layers, and what each was called by.
    """
    calls = [(layer, exchange_call(layer)) for layer in layers]
    for layer, call in calls:
        exchange_call(layer, partial(_keep_input, layer, call))
    return calls


def _keep_input(layer: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if layer.training and torch.is_grad_enabled():
        return checkpoint(call, *args, use_reentrant=False, **kwargs)
    return call(*args, **kwargs)


@contextmanager
def recomputing(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let layers keep their input alone for a while, as `recompute_from_outside` does."""
    calls = recompute_from_outside(layers)
    try:
        yield
    finally:
        for layer, call in calls:
            exchange_call(layer, call)


def choose_count(bytes_per_layer: float, layers: int, free: float) -> int:
    """Return the smallest number of layers to recompute with which the others' activations fit.

    Args:
        bytes_per_layer: What one layer keeps for a whole pass.
        layers: Of the model.
        free: In bytes, before the first step.
    """
    room = max(0.0, (free - RESERVED_BYTES) * USABLE)
    # A recomputed layer, too, holds all its activations once, in its own backward.
    fitting = int(room // bytes_per_layer)
    return 0 if fitting >= layers else min(layers, layers - fitting + 1)


def count_bytes_per_token(
    model: "PeftModel | PreTrainedModel", device: torch.device, packed: bool = True
) -> float:
    """Return what one token keeps for the backward pass in one layer, counted in a small forward.

    Args:
        model: A `peft.PeftModel` in training mode; random states are left as they were.
        device: Where it is.
        packed: Whether rows are to be packed.
    """
    ids = [1] * PROBED_TOKENS
    row = [Example(ids, ids)]
    batch = pack_batch(row) if packed else pad_batch(row, pad_token_id=0)
    on_device = move_data_to_device(batch, device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        kept = count_kept_bytes(model, partial(sum_supervised_loss, model, on_device))
    return kept / PROBED_TOKENS / len(find_layers(model))


def count_kept_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Return what a forward keeps for the backward pass, besides the tensors of the model.

    Args:
        model: Whose forward it is; its tensors may be without contents.
        run: The forward. What it returns holds the graph, so that no memory is used twice.
    """
    whole = [x for x in model.parameters() if not hasattr(x, "device_mesh")]  # what is not shared
    own = [tensor.untyped_storage() for tensor in (*whole, *model.buffers())]
    weights = {id(storage) for storage in own}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        """Hold what a node keeps, of any shape, by its storage."""
        storage = tensor.untyped_storage()
        if id(storage) not in weights:
            kept[id(storage)] = storage
        # With its history, the output of a node would hold that node, and the whole graph for good.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = run()
    del graph
    return sum(storage.nbytes() for storage in kept.values())
