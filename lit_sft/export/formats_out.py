"""The four formats of an export: what each writes, and how what it wrote is run again."""

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import LlamaConfig

from lit_sft.errors import require
from lit_sft.export.base_files import BaseFiles
from lit_sft.export.card import name_source
from lit_sft.export.gguf_file import (
    ARCHITECTURES,
    TYPES,
    require_convertible,
    require_gguf,
    write_gguf,
)
from lit_sft.export.gguf_tokenizer import read_tokenizer
from lit_sft.export.landing import write_config, write_surroundings
from lit_sft.export.merge import Onto, merge_tensors, require_known_layers, write_shards
from lit_sft.export.modelfile import make_modelfile
from lit_sft.export.plain_adapter import require_rank, write_adapter, write_vllm_adapter
from lit_sft.export.trained_run import TrainedRun
from lit_sft.model.base_model import without_progress_bar
from lit_sft.paths import locate

Format = Literal["adapter", "vllm", "merged", "gguf"]
BY_TRIAL = (
    "llama.cpp splits text by its {split}, which is not this tokenizer's rule; on {count} texts of "
    "held-out prompts, the tokens are the same"
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """A file or a folder that can be run.

    Args:
        format: It is of.
        base: That it is merged onto, or put on.
        engine: What runs it.
        load: Return it as a model, in a dtype.
        name: Of the file; empty for the folder.
        remark: What is to be known of it, if anything.
    """

    format: Format
    base: Onto
    engine: str
    load: Callable[[torch.dtype], nn.Module]
    name: str = ""
    remark: str = ""


def require_exportable(run: TrainedRun, to: Format) -> None:
    """Raise `InputError` if a run cannot be exported so; no weights of the base are read."""
    require(
        run.lora is not None or to not in ("adapter", "vllm"),
        f"export --to {to}: the run trained all weights, and has no adapter; {run.folder.model} is "
        "for transformers and vLLM as it is, or say --to merged",
    )
    if to != "adapter":
        require_known_layers(run.base, run.weights)
    require(
        to != "vllm" or not run.weights.magnitudes,
        "export --to vllm: vLLM refuses adapters of DoRA (model.lora.use_dora); it loads the "
        "merged model: --to merged",
    )
    require(
        to != "vllm" or not run.weights.whole,
        "export --to vllm: vLLM refuses adapters that hold whole layers "
        "(model.lora.modules_to_save); it loads the merged model: --to merged",
    )
    if to == "vllm" and run.weights.rows:
        require_rank(run)
    if to == "gguf":
        require_gguf()
        require_convertible(run.base)


def choose_dtype(run: TrainedRun, named: str) -> torch.dtype:
    """Return the dtype of merged weights: that of the published base, where none is named."""
    require(
        named in (*DTYPES, "auto"),
        f"--dtype must be one of auto, {', '.join(DTYPES)}, got {named!r}",
    )
    published: Any = getattr(run.base.config, "dtype", None)
    default: torch.dtype = published if published in DTYPES.values() else torch.float32
    return DTYPES.get(named, default)


def write_export(
    folder: Path,
    run: TrainedRun,
    to: Format,
    onto: Onto,
    dtype: torch.dtype,
    texts: Sequence[str],
) -> list[Exported]:
    """Write an export, and return what there is to run.

    Args:
        folder: That is being written.
        run: As `read_run` returns it.
        to: The format.
        onto: What merged weights are merged onto.
        dtype: Of merged weights.
        texts: On which a tokenizer is tried that no rule names.

    Raises:
        InputError: If the run cannot be exported so.
    """
    folder.mkdir(exist_ok=True)
    if to != "gguf":  # whose files hold it
        write_surroundings(folder, run.tokenizer, run.generation_config)
    if to == "adapter":
        write_adapter(folder, run)
        return []
    if to == "vllm":
        write_vllm_adapter(folder, run)
        return [
            Exported(
                "vllm", "original", "PEFT", lambda other: load_on_published(run, folder, other)
            )
        ]
    if to == "merged":
        write_shards(folder, run.base, merge_tensors(run, onto), dtype)
        write_config(folder, run.base, dtype)
        return [Exported("merged", onto, "transformers", lambda other: load_folder(folder, other))]
    return _write_gguf_files(folder, run, onto, texts)


def load_folder(folder: Path | str, dtype: torch.dtype, **options: object) -> nn.Module:
    """Return a folder as transformers loads it, in eval mode."""
    from transformers import AutoModelForCausalLM

    load: Callable[..., nn.Module] = AutoModelForCausalLM.from_pretrained
    with without_progress_bar():
        return load(folder, dtype=dtype, **options).eval()


def load_on_published(run: TrainedRun, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Return an adapter's folder as PEFT loads it, on the published base: that is what vLLM has."""
    from peft import PeftModel

    published: Any = load_folder(locate(run.base.base_model), dtype)
    load: Callable[..., nn.Module] = PeftModel.from_pretrained
    with warnings.catch_warnings():  # of tied layers, which hold the same rows here
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        return load(published, str(folder)).eval()


def _write_gguf_files(
    folder: Path, run: TrainedRun, onto: Onto, texts: Sequence[str]
) -> list[Exported]:
    base, tokenizer = run.base, run.tokenizer
    fields = read_tokenizer(tokenizer, base.shape(base.embedding)[0], texts)
    name = f"{name_source(base.base_model).rpartition('/')[2]}-lit-sft"
    remark = "" if fields.is_exact else BY_TRIAL.format(split=fields.split, count=len(texts))
    files = {kind: f"{name}-{kind}.gguf" for kind in TYPES}
    paths = {kind: folder / file for kind, file in files.items()}
    write_gguf(paths, base, fields, merge_tensors(run, onto), name)
    text, _ = make_modelfile(tokenizer, f"{name}-q8_0.gguf", run.stop_ids)
    (folder / "Modelfile").write_text(text, encoding="utf-8")
    return [
        Exported(
            "gguf", onto, "transformers", _gguf_loader(base, folder, file), file,
            "" if number else remark,  # once is enough
        )
        for number, file in enumerate(files.values())
    ]  # fmt: skip


def _gguf_loader(base: BaseFiles, folder: Path, file: str) -> Callable[[torch.dtype], nn.Module]:
    """Return what loads a file's tensors; of its metadata, transformers reads a part alone."""
    kind = type(base.config)
    if ARCHITECTURES[type(base.layers).__name__] == "llama":  # Mistral's, too
        kind = LlamaConfig
    own = {
        k: v for k, v in base.config.to_dict().items() if k not in ("model_type", "architectures")
    }
    config = kind.from_dict(own)

    def load(dtype: torch.dtype) -> nn.Module:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar that no option of it takes away
            return load_folder(folder, dtype, gguf_file=file, config=config)

    return load
