"""CONTRIBUTING.md names files and folders that are there, and every room."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_layers import ROOMS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = {path.name for path in (ROOT / "rlrec").rglob("*.py")}
PATHS = sorted(
    path for path in set(re.findall(r"`([\w/.]+(?:\.py|/))`", TEXT)) if not re.search(r"NAME|NNNN|/X/|ROOM", path)
)


def test_what_is_named_is_there() -> None:
    folders = (ROOT, ROOT / "rlrec", ROOT / "rlrec/app", *(ROOT / "rlrec/app").iterdir())
    assert [path for path in PATHS if path not in FILES and not any((each / path).exists() for each in folders)] == []


def test_every_room_is_described() -> None:
    nested = ("app.audit", "app.evaluation", "cli.commands")
    rooms = [
        f"{package}/{room}"
        for package, floors in ROOMS.items()
        for room in set().union(*floors)
        if package not in nested
    ]
    assert [room for room in rooms if f"`{room}/`" not in TEXT] == []
