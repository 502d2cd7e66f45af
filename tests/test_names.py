"""Names say what a thing is, in tests, too; class names have one meaning, and docstrings say first what comes back."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent / "rlrec"

EMPTY = {
    "alike", "asked", "found", "given", "happened", "kept", "known", "made", "mine", "one", "own", "part", "place",
    "rest", "said", "seen", "told", "whole", "wide",
}  # fmt: skip
"""Words that say nothing of a thing: they may be no name, and no word of one."""
# Words of closed classes, and participles that tell nothing of what they stand for: none of them is a name by itself.
CLOSED = """
all an another any both each either enough every few less many more most much neither others same several some such
that the these this those
above after against along among around at before behind below beside besides between beyond by down during for from in
into of off on onto out over per since through to toward under until up upon via with within without
he here how it its she their them there they what when where which who whom whose why
ahead again alike also apart aside away else elsewhere ever just near never once only so still then together too yet
begun broken chosen driven drawn fallen grown held hidden risen shown taken written
"""
NOUNS_IN_ED = {"feed", "need", "seed", "speed"}
CONTRACT = {
    "at",
    "by",
    "connection_made",
    "from",
    "now",
    "since",
    "to",
    "until",
    "hidden",
    "reward_seen",
}  # keys and options of the command contract; a callback of asyncio, an attribute of click
NO_NAMES = {*CLOSED.split()} - CONTRACT
CEILING = 0.005  # of the names that a room binds
SHARED = {"Request", "Result"}  # class names that every command may have
UNCHECKED = {f"benchmarks/{name}.py" for name in ("__main__", "measure", "scale")}  # of tests/
RIDDLES = ("As", "Of", "What")  # first words of a docstring that names nothing


def paths_below(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def nodes_of(text: str) -> list[ast.AST]:
    return [*ast.walk(ast.parse(text))]


@cache
def sources(root: Path = ROOT) -> list[tuple[str, list[ast.AST]]]:
    """The path of each module, and its nodes, which are walked through once for all tests."""
    return [(str(path.relative_to(root)), nodes_of(path.read_text(encoding="utf-8"))) for path in paths_below(root)]


def bound(node: ast.AST) -> str | None:
    """The name that a node binds, if it binds one."""
    match node:
        case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            return name
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.alias(asname=str(name)):
            return name
    return None


def empty_names(nodes: list[ast.AST]) -> list[str]:
    """Every name bound in a module that is, or contains, a word that says nothing."""
    names = map(bound, nodes)
    return [name for name in names if name and name not in CONTRACT and EMPTY.intersection(name.lower().split("_"))]


def bare_names(nodes: list[ast.AST]) -> tuple[list[str], int]:
    """Names that are no noun, no verb with its object and no symbol, and how many names a module binds. A field of a
    class may be a participle, since most are keys, columns or options."""
    names = [name for node in nodes if (name := bound(node)) is not None and name[:2] != "__"]
    fields = {
        statement.target.id
        for node in nodes if isinstance(node, ast.ClassDef)
        for statement in node.body if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }  # fmt: skip
    words = [(name, name.strip("_").lower().split("_")) for name in names]
    return [
        name
        for name, (first, *more) in words
        if first == "of" or (not more and (first in NO_NAMES or (name not in fields and is_participle(name))))
    ], len(names)


def is_participle(name: str) -> bool:
    """Whether a name of a variable, an argument, an attribute or a function lacks its noun."""
    word = name.strip("_")
    return word.islower() and word.endswith("ed") and word not in NOUNS_IN_ED


def room_of(path: str) -> str:
    """The first two folders of a path: a layer, or a room of it."""
    return "/".join(path.split("/")[:-1][:2])


ROOMS = sorted({room_of(str(path.relative_to(ROOT))) for path in paths_below(ROOT)})


def riddles(nodes: list[ast.AST]) -> list[str]:
    """Every docstring of a module that begins with a riddle."""
    documented = (node for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
    texts = (ast.get_docstring(node) for node in documented)
    return [text.partition("\n")[0] for text in texts if text and text.split()[0] in RIDDLES]


@pytest.mark.slow
def test_no_name_says_nothing() -> None:
    assert [(path, name) for path, nodes in sources() for name in empty_names(nodes)] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_name_is_a_noun_a_verb_with_its_object_or_a_symbol(room: str) -> None:
    counted = [bare_names(nodes) for path, nodes in sources() if room_of(path) == room]
    bare, count = [name for names, _ in counted for name in names], sum(number for _, number in counted)
    assert len(bare) <= CEILING * count, bare


@pytest.mark.slow
def test_no_name_of_tests_says_nothing() -> None:
    """The name of a test is a sentence, which may have any word."""
    names = [(path, name) for path, nodes in sources(TESTS) if path not in UNCHECKED for name in empty_names(nodes)]
    assert [(path, name) for path, name in names if not name.startswith("test_")] == []


@pytest.mark.slow
def test_a_class_name_has_one_meaning() -> None:
    homes = defaultdict[str, list[str]](list)
    for path, nodes in sources():
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                homes[node.name.lstrip("_")].append(path)
    assert {name: paths for name, paths in homes.items() if len(paths) > 1 and name not in SHARED} == {}


@pytest.mark.slow
def test_a_docstring_begins_with_what_comes_back() -> None:
    assert [(path, text) for path, nodes in sources() for text in riddles(nodes)] == []


@pytest.mark.parametrize(
    "text",
    [
        "found = 1",
        "def f(known): ...",
        "def told(): ...",
        "for one in (1, 2): ...",
        "import os as place",
        "self.is_seen = 1",
        "class Mine: ...",
        "rows = [whole for whole in (1, 2)]",
    ],
)
def test_an_empty_name_is_caught_wherever_it_is_bound(text: str) -> None:
    assert len(empty_names(nodes_of(text))) == 1


@pytest.mark.parametrize(
    "text",
    ["each = 1", "def of(): ...", "def f(of_slot): ...", "for which in (1, 2): ...", "_held = 1", "def f(stored): ..."],
)
def test_a_bare_name_is_caught(text: str) -> None:
    assert len(bare_names(nodes_of(text))[0]) == 1


def test_a_name_that_is_only_used_or_only_contains_the_letters_is_left_alone() -> None:
    assert empty_names(nodes_of("import one\nfoundation = parts = one.told(rest=1)")) == []


@pytest.mark.parametrize("text", ["What it is.", "Of a decision, its slots.", "As stored."])
def test_a_riddle_is_caught(text: str) -> None:
    assert riddles(nodes_of(f'def f():\n    """{text}"""')) == [text]
