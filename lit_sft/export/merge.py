"""Put an adapter into the weights of its base, a tensor at a time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_sft.errors import require
from lit_sft.export.adapter_weights import AdapterWeights
from lit_sft.export.base_files import INDEX, SINGLE, BaseFiles, TrainedRounding
from lit_sft.export.trained_run import TrainedRun

Onto = Literal["trained", "original"]
SHARD_BYTES = 10**9
"""Of a file, unless one tensor alone is larger: what is in memory at once."""


def merge_tensors(run: TrainedRun, onto: Onto) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the merged model by name, in the order of `BaseFiles.names`.

    What the adapter changes is float32; the rest is as the base has it, and so is every shape.

    Args:
        run: As `read_run` returns it.
        onto: `trained` takes the base as training computed with it, its four bits dequantised;
            `original` as it was published.

    Raises:
        InputError: If the adapter changes a tensor that the base stores otherwise.
    """
    rounding = TrainedRounding(run.base, run.quantization, run.dtype)
    require_known_layers(run.base, run.weights)
    for name in run.base.names:
        tensor = run.base.read(name)
        if onto == "trained":
            tensor = rounding(name, tensor)
        yield name, merge_one(name.removesuffix(".weight"), tensor, run.weights)


def merge_one(layer: str, tensor: Tensor, weights: AdapterWeights) -> Tensor:
    """Return a weight with what the adapter adds to it.

    Args:
        layer: Its full name.
        tensor: The weight, `[out, in]`, or any that the adapter leaves alone.
        weights: Of the adapter.
    """
    if layer in weights.pairs:
        a, b = weights.pairs[layer]
        tensor = torch.addmm(tensor.float(), b, a, alpha=weights.scale)
    if layer in weights.rows:
        tensor = tensor.to(torch.float32, copy=True)
        tensor[list(weights.token_ids)] = weights.rows[layer]
    return tensor


def require_known_layers(base: BaseFiles, weights: AdapterWeights) -> None:
    """Raise `InputError` if the adapter changes what is no weight `[out, in]` of the base."""
    known = {name.removesuffix(".weight"): base.shape(name) for name in base.names}
    unlike = [
        layer
        for layer, (a, b) in weights.pairs.items()
        if known.get(layer) != (b.shape[0], a.shape[1])
    ]
    unlike += [layer for layer in weights.rows if layer not in known]
    require(
        not unlike,
        f"export: {base.base_model!r} has no plain weight for {len(unlike)} layers of the adapter, "
        f"such as {', '.join(unlike[:1])}; merge it with PEFT's merge_and_unload",
    )


def plan_shards(sizes: Mapping[str, int], limit: int = SHARD_BYTES) -> list[list[str]]:
    """Return which tensors go into which file, in their order.

    Args:
        sizes: In bytes, by name.
        limit: Of a file, which a single tensor may exceed.
    """
    shards: list[list[str]] = []
    used = limit
    for name, size in sizes.items():
        if not shards or used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def write_shards(
    folder: Path, base: BaseFiles, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype
) -> None:
    """Write tensors as safetensors with an index, with one file of them in memory.

    Args:
        folder: That is being written.
        base: Whose names and shapes they have.
        tensors: In the order of `BaseFiles.names`.
        dtype: Of the files.
    """
    sizes = {x: torch.Size(base.shape(x)).numel() * dtype.itemsize for x in base.names}
    shards, stream = plan_shards(sizes), iter(tensors)
    total, places = len(shards), dict[str, str]()
    for number, names in enumerate(shards, 1):
        file = SINGLE if total == 1 else f"model-{number:05}-of-{total:05}.safetensors"
        held = {}
        for name in names:
            given, tensor = next(stream)
            require(given == name, f"export: expected the tensor {name!r}, got {given!r}")
            held[name] = tensor.to(dtype).contiguous()
            del tensor
        save_file(held, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    if total > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
