"""`lit-sft export`: a run to a format that others load, compared with what was trained."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

from lit_sft.cli.allowlist import limit_imports
from lit_sft.cli.failures import explain
from lit_sft.data.prompts import make_prompts
from lit_sft.data.splits import MissingSplit
from lit_sft.errors import require
from lit_sft.export.certificate import EQUAL_TOKENS, KL_MEAN, LEAST_PROMPTS, Bound, require_enough
from lit_sft.export.export_run import ExportResult, HeldOut, export_read_run, require_empty
from lit_sft.export.formats_out import DTYPES, Format
from lit_sft.export.merge import Onto
from lit_sft.export.trained_run import TrainedRun, read_run
from lit_sft.inspect.command import instantiate, parse
from lit_sft.run.folder import RunFolder
from lit_sft.types import Prompt, Split

HELD_OUT: tuple[Split, ...] = ("val", "test")


class OneLine(argparse.ArgumentParser):
    """Says in a line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """End the process with status 2."""
        print(f"error: {message}\nevery option: lit-sft export --help", file=sys.stderr)
        raise SystemExit(2)


def run(arguments: Sequence[str]) -> int:
    """Run `lit-sft export`, and return its exit status: 1 if the export falls short of its bound.

    Args:
        arguments: Those after the program's name, `export` included.
    """
    chosen = make_parser().parse_args(list(arguments[1:]))
    try:
        limit_imports()
        bound = Bound(chosen.min_equal, chosen.max_kl)
        result = export_run(
            chosen.run, chosen.to, chosen.output, chosen.checkpoint, chosen.base,
            chosen.dtype, chosen.prompts, bound,
        )  # fmt: skip
    except Exception as error:
        ending = explain(error)
        if ending is None:
            raise
        print(ending[1], file=sys.stderr)
        return ending[0]
    _tell(result)
    return 1 if result.shortfalls else 0


def export_run(
    run: str | Path,
    to: Format,
    output: str | Path | None = None,
    checkpoint: str | None = None,
    base: Onto = "trained",
    dtype: str = "auto",
    prompts: int = LEAST_PROMPTS,
    bound: Bound = Bound(),  # noqa: B008 (it is frozen)
) -> ExportResult:
    """Export a run, and compare what was exported with the model that was trained.

    Args:
        run: The folder of a run.
        to: `adapter` for PEFT, `vllm` for an adapter that vLLM loads, `merged` for a folder of
            safetensors, `gguf` for llama.cpp and Ollama.
        output: The folder to write, which must be empty or not be there; None is `export/<to>` in
            the run's folder.
        checkpoint: `best`, `last` or a file; None takes the best where a metric was monitored,
            else the last.
        base: `trained` merges onto the base as training computed with it, its four bits
            dequantised; `original` onto the published one.
        dtype: Of merged weights: `float32`, `bfloat16`, `float16`, or `auto` for that of the
            published base.
        prompts: Held-out ones to compare on, 64 or more; 0 compares nothing.
        bound: What the export has to keep to, see `ExportResult.shortfalls`.

    Returns:
        The folder, and a certificate for each file in it that can be run.

    Raises:
        InputError: If there is no such run, it cannot be exported so, or the folder holds
            something.
        SaveError: If the disk is full or read-only; nothing is left under the folder's name.
    """
    require(to in get_args(Format), f"export: --to must be one of {', '.join(get_args(Format))}")
    require(base in get_args(Onto), f"export: --base must be one of {', '.join(get_args(Onto))}")
    require(
        prompts == 0 or prompts >= LEAST_PROMPTS,
        f"--prompts must be {LEAST_PROMPTS} or more, or 0 to compare nothing, got {prompts}",
    )
    target = Path(output) if output else RunFolder(run).export / to
    require_empty(target)
    trained = read_run(run, checkpoint)
    held_out = read_held_out(trained, prompts) if prompts and to != "adapter" else None
    return export_read_run(trained, to, target, base, dtype, held_out, bound)


def read_held_out(run: TrainedRun, count: int) -> HeldOut:
    """Return held-out prompts of a run's own data: of `val`, or of `test` where there are more.

    Raises:
        InputError: If the data cannot be read, or has too few.
    """
    require(
        run.folder.config.is_file(),
        f"export: {str(run.folder.root)!r} has no config.yaml, which says where held-out prompts "
        "are: it is the run of a script; export it without a certificate (--prompts 0)",
    )
    with contextlib.redirect_stdout(sys.stderr):  # a task may print
        data, _ = instantiate(parse(["--config", str(run.folder.config)]))
        task, found = data.task, dict[Split, list[Prompt]]()
        for split in HELD_OUT:
            if not any(len(prompts) >= count for prompts in found.values()):
                with contextlib.suppress(MissingSplit):
                    found[split] = make_prompts(task, split, run.tokenizer, data.val_rows)
    split = max(found, key=lambda x: len(found[x]), default=HELD_OUT[0])
    grades = task.grader_name() is not None
    new = run.options["model"].get("max_new_tokens") or 256
    chosen = found.get(split, [])[:count]
    require_enough(chosen, count)
    return HeldOut(split, chosen, task.grade if grades else None, new)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = OneLine(prog="lit-sft export", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--to",
        choices=get_args(Format),
        required=True,
        help="adapter (for PEFT), vllm, merged (safetensors) or gguf",
    )
    parser.add_argument("--checkpoint", help="best, last or a file: else the best, or last")
    parser.add_argument("--output", help="the folder to write, else RUN/export/FORMAT")
    parser.add_argument(
        "--base",
        choices=get_args(Onto),
        default="trained",
        help="merge onto the base as trained, or as published (original)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="of merged weights: auto is that of the published base",
    )
    parser.add_argument(
        "--prompts",
        type=int,
        default=LEAST_PROMPTS,
        help="held-out ones to compare on, 0 for none",
    )
    parser.add_argument(
        "--min_equal",
        type=float,
        default=EQUAL_TOKENS,
        help="the least share of equal greedy tokens",
    )
    parser.add_argument(
        "--max_kl",
        type=float,
        default=KL_MEAN,
        help="the largest mean KL of the next token, in nats",
    )
    return parser


def _tell(result: ExportResult) -> None:
    print(f"wrote {result.folder}")
    for one in result.certificates:
        print(f"{one.file or one.format}: {one.describe()}")
    for remark in result.remarks:
        print(remark)
    if result.shortfalls:
        print(f"it falls short: {'; '.join(result.shortfalls)}", file=sys.stderr)
    if result.other:
        way = "--to merged --base trained"
        print(f"{way} would give: {result.other.describe()}", file=sys.stderr)
