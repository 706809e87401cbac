"""End this process where a rendering never comes back to Python: the last of the limits.

To compare two lists that double forty times is one operation, of hours, in which no thread of this
process runs, and so no handler of a signal. Another process looks at the clock, for as long as
anything is rendered here. It is told of each rendering when that begins, and when it ends.
"""

import contextlib
import os
import subprocess
import sys

PROGRAM = """
import os, select, signal, sys
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
parent, seconds, rest, busy = int(sys.argv[1]), float(sys.argv[2]), b"", b""
while select.select([0], [], [], seconds if busy else None)[0]:
    told = os.read(0, 65536)
    if not told:
        sys.exit()
    *lines, rest = (rest + told).split(b"\\n")
    busy = lines[-1] if lines else busy
os.write(2, b"error: " + busy + b"\\n")
os.kill(parent, signal.SIGKILL)
"""
"""Reads lines: what to say of a rendering that begins, and an empty one where one has ended."""


class Watchdog:
    """A process that kills this one after a silence within a rendering.

    Args:
        seconds: Of silence.
    """

    def __init__(self, seconds: float) -> None:
        command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(os.getpid()), str(seconds)]
        try:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                command, stdin=subprocess.PIPE, bufsize=0
            )
        except OSError:  # such as for want of memory; the other limits are still there
            self._process = None

    def begin(self, reason: str) -> None:
        """Say that a rendering begins.

        Args:
            reason: What is to be printed if it does not end, behind "error: ".
        """
        self._tell(reason.replace("\n", " ") + "\n")

    def end(self) -> None:
        """Say that it has ended."""
        self._tell("\n")

    def leave(self) -> None:
        """Let the process go, and wait for its end."""
        self.forget()
        if self._process is not None:
            self._process.wait()

    def forget(self) -> None:
        """Hold the process no longer: in a fork, which would keep it alive."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def _tell(self, text: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):  # it was killed
                self._process.stdin.write(text.encode())
