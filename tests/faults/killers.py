"""Callbacks that do to a run what a preempted machine does. Each strikes once a run folder."""

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import huggingface_hub
import lightning.pytorch as pl
import torch
from torch.utils.data import get_worker_info

from lit_sft import files
from lit_sft.data import windows
from lit_sft.errors import InputError
from lit_sft.model.fast.memory import find_layers
from lit_sft.tasks.chat_file import ChatFile


def strike_once(trainer: pl.Trainer, name: str, number: int = signal.SIGKILL) -> None:
    mark = Path(trainer.default_root_dir) / f".struck-{name}"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), number)


class KillInWindow(pl.Callback):
    """In the backward pass of a step, when some of its gradients are there already.

    Of a pass that is replayed as a CUDA graph, no hook of a parameter is called: behind it, then.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            parameter = next(iter(pl_module.trained_parameters.values()))
            parameter.register_hook(lambda _: strike_once(trainer, f"window{self.step}"))

    def on_after_backward(self, trainer, pl_module) -> None:
        if trainer.global_step == self.step:
            strike_once(trainer, f"window{self.step}")


class KillInSave(pl.Callback):
    """After the new checkpoint's bytes are written, before it takes the old one's place."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            sync = files.sync

            def strike(path: Path) -> None:
                if "last.ckpt" in path.name:
                    strike_once(trainer, f"save{self.step}")
                sync(path)

            files.sync = strike


class KillInEvaluation(pl.Callback):
    """In the forward pass of a generation or of a validation after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        def strike(module, args) -> None:
            if not torch.is_grad_enabled() and trainer.global_step == self.step:
                strike_once(trainer, f"evaluation{self.step}")

        layer = pl_module.model.get_base_model().model.layers[0]
        layer.register_forward_pre_hook(strike)


class FillDisk(pl.Callback):
    """From a step on, no file may grow beyond what one has now and some bytes: as a full disk."""

    def __init__(self, step: int, path: str, room: int) -> None:
        self.step, self.path, self.room = step, path, room

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        root = Path(trainer.default_root_dir)
        mark = root / ".filled"
        if trainer.global_step == self.step and not mark.exists():
            mark.touch()
            size = (root / self.path).stat().st_size + self.room
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class Signal(pl.Callback):
    """Sends a signal in the middle of a step, to its process and to the loader workers of it.

    That is what a terminal does on Ctrl-C, and a scheduler on SIGTERM, to all ranks at once; `rank`
    sends it to one alone, `times` more than once.
    """

    def __init__(self, step: int, number: int, rank: int | None = None, times: int = 1) -> None:
        self.step, self.number, self.rank, self.times = step, number, rank, times

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step and self.rank in (None, trainer.global_rank):
            for time in range(self.times):
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid, self.number)
                name = f"signal{self.number}-rank{trainer.global_rank}-{time}"
                strike_once(trainer, name, self.number)


class GradedFile(ChatFile):
    """Word problems in a file, which no run has to hold in memory."""

    def grade(self, row, text):
        (reference,) = (x["content"] for x in row["messages"] if x["role"] == "assistant")
        return text == reference


class Strike(pl.Callback):
    """Sends a signal in a phase of a run, to a rank or to all; `make soak` draws them.

    Args:
        number: Of the fault, which strikes once a run folder, where `LIT_SFT_STRIKE` has it.
        phase: As of `Halt`, or `loading`, `save` or `upload`.
        signal: What is sent.
        times: How often, at once.
        to: `first` or `second`, a rank, or `group`, all of them.
        step: In which, for `window`, `save` and `evaluation`.
    """

    def __init__(
        self, number: int, phase: str, signal: int, times: int, to: str, step: int
    ) -> None:
        self.number, self.phase, self.signal = number, phase, signal
        self.times, self.to, self.step = times, to, step

    def _strike(self, trainer: pl.Trainer) -> None:
        mark = Path(trainer.default_root_dir).parent / f".struck{self.number}"
        is_due = os.environ.get("LIT_SFT_STRIKE") == str(self.number)
        if not is_due or trainer.global_rank != int(self.to == "second") or mark.exists():
            return
        mark.touch()
        for _ in range(self.times):
            if self.to == "group":
                os.killpg(0, self.signal)
            else:
                os.kill(os.getpid(), self.signal)

    def setup(self, trainer, pl_module, stage) -> None:
        if self.phase == "loading":
            self._strike(trainer)
        if self.phase == "save":
            self._before(files, "sync", lambda: trainer.global_step >= self.step, trainer)
        if self.phase == "upload":
            self._before(huggingface_hub, "upload_folder", lambda: True, trainer)

    def _before(self, module, name: str, is_due, trainer: pl.Trainer) -> None:
        function = getattr(module, name)

        def strike(*args, **kwargs):
            if is_due():
                self._strike(trainer)
            return function(*args, **kwargs)

        setattr(module, name, strike)

    def on_train_start(self, trainer, pl_module) -> None:
        def strike(module, args) -> None:
            step = 0 if self.phase == "first_evaluation" else self.step
            if not torch.is_grad_enabled() and trainer.global_step >= step:
                self._strike(trainer)

        if "evaluation" in self.phase:
            layer = pl_module.model.get_base_model().model.layers[0]
            layer.register_forward_pre_hook(strike)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.phase == "window" and trainer.global_step == self.step:
            parameter = next(iter(pl_module.trained_parameters.values()))
            parameter.register_hook(lambda _: self._strike(trainer))

    def on_train_end(self, trainer, pl_module) -> None:
        if self.phase == "end":
            self._strike(trainer)


class Halt(pl.Callback):
    """Stays in a phase of the run, on all ranks or one; in a window, for two seconds only.

    The phases are `setup`, `first_evaluation`, `window`, `save`, `evaluation` (the first forward
    pass without gradients behind a step, such as a validation's) and `end`.
    """

    def __init__(self, phase: str, rank: int | None = None) -> None:
        self.phase, self.rank = phase, rank

    def _halt(self, trainer: pl.Trainer, phase: str, seconds: float = 600) -> None:
        mark = Path(trainer.default_root_dir) / f".halted-{phase}-{trainer.global_rank}"
        if phase == self.phase and self.rank in (None, trainer.global_rank) and not mark.exists():
            mark.parent.mkdir(exist_ok=True)
            part = mark.with_name(f"{mark.name}.part")
            part.write_text(f"{os.getpid()}\n")
            part.rename(mark)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(0.1)

    def setup(self, trainer, pl_module, stage) -> None:
        self._halt(trainer, "setup")
        sync = files.sync

        def halt(path: Path) -> None:
            if "last.ckpt" in path.name:
                self._halt(trainer, "save")
            sync(path)

        if self.phase == "save":
            files.sync = halt

    def on_train_start(self, trainer, pl_module) -> None:
        def halt(module, args) -> None:
            if not torch.is_grad_enabled():
                self._halt(trainer, "evaluation" if trainer.global_step else "first_evaluation")

        layer = pl_module.model.get_base_model().model.layers[0]
        layer.register_forward_pre_hook(halt)
        self._halt(trainer, "first_evaluation")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == 3:
            self._halt(trainer, "window", 2)

    def teardown(self, trainer, pl_module, stage) -> None:
        self._halt(trainer, "end")


class CrashWorker(pl.Callback):
    """Ends the loader workers of a run in the middle of an epoch, or has the system kill them."""

    def __init__(self, step: int, exits: bool) -> None:
        self.step, self.exits = step, exits

    def setup(self, trainer, pl_module, stage) -> None:
        read = windows.PackedWindows.__getitem__
        reads = 0

        def crash(dataset, numbers):
            nonlocal reads
            reads += 1
            if get_worker_info() and self.exits and reads == self.step:
                Path("crashed").touch()
                os._exit(3)
            return read(dataset, numbers)

        windows.PackedWindows.__getitem__ = crash

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if not self.exits and trainer.global_step == self.step:
            Path("crashed").touch()
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)


class ChangeFile(pl.Callback):
    """Writes a line less into a file that the run reads, in the middle of a step."""

    def __init__(self, step: int, path: str) -> None:
        self.step, self.path = step, Path(path)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            self.path.write_bytes(b"".join(self.path.read_bytes().splitlines(keepends=True)[:-1]))


class Poison(pl.Callback):
    """Puts a NaN into the adapter before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            next(iter(pl_module.trained_parameters.values())).data[0, 0] = float("nan")


class Diverge(pl.Callback):
    """Makes activations NaN, or a gradient infinite, in some steps and on the last rank alone."""

    def __init__(self, steps: list[int], gradient: bool = False) -> None:
        self.steps, self.gradient = steps, gradient

    def on_train_start(self, trainer, pl_module) -> None:
        def strikes() -> bool:
            is_last = trainer.global_rank == trainer.world_size - 1
            return torch.is_grad_enabled() and is_last and trainer.global_step in self.steps

        def poison(module, args, output):
            return output * float("nan") if strikes() else output

        if self.gradient:
            parameter = next(iter(pl_module.trained_parameters.values()))
            parameter.register_hook(
                lambda g: (
                    torch.full_like(g, float("inf")) if trainer.global_step in self.steps else g
                )
            )
        else:
            pl_module.model.get_base_model().model.layers[0].register_forward_hook(poison)


class FailAlone(pl.Callback):
    """Raises an error on one rank, before a step or where the run is set up."""

    def __init__(self, kind: str, step: int | None = None, rank: int = 1) -> None:
        self.kind, self.step, self.rank = kind, step, rank

    def _fail(self, trainer: pl.Trainer) -> None:
        if trainer.global_rank == self.rank:
            errors = {"input": InputError, "memory": torch.OutOfMemoryError, "bug": KeyError}
            raise errors[self.kind]("only here")

    def setup(self, trainer, pl_module, stage) -> None:
        if self.step is None:
            self._fail(trainer)

    def on_train_batch_start(self, trainer, *args) -> None:
        if trainer.global_step == self.step:
            self._fail(trainer)


class FailInTriedPass(pl.Callback):
    """Raises an error in the first pass that a rank takes with gradients; nothing is compiled.

    Or the rank ends there without a word, `killed`; or runs out of `memory`.
    """

    def __init__(self, kind: str = "error", rank: int = 1) -> None:
        self.kind, self.rank, self.may_fail = kind, rank, True

    def on_fit_start(self, trainer, pl_module) -> None:
        torch.compiler.set_stance("force_eager")  # to compile takes long

        def fail(module, args) -> None:
            if self.may_fail and torch.is_grad_enabled():
                self.may_fail = False
                if self.kind == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                kind = torch.OutOfMemoryError if self.kind == "memory" else RuntimeError
                raise kind("only here")

        if trainer.global_rank == self.rank:
            find_layers(pl_module.model)[1].register_forward_pre_hook(fail)


class OutOfMemory(pl.Callback):
    """Raises what a full device raises."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


class OutOfMemoryInEvaluation(pl.Callback):
    """Raises it in a generation, on the last rank alone."""

    def __init__(self, step: int) -> None:
        self.step = step

    def setup(self, trainer, pl_module, stage) -> None:
        generate = pl_module.generate

        def fail(*args, **kwargs):
            if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return generate(*args, **kwargs)

        pl_module.generate = fail


class KillAtTheEnd(pl.Callback):
    """After the last checkpoint, before the adapter is written; in a run that was extended."""

    def on_train_end(self, trainer, pl_module) -> None:
        if trainer.global_step > 6:
            strike_once(trainer, f"end{trainer.global_step}")
