"""The names that modules and classes declare, read from their source: nothing is imported.

What source does not tell for certain, as it makes its names while it runs, is None: unknown.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import lit_sft
from lit_sft.errors import suggest

DYNAMIC = re.compile(
    r"__getattr__|__path__|globals\(|setattr\(|exec\(|sys\.modules|^ +global ",
    re.MULTILINE,
)
"""A source that holds one of these may have names that cannot be read from it."""
PLAIN_BASES = {"ABC", "object", "Generic", "Protocol"}
"""They add nothing to what a class takes."""


class Module(NamedTuple):
    """Where a module lies."""

    source: Path | None
    """None for a compiled module, and for a folder without `__init__.py`."""
    folders: tuple[str, ...]
    """Of its submodules."""


class Declared(NamedTuple):
    """A class, and the module that declares it."""

    node: ast.ClassDef
    module: str


class Parameter(NamedTuple):
    """What a class takes: the type, and the module in which that is written."""

    annotation: ast.expr | None
    module: str


def find_class(path: str) -> Declared | None:
    """Return the class of a dotted path, through the modules that pass it on.

    Args:
        path: For example `lit_sft.GSM8K`.
    """
    module, _, name = path.rpartition(".")
    module = lit_sft._HOMES.get(name, module) if module == "lit_sft" else module
    found = _bindings(module).get(name, [])
    if len(found) != 1:
        return None
    if isinstance(found[0], ast.ClassDef):
        return Declared(found[0], module)
    if isinstance(found[0], ast.ImportFrom):
        original = next(a.name for a in found[0].names if name in (a.asname, a.name))
        return find_class(f"{_absolute(found[0], module)}.{original}")
    return None


def find_parameters(declared: Declared | None) -> Mapping[str, Parameter] | None:
    """Return what a class takes, by name; fields, if it is a data class."""
    if declared is None or declared.node.keywords:
        return None
    node, module = declared
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    if "__new__" in methods:
        return None
    if "__init__" in methods:
        return find_arguments(declared, "__init__")
    if node.decorator_list:
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
        if not is_dataclass(declared) or node.bases:
            return None
        return {ast.unparse(item.target): Parameter(item.annotation, module) for item in fields}
    for base in node.bases:
        if ast.unparse(base).split("[")[0] in PLAIN_BASES:
            continue
        # The first base that has parameters hides those of the others.
        taken = find_parameters(find_class(_qualify(base, module)))
        if taken is None or taken:
            return taken
    return {}


def find_arguments(declared: Declared, method: str) -> Mapping[str, Parameter] | None:
    """Return the arguments of a method, without the first."""
    for item in declared.node.body:
        if isinstance(item, ast.FunctionDef) and item.name == method and not item.args.kwarg:
            named = [*item.args.posonlyargs, *item.args.args][1:] + item.args.kwonlyargs
            return {arg.arg: Parameter(arg.annotation, declared.module) for arg in named}
    return None


def find_classes(parameter: Parameter) -> list[Declared]:
    """Return the classes that a type names, at any place in it."""
    annotation, module = parameter
    parts = ast.walk(annotation) if annotation else ()
    names = [part for part in parts if isinstance(part, (ast.Name, ast.Attribute))]
    found = [find_class(_qualify(name, module)) for name in names]
    return [declared for declared in found if declared is not None]


def find_choices(parameter: Parameter) -> list[str] | None:
    """Return the words that a type allows, or None where it allows more than words of a list."""
    annotation, module = parameter
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return []
    if isinstance(annotation, ast.Name):
        found = _bindings(module).get(annotation.id, [])
        if len(found) == 1 and isinstance(found[0], ast.Assign):
            return find_choices(Parameter(found[0].value, module))
        if len(found) == 1 and isinstance(found[0], ast.ImportFrom):
            return find_choices(Parameter(annotation, _absolute(found[0], module)))
    if isinstance(annotation, ast.BinOp):
        inner = [annotation.left, annotation.right]
    elif isinstance(annotation, ast.Subscript):
        inside = annotation.slice
        inner = inside.elts if isinstance(inside, ast.Tuple) else [inside]
        kind = ast.unparse(annotation.value)
        if kind == "Literal":
            return [str(item.value) for item in inner if isinstance(item, ast.Constant)]
        if kind not in ("Optional", "Union"):
            return None
    else:
        return None
    found_in = [find_choices(Parameter(item, module)) for item in inner]
    if None in found_in:
        return None
    return list(dict.fromkeys(word for words in found_in for word in words or ()))


def find_type_names(parameter: Parameter) -> set[str]:
    """Return the names in a type, of which `dict[str, ChatTask]` has three."""
    parts = ast.walk(parameter.annotation) if parameter.annotation else ()
    return {part.id for part in parts if isinstance(part, ast.Name)}


def is_dataclass(declared: Declared) -> bool:
    """Return whether a class is a data class, by its decorator."""
    decorators = [ast.unparse(item) for item in declared.node.decorator_list]
    return len(decorators) == 1 and decorators[0].split("(")[0].endswith("dataclass")


def find_flags(module: str) -> Iterator[tuple[str, Parameter]]:
    """Yield the options that a module adds to a parser itself, by name."""
    for node in ast.walk(_parse(module) or ast.Module([], [])):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".add_argument"):
            for arg in node.args:
                if isinstance(arg, ast.Constant) and str(arg.value).startswith("--"):
                    types = [word.value for word in node.keywords if word.arg == "type"]
                    yield str(arg.value)[2:], Parameter(types[0] if types else None, module)


def explain_missing(path: str) -> str | None:
    """Return what is wrong with a dotted path, or None if nothing is, as far as source tells."""
    parts = path.split(".")
    for end in range(1, len(parts)):
        module, parent = ".".join(parts[:end]), ".".join(parts[: end - 1])
        if _find_module(module) is not None:
            continue
        known = _names(parent) if parent else {"lit_sft", "lightning"}
        if known is None or parts[end - 1] in known:
            return None
        return f"there is no module {module!r}.{suggest(parts[end - 1], known)}"
    module, name = ".".join(parts[:-1]), parts[-1]
    known = _names(module)
    if known is None or name in known or _find_module(path) is not None:
        return None
    return f"{module} has no {name!r}.{suggest(name, known)}"


def _names(module: str) -> set[str] | None:
    """Return the names that a module has, submodules included."""
    if module == "lit_sft":
        return set(lit_sft._HOMES)
    found = _find_module(module)
    if found is None or found.source is None or _parse(module) is None:
        return None
    text = found.source.read_text(encoding="utf-8", errors="replace")
    if DYNAMIC.search(text):
        return None
    names = {path.stem for folder in found.folders for path in Path(folder).glob("*")}
    for node in _bindings(module).get("*", []):
        target = _absolute(node, module) if isinstance(node, ast.ImportFrom) else ""
        inner = _names(target) if _find_module(target) is not None else set()
        if inner is None:
            return None
        names |= inner
    return names | set(_bindings(module))


@cache
def _find_module(name: str) -> Module | None:
    """Return where a module lies. Its parents are searched, not imported."""
    parent, _, last = name.rpartition(".")
    if not parent:
        try:
            # The working folder is the last place to look, see `lit_sft.cli.allowlist`.
            spec = find_spec(last) or PathFinder.find_spec(last, [str(Path.cwd())])
        except (ImportError, ValueError):
            return Module(None, ())
        if spec is None:
            return None
        origin = spec.origin or ""
        source = Path(origin) if origin.endswith(".py") else None
        return Module(source, tuple(spec.submodule_search_locations or ()))
    above = _find_module(parent)
    for folder in above.folders if above else ():
        here = Path(folder) / last
        if (here / "__init__.py").is_file():
            return Module(here / "__init__.py", (str(here),))
        if here.with_suffix(".py").is_file():
            return Module(here.with_suffix(".py"), ())
        if here.is_dir() or list(Path(folder).glob(f"{last}.*")):
            return Module(None, (str(here),))
    return None


@cache
def _parse(module: str) -> ast.Module | None:
    found = _find_module(module)
    if found is None or found.source is None:
        return None
    try:
        return ast.parse(found.source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None  # importing it will say what is wrong with it


@cache
def _bindings(module: str) -> dict[str, list[ast.AST]]:
    """Return what binds each name of a module, outside its functions and classes."""
    bound: dict[str, list[ast.AST]] = {}
    todo: list[ast.AST] = [_parse(module) or ast.Module([], [])]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                names = [node.name]
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.asname or alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names = [node.id]
            else:
                names = []
                todo.append(node)
            for name in names:
                bound.setdefault(name, []).append(node)
    return bound


def _absolute(node: ast.ImportFrom, module: str) -> str:
    """Return the module that a `from` names."""
    if not node.level:
        return node.module or ""
    found = _find_module(module)
    is_package = found is not None and bool(found.folders)
    above = module.split(".")
    above = above[: len(above) - node.level + is_package]
    return ".".join([*above, *([node.module] if node.module else [])])


def _qualify(name: ast.expr, module: str) -> str:
    """Return the dotted path of a class that a module names."""
    written = ast.unparse(name.value if isinstance(name, ast.Subscript) else name)
    first, _, rest = written.partition(".")
    for node in _bindings(module).get(first, []) if rest else ():
        if isinstance(node, ast.Import):
            alias = next(a for a in node.names if first in (a.asname, a.name.split(".")[0]))
            return f"{alias.name}.{rest}" if alias.asname else written
        if isinstance(node, ast.ImportFrom):
            alias = next(a for a in node.names if first in (a.asname, a.name))
            return f"{_absolute(node, module)}.{alias.name}.{rest}"
    return f"{module}.{written}"
