"""The operations of a pass: which there are, what they hold in memory, and how long they take.

They are noted while a pass runs on tensors without contents (`lit_sft.plan.weightless`), and then
each kind is timed once on this device, with random contents of the same shapes: a pass of 28 layers
is a hundred kinds.
"""

import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

FREE = ("detach", "_unsafe_view", "lift_fresh", "empty", "empty_like", "_conj", "alias")
"""Operations besides views that touch no contents."""
TIMED_SECONDS, ROUNDS, MOST_ROUNDS = 0.002, 3, 20
"""For how long an operation is repeated behind the first time, how often at the least and at most.

To empty the caches before each of a thousand rounds of a microsecond takes seconds.
"""
CACHE_BYTES = 2**25
"""Of the last level of a server's caches, about."""
LONG_SECONDS = 0.2
"""What takes longer is timed once."""
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


class Shape(NamedTuple):
    """A tensor without contents."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Operation(NamedTuple):
    """A kind of operation."""

    function: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]


@dataclass
class Noted:
    """What a pass did."""

    counts: Counter[Operation] = field(default_factory=Counter)
    flops: int = 0
    """Of matrix products and of attention."""
    live_bytes: int = 0
    """Of all tensors that the pass has made and still holds."""
    peak_bytes: int = 0
    """The most that they had."""
    history: list[tuple[int, int]] = field(default_factory=list)
    """The number of a tensor and its bytes where it is made, and -1 where it is given back."""
    alive: dict[int, Any] = field(default_factory=dict)

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's memory until it is given back."""
        storage = tensor.untyped_storage()
        if id(storage) in self.alive:
            return
        number, size = len(self.history), storage.nbytes()
        self.history.append((number, size))
        give_back = partial(self._give_back, id(storage), number, size)
        self.alive[id(storage)] = weakref.ref(storage, give_back)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _give_back(self, key: int, number: int, size: int, reference: object) -> None:
        del self.alive[key]
        self.history.append((number, -1))
        self.live_bytes -= size


@contextmanager
def noting(model: nn.Module, mode: AbstractContextManager[object]) -> Iterator[Noted]:
    """Note all operations meanwhile; the tensors of the model itself are not counted.

    Args:
        model: Without contents.
        mode: Of such tensors.
    """
    noted = Noted()
    own = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    noted.alive = dict.fromkeys(map(id, own))
    with mode, make_listener(partial(_note, noted)):
        yield noted


def make_listener(
    note: Callable[[object, tuple[object, ...], dict[str, object], object], None],
) -> AbstractContextManager[object]:
    """Return a mode in which each operation is told of, for which torch has no public name.

    Args:
        note: Is given the operation, its arguments and what it has returned.
    """
    from torch.utils import _python_dispatch

    mode: Any = _python_dispatch.TorchDispatchMode

    class Listener(mode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> object:
            kwargs = kwargs or {}
            out = func(*args, **kwargs)
            note(func, args, kwargs, out)
            return out

    listener: AbstractContextManager[Any] = Listener()
    return listener


def _note(
    noted: Noted, function: Any, args: tuple[object, ...], kwargs: dict[str, object], out: object
) -> None:
    if function.namespace == "prim" or function.is_view:
        return
    for tensor in _list_tensors(out):
        noted.hold(tensor)
    name = function.overloadpacket.__name__
    if name in FREE:
        return
    if name.startswith(ATTENTION):
        noted.flops += _count_attention(args, is_backward=name.endswith("backward"))
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)  # one in place counts likewise
    if packet in flop_registry:
        noted.flops += flop_registry[packet](*args, **kwargs, out_val=out)
    named = tuple((key, _strip(value)) for key, value in kwargs.items())
    noted.counts[_fold(Operation(function, _strip(tuple(args)), named))] += 1


def _fold(operation: Operation) -> Operation:
    """Return many products with one matrix as one, which is what torch makes of them on a device.

    Tensors without contents have other strides, by which it decides.
    """
    if operation.function is not torch.ops.aten.bmm.default or operation.args[1].stride[0]:
        return operation
    left, right = operation.args
    count, rows, inner = left.size
    folded = Shape((count * rows, inner), (inner, 1), left.dtype)
    matrix = Shape(right.size[1:], right.stride[1:], right.dtype)
    return Operation(torch.ops.aten.mm.default, (folded, matrix), ())


def _count_attention(args: tuple[Any, ...], is_backward: bool) -> int:
    """Return the operations of causal attention, half of all pairs: 2 products, or 5."""
    query, key = args[1:3] if is_backward else args[:2]
    rows, heads, tokens, width = query.shape
    pairs: int = rows * heads * tokens * key.shape[2]
    flops: int = (5 if is_backward else 2) * pairs * width
    return flops


def _list_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _list_tensors(item)


def _strip(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(tuple(value.shape), value.stride(), value.dtype)
    return tuple(map(_strip, value)) if isinstance(value, list | tuple) else value


def time_operations(
    counts: Mapping[Operation, int], device: torch.device, known: dict[Operation, float]
) -> float:
    """Return the seconds of all operations of a pass, each kind timed on a device.

    Args:
        counts: How often each comes.
        device: Where they are run.
        known: Seconds of kinds; what is timed here is added.
    """
    for operation in counts:
        if operation not in known:
            try:
                known[operation] = _time(operation, device)
            except (RuntimeError, TypeError, ValueError, IndexError):
                known[operation] = 0.0  # it asks for contents that random ones are not
    return sum(known[operation] * count for operation, count in counts.items())


def run_once(operation: Operation, device: torch.device) -> None:
    """Run an operation with random contents."""
    args = [_fill(value, device) for value in operation.args]
    with torch.no_grad():
        operation.function(*args, **{name: _fill(x, device) for name, x in operation.kwargs})


def _time(operation: Operation, device: torch.device) -> float:
    args = [_fill(value, device) for value in operation.args]
    kwargs = {name: _fill(value, device) for name, value in operation.kwargs}
    return time_call(lambda: operation.function(*args, **kwargs), device)


def time_call(call: Callable[[], object], device: torch.device) -> float:
    """Return how many seconds a call takes at the least: others may take the core in between.

    Args:
        call: What is timed.
        device: What it is waited for.
    """
    with torch.no_grad():
        call()
        wait_for(device)
        rounds: list[float] = []
        while len(rounds) < ROUNDS or (sum(rounds) < TIMED_SECONDS and len(rounds) < MOST_ROUNDS):
            empty_caches(device)
            begun = read_clock(device)
            call()
            rounds.append(read_clock(device) - begun)
            if rounds[0] > LONG_SECONDS:
                break
    return min(rounds)


def empty_caches(device: torch.device) -> None:
    """Put other contents into a CPU's caches: what a pass works on has mostly left them."""
    if device.type == "cpu":
        _make_scratch().add_(1)


@cache
def _make_scratch() -> Tensor:
    return torch.zeros(CACHE_BYTES, dtype=torch.uint8)


def read_clock(device: torch.device) -> float:
    """Return the seconds of a clock, behind all that a device was given to do.

    Of a CPU that computes with one thread, it stands while others have the core.
    """
    wait_for(device)
    is_alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time() if is_alone else time.perf_counter()


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fill(value: object, device: torch.device) -> object:
    if isinstance(value, Shape):
        extent = 1 + sum((n - 1) * s for n, s in zip(value.size, value.stride, strict=True))
        flat = torch.zeros(max(extent, 1), dtype=value.dtype, device=device)
        if value.dtype.is_floating_point:
            flat.uniform_(-1, 1)
        return flat.as_strided(value.size, value.stride)
    if isinstance(value, tuple):
        return [_fill(item, device) for item in value]
    return value
