"""Optimizers by name or by class path, and what each of them is given."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from lit_sft.errors import InputError, require, suggest
from lit_sft.model.muon import MuonAndAdamW, split_matrices

if TYPE_CHECKING:
    from lit_sft.model.module import SFTModule

OptimizerName = Literal["paged_adamw_32bit", "paged_adamw_8bit", "adamw_8bit", "adamw", "muon"]
MUON = "muon"
HALF_B = "lora_B"
"""In the names of the parameters that LoRA+ gives a rate of their own, by PEFT's rule."""


def build_optimizer(
    name: str,
    groups: Sequence[Sequence[nn.Parameter]],
    learning_rate: float,
    weight_decay: float,
    arguments: Mapping[str, object] | None = None,
) -> Optimizer:
    """Return an optimizer.

    Args:
        name: `paged_*` and `*_8bit` are bitsandbytes' AdamW, whose pages exist on CUDA alone;
            `adamw` is torch's, fused; `muon` is `MuonAndAdamW`; otherwise a class path.
        groups: The parameters to train, in groups that may differ in their rates; for `muon`, the
            matrices and the rest.
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
    given: Any = [[{"params": list(group)} for group in groups]]
    if name == MUON:
        given = groups
    if not weight_decay and "weight_decay" not in inspect.signature(kind).parameters:
        del options["weight_decay"]
    try:
        return kind(*given, **options, **(arguments or {}))
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
        if name in ("adamw", MUON):
            return torch.optim.AdamW if name == "adamw" else MuonAndAdamW
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


def group_parameters(module: "SFTModule") -> list[list[nn.Parameter]]:
    """Return the trained parameters of a module in one group, or in two.

    LoRA+ has the halves B in the second; DoRA's magnitudes, which are vectors, go with them, as in
    PEFT's. `muon` has what is not for Muon in the second.

    Args:
        module: Whose model is built.
    """
    parameters = module.trained_parameters
    if module.optimizer_name == MUON:
        return list(split_matrices(module.model, list(parameters.values())))
    if module.loraplus_lr_ratio == 1:
        return [list(parameters.values())]
    groups: list[list[nn.Parameter]] = [[], []]
    for name, parameter in parameters.items():
        groups[HALF_B in name or parameter.ndim == 1].append(parameter)
    return groups


def is_flat(name: str) -> bool:
    """Return whether an optimizer is given a buffer for each group rather than the matrices.

    One by class path may look at a parameter's shape, as Muon does.
    """
    return name in get_args(OptimizerName) and name != MUON


def _list(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())
