"""The rooms of the package: imports point down, and heavy libraries wait until they are used."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lit_sft"
LAYERS = [
    ("cli", "inspect", "report", "__main__"),
    ("trainer", "plan"),
    ("callbacks",),
    ("model", "run", "export"),
    ("data",),
    ("tasks", "toy"),
    ("evaluation",),
    ("cuda", "files", "signals", "ranks", "paths", "types", "errors"),
]
"""A room may import from its own layer and from those below."""


def list_imports(nodes: Iterable[ast.AST], package: str) -> set[str]:
    """Modules of `lit_sft` that statements import, in whatever form, by their full names.

    What is taken from `lit_sft` itself is `lit_sft`: its public names are of every room.
    """
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            module = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            found.add(module)
            # The name may be that of a module, as in `from lit_sft.callbacks import console`.
            found.update(x for x in (f"{module}.{y.name}" for y in node.names) if x in MODULES)
    return {module for module in found if module.split(".")[0] == "lit_sft"}


def imports_of(path: Path, anywhere: bool) -> set[str]:
    """Modules that a file imports: when it is imported itself, or anywhere, in functions too."""
    tree = ast.parse(path.read_text())
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    return list_imports(ast.walk(tree) if anywhere else tree.body, package)


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def layer_of(module: str) -> int:
    """The layer of a module; whoever takes the package's public names may need any room."""
    if module == "lit_sft":
        return 0
    return next(i for i, rooms in enumerate(LAYERS) if module.split(".")[1] in rooms)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
MODULES = {name_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    for imported in imports_of(path, anywhere=True):
        assert layer_of(imported) >= layer_of(name_of(path)), f"{path.name} imports {imported}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "callbacks").glob("*.py")), ids=lambda x: x.stem)
def test_a_callback_imports_no_other(path):
    imported = imports_of(path, anywhere=True)
    assert [name for name in imported if name.startswith("lit_sft.callbacks")] == []


@pytest.mark.parametrize(
    "statement",
    [
        "from lit_sft.callbacks.console import Progress",
        "from lit_sft.callbacks import console",
        "import lit_sft.callbacks.console",
        "from . import console",
        "from .console import Progress",
        "def late():\n    from ..callbacks.console import Progress",
    ],
)
def test_every_form_of_an_import_is_seen(statement):
    found = list_imports(ast.walk(ast.parse(statement)), "lit_sft.callbacks")
    assert "lit_sft.callbacks.console" in found


def test_the_architecture_shows_these_layers():
    text = (PACKAGE.parent / "docs" / "ARCHITECTURE.md").read_text()
    table = text.partition("## What may import what")[2].partition("\n## ")[0]
    shown = [set() for _ in LAYERS]
    for layer, rooms in re.findall(r"^\| (\d) \| ((?:`[\w/.]+` ?)+)\|", table, re.MULTILINE):
        shown[int(layer) - 1].update(re.findall(r"`(?:lit_sft/)?(\w+)", rooms))
    assert shown == [set(rooms) for rooms in LAYERS]


def test_no_two_files_have_one_name():
    names = [path.name for path in FILES if path.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))


def test_there_is_no_cycle():
    graph = {name_of(path): imports_of(path, anywhere=False) for path in FILES}

    def reach(start):
        seen, todo = set(), [start]
        while todo:
            for module in graph.get(todo.pop(), ()):
                if module not in seen:
                    seen.add(module)
                    todo.append(module)
        return seen

    assert [name for name in graph if name in reach(name)] == []


def test_help_loads_no_heavy_library():
    code = (
        "import sys; sys.argv = ['lit-sft', '--help']; from lit_sft.__main__ import main; main();"
        "heavy = {'torch', 'lightning', 'transformers', 'peft', 'datasets', 'wandb'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_line_imports_only_what_every_run_needs():
    code = (
        "import sys, lit_sft.cli.app;"
        "late = {'bitsandbytes', 'bokeh', 'datasets', 'wandb', 'peft'};"
        "sys.exit(' '.join(late & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_resolve():
    import lit_sft

    for name in lit_sft.__all__:
        assert getattr(lit_sft, name) is not None
    assert sorted(lit_sft._HOMES) == sorted(lit_sft.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lit_sft.nothing
