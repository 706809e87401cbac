"""Whether what is exported says what was trained: the two compared on held-out prompts.

The trained model answers each prompt greedily. Along its answers, both models are asked for the
next token, so that one token that differs does not make all behind it differ; and, where the task
grades, the exported one answers by itself, too. Both compute alike, so that what differs is the
export's doing.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from transformers import PreTrainedTokenizerBase

from lit_sft.data.prompts import decode_answer
from lit_sft.errors import require
from lit_sft.evaluation.comparison import weigh
from lit_sft.evaluation.generate import generate_greedy
from lit_sft.types import Grade, Prompt

FILE = "certificate.json"
LEAST_PROMPTS = 64
EQUAL_TOKENS = 0.99
KL_MEAN = 0.01
KL_TOKENS = 16
"""Of an answer, at its start: the distributions over the vocabulary are kept, and are large."""
BATCH_TOKENS = 2**13
"""Rows times their longest length, of a batch of answers."""
GradeFunction = Callable[[Any, str], Grade]


class Reference(NamedTuple):
    """What the trained model says to a prompt."""

    prompt: Prompt
    answer: list[int]
    """Its greedy answer, without the stop token."""
    likeliest: list[int]
    """The greedy token at each place of the answer and behind it, `[answer + 1]`, in one pass."""
    log_probs: Tensor
    """Of the first `KL_TOKENS` places, float32 `[places, vocabulary]`."""
    text: str


@dataclass(frozen=True)
class Bound:
    """What an export has to keep to.

    Args:
        equal_tokens: The least share of greedy tokens that are those of the trained model.
        kl_mean: The most that the distributions of the next token may differ on average, in nats.
        exact_match: The most that the exact match may fall, as a share.
    """

    equal_tokens: float = EQUAL_TOKENS
    kl_mean: float = KL_MEAN
    exact_match: float = 1 / LEAST_PROMPTS

    def __post_init__(self) -> None:
        equal, kl = self.equal_tokens, self.kl_mean
        require(0 <= equal <= 1, f"--min_equal must be a share from 0 to 1, got {equal}")
        require(kl >= 0, f"--max_kl must be 0 or more, got {kl}")


@dataclass(frozen=True)
class Certificate:
    """What was measured of an export.

    Args:
        format: Of the export.
        file: That was run; empty for a folder.
        base: What it was merged onto; `original` for vLLM's adapter, which goes onto that.
        engine: What has run the exported files.
        arithmetic: Of both models.
        step: Optimizer steps of the checkpoint.
        split: Of the run's data, from which the prompts are.
        prompts: How many.
        tokens: Of the trained model's answers.
        equal_tokens: The share of places with the same greedy token.
        kl_mean: Of the next token, from the trained model to the exported one, in nats.
        kl_max: The largest.
        exact_match: Of the trained and of the exported model, or the mean F1 where the task grades
            by that; None where it grades nothing.
        bound: What it had to keep to.
        graded_by: `exact_match`, or `f1`.
    """

    format: str
    file: str
    base: str
    engine: str
    arithmetic: str
    step: int
    split: str
    prompts: int
    tokens: int
    equal_tokens: float
    kl_mean: float
    kl_max: float
    exact_match: dict[str, float] | None
    bound: Bound
    graded_by: str = "exact_match"

    def shortfalls(self) -> list[str]:
        """Return in words where the export falls short of its bound."""
        found = []
        if self.equal_tokens < self.bound.equal_tokens:
            found.append(
                f"{self.equal_tokens:.2%} of greedy tokens are equal, not "
                f"{self.bound.equal_tokens:.2%}"
            )
        if not self.kl_mean <= self.bound.kl_mean:
            found.append(f"the mean KL is {self.kl_mean:.2g}, not {self.bound.kl_mean:.2g} at most")
        if self.exact_match:
            lost = self.exact_match["trained"] - self.exact_match["exported"]
            if lost > self.bound.exact_match + 1e-9:
                found.append(
                    f"the {self._figure} falls by {lost:.4f}, {self.bound.exact_match:.4f} may"
                )
        return found

    @property
    def _figure(self) -> str:
        return self.graded_by.replace("_", " ")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, the verdict among them."""
        return asdict(self) | {"passed": not self.shortfalls(), "kl_tokens_a_prompt": KL_TOKENS}

    def describe(self) -> str:
        """Return it in a line."""
        graded = self.exact_match
        match = (
            f", {self._figure} {graded['exported']:.4f} (trained {graded['trained']:.4f})"
            if graded
            else ""
        )
        return (
            f"{self.prompts} prompts in {self.engine} ({self.arithmetic}): {self.equal_tokens:.2%} "
            f"of {self.tokens:,} greedy tokens equal, KL mean {self.kl_mean:.2g}, largest "
            f"{self.kl_max:.2g}{match}"
        )


def require_enough(prompts: Sequence[Prompt], least: int) -> None:
    """Raise `InputError` if there are fewer prompts than a certificate is asked to take."""
    require(
        len(prompts) >= least,
        f"export: a certificate takes {least} held-out prompts, the run has {len(prompts)}"
        "; raise data.val_rows in its config.yaml, or export without one (--prompts 0)",
    )


def refer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    stop_ids: Sequence[int],
    max_new_tokens: int,
) -> list[Reference]:
    """Let the trained model answer.

    Args:
        model: In eval mode.
        tokenizer: Of training.
        prompts: Held out.
        stop_ids: Tokens that end an answer.
        max_new_tokens: Of an answer, its stop token included.
    """
    answers = generate(model, tokenizer, prompts, stop_ids, max_new_tokens)
    references = []
    for prompt, ids in zip(prompts, answers, strict=True):
        logits = next_logits(model, prompt.input_ids, ids)
        likeliest, log_probs = logits.argmax(-1).tolist(), log_softmax(logits[:KL_TOKENS], -1)
        text = decode_answer(tokenizer, ids)
        references.append(Reference(prompt, ids, likeliest, log_probs, text))
    return references


def compare(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    references: Sequence[Reference],
    stop_ids: Sequence[int],
    max_new_tokens: int,
    grade: GradeFunction | None,
) -> dict[str, Any]:
    """Return the figures of `Certificate` for an exported model, by their names.

    Args:
        model: In eval mode.
        tokenizer: Of training.
        references: As `refer` returns them.
        stop_ids: Tokens that end an answer.
        max_new_tokens: Of an answer, its stop token included.
        grade: Of a record and a text; None where the task grades nothing.
    """
    equal, kls, width = 0, [], 0
    for reference in references:
        logits = next_logits(model, reference.prompt.input_ids, reference.answer)
        width = min(logits.shape[-1], reference.log_probs.shape[-1])  # a head may be padded
        log_probs = log_softmax(logits[:KL_TOKENS], -1)  # as of the reference, to the bit
        own, theirs = (log_softmax(x[:, :width], -1) for x in (log_probs, reference.log_probs))
        kls.append((theirs.exp() * (theirs - own)).sum(-1))
        pairs = zip(logits.argmax(-1).tolist(), reference.likeliest, strict=True)
        equal += sum(one == other for one, other in pairs)
    kl, tokens = torch.cat(kls).clamp(min=0), sum(len(x.likeliest) for x in references)
    figures: dict[str, Any] = {
        "prompts": len(references),
        "tokens": tokens,
        "equal_tokens": equal / tokens,
        "kl_mean": kl.mean().item(),
        "kl_max": kl.max().item(),
        "exact_match": None,
    }
    if grade is not None:
        prompts = [reference.prompt for reference in references]
        answers = generate(model, tokenizer, prompts, stop_ids, max_new_tokens)
        texts = [decode_answer(tokenizer, ids) for ids in answers]
        before = [grade(x.prompt.record, x.text) for x in references]
        after = [grade(x.record, text) for x, text in zip(prompts, texts, strict=True)]
        if any(isinstance(x, float) for x in before + after):
            figures["graded_by"] = "f1"
        figures["exact_match"] = {"trained": _mean(before), "exported": _mean(after)}
    return figures


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    stop_ids: Sequence[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the greedy answer to each prompt, without its stop token."""
    pad = tokenizer.pad_token_id
    ids = [prompt.input_ids for prompt in prompts]
    answers = generate_greedy(model, ids, stop_ids, pad, max_new_tokens, BATCH_TOKENS)
    return [answer.token_ids for answer in answers]


@torch.no_grad()
def next_logits(model: nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Return the logits in an answer and behind it, float32 `[answer + 1, vocabulary]`."""
    device = next(model.parameters()).device
    ids = torch.tensor([[*prompt, *answer]], device=device)
    logits: Tensor = model(input_ids=ids).logits
    return logits[0, len(prompt) - 1 :].float().cpu()


def _mean(grades: Sequence[Grade]) -> float:
    return sum(map(weigh, grades)) / len(grades)
