"""Merged weights as GGUF, for llama.cpp and Ollama: metadata, then the tensors one at a time.

`gguf` is an optional package. Architectures are converted exactly or not at all.
"""

import errno
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_sft.errors import InputError, require
from lit_sft.export.base_files import BaseFiles
from lit_sft.export.gguf_tokenizer import TokenizerFields

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Of transformers, and what llama.cpp computes them as."""
TYPES = {"f16": "F16", "q8_0": "Q8_0"}
"""Of a file, as its name and as GGUF calls it."""
ROPES = ("default", "linear", "llama3")


def require_gguf() -> None:
    """Raise `InputError` unless the package is installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise InputError(
            "export --to gguf takes the package gguf; install it: pip install 'lit-sft[export]'"
        ) from error


def require_convertible(base: BaseFiles) -> None:
    """Raise `InputError` unless the base's architecture is converted exactly here."""
    name, config = type(base.layers).__name__, base.config
    advice = (
        "export it with --to merged, and convert that folder with llama.cpp: python "
        "convert_hf_to_gguf.py MERGED --outfile model.gguf --outtype f16"
    )
    require(
        name in ARCHITECTURES,
        f"export --to gguf: {name} is not converted here, but {', '.join(ARCHITECTURES)}; {advice}",
    )
    rope = _rope(config).get("rope_type", "default")
    windows = getattr(config, "use_sliding_window", False)
    biased = any("mlp" in x and x.endswith(".bias") for x in base.names)
    unlike = f"rope {rope}" if rope not in ROPES else "sliding windows" if windows else ""
    unlike = unlike or ("biases in the MLP" if biased else "")
    require(not unlike, f"export --to gguf: {unlike} of {name} is not converted here; {advice}")


def write_gguf(
    paths: Mapping[str, Path],
    base: BaseFiles,
    tokenizer: TokenizerFields,
    tensors: Iterable[tuple[str, Tensor]],
    name: str,
) -> None:
    """Write files of several types in one pass; one tensor is in memory at a time.

    Args:
        paths: Of each file, by its type, one of `TYPES`; vectors stay float32.
        base: Whose config, names and shapes they have.
        tokenizer: As `read_tokenizer` returns it.
        tensors: Of the merged model, in the order of `BaseFiles.names`.
        name: Of the model, for the metadata.

    Raises:
        OSError: If the disk is full or read-only.
    """
    from gguf import GGUFWriter

    arch = ARCHITECTURES[type(base.layers).__name__]
    writers: dict[str, Any] = {kind: GGUFWriter(path, arch) for kind, path in paths.items()}
    try:
        for kind, writer in writers.items():
            _begin(writer, base, tokenizer, kind, name)
        for own, tensor in tensors:
            ordered = _reorder(own, tensor.float(), base)
            for kind, writer in writers.items():
                writer.write_tensor_data(_convert(ordered, kind))
    except OSError as error:
        if error.errno is None:  # numpy says how many bytes were written, and not why no more
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    finally:
        for writer in writers.values():
            writer.close()


def _begin(writer: Any, base: BaseFiles, tokenizer: TokenizerFields, kind: str, name: str) -> None:
    """Write all that stands before the tensors of the base."""
    _add_config(writer, base, kind, name)
    tokenizer.add_to(writer)
    names = _name_tensors(base)
    factors = _rope_factors(base.config)
    if factors:
        count = len(factors)
        writer.add_tensor_info("rope_freqs.weight", (count,), np.dtype("f4"), 4 * count)
    for own in base.names:
        _announce(writer, names[own], base.shape(own), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors:
        writer.write_tensor_data(np.asarray(factors, dtype=np.float32))


def _convert(tensor: Tensor, kind: str) -> object:
    from gguf import GGMLQuantizationType, quants

    array = tensor.contiguous().numpy()
    return quants.quantize(array, GGMLQuantizationType[_type_of(tuple(tensor.shape), kind)])


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: str) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    stored = _type_of(shape, kind)
    if stored in ("F32", "F16"):
        dtype = np.dtype("f4" if stored == "F32" else "f2")
        writer.add_tensor_info(name, shape, dtype, math.prod(shape) * dtype.itemsize)
        return
    raw = GGMLQuantizationType[stored]
    taken = quant_shape_to_byte_shape(shape, raw)
    writer.add_tensor_info(name, taken, np.dtype("u1"), math.prod(taken), raw_dtype=raw)


def _type_of(shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1:
        return "F32"
    return "F16" if shape[-1] % 32 else TYPES[kind]  # a block of Q8_0 has 32 weights of a row


def _name_tensors(base: BaseFiles) -> dict[str, str]:
    """Return what GGUF calls each tensor."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    arch = MODEL_ARCH[ARCHITECTURES[type(base.layers).__name__].upper()]
    known = get_tensor_name_map(arch, base.config.num_hidden_layers)
    names = {x: known.get_name(x, try_suffixes=(".weight", ".bias")) for x in base.names}
    missing = [x for x, found in names.items() if found is None]
    require(not missing, f"export --to gguf: GGUF has no tensor for {', '.join(missing[:2])}")
    return {own: str(found) for own, found in names.items()}


def _reorder(name: str, tensor: Tensor, base: BaseFiles) -> Tensor:
    """Return a tensor as llama.cpp has it: in `llama`, pairs of a head are neighbours."""
    if ARCHITECTURES[type(base.layers).__name__] != "llama":
        return tensor
    projection = name.split(".")[-2]
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(projection)
    if heads is None:
        return tensor
    count = getattr(base.config, heads)
    halves = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _add_config(writer: Any, base: BaseFiles, kind: str, name: str) -> None:
    from gguf import LlamaFileType

    config: Any = base.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    context, window = config.max_position_embeddings, getattr(config, "sliding_window", None)
    is_windowed = window and ARCHITECTURES[type(base.layers).__name__] == "llama"
    writer.add_name(name)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{TYPES[kind]}"])
    # llama.cpp attends to all of the context; up to the window, that is the same.
    writer.add_context_length(min(context, window) if is_windowed else context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(base.shape(base.embedding)[0])
    rope = _rope(config)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if rope.get("rope_type") == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _rope(config: Any) -> Mapping[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _rope_factors(config: object) -> list[float] | None:
    """Return what Llama 3.1 divides each frequency by, or None for another rope."""
    if _rope(config).get("rope_type") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    head = len(scaled) * 2
    plain = 1 / _rope(config)["rope_theta"] ** (torch.arange(0, head, 2).float() / head)
    factors: list[float] = (plain / scaled).tolist()
    return factors
