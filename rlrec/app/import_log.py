"""Take in logs from elsewhere: each line once, under a policy that is only the label of its log.

A file is read twice: first to check every line, then to store. Imported decisions teach no belief.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import cast

from rlrec.app.feedback import Summary
from rlrec.app.logs import layouts
from rlrec.app.logs.intake import Importer, Owners
from rlrec.app.logs.layouts.base import Layout, Line, Refused, Source
from rlrec.app.logs.placing import Moved
from rlrec.errors import InputError
from rlrec.store import Store, Unit, settings


@dataclass(frozen=True, kw_only=True)
class Request:
    """Files in a layout; without a policy every line belongs to the one it names."""

    files: Sequence[Source]
    layout: str
    policy: str | None = None


@dataclass(frozen=True, kw_only=True)
class Refusing:
    """What a bad line does. quarantine: `refuse` notes it; else it raises. `reading` names the file at hand."""

    quarantine: bool
    refuse: Callable[[InputError, bytes], None]
    reading: Callable[[str], None]


def import_log(store: Store, request: Request, refusing: Refusing) -> Summary:
    """Store the decisions of files that are not known yet: all or none, or in groups past the bad lines."""
    layout = layouts.load(request.layout)
    if layout.wants_policy and request.policy is None:
        raise InputError(f"the layout {request.layout} needs a policy", hint="--policy NAME: the owner of the log")
    with store.read() as unit:
        Owners(unit).find(request.policy)
        now = unit.now
    files = [layout(source, policy=request.policy, now=now) for source in request.files]
    with _patient():
        for file in files:
            refusing.reading(file.source.name)
            for refused in file.check():
                if not refusing.quarantine:
                    refusing.refuse(*refused)
        take_in = _grouped if refusing.quarantine else _whole
        return take_in(store, request, files, refusing)


@contextmanager
def _patient() -> Iterator[None]:
    """Look for cycles rarely: a group of lines is many objects without any, and looking takes a fifth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _whole(store: Store, request: Request, files: Sequence[Layout], refusing: Refusing) -> Summary:
    """Everything in one transaction; the first line that is refused ends it."""

    def work(unit: Unit) -> Summary:
        names = {name for file in files for name in file.policies}
        importer = _importer(unit, request, names, run=None, moved=Moved())
        for file in files:
            refusing.reading(file.source.name)
            for good, bad in file.read():
                for refused in [*bad, *importer.take(good)]:
                    refusing.refuse(*refused)
            importer.fresh.clear()
        summary = Summary(accepted=importer.accepted, duplicates=importer.duplicates, rejected=0)
        if importer.run is not None:
            settings.end_run(unit, importer.run, asdict(summary))
        return summary

    return store.write(work)


def _grouped(store: Store, request: Request, files: Sequence[Layout], refusing: Refusing) -> Summary:
    """Group by group, each in a transaction of its own."""
    accepted = duplicates = rejected = 0
    run: int | None = None
    moved = Moved()
    for file in files:
        refusing.reading(file.source.name)
        for good, bad in file.read():
            importer, refused = _group(store, request, good, run=run, moved=moved)
            run = importer.run
            accepted, duplicates = accepted + importer.accepted, duplicates + importer.duplicates
            for one in sorted([*bad, *refused], key=lambda one: one.error.line or 0):
                rejected += 1
                refusing.refuse(*one)
    summary = Summary(accepted=accepted, duplicates=duplicates, rejected=rejected)
    if run is not None:
        _end(store, run, summary)
    return summary


def _group(
    store: Store, request: Request, lines: Sequence[Line], *, run: int | None, moved: Moved
) -> tuple[Importer, list[Refused]]:
    names = {cast(str, request.policy or line.policy) for line in lines}

    def work(unit: Unit) -> tuple[Importer, list[Refused]]:
        importer = _importer(unit, request, names, run=run, moved=moved)
        return importer, importer.take(lines)

    return store.write(work)


def _importer(unit: Unit, request: Request, names: Collection[str], *, run: int | None, moved: Moved) -> Importer:
    files = [file.name for file in request.files]
    options = {"layout": request.layout, "policy": request.policy, "files": files}
    return Importer(unit, names, policy=request.policy, options=options, run=run, moved=moved)


def _end(store: Store, run: int, summary: Summary) -> None:
    store.write(lambda unit: settings.end_run(unit, run, asdict(summary)))
