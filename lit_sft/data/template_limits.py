"""What the program that a chat template is may take: of time, memory and text.

A template comes with a tokenizer from the Hub. The sandbox of transformers keeps it from files and
from Python, and not from a loop in a loop, a string that doubles, or a number with a billion
digits. Three bounds end all of these. A thread looks at the clock, and raises an error in the
thread that renders: a template is Python, which looks up between two operations. For an operation
that takes hours by itself there is `lit_sft.data.watchdog`. The system bounds the memory, so that
what would take more fails where it asks for it. And powers, which need hours at once, no honest
template has.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, TemplateSyntaxError

from lit_sft.data.watchdog import Watchdog
from lit_sft.errors import InputError, require

try:
    import resource
except ImportError:  # on Windows, where memory is not bounded
    resource = None  # type: ignore[assignment]

MAX_SECONDS = 20.0
"""Of one rendering: an honest one takes a ten-thousandth of it."""
SILENT_SECONDS = 10.0
"""More, after which a rendering that does not look up is ended with the process that it is in."""
MAX_BYTES = 2**31
"""Of memory that a rendering may add."""
MAX_TEMPLATE = 2**20
"""Characters of a template; the longest published ones have 30,000."""
FREE_TEXT, GROWTH = 2**22, 64
"""Characters that any turns may be written as, and how many more for each one that they say."""
POLL_SECONDS = 0.25
LINGER_SECONDS = 1.0
"""For which those who look wait for the next rendering."""
ADVICE = "; set another data.chat_template, and mistrust where this one comes from"
STATM = Path("/proc/self/statm")

Result = TypeVar("Result")

_refused: dict[str, str] = {}
"""What is wrong with templates that went too far once: nobody waits for them twice."""


class _TooSlow(Exception):  # noqa: N818 (never seen outside)
    """Raised in a thread whose rendering takes too long."""


class _Watch:
    """Looks at the clock while anything is rendered, from a thread that ends when nothing is."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.deadlines: dict[int, float] = {}
        self.late: set[int] = set()
        self.thread: threading.Thread | None = None
        self.dog: Watchdog | None = None

    def call(self, function: Callable[[], Result], where: str) -> Result:
        """Call a function, and raise `_TooSlow` in it if it takes too long, and nowhere else."""
        own = threading.get_ident()
        with self.lock:
            self.deadlines[own] = time.monotonic() + MAX_SECONDS
            if self.thread is None:
                self.thread = threading.Thread(target=self._look, name="templates", daemon=True)
                self.thread.start()
            if self.dog is None:
                self.dog = Watchdog(MAX_SECONDS + SILENT_SECONDS)
            self.dog.begin(
                f"the chat template of {where!r} took more than {MAX_SECONDS + SILENT_SECONDS:g} s "
                f"for one operation{ADVICE}"
            )
        try:
            return function()
        finally:
            while own in self.deadlines or own in self.late:
                try:
                    self._leave(own)
                except _TooSlow:  # it may come here as well
                    continue

    def _leave(self, own: int) -> None:
        with self.lock:
            self.deadlines.pop(own, None)
            if self.dog is not None and not self.deadlines:
                self.dog.end()
            if own in self.late:  # its error may be under way, and would strike somebody else
                _catch_in(own)
                self.late.remove(own)

    def leave_to_parent(self) -> None:
        """Start anew in a fork, which has none of the threads."""
        if self.dog is not None:
            self.dog.forget()
        self.__init__()  # type: ignore[misc]

    def _look(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(POLL_SECONDS)
            with self.lock:
                last = time.monotonic() if self.deadlines else last
                if time.monotonic() - last > LINGER_SECONDS:
                    dog, self.dog, self.thread = self.dog, None, None
                    if dog is not None:
                        dog.leave()
                    return
                for thread, deadline in self.deadlines.items():
                    if time.monotonic() > deadline:
                        self.late.add(thread)
                        _raise_in(thread, _TooSlow)


def _raise_in(thread: int, error: type[Exception]) -> None:
    """Have a thread raise an error before its next step, instead of one that is under way."""
    what = ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


def _catch_in(own: int) -> None:
    """Have no error under way in this thread any more.

    To take it back leaves the flag up by which Python looks for one, and under a profiler or a
    debugger Python 3.11 then never gets past the first step of a function. So it is raised here.
    """
    try:
        _raise_in(own, _TooSlow)
        while True:
            pass
    except _TooSlow:
        pass


_watch = _Watch()
_memory_lock, _memory_users = threading.RLock(), 0
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watch.leave_to_parent)


def call_within_limits(function: Callable[[], Result], template: str, where: str) -> Result:
    """Call what renders a template, and name one that takes too much of time or memory.

    Args:
        function: It.
        template: The text of the template.
        where: The tokenizer that it belongs to.

    Raises:
        InputError: If it takes too much, or did before.
    """
    if template not in _refused:
        _check_program(template, where)
        try:
            if _memory_users:
                return _watch.call(function, where)
            with limit_memory():
                return _watch.call(function, where)
        except _TooSlow:
            too_much = f"took more than {MAX_SECONDS:g} s for a row"
        except MemoryError:
            too_much = f"asked for more than {MAX_BYTES:,} bytes for a row"
        _refused[template] = f"the chat template of {where!r} {too_much}{ADVICE}"
    raise InputError(_refused[template])


def check_length(text: str, said: int, where: str) -> None:
    """Raise `InputError` for a text that is much longer than the messages, of `said` characters."""
    require(
        len(text) <= FREE_TEXT + GROWTH * said,
        f"the chat template of {where!r} wrote {len(text):,} characters for messages of {said:,}; "
        "set another data.chat_template",
    )


@lru_cache(maxsize=64)
def _check_program(template: str, where: str) -> None:
    what = f"the chat template of {where!r}"
    require(
        len(template) <= MAX_TEMPLATE,
        f"{what} has {len(template):,} characters, of at most {MAX_TEMPLATE:,}{ADVICE}",
    )
    before = ""
    try:
        for _, kind, value in Environment().lex(template):
            # Before the arguments of a call, it unpacks them.
            is_power = kind == "operator" and value == "**" and before not in ("(", ",")
            require(not is_power, f"{what} computes a power (**), which may take for ever{ADVICE}")
            before = before if kind == "whitespace" else value
    except TemplateSyntaxError:
        pass  # the rendering says it with the turns


@contextmanager
def limit_memory() -> Iterator[None]:
    """Have memory that is asked for beyond `MAX_BYTES` more be refused, in the whole process.

    Within another such block it does nothing: to ask for the present size takes as long as to
    render a short row.
    """
    global _memory_users
    with _memory_lock:
        is_first = _memory_users == 0
        former = _lower_limit() if is_first else None
        _memory_users += 1
    try:
        yield
    finally:
        with _memory_lock:
            _memory_users -= 1
            if former is not None:
                resource.setrlimit(resource.RLIMIT_AS, former)


def _lower_limit() -> tuple[int, int] | None:
    """Lower the limit of the address space; return what it was, or None where it stays."""
    if resource is None or not STATM.exists():
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = int(STATM.read_text().split()[0]) * resource.getpagesize() + MAX_BYTES
    if 0 <= soft < wanted or 0 <= hard < wanted:  # unlimited is -1
        return None
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    return soft, hard
