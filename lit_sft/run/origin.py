"""Where a run came from: its base, its tokenizer and its options, by a config or a checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lit_sft.run.folder import RunFolder

if TYPE_CHECKING:
    from lit_sft.model.module import SFTModule


def describe_origin(module: "SFTModule") -> dict[str, object]:
    """Return what an export or a chat has to know of a run, in the form of its `config.yaml`.

    A script's run has no such file: its checkpoints tell. Nothing in here is compared when the run
    is resumed; that is `lit_sft.run.identity`.

    Args:
        module: That a trainer has built.
    """
    data: Any = getattr(module.trainer, "datamodule", None)
    task = getattr(data, "task", data)
    path = getattr(task, "path", None)
    return {
        "model": {
            "base_model": module.base_model,
            "adapter": module.adapter,
            "lora": _plain(asdict(module.lora)) if module.lora else None,
            "quantization": asdict(module.quantization),
            "trainable_tokens": module.trainable_tokens,
            "max_new_tokens": module.max_new_tokens,
        },
        "data": {
            "tokenizer": getattr(data, "tokenizer_path", None),
            "chat_template": getattr(data, "chat_template", None),
            "template_kwargs": getattr(data, "template_kwargs", None),
            "task": {
                "class_path": type(task).__name__,
                "init_args": {"path": path} if isinstance(path, str) else {},
            },
        },
        "trainer": {"precision": module.trainer.precision},
    }


def read_options(folder: RunFolder, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run: those of its `config.yaml`, which one may mend, or of a script.

    Args:
        folder: Of the run.
        checkpoint: One of its own.

    Returns:
        Sections of options, or nothing where neither tells.
    """
    return folder.read_config() or dict(checkpoint.get("origin") or {})


def name_dataset(options: Mapping[str, Any]) -> str:
    """Return the path of a run's data, or the name of its task's class where it has none."""
    task = options["data"].get("task") or {}
    path = (task.get("init_args") or {}).get("path")
    if path:
        return path if isinstance(path, str) else ", ".join(path)
    return str(task.get("class_path", "")).rpartition(".")[2]


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    """Return a checkpoint's kinds of values: lists for tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
