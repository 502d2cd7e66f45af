"""CONTRIBUTING.md names files and folders that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FOLDERS = (ROOT, ROOT / "rlrec", ROOT / "rlrec/app", ROOT / "rlrec/app/evaluation", ROOT / "rlrec/app/training")
PATHS = sorted(path for path in set(re.findall(r"`([\w/.]+(?:\.py|/))`", TEXT)) if not re.search(r"NAME|NNNN", path))


@pytest.mark.parametrize("path", PATHS)
def test_what_is_named_is_there(path: str) -> None:
    assert any((folder / path).exists() for folder in FOLDERS)


def test_every_room_is_described() -> None:
    rooms = [path.name for path in (ROOT / "rlrec/app").iterdir() if (path / "__init__.py").exists()]
    assert [room for room in rooms if f"`{room}/`" not in TEXT] == []
