"""What of JSON Schema says which arguments a call may have, and where a value breaks it. Pure.

That is `type`, `properties`, `required`, `additionalProperties`, `items`, `enum`, `const`, `anyOf`,
`oneOf`, `allOf`, references within the schema and bounds of numbers and lengths. Other words
constrain nothing here; nor are the keys and items that they are about held against the others.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
"""What Python makes of the types of JSON Schema; a bool is no number."""
BOUNDS: Mapping[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
}
SIZES: Mapping[str, tuple[type[str] | type[list[Any]], int]] = {
    "minLength": (str, 1), "maxLength": (str, -1), "minItems": (list, 1), "maxItems": (list, -1)
}  # fmt: skip
MAX_DEPTH = 32
"""Of nested schemas; a reference to itself alone would never end."""


def find_flaws(schema: object, where: str, depth: int = 0) -> Iterator[str]:
    """Yield what makes a value no JSON schema, from without inwards; None is one for any value."""
    if (schema is None and not depth) or isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        yield f"{where} is {schema!r:.60}"
        return
    if depth > MAX_DEPTH:
        yield f"{where} is nested too deeply"
        return
    types = schema.get("type")
    for name in types if isinstance(types, list) else [types]:
        if name is not None and not (isinstance(name, str) and name in TYPES):
            yield f"{where}.type is {name!r:.40}, which is none of {', '.join(TYPES)}"
    required = schema.get("required")
    if required is not None and not (
        isinstance(required, list) and all(isinstance(x, str) for x in required)
    ):
        yield f"{where}.required is {required!r:.40}, and no list of names"
    if "enum" in schema and not isinstance(schema["enum"], list):
        yield f"{where}.enum is {schema['enum']!r:.40}, and no list"
    for key in ("properties", "$defs", "definitions"):
        inner = schema.get(key)
        if inner is not None and not isinstance(inner, Mapping):
            yield f"{where}.{key} is {inner!r:.40}, and no object"
        for name, one in (inner or {}).items() if isinstance(inner, Mapping) else ():
            yield from find_flaws(one, f"{where}.{key}.{name}", depth + 1)
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from find_flaws(schema[key], f"{where}.{key}", depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        inner = schema.get(key)
        if inner is not None and not isinstance(inner, list):
            yield f"{where}.{key} is {inner!r:.40}, and no list of schemas"
        for number, one in enumerate(inner if isinstance(inner, list) else ()):
            yield from find_flaws(one, f"{where}.{key}[{number}]", depth + 1)


def find_violations(
    value: Any,
    schema: Any,
    root: object = None,
    where: str = "",
    within: frozenset[int] = frozenset(),
) -> Iterator[str]:
    """Yield where a value breaks a schema, in words, from without inwards.

    Args:
        value: As JSON has it.
        schema: One in which `find_flaws` finds nothing.
        root: That references start from; without one, the schema itself.
        where: The value within what is checked.
        within: The `id` of each schema that the value is being held against: one that comes back to
            itself says no more.
    """
    root = schema if root is None else root
    schema = _resolve(schema, root)
    if schema is None or schema is True or id(schema) in within:
        return
    if schema is False:
        yield f"{where or 'it'} may not be there"
        return
    types = schema.get("type")
    names = types if isinstance(types, list) else [types]
    if types is not None and not any(_is_of_type(value, name) for name in names):
        yield f"{where or 'it'} is {value!r:.40}, and no {' or '.join(names)}"
        return
    if "enum" in schema and not any(_is_same(value, one) for one in schema["enum"]):
        yield f"{where or 'it'} is {value!r:.40}, and none of {schema['enum']!r:.80}"
    if "const" in schema and not _is_same(value, schema["const"]):
        yield f"{where or 'it'} is {value!r:.40}, and not {schema['const']!r:.40}"
    yield from _find_out_of_bounds(value, schema, where)
    if isinstance(value, dict):
        yield from _find_wrong_keys(value, schema, root, where)
    if isinstance(value, list) and "items" in schema:
        first = len(schema.get("prefixItems") or ())
        for number, entry in enumerate(value[first:], first):
            yield from find_violations(entry, schema["items"], root, f"{where}[{number}]")
    yield from _find_unmatched(value, schema, root, where, within | {id(schema)})


def _find_wrong_keys(
    value: Mapping[str, object], schema: Mapping[str, Any], root: object, where: str
) -> Iterator[str]:
    known = schema.get("properties") or {}
    prefix = f"{where}." if where else ""
    for key in schema.get("required") or ():
        if key not in value:
            yield f"{prefix}{key} is missing"
    for key, entry in value.items():
        if key in known:
            yield from find_violations(entry, known[key], root, f"{prefix}{key}")
        elif "additionalProperties" in schema and not schema.get("patternProperties"):
            others = schema["additionalProperties"]
            yield from find_violations(entry, others, root, f"{prefix}{key}")


def _find_out_of_bounds(value: object, schema: Mapping[str, object], where: str) -> Iterator[str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        for word, keeps in BOUNDS.items():
            bound = schema.get(word)
            if isinstance(bound, int | float) and not keeps(value, bound):
                yield f"{where or 'it'} is {value!r}, and its {word} {bound}"
    for word, (kind, sign) in SIZES.items():
        bound, length = schema.get(word), len(value) if isinstance(value, kind) else None
        if length is not None and isinstance(bound, int) and sign * (length - bound) < 0:
            yield f"{where or 'it'} has a length of {length}, and its {word} is {bound}"


def _find_unmatched(
    value: Any, schema: Mapping[str, Any], root: object, where: str, within: frozenset[int]
) -> Iterator[str]:
    for one in schema.get("allOf") or ():
        yield from find_violations(value, one, root, where, within)
    for word in ("anyOf", "oneOf"):
        options = schema.get(word)
        if not options:
            continue
        flaws = [next(find_violations(value, x, root, where, within), None) for x in options]
        fits = [flaw is None for flaw in flaws]
        if not any(fits) or (word == "oneOf" and sum(fits) > 1):
            yield f"{where or 'it'} is {value!r:.40}, which fits {sum(fits)} of its {word}"


def _resolve(schema: object, root: object) -> object:
    """Return what a reference within the schema names; one to anything else allows anything."""
    for _ in range(MAX_DEPTH):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str):
            return schema
        if not reference.startswith("#"):
            return None
        schema = root
        for part in filter(None, reference.removeprefix("#").strip("/").split("/")):
            schema = _enter(schema, part.replace("~1", "/").replace("~0", "~"))
        if next(find_flaws(schema, ""), None):  # what a reference finds need not be a schema
            return None
    return None


def _enter(value: object, part: str) -> object:
    """Return what stands in an object or a list under a part of a JSON pointer, or else None."""
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
        return value[int(part)]
    return None


def _is_of_type(value: object, name: str) -> bool:
    if name in ("integer", "number") and isinstance(value, bool):
        return False
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES[name])


def _is_same(value: object, other: object) -> bool:
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
