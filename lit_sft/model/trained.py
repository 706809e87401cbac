"""What answers as it did in training: found by its run, its own folder or its Hub id.

It is computed as in training, with all that makes that fast; `lit_sft.export.trained_model` loads a
run's checkpoint as a plain model of PEFT.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sft.data.prompts import find_stop_ids
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError, require
from lit_sft.model.adapter import Lora
from lit_sft.model.adapter_shape import take_shape
from lit_sft.model.base_model import Quantization
from lit_sft.model.build import build_model, require_trainable
from lit_sft.model.device import choose_precision, compute_dtype, describe_device, find_device
from lit_sft.model.fast.attention import use_attention
from lit_sft.model.module import SFTModule
from lit_sft.model.saved_adapter import (
    CONFIG,
    PROVENANCE,
    read_adapter_config,
    read_adapter_tokens,
)
from lit_sft.paths import is_local
from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder
from lit_sft.run.origin import read_options

if TYPE_CHECKING:
    from peft import PeftModel


class Source(NamedTuple):
    """An adapter, and how its base was loaded; or a model that was trained as a whole."""

    adapter: str | None
    """A folder or a Hub id; None where there is none, and the base is what was trained."""
    base: str
    quantization: Quantization
    precision: str | None
    """As it was trained in; None where that is not known."""


class Trained(NamedTuple):
    """A model that answers."""

    model: "PeftModel | PreTrainedModel"
    """In eval mode, on its device."""
    tokenizer: PreTrainedTokenizerBase
    stop_ids: list[int]
    """Tokens that end an answer."""
    dtype: torch.dtype
    """What it is computed in."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context to compute in, the one of training."""
        if self.dtype == torch.float32:
            return nullcontext()
        device: torch.device = next(self.model.parameters()).device
        return torch.autocast(device.type, self.dtype)


def find_trained(place: str, base: str | None = None) -> Source:
    """Return the adapter of a run, of an adapter's folder or of a Hub id; no weights are touched.

    Args:
        place: Where it is.
        base: In place of the base that the run or the adapter names.

    Raises:
        InputError: If there is no adapter, or it does not say what it belongs to.
    """
    adapter, folder = place, None
    if is_local(place):
        path = Path(place).expanduser()
        require(path.is_dir(), f"there is no folder {place!r} (a Hub id reads owner/name)")
        is_adapter = (path / CONFIG).is_file()
        if whole := _find_whole(path):
            return whole
        folder = find_run(path.resolve().parent) if is_adapter else RunFolder(path)
        adapter = str(path if is_adapter else RunFolder(path).adapter)
        require_adapter(path, "chat")
    config = read_options(folder, _load_last(folder)) if folder else {}
    model, trainer = config.get("model") or {}, config.get("trainer") or {}
    named = base or model.get("base_model") or _name_base(adapter)
    quantization = Quantization(**model["quantization"]) if "quantization" in model else None
    precision = trainer.get("precision")
    return Source(adapter, named, quantization or Quantization(), precision)


def load_source(source: Source, accelerator: str = "auto") -> Trained:
    """Load a base and its adapter as they were trained, to answer.

    Args:
        source: As `find_trained` returns it.
        accelerator: As `lightning.Trainer` takes it.

    Raises:
        InputError: If the base is another, or cannot be found, or the adapter is not plain LoRA.
    """
    lora = None
    if source.adapter:
        lora = take_shape(source.adapter, read_adapter_config(source.adapter), Lora())
    module = SFTModule(
        source.base, quantization=source.quantization, lora=lora, adapter=source.adapter
    )
    try:
        require_trainable(module)  # reads configs alone, and refuses what is not plain LoRA
    except InputError as error:
        if not str(error).startswith("model.base_model"):
            raise
        raise InputError(f"{error}; name the base that is meant with --base") from error
    tokens = read_adapter_tokens(source.adapter) if source.adapter else []
    rows = module.count_embeddings()
    require(
        rows is None or max(tokens, default=-1) < rows,
        f"the adapter {source.adapter!r} has trained a row of token {max(tokens, default=0)}, and "
        f"{source.base!r} has {rows} tokens: it is not the base that it was trained on",
    )
    tokenizer = load_tokenizer(_place_tokenizer(source))
    device = find_device(accelerator)
    precision = choose_precision(describe_device(device))[0]
    if source.precision in ("32-true", "bf16-mixed") and describe_device(device).has_bf16:
        precision = source.precision
    dtype = compute_dtype(precision)
    model = build_model(module, tokenizer, dtype, device).model.eval()
    model.requires_grad_(False)
    use_attention(model, packed=False)
    named: Any = model.generation_config
    stop_ids = find_stop_ids(tokenizer, model.config.get_text_config(), model.config, named)
    return Trained(model, tokenizer, stop_ids, dtype)


def _place_tokenizer(source: Source) -> str:
    """Return where the tokenizer is: of an adapter that PEFT saved by itself, with its base."""
    own = source.adapter
    has_none = own and is_local(own) and not (Path(own).expanduser() / "tokenizer.json").is_file()
    return source.base if own is None or has_none else own


def _find_whole(path: Path) -> Source | None:
    """Return the model of a run that trained all weights, by the run's folder or its own."""
    is_own = (path / PROVENANCE).is_file() and (path / "config.json").is_file()
    model = path if is_own else RunFolder(path).model
    if not model.is_dir():
        return None
    precision = (RunFolder(model.parent).read_config().get("trainer") or {}).get("precision")
    return Source(None, str(model), Quantization("none"), precision)


def find_run(place: Path) -> RunFolder | None:
    """Return the run that an adapter's folder lies in: `adapter/`, or `export/adapter/`."""
    found = (RunFolder(x) for x in (place, *list(place.parents)[:1]))
    return next((x for x in found if x.config.is_file() or x.last_checkpoint.is_file()), None)


def require_adapter(place: Path, who: str) -> None:
    """Raise `InputError` if a folder neither is an adapter's, nor that of a run that left one.

    Args:
        place: A run's folder, or an adapter's.
        who: Asks, for the error.
    """
    folder = RunFolder(place)
    if folder.model.is_dir() or any((x / CONFIG).is_file() for x in (place, folder.adapter)):
        return
    if folder.last_checkpoint.is_file():
        raise InputError(
            f"{who}: the run in {str(place)!r} has no adapter yet: it has not ended; end it with "
            f"lit-sft fit --config {folder.config} --ckpt_path last, or take what it has saved: "
            f"lit-sft export {place} --to adapter, and {who} {folder.export / 'adapter'}"
        )
    raise InputError(
        f"{who}: {str(place)!r} is neither a run's folder with an {folder.adapter.name}/ nor an "
        f"adapter's with an {CONFIG}"
    )


def _load_last(folder: RunFolder) -> dict[str, object]:
    """Return the last checkpoint of a run that has no config to tell of it."""
    if folder.config.is_file() or not folder.last_checkpoint.is_file():
        return {}
    return AtomicCheckpointIO().load_checkpoint(folder.last_checkpoint)


def _name_base(adapter: str) -> str:
    base = read_adapter_config(adapter).get("base_model_name_or_path")
    require(bool(base), f"{adapter!r} does not name its base; say it with --base")
    return str(base)
