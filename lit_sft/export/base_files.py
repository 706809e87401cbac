"""The weights of a base as they lie on the disk: read one at a time, and rounded as in training."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from lit_sft.errors import InputError, require
from lit_sft.model.base_model import SAMPLED_EVERY, Quantization, outline, read_base_config
from lit_sft.paths import is_local, locate

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class BaseFiles:
    """A base model whose tensors are read when they are asked for.

    Args:
        base_model: A Hub id or a folder.
        config: As `read_base_config` returns it.
        shards: The file that holds each tensor, by the tensor's name in the model.
        stored: The tensor's name in that file.
    """

    base_model: str
    config: PretrainedConfig
    shards: dict[str, Path]
    stored: dict[str, str]

    @cached_property
    def layers(self) -> PreTrainedModel:
        """The model without its weights."""
        return outline(self.base_model, self.config)

    @cached_property
    def names(self) -> list[str]:
        """The tensors that the model has, in its order; those that are tied to another left out."""
        tied = set(getattr(self.layers, "all_tied_weights_keys", None) or {})
        return [name for name in self.layers.state_dict() if name not in tied]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor of the model, by its name there."""
        return tuple(self.layers.state_dict()[name].shape)

    def read(self, name: str) -> Tensor:
        """Return a tensor of the model as it is stored, on the CPU."""
        with ExitStack() as stack:
            file: Any = stack.enter_context(safe_open(self.shards[name], framework="pt"))
            tensor: Tensor = file.get_tensor(self.stored[name])
        return tensor

    def name_of(self, layer: nn.Module) -> str:
        """Return the name of the weight of one of the layers."""
        return next(f"{name}.weight" for name, x in self.layers.named_modules() if x is layer)

    @property
    def embedding(self) -> str:
        """The name of the embedding's weight."""
        return self.name_of(self.layers.get_input_embeddings())

    @cached_property
    def generation_config(self) -> GenerationConfig | None:
        """How the base was meant to answer, where it says so."""
        try:
            return GenerationConfig.from_pretrained(locate(self.base_model))
        except OSError:  # it has none
            return None

    @cached_property
    def fingerprint(self) -> str:
        """Return what `lit_sft.model.base_model.fingerprint_base` returns of the loaded model."""
        digest = hashlib.sha256()
        shapes = {name: p.ndim for name, p in self.layers.named_parameters()}
        tensors = [self.read(name) for name in sorted(shapes) if shapes[name] == 1]
        for tensor in [*tensors, self.read(self.embedding)[::SAMPLED_EVERY]]:
            digest.update(tensor.bfloat16().contiguous().view(torch.int16).numpy().tobytes())
        return digest.hexdigest()


def open_base(base_model: str) -> BaseFiles:
    """Find the tensors of a base model; none is read.

    Args:
        base_model: A Hub id, which is downloaded if need be, or a folder.

    Raises:
        InputError: If it has no safetensors, or lacks a tensor of the model.
    """
    config, folder = read_base_config(base_model), _find_folder(base_model)
    files = _list_tensors(folder, base_model)
    base = BaseFiles(base_model, config, {}, {})
    prefix = f"{base.layers.base_model_prefix}."
    for name in base.names:
        stored = name if name in files else name.removeprefix(prefix)
        require(
            stored in files,
            f"model.base_model: {base_model!r} stores no tensor {name!r} under that name, as "
            "models do that transformers converts while it loads them; merge this one with PEFT's "
            "merge_and_unload, in memory",
        )
        base.shards[name], base.stored[name] = folder / files[stored], stored
    return base


class TrainedRounding:
    """What becomes of a base's tensors when it is loaded for training.

    Args:
        base: Whose layers are looked at.
        quantization: Of its linear layers.
        dtype: What it is computed in.
    """

    def __init__(self, base: BaseFiles, quantization: Quantization, dtype: torch.dtype) -> None:
        self.quantization, self.dtype = quantization, dtype
        self.quantized = find_quantized(base, quantization)

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of any shape as training computes with it, in its dtype."""
        tensor = tensor.to(self.dtype)
        if name not in self.quantized:
            return tensor
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        packed, state = quantize_4bit(
            tensor,
            quant_type=self.quantization.format,
            compress_statistics=self.quantization.double_quant,
        )
        rounded: Tensor = dequantize_4bit(packed, state).to(self.dtype)
        return rounded


def find_quantized(base: BaseFiles, quantization: Quantization) -> frozenset[str]:
    """Return the names of the weights that are stored in four bits, by transformers' own rule."""
    if quantization.format == "none":
        return frozenset()
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = get_keys_to_not_convert(base.layers)
    kept += list(getattr(base.layers, "_keep_in_fp32_modules", None) or [])
    return frozenset(
        f"{name}.weight"
        for name, module in base.layers.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, kept)
    )


def _find_folder(base_model: str) -> Path:
    if is_local(base_model):
        return Path(locate(base_model))
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base_model, allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:  # of the client, of its HTTP library
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"model.base_model: {base_model!r} could not be read ({type(error).__name__}: {reason})"
        ) from error


def _list_tensors(folder: Path, base_model: str) -> dict[str, str]:
    """Return the name of the file that holds each stored tensor."""
    if (folder / SINGLE).is_file():
        return dict.fromkeys(_names_in(folder / SINGLE), SINGLE)
    index = folder / INDEX
    require(
        index.is_file(),
        f"model.base_model: {base_model!r} has no safetensors ({SINGLE} or {INDEX}); save it so "
        "with transformers' save_pretrained",
    )
    return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])


def _names_in(path: Path) -> Iterable[str]:
    with ExitStack() as stack:
        file: Any = stack.enter_context(safe_open(path, framework="pt"))
        return list(file.keys())
