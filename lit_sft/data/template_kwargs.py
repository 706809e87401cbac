"""What a run tells its chat template beside the turns, such as `enable_thinking: false`.

It is written into the template, in front, as what holds where nobody says otherwise. So every
rendering of the run has it, that of evaluation and of the exports too; so do the hash that a
checkpoint is compared by and the adapter's folder, from which a server asks as was trained.
So is the date, which some templates print.
"""

import json
import re
from collections.abc import Mapping
from datetime import date

from jinja2 import Environment, TemplateSyntaxError, meta

from lit_sft.errors import InputError, require, suggest

PINNED_DATE = date(2024, 7, 26)
"""Today, to a template that asks: what Llama 3.1 and 3.2 print where there is no clock."""
TODAY = re.compile(r"strftime_now\s*\(\s*(['\"])(.*?)\1\s*\)")
OWN = {
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
    "bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token",
    "additional_special_tokens", "raise_exception", "strftime_now", "namespace", "dict", "range",
}  # fmt: skip
"""Names that a template is given anyway."""
NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
MARKS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def set_template_kwargs(template: str, kwargs: Mapping[str, object]) -> str:
    """Return a template that takes some variables for granted.

    Args:
        template: In Jinja.
        kwargs: By name, values that JSON has: booleans, numbers, texts, lists and objects.

    Raises:
        InputError: If the template knows no such name, or a value is none of JSON's.
    """
    known = list_kwargs(template)
    lines = []
    for name, value in kwargs.items():
        where = f"data.template_kwargs: {name!r}"
        require(bool(NAME.fullmatch(str(name))), f"{where} is no name of a variable")
        require(name not in OWN, f"{where} is what every template is given; leave it out")
        if known is not None and name not in known:
            # Those that it sets itself in some branch are not for others to set.
            own = sorted(
                x
                for x in known
                if not re.search(rf"\bset {x}\b", template)
                or re.search(rf"\b{x} is (?:not )?defined", template)
            )
            raise InputError(
                f"{where} is unknown to the chat template, which takes "
                f"{', '.join(own) or 'no variables of its own'}; remove it, or set another "
                f"data.chat_template.{suggest(str(name), own)}"
            )
        lines.append(
            f"{{%- if {name} is not defined %}}{{%- set {name} = {_write(value, where)} %}}"
            "{%- endif %}"
        )
    # Behind a block, Jinja drops a line break that the template may open with.
    return "".join([*lines, "{{- '' }}", template]) if lines else template


def pin_date(template: str) -> str:
    """Return a template that prints `PINNED_DATE` where it would print today's date.

    Otherwise the same row has other tokens tomorrow, and a server another prompt than training.
    """
    return TODAY.sub(lambda found: repr(PINNED_DATE.strftime(found[2])), template)


def list_kwargs(template: str) -> set[str] | None:
    """Return the variables that a template asks for, but for those that all are given.

    None where it cannot be parsed, which its first rendering tells of.
    """
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(MARKS.sub("", template))
    except TemplateSyntaxError:
        return None
    return set(meta.find_undeclared_variables(tree)) - OWN


def _write(value: object, where: str) -> str:
    """Return a value as Jinja writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int | float) and value == value and abs(value) != float("inf"):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_write(entry, where) for entry in value)}]"
    if isinstance(value, dict):
        pairs = [f"{_write(str(k), where)}: {_write(x, where)}" for k, x in value.items()]
        return f"{{{', '.join(pairs)}}}"
    raise InputError(f"{where} must be a value that JSON has, got {value!r:.60}")
