"""Every shell block of the README runs, in order, in one folder; its commands are those that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlrec.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_every_block_of_the_readme_runs(tmp_path: Path) -> None:
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    rlrec = f'rlrec() {{ {shlex.quote(sys.executable)} -m rlrec "$@"; }}\nset -e\n'
    script = rlrec + "\n".join(BLOCK.findall(README)).replace("python3", shlex.quote(sys.executable))
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr
    assert '"duplicate": true' in done.stdout
    assert "look into it" not in done.stdout


def test_the_table_of_commands_is_complete() -> None:
    table = README.split("## Commands")[1].split("##")[0]
    assert [name for name in COMMANDS if f"`{name}" not in table] == []
