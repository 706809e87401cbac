"""Load a tokenizer that is ready to chat and to pad."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_sft.errors import InputError, require
from lit_sft.paths import is_local, require_folder

LLAMA3_TURN_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PAD_TOKENS = (
    "<|finetune_right_pad_id|>",
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|fim_pad|>",
    "<|endoftext|>",
    "<unk>",
)
"""Tokens that exist to pad with, or that a chat never needs; the tokenizer's own comes second."""
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""What `tokenizer_config.json` calls a tokenizer that `tokenizer.json` describes completely."""


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model, with a pad token and a chat template.

    A tokenizer without a chat template gets the Llama 3 one, and then ends a turn, and so a
    generation, with `<|eot_id|>`. The template writes the BOS token itself: encode what it renders
    with `add_special_tokens=False`, or there are two.

    Args:
        path: A Hub id, or a folder with `tokenizer.json`.

    Raises:
        InputError: If there is no such tokenizer, it gives no character offsets, it has neither a
            template nor the Llama 3 turn tokens, or nothing but EOS to pad with.
    """
    place = path
    if is_local(path):
        place = str(require_folder(path, holding="tokenizer.json", option="tokenizer"))
    try:
        tokenizer = _load(place)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, TypeError here
        raise InputError(
            f"the tokenizer {path!r} could not be loaded ({type(error).__name__}: {error})"
        ) from error
    require(
        bool(getattr(tokenizer, "is_fast", False)),
        f"the tokenizer {path!r} has no fast version, and so gives no character offsets",
    )
    if tokenizer.chat_template is None:
        _install_llama3_template(tokenizer, path)
    tokenizer.pad_token = _choose_pad_token(tokenizer, path)
    tokenizer.padding_side = "right"
    return tokenizer


def hash_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the chat template, in hexadecimal."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def _load(place: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer as `AutoTokenizer` would, and spare it two seconds of imports if possible.

    It comes with torch and, to learn a Llama's tokenizer class from the model's config, with
    `torch.distributed`; a Llama's folder that names the generic class itself needs neither.
    """
    if _read_json(place, "config.json").get("model_type") == "llama":
        named = _read_json(place, "tokenizer_config.json")
        if named.get("tokenizer_class") in GENERIC_CLASSES and "auto_map" not in named:
            return PreTrainedTokenizerFast.from_pretrained(place)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place)


def _read_json(folder: str, name: str) -> dict[str, Any]:
    path = Path(folder) / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _install_llama3_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in LLAMA3_TURN_TOKENS if token not in vocabulary]
    require(
        not missing,
        f"the tokenizer {path!r} has no chat template, and the Llama 3 template cannot stand in: "
        f"the vocabulary lacks {', '.join(missing)}; use a tokenizer with a chat_template",
    )
    tokenizer.chat_template = files("lit_sft.data").joinpath("templates/llama3.jinja").read_text()
    tokenizer.eos_token = "<|eot_id|>"


def _choose_pad_token(tokenizer: PreTrainedTokenizerBase, path: str) -> str:
    vocabulary, template = tokenizer.get_vocab(), str(tokenizer.chat_template)
    for token in (PAD_TOKENS[0], tokenizer.pad_token, *PAD_TOKENS[1:]):
        # A pad token that ends turns would be masked where it must be learnt.
        if token in vocabulary and token != tokenizer.eos_token and token not in template:
            return str(token)
    raise InputError(
        f"the tokenizer {path!r} has no token to pad with: EOS and the tokens of the chat template "
        f"must stay tokens to learn, and its vocabulary has none of {', '.join(PAD_TOKENS)}; set "
        "another pad_token in its tokenizer_config.json"
    )
