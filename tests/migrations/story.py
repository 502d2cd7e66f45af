"""A small store with something of everything in it, as SQL text: what a past revision is kept as, the oldest in full,
each later one by the lines that differ from the one before.

`python -m tests.migrations.story > tests/migrations/NNNN.diff` keeps the revision of today.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import tempfile
from contextlib import closing
from difflib import unified_diff
from pathlib import Path

from click.testing import CliRunner

from rlrec.cli import program

HERE = Path(__file__).resolve().parent
REVISIONS = sorted(path.stem for path in (*HERE.glob("*.sql"), *HERE.glob("*.diff")))
HUNK = re.compile(r"@@ -([0-9]+)(?:,([0-9]+))? ")  # its first line in the store before, and how many
ARMS = '{"arm": "a1", "features": {"topic": "tea"}}\n{"arm": "a2"}\n{"arm": "a3", "features": {"price": 3.5}}\n'
STORY: list[tuple[str, list[str]]] = [
    ("12:00", ["init"]),
    ("12:00", ["arm", "import", "-"]),
    ("12:00", ["reward", "define", "basket", "click=0.1, purchase=1", "--window", "1h", "--clip", "0,1",
               "--learn", "settled", "--late", "ignore"]),
    ("12:00", ["policy", "create", "home", "--kind", "thompson", "--param", "floor=0.1", "--prior", "prior.csv"]),
    ("12:00", ["policy", "create", "slow", "--kind", "epsilon-greedy", "--reward", "basket"]),
    ("12:01", ["recommend", "--policy", "home", "--session", "s1", "--user", "u1", "--context", '{"hour": 9}',
               "-k", "2", "--seed", "1", "--request-id", "r1"]),
    ("12:02", ["recommend", "--policy", "slow", "--session", "s1", "--seed", "1"]),
    ("12:03", ["feedback", "1", "click", "dwell_s=3.5", "--position", "1", "--key", "k1"]),
    ("12:03", ["feedback", "1", "page_view"]),
    ("12:04", ["feedback", "2", "click"]),
    ("12:05", ["recommend", "--policy", "home", "--session", "s2", "--seed", "2"]),
    ("12:06", ["feedback", "3", "--censor"]),
    ("14:00", ["policy", "freeze", "home"]),
    ("14:00", ["policy", "promote", "home@2"]),
    ("14:00", ["policy", "freeze", "slow"]),
    ("14:01", ["arm", "retire", "a3"]),
    ("14:01", ["arm", "add", "a2", "--group", "home", "--until", "2099-01-01"]),
    ("14:02", ["experiment", "create", "ab", "--variant", "a=home", "--variant", "b=slow@2", "--unit", "user"]),
    ("14:03", ["recommend", "--experiment", "ab", "--session", "s3", "--user", "u2", "--seed", "3"]),
    ("14:04", ["recommend", "--policy", "slow", "--session", "s4", "--seed", "3"]),
    ("14:05", ["session", "end", "s4"]),
    ("14:05", ["experiment", "set", "ab", "--weight", "a=1", "--weight", "b=2"]),
    ("14:05", ["user", "merge", "u3", "--into", "u2"]),
    ("14:06", ["route", "create", "front", "--to", "home"]),
    ("14:07", ["route", "set", "front", "--to", "slow@2"]),
    ("14:08", ["route", "rollback", "front"]),
    ("14:09", ["route", "set", "front", "--holdout", "5%"]),
    ("14:10", ["log", "exclude", "staff", "--where", "user=u2"]),
]  # fmt: skip


def build_store(folder: Path) -> Path:
    """The store that the story makes."""
    prior = folder / "prior.csv"
    prior.write_text("arm,alpha,beta\na1,2,8\n")
    for time, words in STORY:
        args = [str(prior) if word == "prior.csv" else word for word in words]
        before = ["-q", "--db", str(folder / "story.db"), "--now", f"2026-01-01T{time}:00Z"]
        done = CliRunner().invoke(program, before + args, input=ARMS)
        if done.exit_code:
            raise RuntimeError(f"{' '.join(args)}: {done.output}")
    return folder / "story.db"


def read_sql(revision: str) -> str:
    """The SQL text of the kept store of a revision."""
    lines = (HERE / f"{REVISIONS[0]}.sql").read_text(encoding="utf-8").splitlines(keepends=True)
    for name in REVISIONS[1 : REVISIONS.index(revision) + 1]:
        lines = _changed(lines, (HERE / f"{name}.diff").read_text(encoding="utf-8").splitlines(keepends=True)[2:])
    return "".join(lines)


def _changed(lines: list[str], difference: list[str]) -> list[str]:
    """Lines after the hunks of a difference without context."""
    result, end = list[str](), 0
    for line in difference:
        if hunk := HUNK.match(line):
            n_lines = int(hunk[2] or "1")
            begin = int(hunk[1]) - (n_lines > 0)  # a hunk that only adds names the line before
            result, end = result + lines[end:begin], begin + n_lines
        elif line.startswith("+"):
            result.append(line[1:])
    return result + lines[end:]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(build_store(Path(folder)))) as connection:
        text = "".join(f"{statement}\n" for statement in connection.iterdump()).replace(f"{folder}/", "")
    before = read_sql(REVISIONS[-1]).splitlines(keepends=True)  # without what the shell has just emptied
    sys.stdout.writelines(unified_diff(before, text.splitlines(keepends=True), "before", "after", n=0))


if __name__ == "__main__":
    main()
