"""Optimizers by name or by class path, and what each of them is given."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from lit_sft.errors import InputError, require, suggest

OptimizerName = Literal["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw"]
HALF_B = "lora_B"
"""In the names of the parameters that LoRA+ gives a rate of their own, by PEFT's rule."""


def build_optimizer(
    name: str,
    groups: Sequence[Sequence[nn.Parameter]],
    learning_rate: float,
    weight_decay: float,
    arguments: Mapping[str, Any] | None = None,
) -> Optimizer:
    """Return an optimizer.

    Args:
        name: `paged_*` and `*_8bit` are bitsandbytes' AdamW, whose pages exist on CUDA alone;
            `adamw` is torch's, fused; otherwise a class path.
        groups: The parameters to train, in groups that may differ in their rates.
        learning_rate: The peak, which a schedule scales.
        weight_decay: Decoupled in AdamW (Loshchilov and Hutter, 2019).
        arguments: Of the optimizer's class, besides these.

    Raises:
        InputError: If there is no such optimizer, or it does not take the arguments.
    """
    kind = find_optimizer(name)
    options: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if name == "adamw":
        options["fused"] = True
    if not weight_decay and "weight_decay" not in inspect.signature(kind).parameters:
        del options["weight_decay"]
    try:
        return kind([{"params": list(group)} for group in groups], **options, **(arguments or {}))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"model.optimizer: {name} cannot be made with {_list(options | dict(arguments or {}))} "
            f"({error}); say others with model.optimizer_args"
        ) from error


def find_optimizer(name: str) -> Callable[..., Optimizer]:
    """Return the class of an optimizer.

    Args:
        name: As `build_optimizer` takes it.

    Raises:
        InputError: If there is none, or it wants to compute the loss itself.
    """
    if name in get_args(OptimizerName):
        if name == "adamw":
            return torch.optim.AdamW
        from bitsandbytes.optim import adamw

        kinds: dict[str, Callable[..., Optimizer]] = {
            "paged_adamw_32bit": adamw.PagedAdamW32bit,
            "paged_adamw_8bit": adamw.PagedAdamW8bit,
            "adamw_8bit": adamw.AdamW8bit,
        }
        return kinds[name]
    module, _, own = name.rpartition(".")
    known = get_args(OptimizerName)
    unknown = (
        f"model.optimizer: unknown optimizer {name!r}; use {', '.join(known)}, or a class path "
    )
    unknown += f"such as torch.optim.Muon.{suggest(name, known)}"
    try:
        found: Any = getattr(import_module(module), own)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(unknown) from error
    require(isinstance(found, type) and issubclass(found, Optimizer), unknown)
    kind: type[Optimizer] = found
    closure = inspect.signature(kind.step).parameters.get("closure")
    require(
        closure is None or closure.default is not closure.empty,
        f"model.optimizer: {name} computes the loss several times in a step, which is one window",
    )
    return kind


def group_parameters(
    parameters: Mapping[str, nn.Parameter], loraplus_lr_ratio: float
) -> list[list[nn.Parameter]]:
    """Return the trained parameters in one group, or in two: without and with the halves B.

    Args:
        parameters: By name.
        loraplus_lr_ratio: Of the rates of the second and the first group; 1 makes one group.
    """
    if loraplus_lr_ratio == 1:
        return [list(parameters.values())]
    second = [parameter for name, parameter in parameters.items() if HALF_B in name]
    first = [parameter for name, parameter in parameters.items() if HALF_B not in name]
    return [first, second]


def is_flat(name: str) -> bool:
    """Return whether an optimizer is given a buffer for each group rather than the matrices.

    One by class path may look at a parameter's shape, as Muon does.
    """
    return name in get_args(OptimizerName)


def _list(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())
