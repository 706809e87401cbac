"""Which kernels compute: compiled or not, fused, and the same bits twice where a model has them.

`torch.use_deterministic_algorithms(True)`, or `deterministic=True` of a Lightning trainer, decides;
what is here sees to it that it costs little and stops no run. With `warn_only`, the backward of
flash and of memory-efficient attention is not deterministic, and says so: it is no substitute.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info

from lit_sft.cuda import differentiate_here
from lit_sft.data.batching import pack_batch, pad_batch
from lit_sft.errors import InputError
from lit_sft.model.fast.embedding import fuse_token_rows
from lit_sft.model.fast.lora import fuse_lora
from lit_sft.model.fast.memory import exchange_call, find_layers
from lit_sft.model.fast.norm import fuse_norms
from lit_sft.model.fast.quantized import fuse_quantized
from lit_sft.model.fast.siblings import fuse_siblings
from lit_sft.model.loss import sum_supervised_loss
from lit_sft.model.sharded.in_step import is_sharded
from lit_sft.paths import default_cache_dir
from lit_sft.types import Example

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

REFUSAL = "does not have a deterministic implementation"
"""What torch says of an operation."""
TRIED_TOKENS = 208
"""As long as no side of a weight: of two sides that are equal, torch compiles that they always are.
"""


@dataclass(frozen=True)
class Speed:
    """What makes a step faster at a price; what has none is always done.

    Args:
        compile: Whether `torch.compile` makes the kernels of a layer. On a GPU that waits for
            Python it more than doubles the speed, after half a minute at the first start, and the
            passes of packed rows become CUDA graphs, see `lit_sft.model.fast.graphs`; numbers are
            rounded otherwise. Two such runs have the same bits, and so has a resumed one. `auto`
            does it on a GPU where a run is long enough to repay it; with the strategy `fsdp2`,
            where its passes become graphs, too.
    """

    compile: Literal["auto"] | bool = "auto"


def make_fast(model: "PeftModel") -> None:
    """Let the layers of a model compute by the functions of this folder.

    Args:
        model: Its parameters and their names stay what they are.
    """
    fuse_token_rows(model)
    fuse_quantized(model)
    fuse_lora(model)
    fuse_siblings(model)
    if model.device.type == "cuda":  # elsewhere it is no kernel of its own
        fuse_norms(model)


def compile_layers(model: "PeftModel | PreTrainedModel") -> None:
    """Let `torch.compile` make the kernels of a model's layers, for any number of tokens.

    Under deterministic algorithms no kernel is chosen by how long it takes, which two processes
    may judge differently. What is compiled is kept in the cache of this package, where that of
    torch is not set to be elsewhere: its own is a folder for temporary files.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_cache_dir() / "compiled"))
    options: dict[str, Any] = {}
    if torch.are_deterministic_algorithms_enabled() and _inductor_has("deterministic"):
        options = {"deterministic": True}
    _see_numbers_of_layers()
    # Layers whose input asks for no gradient, the first one, would be compiled for themselves.
    model.enable_input_require_grads()
    for layer in find_layers(model):
        exchange_call(layer, torch.compile(exchange_call(layer), dynamic=True, options=options))


def run_uncompiled(model: "PeftModel | PreTrainedModel") -> None:
    """Take `compile_layers` back; torch has no public way."""
    for layer in find_layers(model):
        exchange_call(layer)


def _see_numbers_of_layers() -> None:
    """Let what is compiled of a layer of FSDP know its widths, as that of any other layer does.

    They would be variables, and every place in memory be computed by them: kernels that do nothing
    else than read and write took two to four times as long on an H200.
    """
    import torch._dynamo.config as known

    known.skip_fsdp_guards = False


def _inductor_has(option: str) -> bool:
    """Return whether this torch compiles with an option; it has no public list of them."""
    import torch._inductor.config as known

    return hasattr(known, option)


def is_deterministic() -> bool:
    """Return whether torch refuses operations that may give other bits the next time."""
    return (
        torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled()
    )


def spare_fills() -> None:
    """Keep torch from filling the memory of every new tensor, which it does in this mode.

    That makes a program repeatable that reads what it has not written. Nothing here does, and it
    would be one more pass over every activation.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def any_kernels() -> Iterator[None]:
    """Let all operations run, whether they give the same bits twice or not."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def settle(model: "PeftModel | PreTrainedModel", device: torch.device, packed: bool) -> None:
    """Take a small forward and backward, and give determinism up if an operation lacks it.

    Compiled layers see this shape first in every run, also in one that is resumed: what is
    generated for them depends on no window.

    Args:
        model: In training mode; gradients and random states stay as they were.
        device: Where it is.
        packed: Whether training packs its rows.

    Raises:
        InputError: If an operation lacks it, and ranks share the base.
    """
    try:
        _take_pass(model, device, packed)
    except RuntimeError as error:
        if REFUSAL not in str(error):
            raise
        operation = str(error).partition(f" {REFUSAL}")[0]
        if is_sharded(model):
            raise InputError(
                f"trainer.deterministic: {operation} has no deterministic form on {device.type}, "
                "and with fsdp2 a pass that has begun cannot be left for another: set it to false"
            ) from error
        torch.use_deterministic_algorithms(True, warn_only=True)
        rank_zero_info(
            f"{operation} has no deterministic form on {device.type}: two runs, and a resumed one, "
            "may differ in the last bits"
        )


def _take_pass(model: "PeftModel | PreTrainedModel", device: torch.device, packed: bool) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    ids = [1] * min(TRIED_TOKENS, positions or TRIED_TOKENS)
    rows = [Example(ids, ids)]
    batch = pack_batch(rows) if packed else pad_batch(rows, pad_token_id=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        loss = sum_supervised_loss(model, move_data_to_device(batch, device))
        with differentiate_here():
            torch.autograd.grad(loss, trained, allow_unused=True)
