"""The layouts of logs from elsewhere: one file each, loaded when it is asked for."""

from __future__ import annotations

from importlib import import_module

from rlrec.app.imports.layouts.base import Layout
from rlrec.errors import InputError, suggest

LAYOUTS = {
    "obd": "rlrec.app.imports.layouts.obd:Obd",
    "jsonl": "rlrec.app.imports.layouts.jsonl:Jsonl",
}


def load(name: str) -> type[Layout]:
    """The reader of a layout. Raises InputError for an unknown one."""
    if name not in LAYOUTS:
        hint = suggest(name, list(LAYOUTS)) or f"known: {', '.join(LAYOUTS)}"
        raise InputError(f"unknown layout {name!r}", hint=hint)
    module, attribute = LAYOUTS[name].split(":")
    found: type[Layout] = getattr(import_module(module), attribute)
    return found
