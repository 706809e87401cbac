"""Ask a loaded model, before it is trained, whether the loss computed here is its own.

Architectures differ in what no config entry tells: some carry a state from one packed row into the
next, some attend in a way of their own, some rescale their logits. So two short rows are run as
training runs them, and each alone through the model's own `forward`. The two must agree in loss and
gradient, as far as the dtype allows; and that no row sees another is exact in any dtype, for then
the gradient of one row's loss at the tokens of the other is zero.
"""

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor
from torch.nn import functional

from lit_sft.data.batching import pack_batch, pad_batch
from lit_sft.errors import InputError
from lit_sft.evaluation.evaluating import evaluating
from lit_sft.model.fast.attention import use_attention
from lit_sft.model.fast.cross_entropy import LogitScale, choose_logit_scale
from lit_sft.model.loss import decode, sum_head_loss
from lit_sft.types import IGNORE_INDEX, Batch, Example

if TYPE_CHECKING:
    from peft import PeftModel

ROW_TOKENS = (7, 18)
"""Lengths of the two rows: unequal, so that padding shows, and short, so that it takes no time."""
LEARNT_TOKENS = 17
"""Of each row, at its end, where it cannot see what lies outside of a window."""
WINDOWS = re.compile("window|chunk")
"""In the names of config entries that say how far a token sees, or in what pieces rows are run."""
LONGEST = 4096
"""Tokens of a row, where nothing says how long rows are."""
FLOAT32_ERRORS = (1e-4, 1e-3)
"""How far a loss, and the gradient of what is trained by its norm, may be off, as shares."""
BFLOAT16_ERRORS = (2e-2, 1e-1)
"""Likewise under autocast."""


class Probe(NamedTuple):
    """How a model is to be run."""

    packs: bool
    """Whether rows may be packed."""
    logit_scale: LogitScale
    remark: str
    """What is to be said, such as why rows are padded although they were to be packed."""


class Outcome(NamedTuple):
    """What two rows gave."""

    losses: tuple[float, float]
    """Summed over the tokens of each row."""
    gradient: Tensor
    """Of the second row's loss: float32, over all that is trained, flat."""
    leak: float
    """The largest gradient of the second row's loss at a token of the first."""


def probe_model(
    model: "PeftModel", packed: bool, fused: bool = True, max_length: int = LONGEST
) -> Probe:
    """Return how a model is to be run, so that it is trained on its own loss.

    It takes about five forwards and two backwards of 25 tokens, or of twice the widest window that
    rows can be longer than. A 3B takes 0.6 to 1.2 seconds on an H100; what the first in a process
    takes beyond, 1 to 3 seconds, is the loading of kernels that the first step would load. Modes
    and random states are left as they were.

    Args:
        model: In training mode; under autocast, if training is.
        packed: Whether rows are to be packed. Where that is wrong, they are padded.
        fused: As `sum_supervised_loss` takes it.
        max_length: Tokens of the longest row that is trained on.

    Raises:
        InputError: If padded rows are wrong, too; with both losses.
    """
    rows = _draw_rows(model, max_length)
    name = type(model.get_base_model()).__name__
    try:
        with _with_gradients(model):
            own, logit_scale = _run_alone(model, rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model of any code: what it raises cannot be listed
        raise InputError(
            f"model.base_model: {name} cannot be run on a row of text ({_first_line(error)})"
        ) from error
    faults: dict[bool, str] = {}
    for is_packed in (True, False) if packed else (False,):
        fault = _find_fault(model, rows, is_packed, fused, logit_scale, own)
        if fault is None:
            remark = f"{name}: {faults[True]}; rows are padded instead" if faults else ""
            return Probe(is_packed, logit_scale, remark)
        faults[is_packed] = fault
    raise InputError(
        f"model.base_model: {name} is not trained on its own loss: {'; '.join(faults.values())}. "
        "It would learn something else without a word, so it is refused"
    )


def _find_fault(
    model: "PeftModel",
    rows: Sequence[list[int]],
    packed: bool,
    fused: bool,
    logit_scale: LogitScale,
    own: Outcome,
) -> str | None:
    """Return what is wrong with rows that are run together, or None."""
    is_mixed = torch.is_autocast_enabled(_device(model).type)
    loss_error, gradient_error = BFLOAT16_ERRORS if is_mixed else FLOAT32_ERRORS
    way = "packed" if packed else "padded"
    try:
        with _with_gradients(model):
            ours = _run_together(model, rows, packed, fused, logit_scale)
        with _keeping_random_states(_device(model)):  # dropout may take a way of its own
            _run_together(model, rows, packed, fused, logit_scale)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # likewise
        return f"{way} rows fail ({_first_line(error)})"
    losses = f"loss {sum(ours.losses):.4f} {way}, its own is {sum(own.losses):.4f}"
    if not all(
        abs(loss - its) <= loss_error * its
        for loss, its in zip(ours.losses, own.losses, strict=True)
    ):
        return losses
    difference = (ours.gradient - own.gradient).norm().item()
    if not difference <= gradient_error * own.gradient.norm().item():
        return f"{losses}, and the gradient differs by {difference:.2g}"
    if ours.leak != 0:
        return f"{way} rows see each other ({losses})"
    return None


@contextmanager
def _with_gradients(model: "PeftModel") -> Iterator[None]:
    """Turn off what is random, such as dropout, and leave no trace of it."""
    with evaluating(model), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _keeping_random_states(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        yield


def _run_alone(model: "PeftModel", rows: Sequence[list[int]]) -> tuple[Outcome, LogitScale]:
    """Run each row through the model's own forward; see what that makes of its head's output."""
    use_attention(model, packed=False)
    plain: list[Tensor] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: plain.append(output.detach()))
    losses = []
    try:
        for row in rows:
            ids = torch.tensor([row], device=_device(model))
            logits = model(input_ids=ids, use_cache=False).logits[0, -LEARNT_TOKENS - 1 :]
            answers = ids[0, 1:][-LEARNT_TOKENS:]
            losses.append(functional.cross_entropy(logits[:-1].float(), answers, reduction="sum"))
    finally:
        hook.remove()
    of_head = plain[-1].view(-1, logits.shape[-1])[-len(logits) :]
    scale = choose_logit_scale(of_head, logits.detach(), model.config)
    _, gradient = _differentiate(losses[1], None, model)
    return Outcome((losses[0].item(), losses[1].item()), gradient, 0.0), scale


def _run_together(
    model: "PeftModel",
    rows: Sequence[list[int]],
    packed: bool,
    fused: bool,
    logit_scale: LogitScale,
) -> Outcome:
    """Run the rows as training does."""
    unseen = [[IGNORE_INDEX] * len(row) for row in rows]
    learnt = [x[:-LEARNT_TOKENS] + y[-LEARNT_TOKENS:] for x, y in zip(unseen, rows, strict=True)]
    first = _make_batch(rows, [learnt[0], unseen[1]], packed, _device(model))
    second = _make_batch(rows, [unseen[0], learnt[1]], packed, _device(model))
    embedded: list[Tensor] = []

    def watch(module: object, inputs: object, output: Tensor) -> Tensor:
        """Keep what is embedded, `[batch, tokens, hidden]`, with a gradient."""
        embedded.append(output if output.requires_grad else output.requires_grad_())
        return output.clone()  # which a model may scale in place

    hook = model.get_input_embeddings().register_forward_hook(watch)
    try:
        hidden = decode(model, first)
    finally:
        hook.remove()
    head = model.get_output_embeddings()
    losses = [sum_head_loss(head, hidden, x, fused, logit_scale) for x in (first, second)]
    of_tokens, gradient = _differentiate(losses[1], embedded[0], model)
    of_first = of_tokens[:, : len(rows[0])] if packed else of_tokens[:1]
    return Outcome((losses[0].item(), losses[1].item()), gradient, of_first.abs().max().item())


def _differentiate(
    loss: Tensor, embedded: Tensor | None, model: "PeftModel"
) -> tuple[Tensor, Tensor]:
    """Return the gradients of some tokens, and of all that is trained as one float32 vector."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inputs = [*trained, *([] if embedded is None else [embedded])]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    flat = [gradient.flatten().float() for gradient in gradients[: len(trained)]]
    return gradients[-1], torch.cat(flat)


def _draw_rows(model: "PeftModel", max_length: int) -> list[list[int]]:
    """Return two rows, the second beyond every window that a row of `max_length` may leave."""
    config = model.config.get_text_config()
    named = [value for name, value in vars(config).items() if WINDOWS.search(name)]
    reached = [x for x in named if isinstance(x, int) and ROW_TOKENS[1] <= x < max_length]
    longer = min(2 * max(reached), max_length) if reached else ROW_TOKENS[1]
    generator = random.Random(0)  # torch would draw on whatever device is the default
    lengths = (ROW_TOKENS[0], longer)
    return [[generator.randrange(config.vocab_size) for _ in range(n)] for n in lengths]


def _make_batch(
    rows: Sequence[list[int]], labels: Sequence[list[int]], packed: bool, device: torch.device
) -> Batch:
    examples = [Example(*pair) for pair in zip(rows, labels, strict=True)]
    batch = pack_batch(examples) if packed else pad_batch(examples, pad_token_id=0)
    on_device: Batch = move_data_to_device(batch, device)
    return on_device


def _device(model: "PeftModel") -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.150}"
