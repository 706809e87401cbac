"""Chat template families: tokenizers to go with `templates/`, and a mask made by characters alone.

The mask knows nothing of the package. It walks through the text that plain `apply_chat_template`
writes, from header to header, and so finds each message at its place, whatever it spells. Between
the control tokens that the template wrote, text is tokenised on its own.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_sft.types import IGNORE_INDEX, Message

TEMPLATES = Path(__file__).parent / "templates"
CORPUS = [(Path(__file__).parents[3] / "LICENSE").read_text()]
"""Text that stays: the same conversations are drawn whatever is written elsewhere."""
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NO_THOUGHTS = "<think>\n\n</think>\n\n"


def as_it_is(content: str, is_last: bool) -> str:
    return content


def stripped(content: str, is_last: bool) -> str:
    return content.strip()


def after_a_space(content: str, is_last: bool) -> str:
    return " " + content.strip()


def after_thoughts(content: str, is_last: bool) -> str:
    return NO_THOUGHTS + content.lstrip("\n") if is_last else content


def unbroken(content: str, is_last: bool) -> str:
    return content.lstrip("\n")


def thinks(thoughts: str, content: str) -> str:
    return f"{thoughts}\n</think>\n\n" + content.lstrip("\n")


def thinks_stripped(thoughts: str, content: str) -> str:
    return f"{thoughts}\n</think>\n\n" + content.strip()


def thinks_closely(thoughts: str, content: str) -> str:
    if thoughts:
        return f"{thoughts}\n</think>\n{content}".rstrip()
    return "\n</think>\n" + content.lstrip("\n").rstrip()


def after_no_thoughts(content: str, is_last: bool) -> str:
    return "<think></think>" + content.rstrip() if content.strip() else "<think></think>"


class Family(NamedTuple):
    template: str
    """The name of a template of the package, or of a file in `templates/`."""
    heads: dict[str, str]
    """By role, what stands before a message."""
    stop: str
    tokens: list[str]
    """All its control tokens."""
    user: Callable[[str, bool], str] = as_it_is
    answer: Callable[[str, bool], str] = as_it_is
    """What an answer becomes, and, by its second argument, the last answer of all."""
    eos: str | None = None
    """Where it is not the stop token."""
    kind: str = "bytes"
    """Of the tokenizer: of `bytes`, `spaces` (Gemma's) or `prefixed` (Mistral's)."""
    joins_system: bool = False
    """Whether the system prompt and an empty line stand before the first question."""
    eats_space: bool = False
    """Whether control tokens swallow the white space that follows."""

    says: Callable[[str, str], str] | None = None
    """Where the prompt opens the thoughts: what thoughts and a last answer become behind it."""

    @property
    def file(self) -> str:
        path = TEMPLATES / f"{self.template}.jinja"
        return str(path) if path.exists() else self.template


def by_role(pattern: str, **others: str) -> dict[str, str]:
    return {role: pattern.format(role) for role in ("system", "user", "assistant")} | others


LLAMA3 = by_role("<|start_header_id|>{}<|end_header_id|>\n\n")
LLAMA3_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
DATED = LLAMA3["system"] + "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
CHATML = by_role("<|im_start|>{}\n")
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
GEMMA = by_role("<start_of_turn>{}\n", assistant="<start_of_turn>model\n")
GEMMA["system"] = GEMMA["user"]
GEMMA_TOKENS = ["<bos>", "<start_of_turn>", "<end_of_turn>"]
# A SentencePiece tokenizer cannot say U+2581, which the published tokens have for `_`.
BAR = "\uff5c"
R1 = {
    "system": f"<{BAR}begin_of_sentence{BAR}>",
    "user": f"<{BAR}User{BAR}>",
    "assistant": f"<{BAR}Assistant{BAR}>",
}
R1_STOP = f"<{BAR}end_of_sentence{BAR}>"
R1_TOKENS = [*R1.values(), R1_STOP, f"<{BAR}tool_begin{BAR}>", f"<{BAR}tool_end{BAR}>"]
MISTRAL = {"system": "[INST] ", "user": "[INST] ", "assistant": "[/INST]"}
BOS_TOKENS = ("<s>", "<bos>", "<|begin_of_text|>", R1["system"])
FAMILIES = {
    "llama3": Family("llama3", LLAMA3, "<|eot_id|>", LLAMA3_TOKENS, stripped, stripped),
    "llama31": Family(
        "llama31", LLAMA3 | {"system": DATED}, "<|eot_id|>", LLAMA3_TOKENS, stripped, stripped
    ),
    "chatml": Family("chatml", CHATML, "<|im_end|>", CHATML_TOKENS, stripped, stripped),
    "marked": Family("marked", CHATML, "<|im_end|>", CHATML_TOKENS),
    "qwen25": Family("qwen25", CHATML, "<|im_end|>", CHATML_TOKENS),
    "qwen3": Family("qwen3", CHATML, "<|im_end|>", CHATML_TOKENS, answer=after_thoughts),
    "gemma2": Family(
        "gemma2", GEMMA, "<end_of_turn>", GEMMA_TOKENS, stripped, stripped, kind="spaces"
    ),
    "gemma3": Family(
        *("gemma3", GEMMA, "<end_of_turn>", GEMMA_TOKENS, stripped, stripped),
        kind="spaces",
        joins_system=True,
    ),
    "mistral": Family(
        *("mistral", MISTRAL, "</s>", ["<s>", "[INST]", "[/INST]", "</s>"]),
        answer=after_a_space,
        kind="prefixed",
        joins_system=True,
    ),
    "phi3": Family(
        *("phi3", by_role("<|{}|>\n"), "<|end|>"),
        tokens=["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"],
        eos="<|endoftext|>",
        eats_space=True,
    ),
    "phi4": Family(
        "phi4", by_role("<|im_start|>{}<|im_sep|>"), "<|im_end|>", [*CHATML_TOKENS, "<|im_sep|>"]
    ),
    "qwen35": Family(
        *("qwen35", CHATML, "<|im_end|>", CHATML_TOKENS, stripped, stripped), says=thinks_stripped
    ),
    "qwq": Family("qwq", CHATML, "<|im_end|>", CHATML_TOKENS, answer=unbroken, says=thinks),
    "deepseek_r1": Family("deepseek_r1", R1, R1_STOP, R1_TOKENS, says=thinks),
    "nemotron3": Family(
        *("nemotron3", CHATML, "<|im_end|>", CHATML_TOKENS),
        answer=after_no_thoughts,
        says=thinks_closely,
    ),
}
ALL_TOKENS = sorted({token for family in FAMILIES.values() for token in family.tokens})


def train_bytes() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return core


def train_spaces(prefix: bool) -> Tokenizer:
    """In the manner of SentencePiece: spaces are a letter, other letters are spelled in bytes."""
    core = Tokenizer(models.BPE())
    lines = pre_tokenizers.Split("\n", "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [lines, pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    model = json.loads(core.to_str())["model"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    core.model = models.BPE(
        {piece: number for number, piece in enumerate(pieces)},
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        steps.append(decoders.Strip(content=" ", left=1))
    else:
        core.normalizer = normalizers.Replace(" ", "▁")
        core.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    core.decoder = decoders.Sequence(steps)
    return core


def equip(tokenizer: PreTrainedTokenizerBase, family: Family) -> PreTrainedTokenizerBase:
    """Add the control tokens of a family, and a token to pad with."""
    eats = family.eats_space
    added = [
        AddedToken(token, special=True, normalized=False, rstrip=eats) for token in family.tokens
    ]
    tokenizer.add_tokens([*added, AddedToken("<pad>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("<think>", "</think>")])
    first = family.tokens[0]
    tokenizer.bos_token = first if first in BOS_TOKENS else None
    tokenizer.eos_token = family.eos or family.stop
    return tokenizer


def make_tokenizer(family: Family) -> PreTrainedTokenizerBase:
    core = train_bytes() if family.kind == "bytes" else train_spaces(family.kind == "prefixed")
    return equip(PreTrainedTokenizerFast(tokenizer_object=core), family)


class Expected(NamedTuple):
    input_ids: list[int]
    labels: list[int]
    is_torn: bool
    """Whether a token holds both the end of a header and the start of an answer."""


def find_messages(
    family: Family, text: str, messages: list[Message]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return where each message stands, and where what is supervised does: up to its stop token."""
    at, places, supervised = 0, [], []
    for number, message in enumerate(messages):
        is_last, role = number == len(messages) - 1, message["role"]
        joined = family.joins_system and number and messages[number - 1]["role"] == "system"
        head = "\n\n" if joined else family.heads[role]
        content = message["content"]
        if role == "assistant" and is_last and family.says:
            content = family.says(message.get("reasoning_content", ""), content)
            head += "<think>\n"
        elif role == "assistant":
            content = family.answer(content, is_last)
        elif not (family.joins_system and role == "system"):
            content = family.user(content, is_last)
        start = text.index(head, at) + len(head)
        assert text.startswith(content, start)
        at = start + len(content)
        places.append((start, at))
        if role == "assistant":
            assert text.startswith(family.stop, at)
            if message.get("weight", 1):
                supervised.append((start, at))
    return places, supervised


def expect(family: Family, tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> Expected:
    """Return ids and labels of a conversation, by characters."""
    shown = [{key: m[key] for key in m if key != "weight"} for m in messages]
    text = tokenizer.apply_chat_template(shown, tokenize=False)
    if family.says:
        text = tokenizer.apply_chat_template(shown[:-1], add_generation_prompt=True, tokenize=False)
        cut = len(text)
        text += family.says(shown[-1].get("reasoning_content", ""), shown[-1]["content"])
        text += family.stop + ("\n" if family.stop == "<|im_end|>" else "")
    places, supervised = find_messages(family, text, messages)
    ids, spans, at = [], [], 0
    # What a prompt ends with is read apart from what follows, as it is when a model generates.
    edge = rf"(?<=\A[\s\S]{{{cut}}})|" if family.says else ""
    control = re.compile(edge + "|".join(map(re.escape, family.tokens)) + "|$")
    for found in control.finditer(text):
        if found[0] and any(start <= found.start() < stop for start, stop in places):
            continue
        while family.eats_space and ids and text[at : at + 1].isspace() and at < found.start():
            spans[-1] = (spans[-1][0], at + 1)
            at += 1
        plain = read_as_text(tokenizer, text[at : found.start()])
        ids += [number for number, _ in plain]
        spans += [(at + start, at + stop) for _, (start, stop) in plain]
        if found[0]:
            ids.append(tokenizer.convert_tokens_to_ids(found[0]))
            spans.append(found.span())
        at = found.end()
    stops = {stop for _, stop in supervised}
    labels = [IGNORE_INDEX] * len(ids)
    for place, (start, stop) in enumerate(spans):
        if start in stops or any(start < last and stop > first for first, last in supervised):
            labels[place] = ids[place]
    torn = any(start < first < stop for start, stop in spans for first, _ in supervised)
    return Expected(ids, labels, torn)


def read_as_text(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> list[tuple[int, tuple[int, int]]]:
    """Tokenise what follows a control token: no token of it is one."""
    core = tokenizer.backend_tokenizer
    own, core.encode_special_tokens = core.pre_tokenizer, True
    if isinstance(own, pre_tokenizers.Metaspace):
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    encoding = core.encode(text, add_special_tokens=False)
    core.pre_tokenizer, core.encode_special_tokens = own, False
    return list(zip(encoding.ids, encoding.offsets, strict=True))


PARTS = [
    *("", " ", "\n", "\n\n", "\t", " \n ", "  leading", "trailing  ", "assistant", "user\n"),
    *("```py\nx = 1\n\n```", "🙂", "👩‍👩‍👧", "e\u0301", "é", "漢字", "\u200d", "\u00a0", "عربي"),
    *("The answer is 42.", "<<6*7=42>>42", "model\n", "<|im", "_end|>", "[/", "INST]", "<|", "|>"),
    *(head for family in FAMILIES.values() for head in family.heads.values()),
    *ALL_TOKENS,
]


def generate_conversations(seed: int, count: int, system: bool) -> list[list[Message]]:
    """Return conversations of one to four exchanges, in words and in what breaks masks."""
    draw = random.Random(seed)
    words = " ".join(CORPUS).split(" ")

    def text() -> str:
        if draw.random() < 0.01:
            return " ".join(draw.choices(words, k=1500))
        parts = draw.choices([draw.choice(words), *PARTS], k=draw.randrange(6))
        return draw.choice(["", " ", "\n"]).join(parts)

    conversations = []
    for _ in range(count):
        messages: list[Any] = []
        if system and draw.random() < 0.3:
            messages.append({"role": "system", "content": text() or "Be brief."})
        for _ in range(draw.choice([1, 1, 2, 3, 4])):
            messages.append({"role": "user", "content": text()})
            messages.append({"role": "assistant", "content": text()})
        for message in messages[:-1]:
            if message["role"] == "assistant" and draw.random() < 0.4:
                message["weight"] = 0
        conversations.append(messages)
    return conversations
