"""Export a run: write it whole or not at all, compare it with what was trained, and say so."""

import gc
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lit_sft.errors import require
from lit_sft.export.certificate import (
    FILE,
    Bound,
    Certificate,
    GradeFunction,
    compare,
    refer,
)
from lit_sft.export.export_card import format_export_card, make_card
from lit_sft.export.formats_out import (
    Exported,
    Format,
    choose_dtype,
    require_exportable,
    write_export,
)
from lit_sft.export.landing import saying_refusals, write_provenance
from lit_sft.export.merge import Onto
from lit_sft.export.trained_model import build_trained
from lit_sft.export.trained_run import TrainedRun, read_run
from lit_sft.files import replace_folder
from lit_sft.model.fast.memory import free_memory_bytes
from lit_sft.types import Prompt


class HeldOut(NamedTuple):
    """What an export is compared on."""

    split: str
    """Of the run's data: `val` or `test`."""
    prompts: Sequence[Prompt]
    grade: GradeFunction | None
    """None where the task grades nothing."""
    max_new_tokens: int


OTHER = "onto_trained"
"""A folder within the one that is written, for as long as it is compared."""


class ExportResult(NamedTuple):
    """What an export came to."""

    folder: Path
    certificates: list[Certificate]
    """Of each file that can be run; empty where nothing was compared."""
    other: Certificate | None = None
    """What merging onto the base that was trained on gives, where the published one fell short."""
    remarks: Sequence[str] = ()
    """What is to be known of the files."""
    source: str = ""
    """Which checkpoint they are of, in words."""

    @property
    def shortfalls(self) -> list[str]:
        """In words, where it falls short of its bound."""
        return [text for one in self.certificates for text in one.shortfalls()]


def export_read_run(
    run: TrainedRun,
    to: Format,
    output: Path,
    onto: Onto,
    dtype: str,
    held_out: HeldOut | None,
    bound: Bound,
) -> ExportResult:
    """Export a run that was read.

    Args:
        run: As `read_run` returns it.
        to: The format.
        output: The folder; it must be empty or not be there.
        onto: What merged weights are merged onto.
        dtype: Of merged weights, or `auto`.
        held_out: What it is compared on; None compares nothing.
        bound: What it has to keep to.

    Raises:
        InputError: If the run cannot be exported so, or the folder holds something.
        SaveError: If the disk is full or read-only; nothing is left under the folder's name.
    """
    require_empty(output)
    require_exportable(run, to)
    kind = choose_dtype(run, dtype)
    is_proven = held_out is not None and to != "adapter"
    compared = Comparison(run, held_out, bound) if held_out and is_proven else None
    texts = [str(x["content"]) for p in (held_out.prompts if held_out else ()) for x in p.messages]
    certificates: list[Certificate] = []
    other = None
    left = "nothing is left of it: make room, or name another folder with --output"
    refusals = saying_refusals(f"the export {str(output)!r}", left)
    with refusals, replace_folder(output) as staged:
        written = write_export(staged, run, to, onto, kind, texts)
        remarks = [exported.remark for exported in written if exported.remark]
        if compared:
            certificates += [compared.certify(exported) for exported in written]
        if compared and any(x.shortfalls() and x.base == "original" for x in certificates):
            (beside,) = write_export(staged / OTHER, run, "merged", "trained", kind, ())
            other = compared.certify(beside)
            shutil.rmtree(staged / OTHER)
        _write_papers(staged, run, to, certificates, other, remarks)
    return ExportResult(output, certificates, other, remarks, run.described)


def merge_adapter(
    run: str | Path,
    output: str | Path,
    checkpoint: str | None = None,
    base: Onto = "trained",
    dtype: str = "auto",
) -> Path:
    """Merge the adapter of a run into its base, as safetensors that transformers and vLLM load.

    Nothing is compared with the trained model; `lit_sft.export_run` does that, too.

    Args:
        run: The folder of a run.
        output: The folder to write; it must be empty or not be there.
        checkpoint: `best`, `last` or a file; None takes the best where a metric was monitored,
            else the last.
        base: `trained` merges onto the base as training computed with it, its four bits
            dequantised; `original` onto the published one.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for that of the published base.

    Returns:
        The folder.

    Raises:
        InputError: If there is no such run, or its base is not the one that it was trained on.
        SaveError: If the disk is full or read-only.
    """
    read = read_run(run, checkpoint)
    return export_read_run(read, "merged", Path(output), base, dtype, None, Bound()).folder


def require_empty(output: Path) -> None:
    """Raise `InputError` if a folder to export to holds something, or is none."""
    holds = output.exists() and (not output.is_dir() or any(output.iterdir()))
    require(
        not holds,
        f"--output: {str(output)!r} holds something already; name another folder, or delete it",
    )


def choose_arithmetic(run: TrainedRun) -> torch.dtype:
    """Return what both models compute in: float32 where memory allows it."""
    base = run.base
    numbers = sum(torch.Size(base.shape(name)).numel() for name in base.names)
    fits = 6 * numbers < free_memory_bytes(torch.device("cpu"))  # 4 bytes each, and 2 at loading
    return torch.float32 if fits else run.dtype


class Comparison:
    """What a trained model says to held-out prompts, to which exports are compared.

    Args:
        run: As `read_run` returns it.
        held_out: The prompts.
        bound: What an export has to keep to.
    """

    def __init__(self, run: TrainedRun, held_out: HeldOut, bound: Bound) -> None:
        self._run, self._held_out, self._bound = run, held_out, bound
        self._dtype = choose_arithmetic(run)
        model, tokenizer = build_trained(run, self._dtype)
        self._references = refer(
            model, tokenizer, held_out.prompts, run.stop_ids, held_out.max_new_tokens
        )

    def certify(self, exported: Exported) -> Certificate:
        """Run what was exported, and return how it compares."""
        gc.collect()  # the trained model is gone before the exported one comes
        run, held_out = self._run, self._held_out
        new, grade = held_out.max_new_tokens, held_out.grade
        model = exported.load(self._dtype)
        figures = compare(model, run.tokenizer, self._references, run.stop_ids, new, grade)
        return Certificate(
            format=exported.format,
            file=exported.name,
            base=exported.base,
            engine=exported.engine,
            arithmetic=str(self._dtype).removeprefix("torch."),
            step=run.step,
            split=held_out.split,
            bound=self._bound,
            **figures,
        )


def _write_papers(
    folder: Path,
    run: TrainedRun,
    to: Format,
    certificates: Sequence[Certificate],
    other: Certificate | None,
    remarks: Sequence[str],
) -> None:
    """Write the certificate, the card, and what the weights are."""
    if certificates:
        listed = {"files": [one.as_dict() for one in certificates]}
        listed |= {"onto_trained_base": [other.as_dict()]} if other else {}
        (folder / FILE).write_text(json.dumps(listed, indent=2) + "\n")
    card = make_card(run)
    write_provenance(folder, card)
    text = format_export_card(card, to, run.weights.rank, certificates, remarks)
    (folder / "README.md").write_text(text, encoding="utf-8")
