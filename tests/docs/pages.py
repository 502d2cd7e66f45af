"""The README and the pages of the manual, taken apart and run as a reader would: in an empty folder, with nothing
installed but the package, its dependencies, and the extras that a page names.

A block `sh` runs in a shell of the page, a block of another language whose first line is a comment with the name of a
file becomes that file, and each line of a block `crontab` runs as cron would run it. A block right after one of these
shows what it printed. There `...` stands for text that differs from run to run; a line `...` for lines left out."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from difflib import SequenceMatcher
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from tests import fork_server

ROOT = Path(__file__).resolve().parents[2]
PATHS = [ROOT / "README.md", *sorted((ROOT / "rlrec" / "help").glob("*.md"))]
POSTGRES = "postgresql://shop@db.example.net/shop"  # what pages call a server
SERVER_FOLDER = "/srv/shop"  # what they call the folder of a machine that serves
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE_NAME = re.compile(r"(?:<\?php )?(?:#|--|//) ([\w./-]+)\n")
MARK = "\x1e"
BYTECODE = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")


class Step(NamedTuple):
    """A block that runs, as a script, and where in the page the text lies that it should print, if it is shown."""

    script: str
    shown: tuple[int, int] | None


def steps(text: str) -> list[Step]:
    """The blocks of a page that run."""
    result: list[Step] = []
    end = -1  # of the last block that ran
    for block in FENCE.finditer(text):
        language, content = block.groups()
        name = FILE_NAME.match(content)
        if language == "sh":
            result.append(Step(content, None))
        elif language == "crontab":
            result.append(Step("".join(_cron_commands(content)), None))
        elif language != "text" and name:
            result.append(Step(f"cat > {name[1]} <<'END_OF_FILE'\n{content}END_OF_FILE\n", None))
        elif result and not text[end : block.start()].strip():
            result[-1] = result[-1]._replace(shown=block.span(2))
            continue
        else:
            assert language == "text", f"a block of {language} that nothing runs"
            continue
        end = block.end()
    return result


def _cron_commands(crontab: str) -> Iterator[str]:
    """The lines of a crontab as a shell would run them, one by one."""
    for line in crontab.splitlines():
        if schedule := re.match(r"(?:[\d*/,-]+ +){5}(.*)", line):
            command = schedule[1].replace(r"\%", "%")
            yield f"sh -c {shlex.quote(command)}\n"
        elif line.strip() and not line.startswith("#"):
            yield f"export {line}\n"


@contextmanager
def installed(folder: Path, *extras: str) -> Iterator[Path]:
    """The `bin` of a new environment that has rlrec and what it depends on, with these extras, and nothing else. What
    `rlrec` loads is loaded once: `tests/fork_server.py`."""
    venv.EnvBuilder(symlinks=True).create(folder)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "rlrec").symlink_to(ROOT / "rlrec")
    for name in _dependencies(extras):
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(package.locate_file(top)))
    with fork_server.serving(folder / "bin" / "python", folder / "bin" / "rlrec"):
        yield folder / "bin"


def _dependencies(extras: tuple[str, ...]) -> set[str]:
    """The names of all packages that rlrec needs with these extras, and those that they need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    waiting = [Requirement(line) for lines in declared for line in lines]
    names: set[str] = set()
    while waiting:
        package = waiting.pop()
        if package.name not in names:
            names.add(package.name)
            environments = [{"extra": extra} for extra in ("", *package.extras)]
            needed = map(Requirement, distribution(package.name).requires or ())
            waiting += [other for other in needed if not other.marker or any(map(other.marker.evaluate, environments))]
    return names


def run(text: str, folder: Path, environment: Path, replaced: Mapping[str, str]) -> list[str]:
    """What each step of a page printed, on stdout and stderr. replaced: words of the page, and what stands for them."""
    script = "set -e\n" + "".join(f"printf '\\036'\n{step.script}" for step in steps(text))
    for word, value in replaced.items():
        script = script.replace(word, value)
    variables = {"PATH": f"{environment}:/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
    variables |= {name: os.environ[name] for name in BYTECODE if name in os.environ}
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=600, check=False,
    )  # fmt: skip
    printed = done.stdout.decode()
    for word, value in replaced.items():
        printed = printed.replace(value, word)
    assert done.returncode == 0, printed[-3_000:]
    return printed.split(MARK)[1:]


def matches(shown: str, printed: str) -> bool:
    """Whether a text is what a page shows, up to its `...`, the width of gaps, and the last digits of numbers that have
    more than ten."""
    patterns = {"...": r"[^\n]*?", "...\n": r"(?:[^\n]*\n)*?"}
    pieces = re.split(r"((?<![^\n])\.\.\.\n|\.\.\.)", _lines(shown))
    pattern = "".join(patterns.get(piece) or re.escape(piece) for piece in pieces)
    return re.fullmatch(pattern, _lines(printed)) is not None


def _lines(text: str) -> str:
    short = re.sub(r"\d+\.\d{10,}(e[+-]\d+)?", lambda number: f"{float(number[0]):.10g}", text)
    return "\n".join(re.sub(" {2,}", "  ", line.rstrip()) for line in short.strip().splitlines()) + "\n"


def rewritten(text: str, printed: list[str]) -> str:
    """The page with what its steps printed now, wherever it shows something else. A line that still fits stays."""
    for step, output in reversed([*zip(steps(text), printed, strict=True)]):
        if step.shown and not matches(shown := text[slice(*step.shown)], output):
            start, end = step.shown
            text = text[:start] + _refreshed(shown.splitlines(), output.strip("\n").splitlines()) + text[end:]
    return text


def _refreshed(before: list[str], printed: list[str]) -> str:
    today = datetime.now(UTC).date().isoformat()
    lines = [re.sub(rf"{today}T[\d:.]+Z(?=  )", f"{'...':27}", line.rstrip()) for line in printed]
    lines = [re.sub(rf"{today}T[\d:.]+Z", "...", line) for line in lines]
    patterns = [line for line in before if "..." in line and line.strip() != "..."]
    lines = [next((pattern for pattern in patterns if matches(pattern, line)), line) for line in lines]
    return "".join(f"{line}\n" for line in (_excerpt(before, lines) if "..." in before else lines))


def _excerpt(before: list[str], lines: list[str]) -> list[str]:
    """The stretches of `lines` that those before are nearest to, with a line `...` where others are left out."""
    stretches = [stretch.splitlines() for stretch in re.split(r"^\.\.\.$", "\n".join(before), flags=re.MULTILINE)]
    stretches = [[line for line in stretch if line] for stretch in stretches]
    result: list[str] = []
    position = 0
    for number, stretch in enumerate(stretches):
        if number:
            result.append("...")
        if stretch:
            start = _nearest(stretch[0], lines, position) if number else 0
            last = number == len(stretches) - 1
            position = len(lines) if last else _nearest(stretch[-1], lines, start) + 1
            result += lines[start:position]
    return result


def _nearest(line: str, lines: list[str], start: int) -> int:
    """The index of the line, from `start` on, that is most like another one."""
    return max(range(start, len(lines)), key=lambda index: SequenceMatcher(None, line, lines[index]).ratio())
