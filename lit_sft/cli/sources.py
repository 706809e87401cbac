"""Modules as their source tells: where each lies, and what binds its names. None is imported.

What source does not tell for certain, as it makes its names while it runs, is None: unknown.
"""

import ast
import re
from collections.abc import Iterator
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


class Module(NamedTuple):
    """Where a module lies."""

    source: Path | None
    """None for a compiled module, and for a folder without `__init__.py`."""
    folders: tuple[str, ...]
    """Of its submodules."""


def find_binding(path: str) -> tuple[ast.AST, str] | None:
    """Return what a dotted path names, and its module, through the modules that pass it on.

    Args:
        path: For example `lit_sft.GSM8K`.
    """
    module, _, name = path.rpartition(".")
    module = lit_sft._HOMES.get(name, module) if module == "lit_sft" else module
    found = _bindings(module).get(name, [])
    if len(found) != 1:
        return None
    if isinstance(found[0], ast.ImportFrom):
        return find_binding(f"{_absolute(found[0], module)}.{_original(found[0], name)}")
    return found[0], module


def qualify(name: ast.expr, module: str) -> str:
    """Return the dotted path of what a module names."""
    written = ast.unparse(name.value if isinstance(name, ast.Subscript) else name)
    first, _, rest = written.partition(".")
    for node in _bindings(module).get(first, []) if rest else ():
        if isinstance(node, ast.Import):
            is_renamed = any(alias.asname == first for alias in node.names)
            return f"{_original(node, first)}.{rest}" if is_renamed else written
        if isinstance(node, ast.ImportFrom):
            return f"{_absolute(node, module)}.{_original(node, first)}.{rest}"
    return f"{module}.{written}"


def find_calls(module: str, method: str) -> Iterator[ast.Call]:
    """Yield the calls of a method in a module, of whatever object."""
    for node in ast.walk(_parse(module) or ast.Module([], [])):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(f".{method}"):
            yield node


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
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
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


def _original(node: ast.Import | ast.ImportFrom, name: str) -> str:
    """Return what an import calls that which a module knows by another name."""
    return next(a.name for a in node.names if name in (a.asname, a.name, a.name.split(".")[0]))
