"""An Ollama Modelfile, whose template is derived from the chat template and proven against it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_sft.types import Message

MARK = "\x01{}\x01"
"""Stands for what is said; no template writes it."""
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turns:
    """What a chat template writes around turns, where each is written for itself.

    Args:
        head: Before the first turn, the token that llama.cpp adds itself left out.
        before: A turn, by its role.
        after: A turn, by its role.
        answer: Where an answer is to begin.
    """

    head: str
    before: dict[str, str]
    after: dict[str, str]
    answer: str

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt for a conversation."""
        turns = [f"{self.before[x['role']]}{x['content']}{self.after[x['role']]}" for x in messages]
        return f"{self.head}{''.join(turns)}{self.answer}"

    def to_go(self) -> str:
        """Return it in the language of Ollama's templates."""
        cases = [
            f'{{{{ {"if" if i == 0 else "else if"} eq .Role "{role}" }}}}'
            f"{self.before[role]}{{{{ .Content }}}}{self.after[role]}"
            for i, role in enumerate(ROLES)
        ]
        turns = f"{{{{ range .Messages }}}}{''.join(cases)}{{{{ end }}}}{{{{ end }}}}"
        return f"{self.head}{turns}{self.answer}"


def make_modelfile(
    tokenizer: PreTrainedTokenizerBase, file: str, stops: Sequence[int]
) -> tuple[str, bool]:
    """Return a Modelfile, and whether its template is proven.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        file: The GGUF file beside it.
        stops: Tokens that end an answer.
    """
    turns = derive_turns(tokenizer)
    lines = [f"FROM ./{file}"]
    if turns is None:
        lines.append(
            "# The chat template is in the GGUF file, and is no row of turns that Ollama's "
            "language says: run the file with llama.cpp (llama-server --jinja), or write "
            "TEMPLATE here."
        )
    else:
        lines.append(f'TEMPLATE """{turns.to_go()}"""')
    tokens: Any = tokenizer.convert_ids_to_tokens(list(stops))
    lines += [f"PARAMETER stop {json.dumps(token, ensure_ascii=False)}" for token in tokens]
    lines.append("PARAMETER temperature 0")
    return "\n".join(lines) + "\n", turns is not None


def derive_turns(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """Return what the chat template writes around turns; None where it does more than that.

    Args:
        tokenizer: As `load_tokenizer` returns it.
    """
    user, assistant, system = (MARK.format(x) for x in "uas")
    said: list[Message] = [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
        {"role": "assistant", "content": assistant},
        {"role": "user", "content": user},
    ]
    try:
        begun = _render(tokenizer, said[:2], False)
        asked, whole = _render(tokenizer, said[:2], True), _render(tokenizer, said, False)
        before_system, _, rest = begun.partition(system)
        answer = asked.removeprefix(begun)
        alone = _render(tokenizer, said[1:2], False).partition(user)
        answered = whole.removeprefix(begun).partition(assistant)
    except Exception:  # whatever a template raises: it takes no such conversation
        return None
    head = tokenizer.bos_token or ""
    after_user, before_user = alone[2], alone[0].removeprefix(head)
    after_system = rest.partition(user)[0].removesuffix(before_user)
    turns = Turns(
        "",
        {
            "system": before_system.removeprefix(head),
            "user": before_user,
            "assistant": answered[0],
        },
        {
            "system": after_system,
            "user": after_user,
            "assistant": answered[2].partition(user)[0].removesuffix(before_user),
        },
        answer,
    )
    trials: list[list[Message]] = [said[1:2], said[:2], said[1:], said]
    expected = [_render(tokenizer, trial, True).removeprefix(head) for trial in trials]
    is_safe = '"""' not in turns.to_go()
    return turns if is_safe and [turns.render(x) for x in trials] == expected else None


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], asks: bool) -> str:
    conversation: Any = [dict(message) for message in messages]
    text: Any = tokenizer.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=asks
    )
    return str(text)
