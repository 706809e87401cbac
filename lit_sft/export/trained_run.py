"""A run as it was trained: its base, its adapter's tensors, its tokenizer; read without a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from lit_sft.data.tokenizer import hash_template, load_tokenizer
from lit_sft.errors import require
from lit_sft.export.adapter_weights import AdapterWeights, split_weights, take_whole
from lit_sft.export.base_files import BaseFiles, open_base
from lit_sft.export.landing import make_generation_config
from lit_sft.model.adapter import Lora
from lit_sft.model.base_model import Quantization
from lit_sft.model.device import compute_dtype
from lit_sft.model.principal import double_rank, join_starts
from lit_sft.run.chosen_checkpoint import read_checkpoint
from lit_sft.run.folder import RunFolder
from lit_sft.run.identity import read_run as read_identity
from lit_sft.run.origin import read_options


@dataclass(frozen=True)
class TrainedRun:
    """What there is to export.

    Args:
        folder: Of the run.
        options: As its `config.yaml` has them, or its script had.
        checkpoint: The file that was read.
        described: Which that is, in words.
        step: Optimizer steps that it had taken.
        steps_taken: Of the run by now.
        best_by: The figure that these weights are the best by; None for any others.
        base: What it was trained on.
        lora: The shape of the adapter; None where all weights were trained.
        quantization: How the base was stored.
        dtype: What the base was computed in.
        weights: Of the adapter.
        tokenizer: With the chat template of training.
        state: The trained parameters of the checkpoint, by its names.
    """

    folder: RunFolder
    options: Mapping[str, Any]
    checkpoint: Path
    described: str
    step: int
    steps_taken: int
    best_by: str | None
    base: BaseFiles
    lora: Lora | None
    quantization: Quantization
    dtype: torch.dtype
    weights: AdapterWeights
    tokenizer: PreTrainedTokenizerBase
    state: dict[str, Tensor]

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """How it answers, wherever it lands."""
        return make_generation_config(self.tokenizer, self.base.config, self.base.generation_config)

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer."""
        ids: Any = self.generation_config.eos_token_id
        return list(ids)


def read_run(run: str | Path, checkpoint: str | None = None) -> TrainedRun:
    """Read one of a run's checkpoints; of the base, its config and its fingerprint.

    A run that was interrupted will do: what it had saved by then is read.

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
    chosen = read_checkpoint(folder, checkpoint)
    path, loaded = chosen.path, chosen.content
    options = read_options(folder, loaded)
    require(
        "model" in options and "data" in options,
        f"export: {str(run)!r} has no config.yaml, which says what it was trained on; name the "
        "folder of a run (trainer.default_root_dir)",
    )
    model, data, identity = options["model"], options["data"], read_identity(loaded["run"])
    base = open_base(model["base_model"])
    _require_same_base(base, identity)
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
    token_ids = _find_token_ids(identity.get("model.trainable_tokens", ""), tokenizer)
    lora, state = _read_lora(model.get("lora") or {}, identity), loaded["state_dict"]
    if lora and "lora_starts" in loaded:  # from here on it is plain LoRA
        starts = {f"_model.{name}": start for name, start in loaded["lora_starts"].items()}
        lora, state = double_rank(lora), join_starts(state, starts)
    if lora:
        alpha = lora.scaling * lora.r  # as rsLoRA scales otherwise
        weights = split_weights(state, lora.r, alpha, token_ids, str(path))
    else:
        weights = take_whole(state)
    stored = {x: identity[f"model.quantization.{x}"] for x in ("format", "double_quant")}
    quantization = Quantization(**stored)
    return TrainedRun(
        folder, options, path, chosen.describe(), loaded["global_step"], chosen.steps_taken,
        chosen.best_by, base, lora, quantization, dtype, weights, tokenizer, state,
    )  # fmt: skip


def _read_lora(options: Mapping[str, Any], identity: Mapping[str, object]) -> Lora | None:
    """Return the shape of an adapter; None where all weights were trained.

    What decides numbers is the checkpoint's; a config may have been changed since.

    Args:
        options: `model.lora` of the config.
        identity: What the checkpoint says of its run.
    """
    names = ("r", "alpha", "dropout", "use_rslora", "use_dora", "init_weights", "modules_to_save")
    shape = {x: identity[f"model.lora.{x}"] for x in names}
    return None if shape["r"] is None else Lora(**{**options, **shape})


def _require_same_base(base: BaseFiles, identity: Mapping[str, Any]) -> None:
    here, there = base.fingerprint, identity.get("model.base_model")
    require(
        here == there,
        f"export: the run was trained on another base than {base.base_model!r} is now (fingerprint "
        f"{str(there)[:12]}; here it is {here[:12]}); put back the one that it was trained on",
    )


def _find_token_ids(names: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens whose rows were trained, in the order of the rows.

    Args:
        names: As a checkpoint has them.
        tokenizer: Of training.
    """
    if not names:
        return ()
    listed = names.split(", ")
    ids: Any = tokenizer.convert_tokens_to_ids(listed)
    require(
        tokenizer.convert_ids_to_tokens([x or 0 for x in ids]) == listed,
        f"export: the run trained the rows of {names}, and the tokenizer does not have all of "
        "them; put back the one of training",
    )
    return tuple(ids)
