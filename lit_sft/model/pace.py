"""What a run may leave open, and its device, its memory and its length decide.

A run that is resumed keeps what its checkpoint was made with: both change the last bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lit_sft.data.protocol import SizedData
from lit_sft.errors import InputError
from lit_sft.model.device import compute_dtype
from lit_sft.model.distributed import gather_over_ranks, max_over_ranks, say_once
from lit_sft.model.fast.flat_parameters import FlatParameters
from lit_sft.model.fast.graphs import GraphedDecoder
from lit_sft.model.fast.kernels import compile_layers, run_uncompiled, settle
from lit_sft.model.fast.layer_graphs import LayerGraphs
from lit_sft.model.fast.memory import (
    choose_count,
    count_bytes_per_token,
    find_layers,
    free_memory_bytes,
    recompute_from_outside,
    recomputing,
)
from lit_sft.model.loss import decode
from lit_sft.model.peers import is_for_another
from lit_sft.model.sharded.in_step import is_sharded

if TYPE_CHECKING:
    from lit_sft.model.module import SFTModule

COMPILE = "model.speed.compile"
COMPILE_SECONDS = 32.0
"""What compiling the layers of a model took on an H100; it is one compilation for all of them."""
SAVED_SECONDS = 0.0087
"""What a step took less then, by layer: most of it is the time that Python takes to launch kernels,
which does not depend on their size."""
LARGEST_PASS = 2**14
"""Tokens with which the matrix products of any layer fill a device."""


def start_compilers(module: "SFTModule") -> None:
    """Let torch start the processes that compile kernels while the base is loaded.

    They take seconds. Left to itself, torch starts them with the first kernel, and compiles one
    after the other until they are there.

    Args:
        module: In `fit`. Where it turns out that compiling does not pay, they idle.
    """
    if module.speed.compile and module.trainer.strategy.root_device.type == "cuda":
        from torch._inductor.async_compile import maybe_warm_pool

        maybe_warm_pool()


def widen_passes(module: "SFTModule") -> None:
    """Run as many tokens at once as memory allows, where the data module leaves it open.

    Args:
        module: Whose model is built. On a CPU, where small passes are as fast, nothing changes.
    """
    data: Any = getattr(module.trainer, "datamodule", None)
    if module.device.type != "cuda" or not getattr(data, "leaves_passes_open", False):
        return
    with module.trainer.precision_plugin.forward_context():
        per_token = count_bytes_per_token(module.model, module.device)
    free = free_memory_bytes(module.device)
    tokens = choose_tokens(data, per_token, len(find_layers(module.model)), free)
    data.widen_passes(-max_over_ranks(-tokens, module.device))


def choose_tokens(data: SizedData, per_token: float, layers: int, free: float) -> int:
    """Return the tokens of a pass: no more than an optimizer step has, or memory holds.

    Args:
        data: Says the size of a step. The least is a batch of its longest rows.
        per_token: Bytes that a layer keeps for a token.
        layers: Of the model.
        free: In bytes.
    """
    tokens = data.batch_size * data.max_length
    most = min(LARGEST_PASS, tokens * data.accumulate_grad_batches)
    while 2 * tokens <= most and choose_count(2 * tokens * per_token, layers, free) == 0:
        tokens *= 2
    return tokens


def keep_choices(
    module: "SFTModule", saved: Mapping[str, Any], keeps_compiling: bool = True
) -> None:
    """Take what a checkpoint's run was decided to be where this one leaves it open.

    Args:
        module: That is resumed.
        saved: What the checkpoint says of its run, by dotted names.
        keeps_compiling: Whether layers are compiled as they were; otherwise that is decided anew,
            and said where it comes out otherwise.
    """
    data: Any = getattr(module.trainer, "datamodule", None)
    tokens = saved.get("data.max_tokens_per_pass")
    if tokens and getattr(data, "leaves_passes_open", False):
        data.widen_passes(tokens)
    module.compiled_before = saved[COMPILE]
    if keeps_compiling and module.speed.compile == "auto":
        module.speed = replace(module.speed, compile=saved[COMPILE])


def settle_pace(module: "SFTModule", flat: FlatParameters) -> GraphedDecoder | LayerGraphs | None:
    """Decide how the layers of a pass are run, and try it.

    Args:
        module: In `fit`, when its length is known, and all callbacks have said which layers
            recompute their activations.
        flat: Its trained parameters.

    Returns:
        What runs the layers of a training pass as CUDA graphs, or None where they are not.
    """
    is_on_cuda = module.device.type == "cuda"
    layers = find_layers(module.model.get_decoder())
    recomputed = [layer for layer in layers if layer.gradient_checkpointing]
    _settle_compiling(module, len(layers))
    captures = bool(module.speed.compile) and is_on_cuda and _can_capture(module)
    if module.speed.compile:
        for layer in recomputed:
            layer.gradient_checkpointing = False
        compile_layers(module.model)
    if module.speed.compile or is_on_cuda:
        _try_a_pass(module, recomputed)
    _tell_if_changed(module)
    if not module.speed.compile:  # as it was, or because it failed
        for layer in recomputed:
            layer.gradient_checkpointing = True
        return None
    if not captures:
        recompute_from_outside(recomputed)
        return None
    run, data = partial(decode, module.model), _find_data(module)
    if is_sharded(module.model):
        kept = [number for number, layer in enumerate(layers) if layer not in recomputed]
        return LayerGraphs(run, layers, data.max_length, kept)
    if recomputed:
        if len(recomputed) < len(layers):
            say_once(f"all {len(layers)} layers are computed again, as CUDA graphs of their own")
        return LayerGraphs(run, layers, data.max_length)
    return GraphedDecoder(run, flat.members, flat.gradient, data.max_length)


def _settle_compiling(module: "SFTModule", layers: int) -> None:
    if module.speed.compile != "auto":
        return
    # Launched one by one, kernels between one gather and the next are no faster for being compiled.
    is_fit = _can_capture(module) if is_sharded(module.model) else not _has_own_layers(module)
    steps = module.total_steps() - module.global_step
    pays = module.device.type == "cuda" and is_fit and does_compiling_pay(layers, steps)
    module.speed = replace(module.speed, compile=pays)
    if pays:
        say_once(
            f"compiling the layers: up to {COMPILE_SECONDS:.0f} s now, for about "
            f"{SAVED_SECONDS * layers * steps:,.0f} s less in {steps:,} steps"
        )


def _tell_if_changed(module: "SFTModule") -> None:
    before, module.compiled_before = module.compiled_before, None
    if before not in (None, module.speed.compile):
        say_once(
            f"{COMPILE} was {before}, is now {module.speed.compile}: the run goes on with the same "
            "windows, optimizer state and position, but not to the byte: layers round otherwise"
        )


def does_compiling_pay(layers: int, steps: int) -> bool:
    """Return whether compiled layers save more time than they take to compile, on a GPU.

    Args:
        layers: Of the model.
        steps: Optimizer steps that are left.
    """
    return SAVED_SECONDS * layers * steps > COMPILE_SECONDS


def _try_a_pass(module: "SFTModule", recomputed: Sequence[nn.Module]) -> None:
    """Take a pass; give compiling up, on all ranks, where that fails.

    Args:
        module: As `settle_pace` takes it.
        recomputed: Layers that are to keep no more than their input; compiled, they do not see to
            it themselves.

    Raises:
        InputError: If ranks share the base, which cannot leave a pass and take another.
    """
    if not module.speed.compile:
        _take_a_pass(module)
        return
    reason, shares = "", is_sharded(module.model)
    try:
        _take_a_pass(module, recomputed)
    except RuntimeError as error:  # of which torch's own are subclasses
        if is_for_another(error) or (shares and isinstance(error, torch.OutOfMemoryError)):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if shares:
            raise InputError(
                f"{COMPILE}: a first pass with compiled layers failed ({reason}); with fsdp2 there "
                "is no second try: set it to false"
            ) from error
    # Behind the error, which would hold the memory of the pass that failed.
    reasons = [told for told in gather_over_ranks([reason]) if told]
    if not reasons:
        return
    run_uncompiled(module.model)
    module.speed = replace(module.speed, compile=False)
    rank_zero_info(
        "the layers are run as they are, which is slower: compiled, a first pass failed "
        f"({reasons[0]})"
    )
    _take_a_pass(module, recomputed)


def _take_a_pass(module: "SFTModule", recomputed: Sequence[nn.Module] = ()) -> None:
    with module.trainer.precision_plugin.forward_context(), recomputing(recomputed):
        settle(module.model, module.device, _packs(module))


def _can_capture(module: "SFTModule") -> bool:
    is_sized = isinstance(_find_data(module), SizedData)
    # Otherwise rows are attended to one by one, and the device is asked for their lengths.
    is_half = compute_dtype(module.trainer.precision) != torch.float32
    is_at_once = is_half and not getattr(module.model.config, "attention_dropout", 0.0)
    return is_sized and is_at_once and _packs(module) and not _has_own_layers(module)


def _has_own_layers(module: "SFTModule") -> bool:
    """Return whether layers compute that were never compiled or captured here.

    These are PEFT's own, and those whose weights are trained, or begin with a part of the base's.
    """
    lora = module.lora
    if lora is None or lora.use_dora or lora.modules_to_save:
        return True
    return lora.init_weights != "default"


def _find_data(module: "SFTModule") -> Any:
    return getattr(module.trainer, "datamodule", None)


def _packs(module: "SFTModule") -> bool:
    return (
        module.may_pack
        and getattr(_find_data(module), "batching", "padding_free") == "padding_free"
    )
