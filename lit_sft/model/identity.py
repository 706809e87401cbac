"""What a run is: what must not change when it is resumed, and what may."""

from typing import Any

from lit_sft.model.adapter import fingerprint_base


def describe_run(module: Any) -> dict[str, Any]:
    """Return what decides the numbers of a run and must not change on the way.

    Args:
        module: An `SFTModule` that a trainer has built.
    """
    data: Any = getattr(module.trainer, "datamodule", None)
    about_data = data.describe_run() if hasattr(data, "describe_run") else {}
    quantization = module.quantization
    return about_data | {
        "model.base_model": fingerprint_base(module.model),
        "model.quantization": f"{quantization.format}, double_quant={quantization.double_quant}",
        "model.lora": str(module.lora),
        "model.trainable_tokens": ", ".join(module.trained_tokens),
        "model.speed": str(module.speed),
        "model.optimizer": module.optimizer_name,
        "model.seed": module.seed,
        "trainer.precision": module.trainer.precision,
        "trainer.devices": module.trainer.world_size,
    }


def only_what_answers_depend_on(run: dict[str, Any]) -> dict[str, Any]:
    """Return the part of `describe_run` that must agree to evaluate a checkpoint."""
    names = ("model.base_model", "model.lora", "model.trainable_tokens", "data.chat_template")
    return {name: run[name] for name in names if name in run}


def describe_settings(module: Any) -> dict[str, Any]:
    """Return what may change when a run is resumed; the command line wins, and it is said.

    Args:
        module: An `SFTModule` in a trainer.
    """
    return {
        "model.quantization.weight_cache": "kept" if module.cached_bytes else "none",
        "model.learning_rate": module.learning_rate,
        "model.warmup_ratio": module.warmup_ratio,
        "model.weight_decay": module.weight_decay,
        "model.max_grad_norm": module.max_grad_norm,
        "model.nonfinite": module.nonfinite.policy,
        "trainer.max_steps": module.trainer.max_steps,
        "trainer.max_epochs": module.trainer.max_epochs,
    }
