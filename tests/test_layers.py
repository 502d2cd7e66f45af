"""A path tells what a file may know: every import is read, those for the type checker alone too, and a wrong arrow or a
circle of files fails."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "rlrec"

ARROWS = {
    "cli": {"app", "report"},
    "report": {"app"},  # its types
    "app": {"policy", "ope", "store", "simulate", "compute"},
    "policy": set(),
    "ope": set(),
    "store": set(),
    "simulate": set(),
    "compute": set(),
}
ROOMS = (  # of app/, from the lowest floor to the highest: a room knows the floors below it; a command knows every room
    {"inputs", "log"},
    {"distributions"},
    {"learning"},
    {"serving"},
    {"evaluation"},
    {"training", "audit", "imports", "audiences"},
)
DOOR = ("rlrec", "rlrec.cli.notebook")  # rlrec.open, which loads it when it is called
SHARED = {"rlrec", "rlrec.records", "rlrec.errors", "rlrec.times"}  # standard library only: every layer may use them
ARRAYS = "rlrec.arrays"  # numpy only: every layer but cli may use it
FOREIGN = {  # what a layer never imports from outside
    "cli": {"sqlalchemy", "alembic", "numpy", "scipy", ARRAYS},
    "report": {"click", "sqlalchemy", "alembic", "numpy", "scipy", ARRAYS},
    "app": {"click", "sqlalchemy", "alembic"},
    "policy": {"click", "sqlalchemy", "alembic", "time", "datetime", "random", "os", "pathlib"},
    "ope": {"click", "sqlalchemy", "alembic", "time", "datetime", "random", "os", "pathlib"},
    "store": {"click"},
    "simulate": {"click", "sqlalchemy", "alembic"},
    "compute": {"click", "sqlalchemy", "alembic"},
}
NOWHERE = {"sqlalchemy.orm", "scipy.stats"}
LATE = {  # in functions only
    "cli": {"rlrec.app", "rlrec.report"}, "report": {"rlrec.app"}, "app": {"scipy"}, "policy": {"scipy"},
    "store": {"scipy", "alembic"},
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One imported module. late: inside a function. typing: for the type checker alone, where what would load a library
    is allowed."""

    name: str
    line: int
    late: bool = False
    typing: bool = False


def modules(root: Path) -> dict[str, Path]:
    """Every module below a package, by its dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: Iterable[str], *, package: str) -> list[Import]:
    """What a module imports; of `from a import b` the module a.b where there is one."""
    names = set(known)

    def visit(node: ast.AST, late: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, late, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                outside = not base.startswith("rlrec")
                yield Import(
                    inner if inner in names or (outside and inner in NOWHERE) else base, node.lineno, late, typing
                )
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            inside = isinstance(node, ast.If) and child in node.body
            yield from visit(child, late, typing or (guarded and inside))

    return list(visit(ast.parse(path.read_text(encoding="utf-8")), False, False))


def within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def layer(name: str) -> str:
    """The layer of a module of the package, or "" for those that all may use."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ARROWS else ""


def floor(name: str) -> int | None:
    """The floor of a module of `app/`, commands above all rooms; None for a module elsewhere."""
    parts = name.split(".")
    if layer(name) != "app" or len(parts) < 3:
        return None
    return next((number for number, rooms in enumerate(ROOMS) if parts[2] in rooms), len(ROOMS))


def room(name: str) -> str:
    """The room of a module of `app/`; a command is a room of its own."""
    return name.split(".")[2]


def upstairs(module: str, imported: str) -> bool:
    """Whether a room of `app/` imports one that is not below it."""
    own, other = floor(module), floor(imported)
    if own is None or other is None or room(module) == room(imported):
        return False
    return other > own or (other == own < len(ROOMS))


def complaint(module: str, one: Import) -> str | None:
    """What is wrong with an import, if anything is."""
    home = layer(module)
    if within(one.name, NOWHERE):
        return f"imports {one.name}, which nothing may"
    if within(one.name, ["alembic"]) and module != "rlrec.store.schema":
        return "imports alembic, which store/schema.py alone may"
    if within(one.name, FOREIGN.get(home, ())):
        return f"imports {one.name}, which {home} never does"
    if (module, one.name) == DOOR and (one.late or one.typing):
        return None
    if not one.late and not one.typing and within(one.name, LATE.get(home, ())):
        return f"imports {one.name} outside of a function"
    if not one.name.startswith("rlrec") or one.name in {*SHARED, ARRAYS}:
        standard = one.name.split(".")[0] in sys.stdlib_module_names or one.name in SHARED
        return None if standard or module not in SHARED else f"imports {one.name}: it may use the standard library only"
    if home and layer(one.name) not in {home, *ARROWS[home]}:
        return f"imports {one.name}: {home} -> {layer(one.name) or 'the top'} is no arrow"
    if upstairs(module, one.name):
        return f"imports {one.name}: app/{room(module)} lies below app/{room(one.name)}, or beside it"
    return None if home or module == "rlrec.__main__" else f"imports {one.name}: what all may use knows no layer"


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, be it inside a function or for the type checker; a shortest round each."""
    found: dict[frozenset[str], list[str]] = {}
    for start in sorted(graph):
        ways, seen = [[start]], set()
        while ways:
            way = ways.pop(0)
            for following in sorted(graph.get(way[-1], ())):
                if following == start:
                    found.setdefault(frozenset(way), [*way, start])
                    ways = []
                    break
                if following not in seen:
                    seen.add(following)
                    ways.append([*way, following])
    return list(found.values())


def problems(root: Path) -> list[str]:
    """Every wrong arrow and every cycle, one line each."""
    known = modules(root)
    said, graph = [], dict[str, set[str]]()
    for module, path in known.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found = imports(path, known, package=package)
        said += [f"{module}:{one.line} {what}" for one in found if (what := complaint(module, one))]
        graph[module] = {one.name for one in found if one.name in known}
    return said + [" -> ".join(round_trip) for round_trip in cycles(graph)]


@pytest.mark.slow
def test_every_import_follows_an_arrow() -> None:
    assert problems(ROOT) == []


def test_every_layer_is_looked_at() -> None:
    found = modules(ROOT)
    assert {layer(name) for name in found} >= {"cli", "app", "policy", "ope", "store"}
    assert {name for name in found if not layer(name)} == {*SHARED, ARRAYS, "rlrec.__main__"}


def test_every_folder_of_the_use_cases_is_a_room_with_a_floor() -> None:
    folders = {path.name for path in (ROOT / "app").iterdir() if (path / "__init__.py").exists()}
    assert folders == set().union(*ROOMS)


@pytest.mark.parametrize(
    ("path", "text", "what"),
    [
        ("cli/a.py", "import sqlalchemy as sa", "sqlalchemy, which cli never"),
        ("cli/a.py", "def f():\n    import numpy", "numpy, which cli never"),
        ("cli/a.py", "def f():\n    from rlrec import store", "cli -> store is no arrow"),
        ("cli/a.py", "from rlrec.app import b", "outside of a function"),
        ("app/a.py", "import click", "click, which app never"),
        ("app/a.py", "def f():\n    from rlrec.cli import b", "app -> cli is no arrow"),
        ("report/a.py", "def f():\n    from rlrec.store import b", "report -> store is no arrow"),
        ("app/a.py", "def f():\n    from rlrec.report import b", "app -> report is no arrow"),
        ("policy/a.py", "from rlrec.store import b", "policy -> store is no arrow"),
        ("policy/a.py", "from ..app import b", "policy -> app is no arrow"),
        ("policy/a.py", "import time", "time, which policy never"),
        ("policy/a.py", "from scipy.special import ndtri", "outside of a function"),
        ("ope/a.py", "if TYPE_CHECKING:\n    from rlrec.policy import b", "ope -> policy is no arrow"),
        ("ope/a.py", "from scipy import stats", "scipy.stats, which nothing"),
        ("store/a.py", "from rlrec.policy.b import x", "store -> policy is no arrow"),
        ("store/a.py", "def f():\n    from alembic import command", "store/schema.py alone"),
        ("store/a.py", "from sqlalchemy import orm", "sqlalchemy.orm, which nothing"),
        ("store/schema.py", "import alembic", "outside of a function"),
        ("simulate/a.py", "from rlrec.store import b", "simulate -> store is no arrow"),
        (
            "store/a.py",
            "if TYPE_CHECKING:\n    import rlrec.store.b\n",
            "rlrec.store.a -> rlrec.store.b -> rlrec.store.a",
        ),
        ("app/log/a.py", "from rlrec.app.learning import b", "app/log lies below app/learning"),
        (
            "app/log/a.py",
            "if TYPE_CHECKING:\n    from rlrec.app.inputs import b",
            "or beside it",
        ),
        ("app/audit/a.py", "from rlrec.app import b", "app/audit lies below app/b"),
        ("errors.py", "from rlrec.store import b", "knows no layer"),
        ("records.py", "import numpy", "standard library only"),
        ("store/a.py", "import rlrec.store.b\n", "rlrec.store.a -> rlrec.store.b -> rlrec.store.a"),
        ("store/a.py", "def f():\n    import rlrec.store.b\n", "rlrec.store.a -> rlrec.store.b -> rlrec.store.a"),
    ],
)
def test_a_wrong_import_is_caught(tmp_path: Path, path: str, text: str, what: str) -> None:
    root = tmp_path / "rlrec"
    for name in [*ARROWS, "app/log", "app/inputs", "app/learning", "app/audit", ""]:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "__init__.py").write_text("")
        (root / name / "b.py").write_text("x = 1\n")
    (root / "b.py").unlink()
    (root / "store" / "b.py").write_text("from rlrec.store import a\n")
    (root / "store" / "a.py").write_text("")
    assert problems(root) == []
    (root / path).write_text(text + "\n")
    found = problems(root)
    assert len(found) == 1
    assert what in found[0]


@pytest.mark.parametrize("text", ["def f():\n    from rlrec.app import b", "import click\nfrom rlrec.errors import x"])
def test_a_right_import_is_left_alone(tmp_path: Path, text: str) -> None:
    root = tmp_path / "rlrec"
    for name in ("app", "cli"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("")
    (root / "app" / "b.py").write_text("import numpy\n")
    (root / "errors.py").write_text("x = 1\n")
    (root / "cli" / "a.py").write_text(text + "\n")
    assert problems(root) == []
