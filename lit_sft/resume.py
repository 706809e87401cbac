"""What a resumed run must have in common with the run that it resumes. Pure."""

from collections.abc import Collection, Mapping
from typing import Any

from lit_sft.errors import require


def find_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs between two runs, by name, each as `was X, is now Y`.

    Args:
        saved: Plain values by dotted names, such as `model.lora.r`. What it does not hold was not
            known when it was saved, and is no difference.
        now: Likewise; what it does not hold is None.
    """
    return {
        name: f"was {value}, is now {now.get(name)}"
        for name, value in sorted(saved.items())
        if value != now.get(name)
    }


def require_same_run(
    saved: Mapping[str, Any], now: Mapping[str, Any], accepted: Collection[str]
) -> None:
    """Raise `InputError` if what decides the numbers of a run has changed since a checkpoint.

    Args:
        saved: Of the checkpoint.
        now: Of this run.
        accepted: Names that may differ; `model.lora` is all of `model.lora.r` and its like.
    """
    refused = {
        name: change
        for name, change in find_differences(saved, now).items()
        if not any(name == one or name.startswith(f"{one}.") for one in accepted)
    }
    lines = "".join(f"\n  {name}: {change}" for name, change in refused.items())
    names = ", ".join(refused)
    require(
        not refused,
        f"the checkpoint is of another run:{lines}\nGo back to what it was, or go on all the same "
        f"with --model.accept_changes '[{names}]'",
    )
