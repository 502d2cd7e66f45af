"""Take in logs from elsewhere: each line once, under a policy that is only the label of its log.

The next group of lines is read while the one before is stored. Imported decisions teach no belief.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import cast

from rlrec.app.feedback import Summary
from rlrec.app.imports import impressions, layouts, lines
from rlrec.app.imports.layouts.base import Impressions, Layout, Line, Refused, Source, Surprise, Taken
from rlrec.app.imports.policies import Owners
from rlrec.app.imports.visit_numbers import Moved
from rlrec.app.imports.writer import Intake
from rlrec.errors import InputError
from rlrec.store import Store, Unit, settings

Pass = Callable[[Layout], Iterator[Taken]]


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
        now, salt = unit.now, settings.get(unit).split_salt
    files = [layout(source, policy=request.policy, now=now) for source in request.files]
    importing = Importing(store, request, files, refusing, salt)
    with _patient():
        if not refusing.quarantine and all(file.foresee() for file in files):
            with suppress(Surprise):
                return importing.whole(Layout.read_once)
        importing.check()
        return importing.grouped() if refusing.quarantine else importing.whole(Layout.read)


@contextmanager
def _patient() -> Iterator[None]:
    """Look for cycles rarely: a group of lines is many objects without any, and looking takes a fifth of the time.
    Change between the threads often: each statement waits for its turn."""
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(200_000, 20, 100)
    sys.setswitchinterval(0.0002)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)


@dataclass(frozen=True)
class Importing:
    """One command at work. salt: of the splits."""

    store: Store
    request: Request
    files: Sequence[Layout]
    refusing: Refusing
    salt: str

    def check(self) -> None:
        """Read all files a first time."""
        for file in self.files:
            self.refusing.reading(file.source.name)
            for refused in file.check():
                if not self.refusing.quarantine:
                    self.refusing.refuse(*refused)

    def whole(self, read: Pass) -> Summary:
        """Everything in one transaction; the first line that is refused ends it.

        Raises Surprise instead where it reads once: in two passes a line that cannot be read comes before one that the
        store refuses."""

        def work(unit: Unit) -> Summary:
            intake = self._intake(unit, {name for file in self.files for name in file.policies})
            for file in self.files:
                with closing(self._groups(file, read)) as groups:
                    for good, bad in groups:
                        for refused in bad or _take(intake, good):
                            if read is Layout.read_once:
                                raise Surprise
                            self.refusing.refuse(*refused)
                intake.next_file()
            summary = Summary(accepted=intake.accepted, duplicates=intake.duplicates, rejected=0)
            if intake.run is not None:
                settings.end_run(unit, intake.run, asdict(summary))
            return summary

        return self.store.write(work, sound=True, repeatable=True)

    def grouped(self) -> Summary:
        """Group by group, each in a transaction of its own."""
        accepted = duplicates = rejected = 0
        run: int | None = None
        moved = Moved()
        for file in self.files:
            with closing(self._groups(file, Layout.read)) as groups:
                for good, bad in groups:
                    intake, refused = self._group(good, run=run, moved=moved)
                    run = intake.run
                    accepted, duplicates = accepted + intake.accepted, duplicates + intake.duplicates
                    for one in sorted([*bad, *refused], key=lambda one: one.error.line or 0):
                        rejected += 1
                        self.refusing.refuse(*one)
        summary = Summary(accepted=accepted, duplicates=duplicates, rejected=rejected)
        if run is not None:
            self.store.write(partial(_end, run=run, summary=summary), repeatable=True)
        return summary

    def _group(self, good: list[Line] | Impressions, *, run: int | None, moved: Moved) -> tuple[Intake, list[Refused]]:
        mine = [line.policy for line in good] if isinstance(good, list) else [None] * len(good.digest)
        names = {cast(str, self.request.policy or name) for name in mine}

        def work(unit: Unit) -> tuple[Intake, list[Refused]]:
            intake = self._intake(unit, names, run=run, moved=moved)
            return intake, _take(intake, good)

        return self.store.write(work, sound=True, repeatable=True)

    def _intake(
        self, unit: Unit, names: Collection[str], *, run: int | None = None, moved: Moved | None = None
    ) -> Intake:
        request = self.request
        options = {"layout": request.layout, "policy": request.policy, "files": [file.name for file in request.files]}
        return Intake(unit, names, policy=request.policy, options=options, run=run, moved=moved or Moved())

    def _groups(self, file: Layout, read: Pass) -> Generator[Taken, None, None]:
        """What a pass over a file takes, each group read while the one before is stored."""
        self.refusing.reading(file.source.name)
        gathered = impressions.gathered(read(file), salt=self.salt)
        with closing(gathered) as groups, ThreadPoolExecutor(max_workers=1) as reader:
            coming = reader.submit(next, groups, None)
            while (group := coming.result()) is not None:
                coming = reader.submit(next, groups, None)
                yield group


def _take(intake: Intake, good: list[Line] | Impressions) -> list[Refused]:
    """Store what a group holds: the lines that were refused."""
    return lines.take(intake, good) if isinstance(good, list) else impressions.take(intake, good)


def _end(unit: Unit, *, run: int, summary: Summary) -> None:
    settings.end_run(unit, run, asdict(summary))
