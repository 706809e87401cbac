"""What a run is: what must not change when it is resumed, and what may.

A checkpoint holds it as plain values under dotted names, and the version of that form. A field
that is new since a checkpoint was made had its default when it was; where it has none, what it was
is unknown, and it is not compared.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from lit_sft.errors import require
from lit_sft.model.adapter import Lora
from lit_sft.model.base_model import Quantization
from lit_sft.model.fast.kernels import Speed, is_deterministic
from lit_sft.model.schedule import Schedule
from lit_sft.model.sharded.choice import name_strategy

if TYPE_CHECKING:
    from lit_sft.model.module import SFTModule

VERSION = 2
"""Of the form. The first had `str(module.lora)` for `model.lora`, and no version."""
OPTIONS = {
    "model.quantization": Quantization,
    "model.lora": Lora,
    "model.schedule": Schedule,
    "model.speed": Speed,
}
"""Options that are fields of a run one by one."""
SETTLED = {
    "model.speed.fused_head": True,
    "model.speed.fused_lora": True,
    "model.speed.flat_optimizer": True,
}
"""Options of earlier releases, and the one value that every run has now."""
BEFORE = {
    "model.speed.compile": False,
    "model.optimizer_args": [],
    "model.neftune_noise_alpha": 0.0,
}
"""What was done before there was an option, or another default."""
NOT_AS_DECLARED = ("model.quantization.weight_cache", "model.lora.target_modules")
"""Among them, one that changes no numbers, and one that is held as the layers that it came to."""


def describe_run(module: SFTModule) -> dict[str, object]:
    """Return what decides the numbers of a run and must not change on the way.

    Args:
        module: That a trainer has built.
    """
    data: Any = getattr(module.trainer, "datamodule", None)
    about_data = data.describe_run() if hasattr(data, "describe_run") else {}
    return {
        "version": VERSION,
        **about_data,
        **{name: _read_option(module, name) for name in _defaults()},
        "model.base_model": module.base_sha256,
        "model.lora.target_modules": _find_targets(module),
        "model.trainable_tokens": ", ".join(module.trained_tokens),
        "model.optimizer": module.optimizer_name,
        "model.optimizer_args": sorted(f"{k}={v}" for k, v in module.optimizer_args.items()),
        "model.neftune_noise_alpha": module.neftune_noise_alpha,
        "model.seed": module.seed,
        "trainer.precision": module.trainer.precision,
        "trainer.devices": module.trainer.world_size,
    }


def match_runs(
    saved: Mapping[str, object], module: SFTModule
) -> tuple[dict[str, object], dict[str, object]]:
    """Return what a checkpoint says of its run and what this run is, ready to be compared.

    Args:
        saved: As `describe_run` gave it, then or in its first version.
        module: That a trainer has built.
    """
    now, was = describe_run(module), read_run(saved)
    del now["version"]
    if saved.get("version", 1) == 1:
        data = getattr(module.trainer, "datamodule", None)
        if data is not None and hasattr(data, "request_of"):
            now["data.rows"] = data.request_of("train")  # not what was encoded, but was to be
    return was, now | SETTLED


def read_run(saved: Mapping[str, object]) -> dict[str, Any]:
    """Return what a checkpoint says of its run, with what a field was before there was one.

    Args:
        saved: As `describe_run` gave it, then or in its first version.
    """
    was = dict(saved)
    if was.pop("version", 1) == 1:
        was = _read_first_version(was)
    return _defaults() | BEFORE | SETTLED | was


def only_what_answers_depend_on(run: Mapping[str, object]) -> dict[str, object]:
    """Return the part of `describe_run` that must agree to evaluate a checkpoint."""
    names = (
        "model.base_model",
        "model.lora.r",
        "model.lora.alpha",
        "model.lora.use_rslora",
        "model.lora.use_dora",
        "model.lora.init_weights",
        "model.lora.modules_to_save",
        "model.lora.target_modules",
        "model.trainable_tokens",
        "data.chat_template",
    )
    return {name: run[name] for name in names if name in run}


def describe_settings(module: SFTModule) -> dict[str, object]:
    """Return what may change when a run is resumed; the command line wins, and it is said.

    Args:
        module: In a trainer.
    """
    return {
        "model.quantization.weight_cache": "kept" if module.cached_bytes else "none",
        "model.learning_rate": module.learning_rate,
        "model.warmup_ratio": module.warmup_ratio,
        "model.weight_decay": module.weight_decay,
        "model.max_grad_norm": module.max_grad_norm,
        "model.nonfinite": module.nonfinite.policy,
        "trainer.deterministic": is_deterministic(),
        "trainer.strategy": name_strategy(module),
        "trainer.max_steps": module.trainer.max_steps,
        "trainer.max_epochs": module.trainer.max_epochs,
    }


def find_differences(saved: Mapping[str, object], now: Mapping[str, object]) -> dict[str, str]:
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
    saved: Mapping[str, object], now: Mapping[str, object], accepted: Collection[str]
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


def _find_targets(module: SFTModule) -> list[str]:
    """Return the names of the layers with an adapter, however they were asked for."""
    layers = [name.partition(".lora_A.") for name in module.trained_parameters]
    return sorted({layer.rpartition(".")[2] for layer, is_adapter, _ in layers if is_adapter})


def _defaults() -> dict[str, object]:
    """Return the defaults of the options that are held field by field."""
    defaults = {
        f"{option}.{field.name}": field.default
        for option, kind in OPTIONS.items()
        for field in fields(kind)
    }
    return {name: _plain(x) for name, x in defaults.items() if name not in NOT_AS_DECLARED}


def _read_option(module: SFTModule, name: str) -> object:
    """Return a field of an option; None where the option is, such as that of an adapter."""
    _, option, field = name.split(".")
    return _plain(getattr(getattr(module, option), field, None))


def _plain(value: object) -> object:
    """Return names in order: two lists of the same are no difference."""
    return sorted(value) if isinstance(value, list | tuple) else value


def _read_first_version(saved: Mapping[str, Any]) -> dict[str, object]:
    """Return the fields of a run that is held as `Lora(r=32, ...)` and `nf4, double_quant=True`."""
    run = {name: value for name, value in saved.items() if name not in OPTIONS}
    for option in ("model.lora", "model.speed"):
        call: Any = ast.parse(saved[option], mode="eval").body
        run |= {f"{option}.{x.arg}": ast.literal_eval(x.value) for x in call.keywords}
    run["model.lora.target_modules"] = sorted(run["model.lora.target_modules"])
    form, _, double_quant = saved["model.quantization"].partition(", double_quant=")
    run["model.quantization.format"] = form
    run["model.quantization.double_quant"] = double_quant == "True"
    return run
