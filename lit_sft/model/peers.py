"""What ranks tell each other besides sums: that one of them has failed, and why.

A rank that waits for another in a sum does not come back to Python, or only after half an hour
where NCCL is waited for. So each listens in a thread of its own, at the store where they have met.
"""

import json
import os
import socket
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

from torch import distributed

from lit_sft.ranks import is_first_on_node, is_first_rank
from lit_sft.signals import SIGNALS, end_process

KEY = "lit_sft/failure"
LOOK = 0.5
"""Seconds between two looks."""
PATIENCE = 3.0
"""Seconds that are left to what runs here, once another rank has failed, to end by itself."""
LONG_PATIENCE = 15.0
"""Likewise, once the store is gone: its rank was killed, or has come to its end before this one."""
GONE = (
    "another rank of the run is gone; what was saved before is whole; go on with --ckpt_path last"
)
"""What is said where a rank has ended that could not say why, such as one that was killed."""
GONE_WORDS = (" by peer", "ncclRemoteError", "Broken pipe", "recvValue failed", "sendBytes failed")
"""What gloo, NCCL and the store say where a rank has ended in the middle of a sum."""


def is_for_another(error: Exception) -> bool:
    """Return whether a rank has failed because another one is gone, in gloo's and NCCL's words."""
    text = str(error)
    return isinstance(error, RuntimeError) and any(word in text for word in GONE_WORDS)


class Failure(NamedTuple):
    """What has ended a rank."""

    rank: int
    host: str
    status: int
    """With which the command ends."""
    text: str

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}): {self.text}"


class Peers:
    """The other ranks of a run. There is one, `PEERS`, in a process that is a command's."""

    def __init__(self) -> None:
        self._left = threading.Event()
        self._thread: threading.Thread | None = None

    def listen(self) -> None:
        """End this process a few seconds after another rank has failed, from now on.

        Ranks that this run has started itself end with the first one, which listens for them.
        """
        if self._thread is None and SIGNALS.is_of_process and not SIGNALS.is_launched:
            self._left.clear()
            self._thread = threading.Thread(target=self._listen, daemon=True)
            self._thread.start()

    def leave(self) -> None:
        """Listen no longer: this rank has come to its end by itself."""
        self._left.set()
        if self._thread is not None:
            self._thread.join(5.0)
        self._thread = None

    def tell(self, status: int, text: str) -> None:
        """Tell the others that this rank has failed; the first to do so is heard.

        Args:
            status: With which the command ends.
            text: Why.
        """
        with suppress(Exception):  # there is no store yet, or its rank is gone
            has_met = distributed.is_initialized()
            store = _find_live_store() if has_met else _join_agent()
            rank = distributed.get_rank() if has_met else int(os.environ["RANK"])
            failure = Failure(rank, socket.gethostname(), status, text)
            store.compare_set(KEY, "", json.dumps(failure))

    def find_failure(self) -> Failure | None:
        """Return what another rank has told, if one has."""
        with suppress(Exception):
            failure = _read(_find_live_store())
            if failure and failure.rank != distributed.get_rank():
                return failure
        return None

    def wait_for_first(self, seconds: float) -> bool | None:
        """Wait for the first rank to end, as whatever has held the store then does.

        Args:
            seconds: For how long, at most.

        Returns:
            Whether it has ended; None where the ranks have not met.
        """
        try:
            tie = _tie_to(_find_store())
        except (ValueError, AttributeError):
            return None
        except OSError:  # there is no store any more
            return True
        with tie:
            return _has_broken(tie, seconds)

    def _listen(self) -> None:
        if not distributed.is_initialized() and self._ended_before_meeting():
            return
        if distributed.get_world_size() == 1:
            return
        try:
            store = _find_store().clone()  # whose answers do not wait for those of another thread
            tie = _tie_to(store)
        except (OSError, RuntimeError, ValueError, AttributeError):
            return  # a store of another kind, or none any more
        rank, failure = distributed.get_rank(), None
        with suppress(Exception):  # whoever has held the store is gone
            while failure is None or failure.rank == rank:
                if self._left.wait(LOOK):
                    return
                if _has_broken(tie):
                    tie = _tie_to(store)  # or something on the way has closed what was idle
                failure = _read(store)
        self._end_for(failure)

    def _ended_before_meeting(self) -> bool:
        """Wait for the ranks to meet; end with one that has failed before, and that others await.

        Returns:
            Whether there is nothing left to listen for.
        """
        agent: Any = None
        with suppress(Exception):  # something else has started the ranks
            agent = _join_agent()
        while not distributed.is_initialized():
            if self._left.wait(LOOK):
                return True
            failure = None
            with suppress(Exception):  # the agent that has held the store is gone
                failure = _read(agent) if agent is not None else None
            if failure and not distributed.is_initialized():
                self._end_for(failure)
                return True
        return False

    def _end_for(self, failure: Failure | None) -> None:
        if self._left.wait(PATIENCE if failure else LONG_PATIENCE):
            return
        if is_first_rank() or (failure is None and is_first_on_node()):
            with suppress(OSError, ValueError):
                print(f"error: {failure or GONE}", file=sys.stderr, flush=True)
        end_process(failure.status if failure else 1)


def _read(store: Any) -> Failure | None:
    return Failure(*json.loads(store.get(KEY))) if store.check([KEY]) else None


def _join_agent() -> Any:
    """Return the store of torchrun's agent, which is there before the ranks have met in it."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    stores: Any = distributed  # in which a type checker does not see them
    store = stores.TCPStore(
        *where, is_master=False, timeout=timedelta(seconds=10), wait_for_workers=False
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return stores.PrefixStore(f"/lit_sft/attempt_{attempt}", store)


def _find_store() -> Any:
    """Return the store at which the ranks have met."""
    return distributed.distributed_c10d._get_default_store()


def _find_live_store() -> Any:
    """Return it, or raise `OSError` if whoever has held it is gone, see `_tie_to`."""
    store = _find_store()
    with _tie_to(store) as tie:
        if _has_broken(tie, 0.05):  # of a process that ends, sockets close one by one
            raise ConnectionResetError
    return store


def _tie_to(store: Any) -> socket.socket:
    """Return a silent connection, which breaks off when the process ends that holds a store.

    Asked for a key when that is gone, torch prints twenty frames of its own code. To silence those
    by `TORCH_CPP_LOG_LEVEL` would silence what keeps ranks from meeting, too: a machine's name that
    cannot be resolved, and gloo's fallback to the loopback address.

    Raises:
        OSError: If it is gone.
        AttributeError: If the store is not one that is connected to.
    """
    while not hasattr(store, "host"):
        store = store.underlying_store
    return socket.create_connection((store.host, store.port), timeout=5.0)


def _has_broken(tie: socket.socket, seconds: float = 0.0) -> bool:
    """Return whether a connection is or gets broken within some seconds."""
    tie.settimeout(seconds)
    try:
        tie.recv(1)
    except (TimeoutError, BlockingIOError):
        return False
    except OSError:
        pass
    return True


PEERS = Peers()
"""Of this process."""
