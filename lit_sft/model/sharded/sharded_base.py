"""Load a frozen base of which each rank keeps its share of every decoder layer.

Layer by layer, each rank reads a tensor from the files, rounds it as in training, and hands the
layer to FSDP (Zhao et al., 2023), which keeps a piece of it. So no rank ever holds the base: the
most is a layer beside the pieces, and one tensor as it is stored. Embedding, head, norms and biases
stay whole on every rank: a head is needed whole where memory is at its peak.
"""

import ctypes
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_sft.errors import InputError, require
from lit_sft.export.base_files import BaseFiles, find_quantized, open_base
from lit_sft.model.base_model import Quantization
from lit_sft.model.fast.memory import decide_cache, find_layers, free_memory_bytes
from lit_sft.model.fast.quantized import dequantize, pack
from lit_sft.model.sharded.packed_linear import PackedLinear

MMAP_THRESHOLD = -3
"""glibc's own number, of `malloc.h`."""
LARGE_BYTES = 2**22
"""Such tensors take longer to fill than the system takes to find memory for them."""


class ShardedBase(NamedTuple):
    """A base in pieces."""

    model: PreTrainedModel
    """In eval mode; its layers are modules of FSDP, and gather their weights when they run."""
    cached_bytes: int
    """What this rank's share of the weights takes that were dequantised for good."""


def load_sharded_base(
    base_model: str, quantization: Quantization, dtype: torch.dtype, device: torch.device
) -> ShardedBase:
    """Load this rank's share of a base; all ranks must do it.

    Args:
        base_model: A Hub id or a folder, with safetensors under the names of the model.
        quantization: Of the linear layers. A `weight_cache` of `auto` is none here: four bits are
            what is quick to gather.
        dtype: What the weights are computed in.
        device: Of this rank.

    Raises:
        InputError: If its files have other names, or it has no layers to share out.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if device.type == "cpu":
        _return_freed_memory()
    files = _open(base_model)
    model: Any = _outline(files, dtype, device)
    layers: Any = find_layers(model)
    require(
        bool(layers),
        f"trainer.strategy: fsdp2 shards decoder layers, and none are known in {base_model!r}; "
        "use ddp",
    )
    require(
        quantization.format == "none" or not any(isinstance(x, Conv1D) for x in model.modules()),
        f"trainer.strategy: fsdp2 quantises nn.Linear alone, and {base_model!r} has layers of its "
        "own kind (Conv1D); use ddp, or model.quantization.format none",
    )
    filler = _Filler(files, model, quantization, dtype, device)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    names = {id(module): name for name, module in model.named_modules()}
    for layer in layers:
        filler.fill(f"{names[id(layer)]}.")
        vectors = {parameter for parameter in layer.parameters() if parameter.ndim < 2}
        fully_shard(layer, mesh=mesh, ignored_params=vectors)
    filler.fill("")
    model.tie_weights()
    whole = {p for p in model.parameters() if not hasattr(p, "device_mesh")}
    require(
        not any(parameter.is_meta for parameter in whole),
        f"model.base_model: {base_model!r} lacks some of its weights, which would be random",
    )
    # The parent of all layers, so that they know of each other and gather one ahead.
    fully_shard(model.get_decoder(), mesh=mesh, ignored_params=whole)
    for layer, following in pairwise(layers):
        layer.set_modules_to_forward_prefetch([following])
    model.config.use_cache = False
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of whole tensors, which no later one fits
    return ShardedBase(model.eval(), filler.cached_bytes)


def _return_freed_memory() -> None:
    """Let the C library of Linux give every large tensor back to the system as it is freed.

    By itself it keeps them once some have been freed, in pieces between what stays: of a base of
    400 MB, a rank that holds 50 MB of it would take 400 MB more.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(MMAP_THRESHOLD, LARGE_BYTES)


def _open(base_model: str) -> BaseFiles:
    try:
        return open_base(base_model)
    except InputError as error:
        reason = str(error).partition("; merge this one")[0]
        raise InputError(
            f"trainer.strategy: fsdp2 reads a base a tensor at a time: {reason}; use ddp, which "
            "loads it whole on each device"
        ) from error


def _outline(files: BaseFiles, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return a model whose buffers are there, and whose parameters are not."""
    from accelerate import init_empty_weights

    make: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    with init_empty_weights(include_buffers=False):
        model = make(files.config, dtype=dtype, trust_remote_code=False)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    if files.generation_config is not None:
        model.generation_config = files.generation_config
    return model.requires_grad_(False)


class _Filler:
    """Puts the tensors of a base into its outline, rounded as in training.

    Args:
        files: Where they are.
        model: The outline.
        quantization: Of its linear layers.
        dtype: What is computed in.
        device: Where tensors go.
    """

    def __init__(
        self,
        files: BaseFiles,
        model: PreTrainedModel,
        quantization: Quantization,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.files, self.model, self.quantization = files, model, quantization
        self.dtype, self.device = dtype, device
        self.quantized = find_quantized(files.layers, quantization)
        self.cached_bytes = 0
        if quantization.weight_cache != "auto":
            self.cached_bytes = self._count_cached()
        self._waiting = list(files.names)

    def fill(self, prefix: str) -> None:
        """Read all tensors whose name begins so, and that are not there yet."""
        names = [name for name in self._waiting if name.startswith(prefix)]
        self._waiting = [name for name in self._waiting if not name.startswith(prefix)]
        for name in names:
            self._put(name, self.files.read(name).to(self.device))

    def _put(self, name: str, tensor: Tensor) -> None:
        place, _, own = name.rpartition(".")
        module = self.model.get_submodule(place)
        if not isinstance(getattr(module, own), nn.Parameter):  # a buffer that is stored
            setattr(module, own, tensor.to(getattr(module, own).dtype))
            return
        tensor = tensor.to(self.dtype)
        expected = tuple(getattr(module, own).shape)
        require(
            tuple(tensor.shape) == expected,
            f"model.base_model: {name} of {self.files.base_model!r} is {list(tensor.shape)}, and "
            f"its config says {list(expected)}",
        )
        if name in self.quantized:
            self._put_quantized(place, module, tensor)
        else:
            setattr(module, own, nn.Parameter(tensor, requires_grad=False))

    def _put_quantized(self, place: str, layer: Any, tensor: Tensor) -> None:
        from bitsandbytes.functional import quantize_4bit

        codes, state = quantize_4bit(
            tensor,
            quant_type=self.quantization.format,
            compress_statistics=self.quantization.double_quant,
        )
        packed = pack(codes, state)
        if self.cached_bytes:
            weight = dequantize(packed, self.dtype)
            layer.weight = nn.Parameter(weight, requires_grad=False)
            return
        parent, _, own = place.rpartition(".")
        setattr(self.model.get_submodule(parent), own, PackedLinear(packed, layer.bias, self.dtype))

    def _count_cached(self) -> int:
        """Return the bytes that this rank's share takes dequantised, or 0 if it is not to be."""
        shapes = self.files.layers.state_dict()
        needed = sum(shapes[name].numel() for name in self.quantized) * self.dtype.itemsize
        share = -(-needed // distributed.get_world_size())
        free = free_memory_bytes(self.device)
        cache = self.quantization.weight_cache
        return share if decide_cache(cache, share, self.dtype, self.device, free) else 0
