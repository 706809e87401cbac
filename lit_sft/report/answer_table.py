"""The answers of one run or of several, side by side, as plain values for the page's script."""

from collections import Counter
from collections.abc import Iterable, Sequence

from lit_sft.evaluation.comparison import weigh
from lit_sft.report.facts import Given, Problem, RunFacts
from lit_sft.report.script_json import to_json

MOST_BYTES = 1_250_000
"""Of all texts in a page, as they stand in there. Where there are more, evaluations between the
first and the last are left out, every second at a time, then rows."""
VERDICT_BYTES = 24
"""Of an answer beside its text."""
MOST_TOKENS = 12_000
"""Of all answers of a page that are coloured by the probability of their tokens."""
MOST_IN_A_TEXT = 8_000
"""Of a single one, such as of runs that have kept theirs whole."""
KINDS = ("lost", "won", "wrong", "right")
"""What became of a row from the first evaluation to the last, in the order in which rows stand."""


def make_answers(runs: Sequence[RunFacts]) -> dict[str, object]:
    """Return the rows with all their evaluations, those that changed sides first.

    Args:
        runs: One with all its evaluations, or several with the last one of each; of these, the rows
            that all have answered that have answered any.
    """
    silent = [facts.name for facts in runs if not facts.evaluations()]
    answered = [facts for facts in runs if facts.evaluations()]
    if len(runs) > 1 and len(answered) > 1:
        runs = answered
    collected, rows, left_out = _collect(runs), _join(runs), ""
    columns = collected
    while len(columns) > 2 and _size(rows, columns) > MOST_BYTES:
        columns = [columns[0], *columns[2:-1:2], columns[-1]]
        left_out = f"{len(collected) - len(columns):,} evaluations between the first and the last"
    rows = sorted(rows, key=lambda row: (KINDS.index(_kind(row, columns)), row[0].row))
    kept = _fit(rows, columns)
    if len(kept) < len(rows):
        left_out += f"{', and ' if left_out else ''}{len(rows) - len(kept):,} rows"
    texts = _Texts()
    listed = [_list_row(row, columns, texts) for row in kept]
    counts = Counter(_kind(row, columns) for row in rows)
    return {
        "columns": [label for label, _, _ in columns],
        "rows": listed,
        "texts": texts.found,
        "counts": {kind: counts[kind] for kind in KINDS},
        "left_out": left_out,
        "silent": silent,
    }


Column = tuple[str, int, int]
"""Its heading, the number of the run, and the step."""
Row = tuple[Problem, ...]
"""One question, as each of the runs has it."""


class _Texts:
    """Texts by their number: many answers do not change from one evaluation to the next."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._numbers: dict[str, int] = {}
        self._room = MOST_TOKENS

    def number(self, text: str) -> int:
        text = text[:MOST_IN_A_TEXT]
        if text not in self._numbers:
            self._numbers[text] = len(self.found)
            self.found.append(text)
        return self._numbers[text]

    def tokens(self, answer: Given) -> list[str | float]:
        """Return the pieces of an answer and their probabilities in turn, while there is room."""
        self._room -= len(answer.tokens)
        return [x for token in answer.tokens for x in token] if self._room >= 0 else []


def find_shared(runs: Sequence[RunFacts]) -> list[Row]:
    """Return the rows that all runs have answered: the same question and reference."""
    tables = [{(x.question, x.reference): x for x in facts.problems} for facts in runs]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    return [tuple(table[key] for table in tables) for key in shared]


def find_given(problem: Problem, step: int) -> Given | None:
    """Return the answer of one evaluation, None where there is none."""
    return next((x for x in problem.answers if x.step == step), None)


def _collect(runs: Sequence[RunFacts]) -> list[Column]:
    if len(runs) == 1:
        return [(f"step {step:,}", 0, step) for step in runs[0].evaluations()]
    return [
        (f"{facts.name}, step {facts.evaluations()[-1]:,}", number, facts.evaluations()[-1])
        for number, facts in enumerate(runs)
        if facts.evaluations()
    ]


def _join(runs: Sequence[RunFacts]) -> list[Row]:
    return [(problem,) for problem in runs[0].problems] if len(runs) == 1 else find_shared(runs)


def _kind(row: Row, columns: Sequence[Column]) -> str:
    given = [find_given(row[run], step) for _, run, step in columns]
    known = [weigh(answer.grade) for answer in given if answer] or [0.0]
    if known[0] == known[-1]:
        return "right" if known[-1] == 1 else "wrong"
    return "won" if known[-1] > known[0] else "lost"


def _size(rows: Iterable[Row], columns: Sequence[Column]) -> int:
    """Return about how many bytes the rows take, each text once in its row."""
    rows = list(rows)
    texts = (text[:MOST_IN_A_TEXT] for row in rows for text in _texts_of(row, columns))
    verdicts = VERDICT_BYTES * len(columns) * len(rows)
    return verdicts + sum(len(to_json(text).encode("utf-8", "replace")) for text in texts)


def _texts_of(row: Row, columns: Sequence[Column]) -> set[str]:
    steps = {(run, step) for _, run, step in columns}
    given = [x for run, one in enumerate(row) for x in one.answers if (run, x.step) in steps]
    return {row[0].question, row[0].reference, *(x.output or "" for x in given)}


def _fit(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    kept: list[Row] = []
    room = MOST_BYTES
    for row in rows:
        room -= _size([row], columns)
        if room < 0 and kept:
            break
        kept.append(row)
    return kept


def _list_row(row: Row, columns: Sequence[Column], texts: _Texts) -> dict[str, object]:
    given = []
    for _, run, step in columns:
        answer = find_given(row[run], step)
        output = -1 if answer is None or answer.output is None else texts.number(answer.output)
        cut = max(answer.cut, _excess(answer.output)) if answer else 0
        tokens = texts.tokens(answer) if answer else []
        shown = [answer.verdict, int(answer.finished), output, cut] if answer else None
        given.append([*shown, tokens] if shown and tokens else shown)
    return {
        "row": row[0].row,
        "kind": _kind(row, columns),
        "question": texts.number(row[0].question),
        "reference": texts.number(row[0].reference),
        "given": given,
    }


def _excess(text: str | None) -> int:
    """Return the length of a text that is too long to show whole, else 0."""
    return len(text) if text and len(text) > MOST_IN_A_TEXT else 0
