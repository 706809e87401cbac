"""The tokenizer of the embedded base, and the plain text that it is pre-trained on."""

import itertools
import random
from collections.abc import Iterator

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_sft.toy.story import Story
from lit_sft.toy.word_problems import make_problem

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"
SPECIAL_TOKENS = (BOS, EOS, PAD, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\r?\n|\s+(?!\S)|\s"
ROLES = ("user", "assistant", "system")
CHUNK = 4096
PROMPT_WEIGHT = 0.1
JUNK_SHARE = 0.02
SIGNS = "+-*/%"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer in which each word of the problems, and each digit, is a token.

    It has no merges: a piece of text that is not in the vocabulary is spelt in bytes, so that any
    text can be encoded, and decodes to itself.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    texts = [*ROLES, *(make_document(i) for i in range(20_000))]
    words = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*alphabet, *sorted(words - set(alphabet))]
    tokenizer = Tokenizer(
        BPE({piece: i for i, piece in enumerate(vocabulary)}, [], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def make_prompt(question: str) -> str:
    """Return the plain text that a solution follows."""
    return f"Problem: {question}\nSolution:"


def make_document(index: int) -> str:
    """Return a problem of the pre-training split as plain text, without BOS and EOS."""
    problem = make_problem("pretrain", index)
    return f"{make_prompt(problem['question'])} {problem['answer']}"


def make_drill(rng: random.Random) -> str:
    """Return six sums in a row as plain text: arithmetic, four times as dense as in stories."""
    sums: list[str] = []
    while len(sums) < 6:
        story = Story(rng)
        a, b, sign = story.number(2, 25), story.number(2, 10), story.pick(*SIGNS)
        if sign in "+-":
            a, b = story.number(2, 99) + story.rng.choice([0, 0, 100, 200]), story.number(2, 99)
        elif sign == "/":
            a *= b
        elif sign == "%":
            a, b = 10 * a, 10 * b
        story.work("", a, sign, b)
        if story.sound:
            sums.append(story.lines[0].split("<<")[1].split(">>")[0])
    return "".join(f" <<{text}>>" for text in sums)


def make_batches(
    tokenizer: PreTrainedTokenizerBase, seed: int, batch_tokens: int = 4096
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of documents of like length, padded on the right, without end.

    A few documents are junk, tokens drawn at random: as in a real corpus, that is where every row
    of the embedding but those of the chat tokens gets some training.

    Args:
        tokenizer: Of `build_tokenizer`.
        seed: Which documents.
        batch_tokens: The size of a batch, padding included.

    Yields:
        `input_ids`, int64, and the `weights` of their losses, float32, both `[rows, tokens]`:
        `PROMPT_WEIGHT` up to `Solution:`, 1 after it, and 0 on padding.
    """
    rng = random.Random(seed)
    ids = tokenizer.encode("\nSolution:", add_special_tokens=False)
    solution = ids[-2]
    for chunk in itertools.count():
        first = seed * 1_000_000_000 + chunk * CHUNK
        texts = [make_document(first + i) + EOS for i in range(CHUNK)]
        rows = [(ids, ids.index(solution) + 2) for ids in tokenizer(texts)["input_ids"]]
        for _ in range(int(JUNK_SHARE * CHUNK)):
            junk = [rng.randrange(len(tokenizer) - len(SPECIAL_TOKENS)) for _ in range(32)]
            rows.append(([tokenizer.bos_token_id, *junk], 33))
        for _ in range(CHUNK // (chunk + 1)):
            drill = tokenizer.encode(make_drill(rng) + EOS)
            rows.append((drill, 1))
        rows.sort(key=lambda row: len(row[0]))
        batches: list[list[tuple[list[int], int]]] = [[]]
        for row in rows:
            if (len(batches[-1]) + 1) * len(row[0]) > batch_tokens:
                batches.append([])
            batches[-1].append(row)
        del batches[-1]  # Not full.
        rng.shuffle(batches)
        yield from map(_pad, batches)


def _pad(rows: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in rows)
    padded = [ids + [0] * (width - len(ids)) for ids, _ in rows]
    weights = [
        [PROMPT_WEIGHT] * start + [1.0] * (len(ids) - start) + [0.0] * (width - len(ids))
        for ids, start in rows
    ]
    return torch.tensor(padded), torch.tensor(weights)
