"""A tokenizer as GGUF holds it: its tokens, its merges, how it splits a text, its chat template."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_sft.data.prompts import find_turn_end
from lit_sft.errors import InputError, require

SPLITS = {
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""Where llama.cpp splits a text, by its own names."""
WHOLE_WORDS = ("llama-bpe",)
"""Of these, those that take a word that is in the vocabulary without a look at the merges."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
NEVER = "Ā Ā"
"""A merge of two zero bytes: llama.cpp wants one, and this never makes a token."""


@dataclass(frozen=True)
class TokenizerFields:
    """What a GGUF file says of a tokenizer.

    Args:
        split: One of `SPLITS`.
        tokens: By id, with fillers up to the rows of the embedding.
        types: Of each token, as GGUF numbers them.
        merges: Of byte-pair encoding, in their order.
        bos: Or None.
        end: The token that ends an answer.
        pad: Or None.
        adds_bos: Whether a text begins with it.
        template: The chat template.
        is_exact: Whether the split is that of the tokenizer by rule; otherwise by trial alone.
    """

    split: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int | None
    end: int
    pad: int | None
    adds_bos: bool
    template: str
    is_exact: bool

    def add_to(self, writer: Any) -> None:
        """Add the fields to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges or [NEVER])
        if self.bos is not None:
            writer.add_bos_token_id(self.bos)
        writer.add_eos_token_id(self.end)
        writer.add_eot_token_id(self.end)
        if self.pad is not None:
            writer.add_pad_token_id(self.pad)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_chat_template(self.template)


def read_tokenizer(
    tokenizer: PreTrainedTokenizerBase, rows: int, texts: Sequence[str]
) -> TokenizerFields:
    """Return a tokenizer as GGUF holds it.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        rows: Of the embedding.
        texts: On which a split that no rule names is tried.

    Raises:
        InputError: If llama.cpp has no such tokenizer.
    """
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    model = plain["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise InputError(
            f"export --to gguf: a tokenizer of type {model['type']} with "
            f"byte_fallback={model.get('byte_fallback')} is not converted here; export it with "
            "--to merged, and convert that folder with llama.cpp: python convert_hf_to_gguf.py "
            "MERGED"
        )
    tokens, types = _list_tokens(tokenizer, model, rows)
    split, is_exact = _choose_split(tokenizer, plain, texts)
    probe = tokenizer("a")["input_ids"]
    return TokenizerFields(
        split=split,
        tokens=tokens,
        types=types,
        merges=[x if isinstance(x, str) else " ".join(x) for x in model["merges"]],
        bos=tokenizer.bos_token_id,
        end=find_turn_end(tokenizer),
        pad=tokenizer.pad_token_id,
        adds_bos=tokenizer.bos_token_id is not None and probe[0] == tokenizer.bos_token_id,
        template=str(tokenizer.chat_template),
        is_exact=is_exact,
    )


def _list_tokens(
    tokenizer: PreTrainedTokenizerBase, model: Any, rows: int
) -> tuple[list[str], list[int]]:
    added = tokenizer.added_tokens_decoder
    by_id = {number: token for token, number in model["vocab"].items()}
    by_id |= {number: token.content for number, token in added.items()}
    tokens, types = [], []
    for number in range(rows):
        if number not in by_id:
            tokens.append(f"[PAD{number}]")
            types.append(UNUSED)
            continue
        tokens.append(by_id[number])
        is_special = number in added and added[number].special
        types.append(CONTROL if is_special else USER_DEFINED if number in added else NORMAL)
    return tokens, types


def _choose_split(
    tokenizer: PreTrainedTokenizerBase, plain: Any, texts: Sequence[str]
) -> tuple[str, bool]:
    """Return the split of a tokenizer, by its rule or, for another rule, by trial."""
    written = json.dumps(plain["pre_tokenizer"])
    for name, pattern in SPLITS.items():
        if json.dumps(pattern) in written:
            return name, True
    require(
        bool(texts),
        "export --to gguf: no rule tells how this tokenizer splits a text in llama.cpp, so it is "
        "tried on held-out prompts: leave --prompts at 64 or more",
    )
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    for name in SPLITS:
        other = _with_split(plain, name)
        if [other.encode(x, add_special_tokens=False).ids for x in texts] == ids:
            return name, False
    raise InputError(
        "export --to gguf: the tokenizer splits a text where none does that is known here "
        f"({', '.join(SPLITS)}); export it with --to merged, and convert that folder with "
        "llama.cpp: python convert_hf_to_gguf.py MERGED"
    )


def _with_split(plain: object, name: str) -> Any:
    """Return a tokenizer that splits as llama.cpp does by one of its names."""
    from tokenizers import Tokenizer

    changed = json.loads(json.dumps(plain))
    changed["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": SPLITS[name]},
                "behavior": "Isolated",
                "invert": False,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
        ],
    }
    changed["model"]["ignore_merges"] = name in WHOLE_WORDS
    return Tokenizer.from_str(json.dumps(changed))
