"""Tools, calls and thoughts of every family against a mask that is written piece by piece."""

import random
from collections import Counter

import pytest
from tool_families import TOOL_FAMILIES, draw_case, load_core, read, template_file

from lit_sft.data.encode import encode_chat
from lit_sft.data.tokenizer import load_tokenizer
from lit_sft.errors import InputError


@pytest.fixture(scope="module", params=TOOL_FAMILIES)
def family(request, tmp_path_factory):
    """A family, and its tokenizers by what the template is told."""
    return load_family(request.param, tmp_path_factory.mktemp(request.param))


def load_family(name, folder):
    family = TOOL_FAMILIES[name]
    load_core(family).save_pretrained(folder)
    file = template_file(family)
    return family, {str(x): load_tokenizer(str(folder), file, x) for x in family.kwargs}


def give_tools(case):
    first, *others = case.messages
    return [first | ({"tools": case.tools} if case.tools else {}), *others]


def check_against_pieces(family, tokenizers, count, seed):
    """Compare conversations; where one is refused, the reference says that it has to be."""
    draw, fates = random.Random(seed), Counter()
    for number in range(count):
        case = draw_case(draw, family)
        tokenizer = tokenizers[str(case.kwargs)]
        text, ids, labels, is_torn = read(family, tokenizer, case)
        shown = [{k: x for k, x in m.items() if k != "weight"} for m in case.messages]
        if family.thinks == "content":
            shown = [put_thoughts(message) for message in shown]
        plain = tokenizer.apply_chat_template(shown, tools=case.tools or None, tokenize=False)
        assert text == plain, (number, case)
        refused = family.refuses(case)
        if is_torn and not refused:
            refused = "if the answer starts or ends with white space, strip it"
        if refused:
            with pytest.raises(InputError, match=refused):
                encode_chat(tokenizer, give_tools(case), "drop", case.learn_thoughts)
            fates["refused"] += 1
            continue
        example = encode_chat(tokenizer, give_tools(case), "drop", case.learn_thoughts)
        assert example.input_ids == ids, (number, case)
        assert example.labels == labels, (number, case)
        fates["alike"] += 1
        fates["with calls"] += any(
            "tool_calls" in x and x.get("weight") != 0 for x in case.messages
        )
        fates["with thoughts"] += any("reasoning_content" in x for x in case.messages)
    print(f"{family.template}: {dict(fates)}")
    assert fates["alike"] > count / 3


def put_thoughts(message):
    if "reasoning_content" not in message:
        return message
    plain = {key: value for key, value in message.items() if key != "reasoning_content"}
    block = f"<think>\n{message['reasoning_content'].strip()}\n</think>\n\n"
    return plain | {"content": block + message["content"]}


def test_the_mask_is_the_one_by_pieces(family):
    check_against_pieces(*family, count=200, seed=0)


@pytest.mark.slow
def test_the_mask_of_many_conversations_is_the_one_by_pieces(family):
    check_against_pieces(*family, count=2000, seed=1)
