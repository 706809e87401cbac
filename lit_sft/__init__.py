"""Supervised fine-tuning of chat models with QLoRA, on PyTorch Lightning."""

from importlib import import_module

TYPE_CHECKING = False  # `python -m` looks for `typing` in the working folder, until `__main__` runs
if TYPE_CHECKING:
    from typing import Any

    from lit_sft.callbacks.generation_eval import GenerationEval
    from lit_sft.callbacks.gradient_checkpointing import GradientCheckpointing
    from lit_sft.callbacks.hub_upload import HubUpload
    from lit_sft.cli.export import export_run
    from lit_sft.data.datamodule import SFTDataModule
    from lit_sft.data.encode import encode_chat
    from lit_sft.data.tokenizer import load_tokenizer
    from lit_sft.export.export_run import merge_adapter
    from lit_sft.export.trained_model import load_trained
    from lit_sft.model.adapter import Lora
    from lit_sft.model.base_model import Quantization
    from lit_sft.model.fast.kernels import Speed
    from lit_sft.model.module import SFTModule
    from lit_sft.model.schedule import Schedule
    from lit_sft.report.report_page import write_report
    from lit_sft.run.checkpoint_io import last_checkpoint
    from lit_sft.run.tensorboard_run import TensorBoardRun
    from lit_sft.run.wandb_run import WandbRun
    from lit_sft.tasks.base import ChatTask
    from lit_sft.tasks.chat_file import ChatFile
    from lit_sft.tasks.gsm8k import GSM8K
    from lit_sft.tasks.mixture import Mixture
    from lit_sft.toy.word_problems import WordProblems
    from lit_sft.trainer import make_trainer, run_callbacks
    from lit_sft.types import IGNORE_INDEX, Batch, Example, Message, Window

_HOMES = {
    "GenerationEval": "lit_sft.callbacks.generation_eval",
    "GradientCheckpointing": "lit_sft.callbacks.gradient_checkpointing",
    "HubUpload": "lit_sft.callbacks.hub_upload",
    "SFTDataModule": "lit_sft.data.datamodule",
    "encode_chat": "lit_sft.data.encode",
    "load_tokenizer": "lit_sft.data.tokenizer",
    "SFTModule": "lit_sft.model.module",
    "Lora": "lit_sft.model.adapter",
    "Quantization": "lit_sft.model.base_model",
    "Speed": "lit_sft.model.fast.kernels",
    "Schedule": "lit_sft.model.schedule",
    "ChatTask": "lit_sft.tasks.base",
    "ChatFile": "lit_sft.tasks.chat_file",
    "GSM8K": "lit_sft.tasks.gsm8k",
    "Mixture": "lit_sft.tasks.mixture",
    "WordProblems": "lit_sft.toy.word_problems",
    "TensorBoardRun": "lit_sft.run.tensorboard_run",
    "WandbRun": "lit_sft.run.wandb_run",
    "export_run": "lit_sft.cli.export",
    "load_trained": "lit_sft.export.trained_model",
    "merge_adapter": "lit_sft.export.export_run",
    "last_checkpoint": "lit_sft.run.checkpoint_io",
    "make_trainer": "lit_sft.trainer",
    "run_callbacks": "lit_sft.trainer",
    "write_report": "lit_sft.report.report_page",
    "IGNORE_INDEX": "lit_sft.types",
    "Batch": "lit_sft.types",
    "Example": "lit_sft.types",
    "Message": "lit_sft.types",
    "Window": "lit_sft.types",
}
"""Imported at first use: torch and Lightning take seconds that `lit-sft --help` can do without."""

__all__ = [
    "GSM8K",
    "IGNORE_INDEX",
    "Batch",
    "ChatFile",
    "ChatTask",
    "Example",
    "GenerationEval",
    "GradientCheckpointing",
    "HubUpload",
    "Lora",
    "Message",
    "Mixture",
    "Quantization",
    "SFTDataModule",
    "SFTModule",
    "Schedule",
    "Speed",
    "TensorBoardRun",
    "WandbRun",
    "Window",
    "WordProblems",
    "encode_chat",
    "export_run",
    "last_checkpoint",
    "load_tokenizer",
    "load_trained",
    "make_trainer",
    "merge_adapter",
    "run_callbacks",
    "write_report",
]


def __getattr__(name: str) -> "Any":
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("lit-sft")
        except PackageNotFoundError:  # a checkout beside the installed libraries
            return "unknown"
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
