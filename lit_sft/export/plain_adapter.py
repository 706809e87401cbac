"""The adapter's folder without its model: as PEFT writes it, and as vLLM reads it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_sft.errors import require
from lit_sft.export.card import name_source
from lit_sft.export.trained_run import TrainedRun
from lit_sft.model.adapter import find_targets, name_token_layers
from lit_sft.model.saved_adapter import WEIGHTS

PREFIX = "base_model.model."


def write_adapter(folder: Path, run: TrainedRun) -> None:
    """Write what PEFT reads: weights and config.

    Args:
        folder: That is being written.
        run: As `read_run` returns it.
    """
    tensors = {
        name.removeprefix("_model.").replace(".default", ""): tensor.contiguous()
        for name, tensor in run.state.items()
    }
    rows = name_token_layers(run.base.layers, run.weights.token_ids) if run.weights.rows else None
    _write(folder, run, tensors, _find_targets(run), rows)


def write_vllm_adapter(folder: Path, run: TrainedRun) -> None:
    """Write what vLLM reads: trained token rows as LoRA on the embedding and the head.

    `A` picks the tokens, and `B` holds what is added to their rows, so that the product is exact,
    where the rank is no less than the number of rows.

    Args:
        folder: That is being written.
        run: As `read_run` returns it.

    Raises:
        InputError: If there are more rows than the rank.
    """
    weights = run.weights
    require_rank(run)
    tensors: dict[str, Tensor] = {}
    for layer, (a, b) in weights.pairs.items():
        tensors |= {f"{PREFIX}{layer}.lora_A.weight": a, f"{PREFIX}{layer}.lora_B.weight": b}
    names = _name_row_layers(run) if weights.rows else {}
    for layer, kind in names.items():
        difference = _row_difference(run, layer, kind) / weights.scale
        picks = torch.zeros(weights.rank, run.base.shape(run.base.embedding)[0])
        picks[range(len(weights.token_ids)), list(weights.token_ids)] = 1
        padded = torch.zeros(weights.rank, difference.shape[1])
        padded[: len(difference)] = difference
        tensors |= _row_tensors(f"{PREFIX}{layer}", kind, picks, padded)
    targets = _find_targets(run)
    if names:
        require(
            not isinstance(targets, str),
            "export: with model.lora.target_modules as a regular expression, embedding and head "
            "cannot be named beside it; export it with --to merged",
        )
        targets = [*targets, *(name.rpartition(".")[2] for name in names)]
    _write(folder, run, {k: v.contiguous() for k, v in tensors.items()}, targets, None)


def require_rank(run: TrainedRun) -> None:
    """Raise `InputError` unless the trained token rows fit into the rank of the LoRA."""
    rows, rank = len(run.weights.token_ids), run.weights.rank
    require(
        rows <= rank,
        f"export --to vllm: {rows} token rows were trained, and a LoRA of rank {rank} holds {rank} "
        "at most exactly; vLLM loads the merged model: --to merged",
    )


def _row_tensors(place: str, kind: str, picks: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """Return A and B of an embedding or a head.

    Args:
        place: Of the layer, by PEFT's prefix.
        kind: `embedding` or `head`.
        picks: `[rank, vocabulary]`, 1 at each token of a rank.
        rows: `[rank, hidden]`.
    """
    if kind == "embedding":
        return {f"{place}.lora_embedding_A": picks, f"{place}.lora_embedding_B": rows.T}
    return {f"{place}.lora_A.weight": rows, f"{place}.lora_B.weight": picks.T}


def _name_row_layers(run: TrainedRun) -> dict[str, str]:
    """Return embedding and head by their full names, whether they are tied or not."""
    layers: Any = run.base.layers
    found = {
        id(layers.get_input_embeddings()): "embedding",
        id(layers.get_output_embeddings()): "head",
    }
    return {name: found[id(x)] for name, x in layers.named_modules() if id(x) in found}


def _row_difference(run: TrainedRun, layer: str, kind: str) -> Tensor:
    """Return what is added to the trained rows, float32 `[rows, hidden]`."""
    base, weights = run.base, run.weights
    is_own = layer in weights.rows
    stored = f"{layer}.weight" if is_own else base.embedding
    rows = weights.rows[stored.removesuffix(".weight")]
    frozen = base.read(stored)[list(weights.token_ids)]
    return rows - frozen.to(run.dtype).float()


def _find_targets(run: TrainedRun) -> list[str] | str:
    return find_targets(run.base.layers, run.lora.target_modules)


def _write(
    folder: Path,
    run: TrainedRun,
    tensors: dict[str, Tensor],
    targets: list[str] | str,
    rows: dict[str, list[int]] | None,
) -> None:
    from peft import LoraConfig

    lora = run.lora
    config: Any = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.use_rslora,
        target_modules=targets,
        trainable_token_indices=rows,
        task_type="CAUSAL_LM",
        base_model_name_or_path=name_source(run.base.base_model),
        inference_mode=True,
    )
    if not isinstance(targets, str):
        config.target_modules = sorted(targets)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(folder)
