"""What a checkpoint holds, and which checkpoints a run may go on from."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from lit_sft.errors import InputError, require
from lit_sft.model.nonfinite import require_finite_weights
from lit_sft.model.optim import group_parameters, is_flat
from lit_sft.model.pace import COMPILE, keep_choices
from lit_sft.model.principal import put_starts, read_starts
from lit_sft.model.saved_adapter import require_same_shapes
from lit_sft.model.sharded.strategy import FSDP2
from lit_sft.run.identity import (
    describe_run,
    describe_settings,
    find_differences,
    match_runs,
    only_what_answers_depend_on,
    read_run,
    require_same_run,
)
from lit_sft.run.origin import describe_origin
from lit_sft.run.window_shape import (
    has_new_shape,
    require_same_window,
    tell_new_shape,
    without_shape,
)

if TYPE_CHECKING:
    from lit_sft.model.module import SFTModule


def fill_checkpoint(checkpoint: dict[str, Any], module: "SFTModule") -> None:
    """Keep the adapter and what the run is, and drop the frozen base.

    Args:
        checkpoint: As Lightning has gathered it.
        module: In a trainer.

    Raises:
        NonFiniteError: If the adapter is not finite.
    """
    checkpoint["state_dict"] = {
        name: parameter.detach().clone() for name, parameter in module.trained_parameters.items()
    }
    require_finite_weights(checkpoint["state_dict"], module.global_step)
    if starts := read_starts(module.model):
        checkpoint["lora_starts"] = {name: start.clone() for name, start in starts.items()}
    checkpoint["nonfinite"] = module.nonfinite.state_dict()
    checkpoint["optimizer_parameters"] = list(module.trained_parameters)
    checkpoint["run"] = describe_run(module)
    checkpoint["settings"] = describe_settings(module)
    checkpoint["origin"] = describe_origin(module)


def resume(checkpoint: Mapping[str, Any], module: "SFTModule") -> None:
    """Refuse a checkpoint of another adapter, and to go on with another run's.

    Args:
        checkpoint: As `fill_checkpoint` left it, in this release or an earlier one.
        module: In a trainer; in `fit`, it takes up the counts of the interrupted run.

    Raises:
        InputError: With what differs.
    """
    require("run" in checkpoint, "the checkpoint is none of this trainer's: it names no run")
    trained, fits = module.trained_parameters, module.trainer.state.fn == "fit"
    settings, accepted = describe_settings(module), module.accept_changes
    before = checkpoint.get("settings", {})
    changes = find_differences(before, settings)
    # Left open, it depends on the strategy whether layers are compiled: that was no choice.
    strategies = {before.get("trainer.strategy"), settings["trainer.strategy"]}
    is_forced = FSDP2 in strategies and len(strategies) == 2
    if is_forced:
        accepted = (*accepted, COMPILE)
    if fits:
        keep_choices(module, read_run(checkpoint["run"]), not is_forced)
    saved, now = match_runs(checkpoint["run"], module)
    if not fits:
        saved, now = only_what_answers_depend_on(saved), only_what_answers_depend_on(now)
    _require_same_run(saved, now, accepted)
    require_same_shapes(trained, checkpoint["state_dict"], "the checkpoint")
    put_starts(module.model, checkpoint.get("lora_starts", {}))
    if not fits:
        return
    if unknown := sorted(now.keys() - saved.keys()):
        rank_zero_info(f"the checkpoint does not say, and may differ in: {', '.join(unknown)}")
    require_same_layout(checkpoint.get("optimizer_states", []), count_tensors(module))
    # Earlier releases named none, but saved the weights in that order.
    names = checkpoint.get("optimizer_parameters", list(checkpoint["state_dict"]))
    require_same_order(names, list(trained))
    for name, change in changes.items():
        is_other = is_forced and name == "trainer.strategy"
        otherwise = "; layers that are compiled round otherwise" if is_other else ""
        rank_zero_info(f"{name} {change}{otherwise}")
    module.nonfinite.load_state_dict(checkpoint["nonfinite"])


def _require_same_run(
    saved: Mapping[str, object], now: Mapping[str, object], accepted: Collection[str]
) -> None:
    """Compare two runs; on another number of ranks, the rows of their windows as a whole."""
    if not has_new_shape(saved, now) or "trainer.devices" in accepted:
        require_same_run(saved, now, accepted)
        return
    require_same_run(without_shape(saved), without_shape(now), accepted)
    require_same_window(saved, now)
    draws = bool(now.get("model.lora.dropout") or now.get("model.neftune_noise_alpha"))
    rank_zero_info(tell_new_shape(saved, now, draws))


def count_tensors(module: "SFTModule") -> list[int]:
    """Return how many tensors the optimizer of a run knows, in each of its groups."""
    groups = group_parameters(module)
    return [1 if is_flat(module.optimizer_name) else len(group) for group in groups]


def require_same_layout(
    optimizer_states: Sequence[Mapping[str, Any]], expected: Sequence[int] = (1,)
) -> None:
    """Raise `InputError` if a saved optimizer knows the parameters in another form.

    Args:
        optimizer_states: Of a checkpoint.
        expected: How many tensors this run's knows, in each of its groups; one for a buffer.
    """
    for state in optimizer_states:
        saved = [len(group["params"]) for group in state["param_groups"]]
        if saved == list(expected):
            continue
        require(
            len(saved) > 1 or saved == [1] or list(expected) != [1],
            "model.speed.flat_optimizer: was False in the checkpoint, whose optimizer state fits "
            "no other form; now it is always True: go on with the release that wrote it",
        )
        raise InputError(
            f"the checkpoint's optimizer knows groups of {saved} tensors, here {list(expected)}: "
            "its state fits no other model.optimizer or model.lora.loraplus_lr_ratio; begin a new "
            "run from its adapter (model.adapter)"
        )


def require_same_order(saved: Sequence[str], now: Sequence[str]) -> None:
    """Raise `InputError` if a saved optimizer knows the same parameters in another order.

    Its state has no names: a moment of one parameter would be taken for that of another.

    Args:
        saved: The names of its parameters, in its order.
        now: Those of this run, in the order in which an optimizer is given them.
    """
    differing = [f"{now[i]}, was {name}" for i, name in enumerate(saved) if name != now[i]]
    require(
        not differing,
        f"the checkpoint's optimizer has its parameters in another order: at {len(differing)} of "
        f"{len(now)} places is another one, such as {'; '.join(differing[:2])}. Go on with the "
        "releases of peft and transformers that it was made with",
    )
