"""What a certificate measures: nothing between a model and itself, much between two."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError
from lit_sft.export.certificate import Bound, Certificate, compare, refer, require_enough
from lit_sft.types import Prompt

NEW = 5


@pytest.fixture(scope="module")
def compared(tiny_base):
    """Figures of a model against itself and against one with another weight."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    other = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    with torch.no_grad():
        weight = other.model.layers[1].mlp.down_proj.weight
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    tokenizer = load_tokenizer(str(tiny_base))
    prompts = [Prompt(i, [1, 40 + i, 50], [], i) for i in range(4)]
    references = refer(model, tokenizer, prompts, [tokenizer.eos_token_id], NEW)
    grade = lambda record, text: record < 3 and text == references[record].text  # noqa: E731

    def figures(which):
        return compare(which, tokenizer, references, [tokenizer.eos_token_id], NEW, grade)

    return SimpleNamespace(same=figures(model), other=figures(other), references=references)


def test_a_model_is_equal_to_itself(compared):
    tokens = sum(len(x.answer) + 1 for x in compared.references)
    assert compared.same == {
        "prompts": 4, "tokens": tokens, "equal_tokens": 1.0, "kl_mean": 0.0, "kl_max": 0.0,
        "exact_match": {"trained": 0.75, "exported": 0.75},
    }  # fmt: skip


def test_another_model_is_not(compared):
    assert compared.other["equal_tokens"] < 1
    assert 0 < compared.other["kl_mean"] < compared.other["kl_max"]
    assert compared.other["exact_match"]["exported"] < 0.75


def test_a_mean_of_scores_is_called_so(compared, tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    tokenizer = load_tokenizer(str(tiny_base))
    stop, grade = [tokenizer.eos_token_id], lambda record, text: record / 4
    figures = compare(model, tokenizer, compared.references, stop, NEW, grade)
    assert (figures["graded_by"], figures["exact_match"]["exported"]) == ("f1", 0.375)
    assert ", f1 0.3750 (trained 0.3750)" in certificate(**figures).describe()


def certificate(**figures):
    common = {"format": "merged", "file": "", "base": "trained", "engine": "transformers"}
    common |= {"arithmetic": "float32", "step": 1, "split": "val", "prompts": 64, "tokens": 900}
    measured = {"equal_tokens": 1.0, "kl_mean": 0.0, "kl_max": 0.0, "exact_match": None}
    return Certificate(**common | measured | figures, bound=Bound())


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ({"equal_tokens": 0.98}, ["98.00% of greedy tokens are equal, not 99.00%"]),
        ({"kl_mean": 0.02}, ["the mean KL is 0.02, not 0.01 at most"]),
        ({"kl_mean": math.nan}, ["the mean KL is nan, not 0.01 at most"]),
        (
            {"exact_match": {"trained": 0.9, "exported": 0.87}},
            ["the exact match falls by 0.0300, 0.0156 may"],
        ),
        ({"exact_match": {"trained": 58 / 64, "exported": 57 / 64}}, []),
        ({"exact_match": {"trained": 0.5, "exported": 0.9}}, []),
    ],
)
def test_what_falls_short_is_told_with_its_bound(figures, says):
    one = certificate(**figures)
    assert one.shortfalls() == says
    assert one.as_dict()["passed"] is not bool(says)


def test_a_bound_is_the_user_s():
    assert replace(certificate(equal_tokens=0.98), bound=Bound(0.97)).shortfalls() == []


def test_too_few_prompts_say_how_to_have_more():
    with pytest.raises(InputError, match=r"64 held-out prompts, the run has 1; raise data.val_"):
        require_enough([Prompt(0, [1], [], None)], 64)
