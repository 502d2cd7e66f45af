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
    "api": {"cli", "app"},
    "cli": {"app", "report"},
    "report": {"app"},  # its types
    "app": {"policy", "ope", "store", "simulate", "compute"},
    "policy": set(),
    "ope": set(),
    "store": set(),
    "simulate": set(),
    "compute": set(),
}
ROOMS = {  # of each package, from the lowest floor to the highest: a room knows the floors below it
    "app": (
        {"inputs", "log"}, {"distributions"}, {"learning"}, {"serving"}, {"evaluation"},
        {"training", "audit", "imports", "audiences"},
        {"requests"}, {"setup"}, {"policies"}, {"experiments"}, {"judging"}, {"upkeep"},
    ),
    "app.audit": ({"integrity"}, {"draws"}),
    "app.evaluation": ({"rows"}, {"models"}, {"targets"}, {"passes"}, {"comparisons"}),
    "cli": ({"text"}, {"output"}, {"program"}, {"commands"}, {"screen"}, {"doors"}),
    "cli.commands": ({"requests"}, {"setup", "policies", "judging", "upkeep"}, {"experiments"}),
    "ope": ({"sums"}, {"intervals"}, {"checks", "estimators"}, {"units"}, {"comparisons"}),
    "policy": ({"scores"}, {"beliefs"}, {"contexts"}, {"slates"}, {"gradients", "kinds"}),
    "store": ({"database"}, {"log"}, {"policies"}, {"upkeep"}),
}  # fmt: skip
FULL = 15  # files of a folder, at most
DOOR = ("rlrec", "rlrec.api")  # rlrec.open, which loads it when it is called
STUB = ("rlrec.api", "rlrec.signatures")  # which type checkers alone read
SHARED = {
    "rlrec",
    "rlrec.records",
    "rlrec.log_fields",
    "rlrec.errors",
    "rlrec.times",
    "rlrec.sentences",
    "rlrec.drafts",
}  # standard library only: every layer may use them
ARRAYS = "rlrec.arrays"  # numpy only: every layer but cli may use it
FOREIGN = {  # what a layer never imports from outside
    "api": {"sqlalchemy", "alembic", "numpy", "scipy", ARRAYS},
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
    "api": {"rlrec.app"},
    "cli": {"rlrec.app", "rlrec.report"}, "report": {"rlrec.app"}, "app": {"scipy"}, "policy": {"scipy"},
    "store": {"scipy", "alembic"},
}  # fmt: skip
BLOCKS = ast.stmt, ast.excepthandler, ast.match_case  # what may hold an import: no expression does


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
    result = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        result[".".join(parts).removesuffix(".__init__")] = path
    return result


def imports(path: Path, stored: Iterable[str], *, package: str) -> list[Import]:
    """What a module imports; of `from a import b` the module a.b where there is one."""
    names = set(stored)

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
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, BLOCKS):
                inside = isinstance(node, ast.If) and child in node.body
                yield from visit(child, late, typing or (guarded and inside))

    return list(visit(ast.parse(path.read_text(encoding="utf-8")), False, False))


def within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def layer(name: str) -> str:
    """The layer of a module of the package, or "" for those that all may use."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ARROWS else ""


def upstairs(module: str, imported: str) -> str | None:
    """Which room may not import which other room of its package, if a module imports one that is not below its own."""
    for package, floors in ROOMS.items():
        prefix = f"rlrec.{package}."
        if module.startswith(prefix) and imported.startswith(prefix):
            upper, lower = (name.removeprefix(prefix).split(".")[0] for name in (module, imported))
            numbers = {room: number for number, rooms in enumerate(floors) for room in rooms}
            if upper in numbers and upper != lower and numbers.get(lower, -1) >= numbers[upper]:
                return (
                    f"{package.replace('.', '/')}/{upper} lies below {package.replace('.', '/')}/{lower}, or beside it"
                )
    return None


def complaint(module: str, item: Import) -> str | None:
    """What is wrong with an import, if anything is."""
    home = layer(module)
    if within(item.name, NOWHERE):
        return f"imports {item.name}, which nothing may"
    if within(item.name, ["alembic"]) and module != "rlrec.store.database.schema":
        return "imports alembic, which store/database/schema.py alone may"
    if within(item.name, FOREIGN.get(home, ())):
        return f"imports {item.name}, which {home} never does"
    if ((module, item.name) == DOOR and (item.late or item.typing)) or ((module, item.name) == STUB and item.typing):
        return None
    if not item.late and not item.typing and within(item.name, LATE.get(home, ())):
        return f"imports {item.name} outside of a function"
    if not item.name.startswith("rlrec") or item.name in {*SHARED, ARRAYS}:
        standard = item.name.split(".")[0] in sys.stdlib_module_names or item.name in SHARED
        return (
            None if standard or module not in SHARED else f"imports {item.name}: it may use the standard library only"
        )
    if home and layer(item.name) not in {home, *ARROWS[home]}:
        return f"imports {item.name}: {home} -> {layer(item.name) or 'the top'} is no arrow"
    if rooms := upstairs(module, item.name):
        return f"imports {item.name}: {rooms}"
    return None if home or module == "rlrec.__main__" else f"imports {item.name}: what all may use knows no layer"


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, be it inside a function or for the type checker; a shortest round each."""
    result: dict[frozenset[str], list[str]] = {}
    for start in sorted(graph):
        ways, observed = [[start]], set()
        while ways:
            way = ways.pop(0)
            for following in sorted(graph.get(way[-1], ())):
                if following == start:
                    result.setdefault(frozenset(way), [*way, start])
                    ways = []
                    break
                if following not in observed:
                    observed.add(following)
                    ways.append([*way, following])
    return list(result.values())


def problems(root: Path) -> list[str]:
    """Every wrong arrow and every cycle, one line each."""
    stored = modules(root)
    result, graph = [], dict[str, set[str]]()
    for module, path in stored.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        outcome = imports(path, stored, package=package)
        result += [f"{module}:{row.line} {what}" for row in outcome if (what := complaint(module, row))]
        graph[module] = {row.name for row in outcome if row.name in stored}
    return result + [" -> ".join(round_trip) for round_trip in cycles(graph)]


@pytest.mark.slow
def test_every_import_follows_an_arrow() -> None:
    assert problems(ROOT) == []


def test_every_layer_is_looked_at() -> None:
    result = modules(ROOT)
    assert {layer(name) for name in result} >= {"cli", "app", "policy", "ope", "store"}
    assert {name for name in result if not layer(name)} == {*SHARED, ARRAYS, "rlrec.__main__"}


@pytest.mark.parametrize("package", ROOMS)
def test_every_folder_of_a_package_is_a_room_with_a_floor(package: str) -> None:
    folder = ROOT.joinpath(*package.split("."))
    assert {path.name for path in folder.iterdir() if (path / "__init__.py").exists()} == set().union(*ROOMS[package])


def test_no_folder_is_full() -> None:
    folders = {path.parent for path in ROOT.rglob("*.py")}
    counts = {str(folder.relative_to(ROOT)): len([*folder.glob("[!_]*.py")]) for folder in folders}
    assert {name: count for name, count in counts.items() if count > FULL} == {}


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
        ("store/a.py", "def f():\n    from alembic import command", "store/database/schema.py alone"),
        ("store/a.py", "from sqlalchemy import orm", "sqlalchemy.orm, which nothing"),
        ("store/database/schema.py", "import alembic", "outside of a function"),
        ("simulate/a.py", "from rlrec.store import b", "simulate -> store is no arrow"),
        (
            "store/a.py",
            "if TYPE_CHECKING:\n    import rlrec.store.b\n",
            "rlrec.store.a -> rlrec.store.b -> rlrec.store.a",
        ),
        ("app/log/a.py", "from rlrec.app.learning import b", "app/log lies below app/learning"),
        ("app/log/a.py", "if TYPE_CHECKING:\n    from rlrec.app.inputs import b", "or beside it"),
        ("app/audit/a.py", "from rlrec.app.requests import b", "app/audit lies below app/requests"),
        ("store/database/a.py", "from rlrec.store.log import b", "store/database lies below store/log"),
        (
            "app/evaluation/rows/a.py",
            "from rlrec.app.evaluation.passes import b",
            "rows lies below app/evaluation/passes",
        ),
        ("errors.py", "from rlrec.store import b", "knows no layer"),
        ("records.py", "import numpy", "standard library only"),
        ("store/a.py", "import rlrec.store.b\n", "rlrec.store.a -> rlrec.store.b -> rlrec.store.a"),
        ("store/a.py", "def f():\n    import rlrec.store.b\n", "rlrec.store.a -> rlrec.store.b -> rlrec.store.a"),
    ],
)
def test_a_wrong_import_is_caught(tmp_path: Path, path: str, text: str, what: str) -> None:
    root = tmp_path / "rlrec"
    rooms = [f"{package}/{room}".replace(".", "/") for package in ROOMS for room in set().union(*ROOMS[package])]
    for name in [*ARROWS, *rooms, ""]:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "__init__.py").write_text("")
        (root / name / "b.py").write_text("x = 1\n")
    (root / "b.py").unlink()
    (root / "store" / "b.py").write_text("from rlrec.store import a\n")
    (root / "store" / "a.py").write_text("")
    assert problems(root) == []
    (root / path).write_text(text + "\n")
    result = problems(root)
    assert len(result) == 1
    assert what in result[0]


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
