"""Load a base model, frozen and in four bits (Dettmers et al., 2023)."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, find_adapter_config_file
from transformers.utils.quantization_config import BitsAndBytesConfig

from lit_sft.errors import InputError, require
from lit_sft.model.fast.embedding import find_frozen_layer
from lit_sft.model.fast.memory import WeightCache
from lit_sft.paths import is_local, locate, require_folder, require_own_shards, require_weights

PACKING = "support_avx512bf16_for_cpu"
SAMPLED_EVERY = 997
"""Rows of the embedding from one sampled to the next."""
VARYING_ROPE = ("dynamic", "longrope")
"""Position embeddings of a row that depend on the longest row beside it."""


@dataclass(frozen=True)
class Quantization:
    """How the frozen base is stored.

    Args:
        format: `nf4` and `fp4` store four bits a weight; `none` keeps the compute dtype.
        double_quant: Whether the scales of the four-bit blocks are quantised too.
        weight_cache: `bf16` keeps the rounded weights in the dtype of the arithmetic rather than
            in four bits, which is faster and gives the same numbers; `auto` does so where it takes
            up to half of the free memory, and `none` never.
    """

    format: Literal["nf4", "fp4", "none"] = "nf4"
    double_quant: bool = True
    weight_cache: WeightCache = "auto"


def read_base_config(base_model: str) -> PretrainedConfig:
    """Read the config of a base model, and see that its weights are there; none are read.

    Raises:
        InputError: If there is none, a folder lacks weights, or transformers would load something
            else than a run asks for: with an adapter that lies beside them, or quantised otherwise.
    """
    option = "model.base_model"
    if is_local(base_model) and not Path(locate(base_model), ADAPTER_CONFIG_NAME).is_file():
        folder = require_folder(base_model, holding="config.json", option=option)
        require_own_shards(folder, option)
        require_weights(folder, option)
    try:
        _require_no_adapter(base_model)
        # Said aloud, or transformers asks at a terminal, and runs the folder's code on a "y".
        read: Callable[..., PretrainedConfig] = AutoConfig.from_pretrained
        config = read(locate(base_model), trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError here
        raise InputError(
            f"{option}: no config of {base_model!r} could be read ({type(error).__name__}: {error})"
        ) from error
    if other := getattr(config, "transformers_weights", None):
        raise InputError(
            f"{option}: expected weights of the usual names, got a config.json of {base_model!r} "
            f"whose transformers_weights names {other!r}, which would be read; remove that key"
        )
    if stored := getattr(config, "quantization_config", None):
        method = stored.get("quant_method") if isinstance(stored, dict) else stored
        raise InputError(
            f"{option}: {base_model!r} is quantised already ({method}), and would be computed as "
            "its config says, whatever model.quantization does. Name the base that it was made of"
        )
    return config


def _require_no_adapter(base_model: str) -> None:
    """Refuse an adapter in the place of a base, or beside it: transformers puts it on the base."""
    found = find_adapter_config_file(locate(base_model))
    if found is None:
        return
    try:
        named = json.loads(Path(found).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        named = None
    of = f", of {named!r}" if named else ""
    raise InputError(
        f"model.base_model: {base_model!r} holds an adapter ({ADAPTER_CONFIG_NAME}{of}), which "
        "would be loaded with the base. Name the base alone, and the adapter as model.adapter; or "
        "merge the two, and save them as a base"
    )


def outline(base_model: str, config: PretrainedConfig) -> PreTrainedModel:
    """Return a base model without its weights, to see which layers it has.

    Args:
        base_model: What to call it.
        config: As `read_base_config` returns it.

    Raises:
        InputError: If it is no causal language model of transformers.
    """
    make: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
    try:
        with torch.device("meta"):
            return make(config, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise InputError(
            f"model.base_model: {base_model!r} is no causal language model that transformers can "
            f"build ({type(error).__name__}: {str(error).splitlines()[0]:.200})"
        ) from error


def require_fixed_positions(config: PretrainedConfig, max_length: int, runs_alone: bool) -> None:
    """Raise `InputError` if where a token stands would depend on the rows that it is run with.

    Args:
        config: Of the model.
        max_length: Tokens of the longest row.
        runs_alone: Whether each row is run without another.
    """
    text = config.get_text_config()
    for rope in _list_ropes(getattr(text, "rope_parameters", None)):
        kind = rope.get("rope_type", rope.get("type"))
        named = [getattr(text, f"{x}max_position_embeddings", None) for x in ("original_", "")]
        own = rope.get("original_max_position_embeddings")
        limit = next((x for x in (own, *named) if x is not None), None)
        require(
            kind not in VARYING_ROPE or runs_alone or limit is None or max_length <= limit,
            f"model.base_model: its position embedding ({kind}) changes for all rows of a pass if "
            f"one has over {limit} tokens; set data.max_length to that at most, got {max_length}, "
            "or run each row alone, with data.batching padded and data.batch_size 1",
        )


def _list_ropes(parameters: object) -> list[dict[str, Any]]:
    """Return the parameters of a rotary embedding, which models may have by kind of layer."""
    if not isinstance(parameters, dict):
        return []
    return [value for value in parameters.values() if isinstance(value, dict)] or [parameters]


def load_base(
    base_model: str, quantization: Quantization, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """Load the frozen base onto a device.

    Args:
        base_model: A Hub id or a folder.
        quantization: Of the linear layers; embedding, head and norms stay in `dtype`.
        dtype: What the weights are computed in.
        device: Where they go, straight from the file.

    Raises:
        InputError: If weights of the base are missing, or of another shape.
    """
    model: PreTrainedModel
    model, report = _load_weights(base_model, quantization, dtype, device)
    missing = sorted(report["missing_keys"])
    require(
        not missing,
        f"model.base_model: {base_model!r} lacks {len(missing)} of its weights, which would be "
        f"random, such as {', '.join(missing[:3])}. Is it whole, and a causal language model?",
    )
    model.requires_grad_(False)
    model.config.use_cache = False
    forbid_packing(model)
    return model


def _load_weights(
    base_model: str, quantization: Quantization, dtype: torch.dtype, device: torch.device
) -> Any:
    """Return a base as transformers loads it, and a report of what was missing."""
    kwargs: dict[str, Any] = {}
    if quantization.format != "none":
        describe: Callable[..., Any] = BitsAndBytesConfig
        kwargs["quantization_config"] = describe(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.format,
            bnb_4bit_use_double_quant=quantization.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    with without_progress_bar() if is_local(base_model) else nullcontext():
        try:
            return load(
                locate(base_model),
                dtype=dtype,
                device_map={"": device},
                trust_remote_code=False,
                output_loading_info=True,
                **kwargs,
            )
        except (AttributeError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise InputError(  # such as of a 4-bit layer for which the file has no weight
                f"model.base_model: the weights of {base_model!r} do not fit its config; are all "
                f"there? ({type(error).__name__}: {str(error).splitlines()[0]:.150})"
            ) from error


def fingerprint_base(model: nn.Module) -> str:
    """Return a SHA-256 of the base's norms and of some rows of its embedding, in hexadecimal.

    These are never quantised and take no time to read. They are rounded to bfloat16 first, so that
    the dtype in which a base is loaded changes nothing. Two models that share both, such as one and
    what became of it by a LoRA on its attention layers, are taken for the same.

    Args:
        model: As it was loaded, or with LoRA and token rows, which change nothing of what is read;
            DoRA's magnitudes, and embeddings or norms that are trained, would.
    """
    digest = hashlib.sha256()
    embedding = find_frozen_layer(model.get_input_embeddings())  # type: ignore[operator]
    tensors = [p for _, p in sorted(model.named_parameters()) if p.ndim == 1]
    for tensor in [*tensors, embedding.weight[::SAMPLED_EVERY]]:
        digest.update(tensor.detach().bfloat16().cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """A download is worth a bar; reading a local file is not."""
    bar: Any = transformers_logging
    was_enabled = bar.is_progress_bar_enabled()
    bar.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            bar.enable_progress_bar()


def forbid_packing(model: nn.Module) -> None:
    """Keep bitsandbytes from packing the weights of a CPU model for inference.

    On a CPU with AVX512-BF16 the first forward in eval mode packs them in a layout that has no
    backward: from then on training drops the gradient through every quantised layer, silently.

    Args:
        model: However it was loaded.
    """
    for module in model.modules():
        if hasattr(module, PACKING):
            setattr(module, PACKING, False)
