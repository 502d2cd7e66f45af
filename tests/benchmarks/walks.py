"""What one command crosses of the package, and how long that is: sizes which a reader has to follow."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import rlrec
from tests.benchmarks.epochs import remembering
from tests.benchmarks.measure import Figure, Setting, environment
from tests.benchmarks.shops import LATER, Lite, logged, tell

LINES = 36_500
# In a process of its own: what is loaded for a command is a part of its walk.
TRACER = """
import json, sys
import rlrec
from rlrec.cli import main

root = rlrec.__file__.removesuffix("__init__.py")
files, functions, moves, last = set(), set(), 0, ""

def cross(frame, event, _):
    global moves, last
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(root) and not code.co_name.startswith("<"):
        files.add(code.co_filename)
        functions.add((code.co_filename, code.co_qualname))
        moves += code.co_filename != last
        last = code.co_filename

sys.setprofile(cross)
try:
    main()
finally:
    sys.setprofile(None)
    print(json.dumps([len(files), len(functions), moves]), file=sys.stderr)
"""


class Walk(NamedTuple):
    """Files and functions that a command calls, and how often it moves from one file to another."""

    files: int
    functions: int
    moves: int


COMMANDS: dict[str, tuple[str, ...]] = {
    "recommend": ("recommend", "--policy", "home", "--session", "s1", "-k", "2"),
    "feedback": ("feedback", "1", "click"),
    "evaluate": ("evaluate", "uniform", "--estimator", "snips"),
    "train-pg": ("train-pg", "visits", "--epochs", "1", "--seed", "1", "--log", "policy=log"),
}
GOALS = {
    "recommend": Walk(65, 380, 350),
    "feedback": Walk(32, 200, 130),
    "evaluate": Walk(110, 650, 700),
    "train-pg": Walk(168, 1_203, 4_440),
}


def walks(setting: Setting) -> Iterator[Figure]:
    """Lines of code, and the walks of four commands on small stores."""
    yield Figure(name="lines of code", value=code_lines(), unit="", at_most=LINES)
    small = replace(setting, scale=0.01)
    new = Lite(small)
    tell(new, "init")
    tell(new, "arm", "import", "-", lines=[{"arm": arm} for arm in "abc"])
    tell(new, "policy", "create", "home", "--kind", "thompson")
    served = new.copy()
    tell(served, "recommend", "--policy", "home", "--session", "s1")
    log, visits = logged(Lite(small), small, 400, visit=4), remembering(small, 150)
    stores = {"recommend": new, "feedback": served, "evaluate": log, "train-pg": visits}
    for name, goal in GOALS.items():
        walk = crossed(stores[name].db, name)
        for what, value, at_most in zip(Walk._fields, walk, goal, strict=True):
            yield Figure(name=f"{name}: {what}", value=value, unit="", at_most=at_most)


def crossed(db: str, name: str) -> Walk:
    """The walk of a command; on logs that lie in the past, after them."""
    now = {} if name in ("recommend", "feedback") else LATER
    command = [sys.executable, "-c", TRACER, "--db", db, *COMMANDS[name]]
    done = subprocess.run(command, env=environment(now), capture_output=True, check=False)
    *_, numbers = done.stderr.splitlines()
    if done.returncode:
        raise RuntimeError(f"{name} exited with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return Walk(*json.loads(numbers))


def code_lines() -> int:
    """Lines of the package that are neither blank, nor comments, nor docstrings."""
    return sum(_count_lines(path.read_text(encoding="utf-8")) for path in Path(rlrec.__file__).parent.rglob("*.py"))


def _count_lines(text: str) -> int:
    no_code, in_text = set[int](), set[int]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            docstring = node.body[0] if ast.get_docstring(node, clean=False) else None
            no_code.update(range(docstring.lineno, (docstring.end_lineno or 0) + 1) if docstring else ())
        elif isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno:
            in_text.update(range(node.lineno + 1, (node.end_lineno or 0) + 1))
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in no_code]
    return sum(bool(line) and (line[0] != "#" or number in in_text) for number, line in lines)
