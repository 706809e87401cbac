"""What a text answers in the end: a number, the letter of a choice, words, a value of JSON."""

import json
import re
import unicodedata
from fractions import Fraction

THOUGHT, AFTER_THOUGHT = "<think>", "</think>"

# `[0-9]`, never `\d`: that would also match the digits of other scripts.
NUMBER = re.compile(
    r"(?<![0-9A-Za-z])(?<![0-9]\.)"  # not within a word or a number
    r"(?P<sign>(?<![)\]])[-+\u2212])?(?:\$ ?)?(?P<minus>-)?"
    r"(?:(?P<grouped>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?)"
    r"|(?P<plain>[0-9]+(?:[.,][0-9]+)?|(?<!\.)\.[0-9]+))"
    r"(?:[eE](?P<power>[-+]?[0-9]{1,3})(?![0-9A-Za-z])|/(?P<divisor>[0-9]+)(?![0-9]))?"
)
FINAL_MARK = re.compile(r"####|\\boxed\s*\{")
LONGEST_NUMBER = 1000
"""Characters: Python reads no more than some thousands, and a longer one is no answer."""
CHOICES = (
    re.compile(r"^[^A-Za-z0-9]*([A-Za-z])[^A-Za-z0-9]*$"),  # nothing but the letter
    re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-Za-z])\)?\s*\}"),
    re.compile(
        r"(?i:answer)\b[^A-Za-z0-9]*(?:(?i:is|would be|must be)\b[^A-Za-z0-9]*)?"
        r"(?:(?i:option|choice)\b[^A-Za-z0-9]*)?([A-Z])(?![A-Za-z0-9'])"
    ),
    re.compile(r"(?i:option|choice)\b[^A-Za-z0-9]*([A-Z])(?![A-Za-z0-9'])"),
    re.compile(r"^[^A-Za-z0-9]*([A-Z])[).:\]}*](?![A-Za-z])"),  # `B) Paris`
    re.compile(r"[(\[]([A-Z])[)\]]"),
)
"""Where the letter is looked for, one after the other; of several, the last match counts."""
LONE_CAPITAL = re.compile(r"(?<![A-Za-z0-9])(A(?! [a-z])|[B-HJ-Z])(?![A-Za-z0-9'])")
"""Neither an article nor a pronoun."""
IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{IDEOGRAPHS}]|[^\s{IDEOGRAPHS}]+")
"""Or a letter of a script that puts no spaces between words."""
ARTICLE = re.compile(r"\b(?:a|an|the)\b")
MAX_STARTS = 64
"""Places in a text from which JSON is tried to be read."""


def drop_thoughts(text: str) -> str:
    """Return what stands behind the thoughts of a text; nothing where they do not end."""
    return text.rpartition(AFTER_THOUGHT)[2].partition(THOUGHT)[0].strip()


def find_number(text: str) -> Fraction | None:
    r"""Return the final number of a text, exactly, or None.

    It is the first behind the last `####` or `\boxed{`, or else the last of all. Commas group
    thousands, or else stand for the point; `1/2`, `1e3` and `$5` are read, units and per cent not.
    """
    marks = list(FINAL_MARK.finditer(text))
    if marks and (first := NUMBER.search(text, marks[-1].end())):
        return _read_number(first)
    found = list(NUMBER.finditer(text))
    return _read_number(found[-1]) if found else None


def find_choice(text: str) -> str | None:
    """Return the letter that a text chooses, as a capital, or None.

    Looked for are a letter alone, in a box, behind `answer`, `option` or `choice`, at the start and
    in brackets, in this order, and at last a capital that is the only one to stand alone.
    """
    for pattern in CHOICES:
        if found := pattern.findall(text):
            return str(found[-1]).upper()
    alone = set(LONE_CAPITAL.findall(text))
    return str(alone.pop()) if len(alone) == 1 else None


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and English articles.

    As SQuAD's own script does it (Rajpurkar et al., 2016); where a script puts no spaces between
    words, a letter is one (Lewis et al., 2020).
    """
    plain = "".join(x for x in text.lower() if not _is_punctuation(x))
    return WORD.findall(ARTICLE.sub(" ", plain))


def find_json(text: str, like: object = None) -> tuple[object, bool]:
    """Return the value of JSON that a text is, or has in it, and whether there is one.

    Args:
        text: Such as an answer with a fenced block.
        like: Where it is an object or a list, the first such that stands in the text counts.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse)
    opener = "{" if isinstance(like, dict) else "[" if isinstance(like, list) else ""
    starts = [place for place, letter in enumerate(text) if letter == opener][:MAX_STARTS]
    for start in [None, *starts]:
        try:
            found = decoder.decode(text) if start is None else decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            continue
        return found, True
    return None, False


def equal_json(one: object, other: object) -> bool:
    """Return whether two values of JSON are one: 1 and 1.0 are, and 1 and true are not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal_json(one[x], other[x]) for x in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal_json, one, other))
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _read_number(match: re.Match[str]) -> Fraction | None:
    grouped, plain = match["grouped"], match["plain"]
    digits = grouped.replace(",", "") if grouped else plain.replace(",", ".")
    if len(match.group()) > LONGEST_NUMBER or not int(match["divisor"] or 1):
        return None
    value = Fraction(digits) * Fraction(10) ** int(match["power"] or 0)
    is_negative = match["minus"] or match["sign"] in ("-", "\u2212")
    return (-value if is_negative else value) / int(match["divisor"] or 1)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _is_punctuation(letter: str) -> bool:
    return letter in "$+<=>^`|~" or unicodedata.category(letter).startswith("P")
