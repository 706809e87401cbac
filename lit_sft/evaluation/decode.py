"""Greedy decoding at the speed of a device: a cache of fixed size, and a step as a CUDA graph.

A step that makes one token a row has two thousand kernels of some microseconds each. Launched one
by one they take 50 ms for Llama-3.2-3B on an H100; replayed, 8 to 12 ms. A graph has fixed shapes,
so the cache has room for the longest answer from the start; a step reads as much of it as has been
written, to the next multiple of `LENGTH_STEP`, and once half of the rows are done, the others move
together and the steps are those of a smaller batch.

Rows have the tokens that `lit_sft.evaluation.generate` gives them, but where two tokens are equally
likely to within the rounding of their dtype.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from lit_sft.cuda import capturing, make_capture_stream, trying_out
from lit_sft.evaluation.generate import (
    Ending,
    Generation,
    TellEnded,
    find_likeliest,
    require_finite,
)
from lit_sft.evaluation.static_cache import Slots, attending

LENGTH_STEP = 128
"""Places of the cache from one graph to the next."""
ROWS_STEP = 16
"""Rows of a batch that has lost its finished ones are a multiple of it."""
BLOCK = 16
"""Steps between two looks at which rows go on; a look waits for the device."""
PREFILL_TOKENS = 2**13
"""Prompt tokens that are read at once: enough for a card, and few enough that the longest prompt of
some is not much longer than they are."""


_find_stream = cache(make_capture_stream)
"""The stream of a device that batches are captured on, one after the other."""


@dataclass
class _State:
    """What a step reads and writes; of each, the first rows are in use."""

    tokens: Tensor
    """int64 `[rows, 1]`, the last of each answer."""
    positions: Tensor
    """int64 `[rows, 1]`, of those tokens within their rows."""
    padding: Tensor
    """int64 `[rows]`, places on the left of each prompt."""
    answers: Tensor
    """int64 `[rows, max_new_tokens]`."""
    running: Tensor
    """bool `[rows]`."""
    are_finite: Tensor
    """bool `[]`: whether all running rows had a likeliest token."""
    place: Tensor
    """int64 `[1]`, in the cache, of the token that comes next."""
    count: Tensor
    """int64 `[1]`, tokens of each answer."""


def decode_batch(
    model: object,
    prompts: Sequence[Sequence[int]],
    ending: Ending,
    tell_ended: TellEnded = lambda ended: None,
    use_graphs: bool = True,
) -> list[Generation]:
    """Continue the prompts of one batch with the likeliest token.

    Args:
        model: A causal language model of transformers in eval mode, or a `peft.PeftModel`.
        prompts: Token ids of each, unpadded, none empty.
        ending: How answers end.
        tell_ended: Is told now and then how many of them have.
        use_graphs: Whether steps are captured, which takes CUDA.

    Returns:
        One `Generation` a prompt, in the order of the prompts.

    Raises:
        UnfitModelError: If the model's attention is more than full causal attention.
        FloatingPointError: If the logits are NaN or infinite.
    """
    with torch.no_grad(), attending(model):
        batch = _Batch(model, prompts, ending)
        batch.read(prompts)
        step = batch.replay if use_graphs else batch.step
        while (left := ending.max_new_tokens - batch.written) and (going_on := batch.going_on()):
            tell_ended(len(prompts) - going_on)
            for _ in range(min(left, BLOCK)):
                step()
    return batch.finish()


class _Batch:
    """Rows that are continued together."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], ending: Ending) -> None:
        stop_ids, self.pad_id, max_new_tokens = ending
        self.model = model
        self.device = next(model.parameters()).device
        self.stops = torch.tensor(stop_ids, dtype=torch.int64, device=self.device)
        self.stop_ids = frozenset(stop_ids)
        self.longest = max(map(len, prompts))
        count, self.max_new_tokens = len(prompts), max_new_tokens
        places = -(-(self.longest + max_new_tokens) // LENGTH_STEP) * LENGTH_STEP
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.state = _State(
            tokens=torch.zeros(count, 1, dtype=torch.int64, device=self.device),
            positions=lengths[:, None].clone(),
            padding=self.longest - lengths,
            answers=torch.zeros(count, max_new_tokens, dtype=torch.int64, device=self.device),
            running=torch.ones(count, dtype=torch.bool, device=self.device),
            are_finite=torch.ones((), dtype=torch.bool, device=self.device),
            place=torch.full((1,), self.longest, dtype=torch.int64, device=self.device),
            count=torch.zeros(1, dtype=torch.int64, device=self.device),
        )
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        layers = base.config.get_text_config().num_hidden_layers
        self.layers = [Slots(count, places, self.state.place) for _ in range(layers)]
        names = inspect.signature(base.forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        self.places = torch.arange(places, device=self.device)
        self.rows = list(range(count))
        """Which prompt each row in use continues."""
        self.written = 0
        self.answers: list[list[int]] = [[] for _ in prompts]
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.pool: Any = None

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        """Fill the cache, and pick the first tokens."""
        first = 0
        while first < len(prompts):
            longest = max(map(len, prompts[first:]))
            rows = slice(first, min(first + max(1, PREFILL_TOKENS // longest), len(prompts)))
            self._read(prompts[rows], rows)
            first = rows.stop
        self._advance()
        self.written = 1

    def step(self) -> None:
        """Make one token a row."""
        rows, seen = slice(0, len(self.rows)), self._seen()
        self._use(rows, seen, is_reading=False)
        self._step(rows, seen)
        self.written += 1

    def replay(self) -> None:
        """Make one token a row, as a CUDA graph."""
        size = (len(self.rows), self._seen())
        if size not in self.graphs:
            self.graphs[size] = self._capture(slice(0, size[0]), size[1])
        self.graphs[size].replay()
        self.written += 1

    def going_on(self) -> int:
        """Return how many rows do, and leave out the others where that pays."""
        require_finite(self.state.are_finite)
        going_on = self.state.running[: len(self.rows)].nonzero()[:, 0]
        size = -(-len(going_on) // ROWS_STEP) * ROWS_STEP
        if len(going_on) and size <= len(self.rows) // 2:
            self._take_answers()
            others = (~self.state.running[: len(self.rows)]).nonzero()[:, 0]
            kept = torch.cat([going_on, others[: size - len(going_on)]])
            for layer in self.layers:
                layer.keep(kept)
            for held in (
                *(self.state.tokens, self.state.positions, self.state.padding),
                *(self.state.answers, self.state.running),
            ):
                held[:size] = held[kept]
            self.rows = [self.rows[row] for row in kept.tolist()]
        return len(going_on)

    def finish(self) -> list[Generation]:
        """Return the answers up to their stop tokens, in the order of the prompts."""
        self._take_answers()
        found = []
        for answer in self.answers:
            ends = [place for place, token in enumerate(answer) if token in self.stop_ids]
            found.append(Generation(answer[: ends[0]] if ends else answer, finished=bool(ends)))
        return found

    def _read(self, prompts: Sequence[Sequence[int]], rows: slice) -> None:
        """Fill the cache of some rows, whose prompts end at the same place as all others."""
        tokens = max(map(len, prompts))
        ids = torch.tensor(
            [[self.pad_id] * (tokens - len(x)) + list(x) for x in prompts], device=self.device
        )
        padding = self.state.padding[rows, None] - (self.longest - tokens)
        places = self.places[:tokens]
        is_before = places <= places[:, None]
        is_word = (places >= padding)[:, None, :]
        itself = torch.eye(tokens, dtype=torch.bool, device=self.device)
        self._use(rows, self.longest, is_reading=True)
        logits = self._forward(
            ids, (places - padding).clamp(min=0), (is_before & is_word | itself)[:, None]
        )
        self._pick(logits, rows)

    def _take_answers(self) -> None:
        answers = self.state.answers[: len(self.rows), : self.written].tolist()
        for row, answer in zip(self.rows, answers, strict=True):
            self.answers[row] = answer

    def _seen(self) -> int:
        """Return how much of the cache the next step looks at."""
        return -(-(self.longest + self.written) // LENGTH_STEP) * LENGTH_STEP

    def _use(self, rows: slice, seen: int, is_reading: bool) -> None:
        for layer in self.layers:
            layer.rows, layer.seen, layer.is_reading = rows, seen, is_reading

    def _forward(self, ids: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """Return the logits after the last token, `[rows, vocabulary]`."""
        cache = {self.cache_name: Cache(layers=list(self.layers))}
        output = self.model(
            input_ids=ids,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            seen=seen,
            **cache,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _step(self, rows: slice, seen: int) -> None:
        state, places = self.state, self.places[:seen]
        is_word = places >= state.padding[rows, None]
        is_seen = is_word & (places <= state.place)
        logits = self._forward(state.tokens[rows], state.positions[rows], is_seen[:, None, None])
        state.positions[rows] += 1
        state.place += 1
        self._pick(logits, rows)
        self._advance()

    def _pick(self, logits: Tensor, rows: slice) -> None:
        state = self.state
        found, is_finite = find_likeliest(logits)
        likeliest, running = found[:, None], state.running[rows]
        state.are_finite &= (is_finite | ~running).all()
        state.tokens[rows] = likeliest
        state.answers[rows].index_copy_(1, state.count, likeliest)
        running &= ~(likeliest == self.stops).any(-1)

    def _advance(self) -> None:
        self.state.count += 1

    def _capture(self, rows: slice, seen: int) -> torch.cuda.CUDAGraph:
        """Capture a step, which takes none: what it writes before it is captured is undone."""
        held = list(vars(self.state).values())
        before = [x.clone() for x in held]
        self._use(rows, seen, is_reading=False)
        with trying_out(_find_stream(self.device)):
            self._step(rows, seen)
        for tensor, value in zip(held, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with capturing(graph, self.pool, _find_stream(self.device)):
            self._step(rows, seen)
        self.pool = graph.pool()
        return graph
