"""A run as it was trained: its base, its adapter's tensors, its tokenizer; read without a model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_sft.data.tokenizer import hash_template, load_tokenizer
from lit_sft.errors import InputError, require
from lit_sft.export.base_files import BaseFiles, open_base
from lit_sft.model.adapter import Lora
from lit_sft.model.base_model import Quantization
from lit_sft.model.device import compute_dtype
from lit_sft.model.saved_adapter import read_adapter_tokens
from lit_sft.model.untrained_tokens import choose_tokens
from lit_sft.run.checkpoint_io import AtomicCheckpointIO
from lit_sft.run.folder import RunFolder

TRAINED = re.compile(
    r"(?:_model\.)?base_model\.model\.(?P<layer>.+)\.lora_(?P<part>[AB])(\.\w+)?\.weight"
)
ROWS = re.compile(
    r"(?:_model\.)?base_model\.model\.(?P<layer>.+)\.token_adapter\.trainable_tokens_delta(\.\w+)?"
)


@dataclass(frozen=True)
class AdapterWeights:
    """The tensors of an adapter, by the layers that they change.

    Args:
        rank: Of the LoRA.
        alpha: The update is scaled by `alpha / rank`.
        pairs: A `[rank, in]` and B `[out, rank]`, float32, by the full name of the layer.
        token_ids: Whose rows are trained, in the order of `rows`.
        rows: `[token_ids, hidden]`, what stands for these rows, by the full name of the layer.
    """

    rank: int
    alpha: float
    pairs: dict[str, tuple[Tensor, Tensor]]
    token_ids: tuple[int, ...] = ()
    rows: dict[str, Tensor] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """What `B @ A` is multiplied with."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class TrainedRun:
    """What there is to export.

    Args:
        folder: Of the run.
        checkpoint: The file that was read.
        step: Optimizer steps that it had taken.
        base: What it was trained on.
        quantization: How the base was stored.
        dtype: What the base was computed in.
        weights: Of the adapter.
        tokenizer: With the chat template of training.
        state: The trained parameters of the checkpoint, by its names.
    """

    folder: RunFolder
    checkpoint: Path
    step: int
    base: BaseFiles
    quantization: Quantization
    dtype: torch.dtype
    weights: AdapterWeights
    tokenizer: PreTrainedTokenizerBase
    state: dict[str, Tensor]


def read_run(run: str | Path, checkpoint: str | None = None) -> TrainedRun:
    """Read a run's config and one of its checkpoints; of the base, its config and embedding.

    Args:
        run: Its folder.
        checkpoint: `best`, `last` or a file; None takes the best where a metric was monitored,
            else the last.

    Raises:
        InputError: If the run is not one, has saved nothing yet, or is of another base than is
            here.
    """
    folder = RunFolder(run)
    require(folder.root.is_dir(), f"export: there is no run folder {str(run)!r}")
    config = folder.read_config()
    require(
        "model" in config and "data" in config,
        f"export: {str(run)!r} has no config.yaml, which says what it was trained on; name the "
        "folder of a run (trainer.default_root_dir)",
    )
    path = find_checkpoint(folder, checkpoint)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    require("run" in loaded, f"export: {str(path)!r} is no checkpoint of this trainer's")
    model, identity = config["model"], loaded["run"]
    base = open_base(model["base_model"])
    _require_same_base(base, identity)
    data = config["data"]
    tokenizer = load_tokenizer(
        data.get("tokenizer") or base.base_model,
        data.get("chat_template"),
        data.get("template_kwargs"),
    )
    template = hash_template(tokenizer)
    require(
        identity.get("data.chat_template", template) == template,
        "export: the chat template is not the one of training any more; put back the tokenizer or "
        "the template's file that config.yaml names",
    )
    dtype = compute_dtype(identity["trainer.precision"])
    token_ids = _find_token_ids(base, model, tokenizer, dtype, identity)
    lora = Lora(**model.get("lora") or {})
    weights = split_weights(loaded["state_dict"], lora.r, lora.alpha, token_ids, str(path))
    quantization = Quantization(**model.get("quantization") or {})
    step, state = loaded["global_step"], loaded["state_dict"]
    return TrainedRun(folder, path, step, base, quantization, dtype, weights, tokenizer, state)


def find_checkpoint(folder: RunFolder, wanted: str | None) -> Path:
    """Return the checkpoint that is asked for; as `read_run` has it.

    Raises:
        InputError: If there is none.
    """
    if wanted not in (None, "best", "last"):
        require(Path(str(wanted)).is_file(), f"--checkpoint: there is no file {wanted!r}")
        return Path(str(wanted))
    require(
        folder.last_checkpoint.is_file(),
        f"export: the run {str(folder.root)!r} has saved no checkpoint yet; train it with lit-sft "
        "fit, or go on with it (--ckpt_path last)",
    )
    best = _find_best(folder) if wanted != "last" else None
    require(
        best is not None or wanted != "best",
        f"--checkpoint best: {str(folder.root)!r} kept none; lightning.pytorch.callbacks."
        "ModelCheckpoint with a monitor keeps one. Use --checkpoint last",
    )
    return best or folder.last_checkpoint


def split_weights(
    state: Mapping[str, Tensor], rank: int, alpha: float, token_ids: tuple[int, ...], what: str
) -> AdapterWeights:
    """Sort the tensors of an adapter by the layers that they change.

    Raises:
        InputError: If one is neither LoRA's nor a token's row, such as of DoRA.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    rows: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if found := TRAINED.fullmatch(name):
            parts.setdefault(found["layer"], {})[found["part"]] = tensor.float()
        elif found := ROWS.fullmatch(name):
            rows[found["layer"]] = tensor.float()
        else:
            raise InputError(
                f"export: {what!r} holds {name!r}, which is no part of plain LoRA (DoRA and "
                "modules_to_save are not exported here); merge it with PEFT's merge_and_unload"
            )
    pairs = {layer: (pair["A"], pair["B"]) for layer, pair in parts.items()}
    return AdapterWeights(rank, alpha, pairs, token_ids, rows)


def _find_best(folder: RunFolder) -> Path | None:
    """Return the best checkpoint that Lightning's ModelCheckpoint has kept, wherever it is now."""
    callbacks = AtomicCheckpointIO().load_checkpoint(folder.last_checkpoint).get("callbacks", {})
    for name, state in callbacks.items():
        if not name.startswith("ModelCheckpoint") or not state.get("monitor"):
            continue
        path = Path(state.get("best_model_path") or "")
        for place in (path, folder.last_checkpoint.parent / path.name):  # the run may have moved
            if path.name and place.is_file():
                return place
    return None


def _require_same_base(base: BaseFiles, identity: Mapping[str, Any]) -> None:
    here, there = base.fingerprint(), identity.get("model.base_model")
    require(
        here == there,
        f"export: the run was trained on another base than {base.base_model!r} is now (fingerprint "
        f"{str(there)[:12]}; here it is {here[:12]}); put back the one that it was trained on",
    )


def _find_token_ids(
    base: BaseFiles,
    model: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    identity: Mapping[str, Any],
) -> tuple[int, ...]:
    if not identity.get("model.trainable_tokens"):
        return ()
    if model.get("adapter"):
        ids = tuple(read_adapter_tokens(model["adapter"]))
    else:
        embedding = base.read(base.embedding).to(dtype)
        ids = tuple(choose_tokens(model.get("trainable_tokens", "auto"), embedding, tokenizer))
    named: Any = tokenizer.convert_ids_to_tokens(list(ids))
    require(
        ", ".join(named) == identity["model.trainable_tokens"],
        f"export: the run trained the rows of {identity['model.trainable_tokens']}, and the "
        f"tokenizer now gives {', '.join(named)}; put back the one of training",
    )
    return ids
