"""What classes and parsers take, with types, defaults and explanations, read from their source.

What source does not tell for certain is None: unknown.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lit_sft.cli.sources import find_binding, find_calls, qualify

PLAIN_BASES = {"ABC", "object", "Generic", "Protocol"}
"""They add nothing to what a class takes."""
CONSTRUCTOR = "super().__init__"
ARGUMENTS = re.compile(r"^Args:\n(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
ARGUMENT = re.compile(r"^ {4}(\w+)[^:\n]*: *(.*?)(?=^ {4}\w|\Z)", re.MULTILINE | re.DOTALL)
"""In a docstring of Google's style."""


class Declared(NamedTuple):
    """A class, and the module that declares it."""

    node: ast.ClassDef
    module: str


class Parameter(NamedTuple):
    """What a class takes: the type, and the module in which that is written."""

    annotation: ast.expr | None
    module: str
    default: ast.expr | None = None
    about: str = ""


def find_class(path: str) -> Declared | None:
    """Return the class of a dotted path, through the modules that pass it on."""
    found = find_binding(path)
    if found and isinstance(found[0], ast.ClassDef):
        return Declared(found[0], found[1])
    return None


def find_parameters(declared: Declared | None) -> Mapping[str, Parameter] | None:
    """Return what a class takes, by name; fields, if it is a data class."""
    if declared is None or declared.node.keywords:
        return None
    methods = {item.name for item in declared.node.body if isinstance(item, ast.FunctionDef)}
    if "__new__" in methods:
        return None
    if "__init__" in methods:
        return find_arguments(declared, "__init__")
    if declared.node.decorator_list:
        return _read_fields(declared) if is_dataclass(declared) else None
    return _find_inherited(declared)


def find_arguments(declared: Declared, method: str) -> Mapping[str, Parameter] | None:
    """Return the arguments of a method, without the first; with those that it passes on."""
    for item in declared.node.body:
        if isinstance(item, ast.FunctionDef) and item.name == method:
            about = _read_arguments(declared.node) | _read_arguments(item)
            named = [*item.args.posonlyargs, *item.args.args]
            defaults = [None] * (len(named) - len(item.args.defaults)) + item.args.defaults
            taken = [*zip(named, defaults, strict=True)][1:]
            taken += zip(item.args.kwonlyargs, item.args.kw_defaults, strict=True)
            passed_on = _find_inherited(declared) if _passes_on(item) else {}
            if passed_on is None or (item.args.kwarg and not _passes_on(item)):
                return None
            own = {
                x.arg: Parameter(x.annotation, declared.module, default, about.get(x.arg, ""))
                for x, default in taken
            }
            return {**passed_on, **own}
    return None


def find_flags(module: str) -> Iterator[tuple[str, Parameter]]:
    """Yield the options that a module adds to a parser itself, by name."""
    for call in find_calls(module, "add_argument"):
        words = {word.arg: word.value for word in call.keywords}
        about = words.get("help")
        text = str(about.value) if isinstance(about, ast.Constant) else ""
        is_switch = "action" in words and "store_true" in ast.unparse(words["action"])
        default: ast.expr | None = words.get("default") or ast.Constant(
            False if is_switch else None
        )
        if isinstance(default, ast.Name) and (bound := find_binding(f"{module}.{default.id}")):
            default = getattr(bound[0], "value", default)
        if "required" in words:
            default = None
        for arg in call.args:
            if isinstance(arg, ast.Constant) and str(arg.value).startswith("--"):
                taken = Parameter(words.get("type"), module, default, text)
                yield str(arg.value)[2:], taken


def find_classes(parameter: Parameter) -> list[Declared]:
    """Return the classes that a type names, at any place in it."""
    parts = ast.walk(parameter.annotation) if parameter.annotation else ()
    names = [part for part in parts if isinstance(part, (ast.Name, ast.Attribute))]
    found = [find_class(qualify(name, parameter.module)) for name in names]
    return [declared for declared in found if declared is not None]


def find_choices(parameter: Parameter) -> list[str] | None:
    """Return the words that a type allows, or None where it allows more than words of a list."""
    annotation, module = parameter[:2]
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return []
    bound = find_binding(f"{module}.{annotation.id}") if isinstance(annotation, ast.Name) else None
    if bound and isinstance(bound[0], ast.Assign):
        return find_choices(Parameter(bound[0].value, bound[1]))
    inner, kind = [], ""
    if isinstance(annotation, ast.BinOp):
        inner, kind = [annotation.left, annotation.right], "Union"
    elif isinstance(annotation, ast.Subscript):
        inside = annotation.slice
        inner = inside.elts if isinstance(inside, ast.Tuple) else [inside]
        kind = ast.unparse(annotation.value)
    if kind == "Literal":
        return [str(item.value) for item in inner if isinstance(item, ast.Constant)]
    found = [_list_words(item, module) for item in inner]
    if kind not in ("Optional", "Union") or None in found:
        return None
    return list(dict.fromkeys(word for words in found for word in words or ()))


def _list_words(part: ast.expr, module: str) -> list[str] | None:
    """Return the words that a part of a union allows; of truth values, those of YAML."""
    if isinstance(part, ast.Name) and part.id == "bool":
        return ["true", "false"]
    return find_choices(Parameter(part, module))


def find_type_names(parameter: Parameter) -> set[str]:
    """Return the names in a type, of which `dict[str, ChatTask]` has three."""
    parts = ast.walk(parameter.annotation) if parameter.annotation else ()
    return {part.id for part in parts if isinstance(part, ast.Name)}


def is_dataclass(declared: Declared) -> bool:
    """Return whether a class is a data class, by its decorator."""
    decorators = [ast.unparse(item) for item in declared.node.decorator_list]
    return len(decorators) == 1 and decorators[0].split("(")[0].endswith("dataclass")


def _find_bases(declared: Declared) -> list[Declared | None]:
    """Return the bases that may add to what a class takes; None for one that cannot be read."""
    named = [x for x in declared.node.bases if ast.unparse(x).split("[")[0] not in PLAIN_BASES]
    return [find_class(qualify(base, declared.module)) for base in named]


def _find_inherited(declared: Declared) -> Mapping[str, Parameter] | None:
    """Return what the bases take: the first that has parameters hides those of the others."""
    for base in _find_bases(declared):
        taken = find_parameters(base)
        if taken is None or taken:
            return taken
    return {}


def _read_fields(declared: Declared | None) -> Mapping[str, Parameter] | None:
    """Return the fields of a class, inherited ones first."""
    if declared is None or declared.node.keywords:
        return None
    fields: dict[str, Parameter] = {}
    for base in reversed(_find_bases(declared)):
        inherited = _read_fields(base)
        if inherited is None:
            return None
        fields |= inherited
    if is_dataclass(declared):
        about = _read_arguments(declared.node)
        for item in declared.node.body:
            if isinstance(item, ast.AnnAssign):
                name = ast.unparse(item.target)
                own = Parameter(item.annotation, declared.module, item.value, about.get(name, ""))
                fields[name] = own
    return fields


def _passes_on(method: ast.FunctionDef) -> bool:
    """Return whether all that `**kwargs` does in a constructor is to go to that of the bases."""
    name = method.args.kwarg.arg if method.args.kwarg else None
    parts = list(ast.walk(method))
    uses = [part for part in parts if isinstance(part, ast.Name) and part.id == name]
    calls = [x for x in parts if isinstance(x, ast.Call) and ast.unparse(x.func) == CONSTRUCTOR]
    passed = [word.value for call in calls for word in call.keywords if word.arg is None]
    return len(uses) == 1 and any(value is uses[0] for value in passed)


def _read_arguments(node: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    """Return what a docstring says of each argument, by name, as one line."""
    listed = ARGUMENTS.search(ast.get_docstring(node) or "")
    found = ARGUMENT.findall(listed[1]) if listed else ()
    return {name: " ".join(text.split()) for name, text in found}
