"""The one owner of SIGTERM, Ctrl-C, SIGHUP and SIGUSR1, from a command's first line to its last.

While a step is taken, the run has a few seconds to finish it and to save it; at any other time,
such as while a model loads or an upload runs, there is nothing to wait for, and a signal ends the
process at once. A second signal does so too, unless it comes with the first: `timeout` and some
schedulers send one to a process and then to its group. The exit status is that of the first: a job
that SLURM has told by SIGUSR1 that its time is over is put back, though SIGTERM has ended it. Ranks
that were sent different ones agree on SIGUSR1, if any has got it.

A handler of Python runs when the main thread comes back to Python, which may take half an hour in
a rendezvous of ranks. So the system's own part of the handler writes the number into a pipe
(`signal.set_wakeup_fd`), and a thread reads it there.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from lit_sft.ranks import is_first_rank

NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
"""The last is what SLURM is told to send before a job's time is over (`--signal=USR1@90`), and has
it put back: ranks agree on the last of these that any has received."""
OWNED = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
TOGETHER = 2.0
"""Seconds within which nobody sends a second signal by hand."""
AGENT = "TORCHELASTIC_RUN_ID"
"""What `torchrun` sets for the ranks that it starts."""
LAUNCHER = "LIT_SFT_LAUNCHER"
"""The process that the user started, to the ranks that it launches."""
WATCH = 0.5
"""Seconds between two looks at whether the process that launched a rank is still there."""


class Signals:
    """What has been received, and what is done about it.

    There is one, `SIGNALS`: a process has one handler a signal.
    """

    def __init__(self) -> None:
        self.received = 0
        """The number of the first signal, or 0."""
        self._since = 0.0
        self._grace: float | None = None
        self._advice = ""
        self._owner = 0
        self._launcher: int | None = None
        self._agent: int | None = None
        self._terminals: list[int] = []
        self._earlier: dict[int, Any] = {}

    @property
    def is_of_process(self) -> bool:
        """Whether the whole process is a command of this package, and ends with it."""
        return self._owner == os.getpid()

    @property
    def is_launched(self) -> bool:
        """Whether the first rank of the machine has started this one, which ends with it."""
        return self._launcher is not None

    def own_process(self, advice: str) -> None:
        """Take the signals for the rest of this process; one that is ignored stays so.

        Args:
            advice: As for `release`.
        """
        if self.is_of_process:
            return
        self.received, self._grace, self._advice = 0, None, advice
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
        launcher = int(os.environ.setdefault(LAUNCHER, str(os.getpid())))
        is_rank = launcher == os.getppid() and int(os.environ.get("LOCAL_RANK", "0")) > 0
        if not is_rank:
            os.environ[LAUNCHER] = str(os.getpid())
        self._launcher = launcher if is_rank else None
        self._agent = os.getppid() if AGENT in os.environ else None
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_leave_pipe)
        self._owner = os.getpid()
        watch = threading.Thread(target=self._watch, args=(reader,), daemon=True)
        watch.start()
        atexit.register(self._leave_process, writer, watch)
        self.take()

    def take(self) -> None:
        """Set the handlers; `give_back` puts those before back, unless the process is owned."""
        if threading.current_thread() is not threading.main_thread():
            return  # no other may
        for number in OWNED:
            earlier = signal.getsignal(number)
            if earlier not in (signal.SIG_IGN, self._handle):
                self._earlier[number] = earlier
                signal.signal(number, self._handle)

    def give_back(self) -> None:
        """Put back the handlers of before; what was received is forgotten."""
        if self.is_of_process:
            return
        self._grace = None
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier, self.received = {}, 0

    def hold(self, grace: float) -> None:
        """From now on, let a signal wait until the step is saved, for `grace` seconds at most."""
        if self._grace is None:
            self._grace = grace

    @property
    def weight(self) -> int:
        """How much what this rank has received weighs among others; 0 is nothing."""
        return OWNED.index(self.received) + 1 if self.received else 0

    def agree(self, weight: int) -> int:
        """Return the signal that weighs most on any rank; it is what was received here, too.

        All ranks then end with one status: of several, a launcher hands on the largest.

        Args:
            weight: The largest of all ranks. What comes while they agree waits for the next time.
        """
        if not weight:
            return 0
        self._since = self._since if self.received else time.monotonic()
        self.received = int(OWNED[weight - 1])
        return self.received

    def release(self, advice: str) -> None:
        """From now on, let a signal end the process at once; one that waits goes on to wait.

        Args:
            advice: What is said then, behind "SIGTERM received: ".
        """
        self._advice = advice
        if not self.received:
            self._grace = None

    def _leave_process(self, writer: int, watch: threading.Thread) -> None:
        """Ignore signals while the interpreter is taken down: all is done, and the status is known.

        Python would go back to what the system does, which kills; and a thread that it stops on
        waking may unwind through the frames of a library that aborts at that.
        """
        if not self.is_of_process:
            return
        for number in OWNED:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.close(writer)
        watch.join(1.0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Do nothing in a process that is owned: the thread has seen it."""
        if not self.is_of_process:
            self._receive(number)

    def _receive(self, number: int) -> None:
        if number not in (signal.SIGTERM, signal.SIGINT):
            self._leave_terminal()
        now = time.monotonic()
        is_first = not self.received
        if is_first:
            self.received, self._since = number, now
        if self._launcher is not None:
            return  # the first rank has been told, and this one ends with it, see `_watch`
        if self._grace is None or now - self._since > TOGETHER:
            self._end(number, self._advice if is_first else "")
        elif is_first:
            self._say("finishing this step and saving; once more to stop at once", sys.stdout)

    def _end(self, number: int, why: str) -> None:
        """End the process, or, where it is not ours to end, do what its user would expect."""
        if not self.is_of_process:
            signal.signal(number, self._earlier.get(number, signal.SIG_DFL))
            signal.raise_signal(number)
            return
        if why:
            self._say(f"{signal.Signals(number).name} received: {why}", sys.stderr)
        end_process(128 + self.received)

    def _say(self, text: str, stream: Any) -> None:
        if is_first_rank():
            with contextlib.suppress(OSError, ValueError):
                print(text, file=stream, flush=True)

    def _leave_terminal(self) -> None:
        """Print to nowhere: the terminal has hung up, and a line to it would raise an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in self._terminals:
            os.dup2(nowhere, stream)
        os.close(nowhere)

    def _watch(self, reader: int) -> None:
        """Wait for signals, for the end of the time that one leaves, and for the launcher's end."""
        while True:
            left = None if self._launcher is None and self._agent is None else WATCH
            if self.received and self._grace is not None and self._launcher is None:
                ends_in = self._since + self._grace - time.monotonic()
                if ends_in <= 0:
                    self._end(
                        self.received,
                        f"what was running took over {self._grace:g} s more; go on from the last "
                        "checkpoint with --ckpt_path last",
                    )
                left = min(ends_in, left or ends_in)
            if select.select([reader], [], [], left)[0]:
                received = os.read(reader, 64)
                if not received:
                    return
                for number in received:
                    if number in OWNED:
                        self._pass_on(number)
                        self._receive(number)
            if self._launcher is not None and os.getppid() != self._launcher:
                os._exit(1)  # it has told why
            if self._agent is not None and os.getppid() != self._agent:
                self._agent = None
                self._receive(signal.SIGTERM)  # which it would have sent, had it not been killed

    def _pass_on(self, number: int) -> None:
        """Tell the first rank, which prints, decides the exit status, and ends before the others.

        Lightning kills all that are left, some seconds after another rank has ended.
        """
        if self._launcher is not None:
            with contextlib.suppress(OSError):
                os.kill(self._launcher, number)


def end_process(status: int) -> None:
    """End this process now, whatever its other threads do, with what it has printed.

    Args:
        status: Of its exit.
    """
    flusher = threading.Thread(target=_flush, daemon=True)
    flusher.start()
    flusher.join(1.0)  # the main thread may hold a stream that nobody reads
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _leave_pipe() -> None:
    """Keep a forked loader worker from telling its parent of signals that it gets itself."""
    signal.set_wakeup_fd(-1)


SIGNALS = Signals()
