"""Load a tokenizer that is ready to chat and to pad."""

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_sft.data.control_tokens import forget_control_tokens
from lit_sft.data.encode import naming
from lit_sft.data.prompts import find_turn_end
from lit_sft.data.template_kwargs import pin_date, set_template_kwargs
from lit_sft.errors import InputError, require, suggest
from lit_sft.paths import is_local, locate, require_folder

TURN_TOKENS = {
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
}
"""The templates that come with the package, and the tokens that each writes."""
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


def load_tokenizer(
    path: str,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, object] | None = None,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model, with a pad token and a chat template.

    A template that is given to a tokenizer, and does not write `eos_token` itself, also gives it
    the EOS token: what ends a turn then ends a generation. The template writes the BOS token
    itself: encode what it renders with `add_special_tokens=False`, or there are two. A template
    that prints today's date is changed to print `PINNED_DATE`, here and wherever the tokenizer is
    saved.

    Args:
        path: A Hub id, or a folder with `tokenizer.json`.
        chat_template: `llama3`, `chatml`, the name of one of the tokenizer's own templates, or a
            Jinja file; without one, the tokenizer's own, or `llama3` where it has none.
        template_kwargs: What the template is told beside the turns, as `set_template_kwargs` writes
            it into the template.

    Raises:
        InputError: If there is no such tokenizer or template, the tokenizer gives no character
            offsets, lacks the tokens of the template or has nothing but EOS to pad with, or the
            template does not write an answer and then a stop token.
    """
    tokenizer = _load_fast(path)
    _set_template(tokenizer, path, chat_template, template_kwargs or {})
    tokenizer.pad_token = _choose_pad_token(tokenizer, path)
    tokenizer.padding_side = "right"
    return tokenizer


def load_known_tokenizer(path: str) -> PreTrainedTokenizerBase | None:
    """Return a tokenizer as it was published if it is on this machine, or else None."""
    try:
        return _load(locate(path), local_files_only=True)
    except Exception:  # as above; whoever needs it will load it, and hear of it
        return None


def hash_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the chat template, in hexadecimal."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def _load_fast(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer that gives character offsets.

    Raises:
        InputError: If there is none, naming the file that is broken.
    """
    place = path
    if is_local(path):
        place = str(require_folder(path, holding="tokenizer.json", option="tokenizer"))
    try:
        tokenizer = _load(place)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, TypeError here
        raise InputError(
            f"the tokenizer {path!r} could not be loaded "
            f"({_find_broken_file(place) or f'{type(error).__name__}: {error}'})"
        ) from error
    require(
        bool(getattr(tokenizer, "is_fast", False)),
        f"the tokenizer {path!r} has no fast version, and so gives no character offsets",
    )
    return tokenizer


def _load(place: str, local_files_only: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer as `AutoTokenizer` would, and spare it two seconds of imports if possible.

    It comes with torch and, to learn a Llama's tokenizer class from the model's config, with
    `torch.distributed`; a Llama's folder that names the generic class itself needs neither.
    """
    if _read_json(place, "config.json").get("model_type") == "llama":
        named = _read_json(place, "tokenizer_config.json")
        if named.get("tokenizer_class") in GENERIC_CLASSES and "auto_map" not in named:
            known: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(place)
            return known
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        place, trust_remote_code=False, local_files_only=local_files_only
    )
    return tokenizer


def _read_json(folder: str, name: str) -> dict[str, object]:
    path = Path(folder) / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _find_broken_file(place: str) -> str:
    """Return what is wrong with the first file of a tokenizer that is not what it has to be."""
    folder = Path(place)
    for path in [
        folder / "config.json",
        folder / "tokenizer_config.json",
        *folder.rglob("*.jinja"),
    ]:
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else "{}"
            if path.suffix == ".json" and not isinstance(json.loads(text), dict):
                return f"{path.name}: expected a JSON object, got {text.strip()!r:.40}"
        except ValueError as error:  # no UTF-8, or no JSON
            return f"{path.relative_to(folder)}: {error}"
    return ""


def _set_template(
    tokenizer: PreTrainedTokenizerBase,
    path: str,
    chat_template: str | None,
    kwargs: Mapping[str, object],
) -> None:
    """Give a tokenizer the chat template that is asked for, without a clock.

    Raises:
        InputError: If there is no such template, or the tokenizer lacks its tokens.
    """
    own = tokenizer.chat_template
    named = own if isinstance(own, dict) else {}
    texts = [*named.values()] if named else [own or ""]
    require(
        all(isinstance(text, str) for text in texts),
        f"the tokenizer {path!r}: expected its chat_template to be text, got {own!r:.80}; mend "
        "tokenizer_config.json, or remove the template and set data.chat_template",
    )
    if chat_template in named and chat_template not in TURN_TOKENS:
        tokenizer.chat_template = _pin(named[chat_template], kwargs)
    elif chat_template is not None or own is None:
        _install_template(tokenizer, path, chat_template, kwargs)
    elif named:
        require(
            "default" in named,
            f"the tokenizer {path!r} has several chat templates and no default; set "
            f"data.chat_template to one of them ({', '.join(sorted(named))}), to one of "
            f"{', '.join(TURN_TOKENS)}, or to a Jinja file",
        )
        tokenizer.chat_template = {
            name: _pin(text, kwargs if name == "default" else {}) for name, text in named.items()
        }
    else:
        tokenizer.chat_template = _pin(own, kwargs)


def _pin(template: str, kwargs: Mapping[str, object]) -> str:
    return set_template_kwargs(pin_date(template), kwargs)


def _install_template(
    tokenizer: PreTrainedTokenizerBase, path: str, name: str | None, kwargs: Mapping[str, object]
) -> None:
    tokenizer.chat_template = _pin(_read_template(name, tokenizer, path), kwargs)
    with naming(f"data.chat_template={name}" if name else ""):
        end = tokenizer.convert_ids_to_tokens(find_turn_end(tokenizer))
    if "eos_token" not in tokenizer.chat_template:
        tokenizer.eos_token = end
    forget_control_tokens()  # until the tokenizer is handed out, it may change


def _read_template(name: str | None, tokenizer: PreTrainedTokenizerBase, path: str) -> str:
    """Return the text of a named template, or, if it has no name, of the one that stands in."""
    if name is not None and name not in TURN_TOKENS:
        own = tokenizer.chat_template
        return _read_template_file(
            name, [*TURN_TOKENS, *sorted(own if isinstance(own, dict) else [])]
        )
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in TURN_TOKENS[name or "llama3"] if token not in vocabulary]
    reason = f"the vocabulary lacks {', '.join(missing)}"
    if name is None:
        require(
            not missing,
            f"the tokenizer {path!r} has no chat template, and the Llama 3 template cannot stand "
            f"in: {reason}; set data.chat_template, or use a tokenizer with a chat_template",
        )
    require(
        not missing,
        f"data.chat_template={name} does not go with the tokenizer {path!r}: {reason}; leave it "
        "out for the tokenizer's own template, or name another",
    )
    return files("lit_sft.data").joinpath(f"templates/{name or 'llama3'}.jinja").read_text()


def _read_template_file(name: str, known: list[str]) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"data.chat_template={name}: expected {', '.join(known)} or a Jinja file in "
            f"UTF-8 ({error}).{suggest(name, known)}"
        ) from error


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
