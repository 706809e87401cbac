"""The rooms of the package: imports point down, and heavy libraries wait until they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lit_sft"
LAYERS = [
    ("cli", "inspect", "__main__"),
    ("trainer",),
    ("callbacks",),
    ("model", "run", "export"),
    ("data",),
    ("tasks", "toy"),
    ("evaluation",),
    ("files", "signals", "paths", "types", "errors"),
]
"""A room may import from its own layer and from those below."""


def first_party_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports when it is imported."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lit_sft"):
            found.add(node.module)
    return found


def layer_of(module: str) -> int:
    room = module.split(".")[1]
    return next(i for i, rooms in enumerate(LAYERS) if room in rooms)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    name = ".".join(("lit_sft", *path.relative_to(PACKAGE).with_suffix("").parts))
    for imported in first_party_imports(path):
        assert layer_of(imported) >= layer_of(name), f"{name} imports {imported}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "callbacks").glob("*.py")), ids=lambda x: x.stem)
def test_a_callback_imports_no_other(path):
    nodes = ast.walk(ast.parse(path.read_text()))
    imported = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert [module for module in imported if module.startswith("lit_sft.callbacks")] == []


def test_there_is_no_cycle():
    graph = {}
    for path in FILES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(("lit_sft", *parts)).removesuffix(".__init__")
        graph[name] = first_party_imports(path)

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
        "late = {'bitsandbytes', 'datasets', 'wandb', 'peft'};"
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
