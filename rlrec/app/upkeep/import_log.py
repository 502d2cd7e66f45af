"""Import logs from elsewhere: each line once, under a policy that only labels its log.

Every line is decoded and checked before the first one is stored. Lines are stored in portions, one transaction each, so
that others are served meanwhile. Lines have identities, so that an interrupted import can be repeated. Imported
decisions teach no belief. A log that grows is followed in portions, each checked and stored before the next.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from operator import itemgetter
from pkgutil import resolve_name
from typing import Any

from rlrec.app.imports import altered_rewards, conflicts, layouts, propensities
from rlrec.app.imports.background import BackgroundItems
from rlrec.app.imports.columns import LogColumns, distinct, filled, values
from rlrec.app.imports.conflicts import LineNames
from rlrec.app.imports.layouts.base import Layout, LineSums, RefusedLine, Source
from rlrec.app.imports.visits import VisitMoves
from rlrec.app.imports.writer import GroupWriter, ImportCounts, ImportState, PreparedRows, find_owner
from rlrec.app.inputs import lookup
from rlrec.errors import InputError, quantity
from rlrec.store import Store, Unit
from rlrec.store.database import loading
from rlrec.store.log import settings


@dataclass(frozen=True, kw_only=True)
class Request:
    """Files in a layout; without a policy, each line belongs to the one that it names."""

    files: Sequence[Source]
    layout: str
    policy: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # of some layouts; None: not given
    propensity: str | None = None  # uniform or fitted, for rows without propensities
    check: bool = False  # count, and store nothing


@dataclass(frozen=True, kw_only=True)
class BadLines:
    """The handling of bad lines. quarantine: whether `refuse` records a line, or raises its error. `reading` names the
    present file."""

    quarantine: bool
    refuse: Callable[[InputError, bytes], None]
    reading: Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """The numbers of decisions stored, known already, and refused; of those with a reward that the policy's definition
    clips or ignores; of lines that the format marks as no decision; the share of stored decisions that are clipped, and
    the kinds of events that are ignored; the number of decisions in the files that have no propensity, nor got one."""

    accepted: int
    duplicates: int
    rejected: int
    clipped: int
    ignored: int
    skipped: int
    clipped_share: float
    ignored_kinds: Sequence[str]
    without_propensity: int


def import_log(store: Store, request: Request, bad_lines: BadLines) -> ImportSummary:
    """Store those decisions of the files that are not known yet."""
    layout, now, salt = checked_layout(store, request)
    with ExitStack() as opened, _rare_collections():
        files = [
            opened.enter_context(closing(layout(source, policy=request.policy, now=now, options=request.options)))
            for source in request.files
        ]
        return Import(store, request, files, bad_lines, salt).run()


def checked_layout(store: Store, request: Request) -> tuple[type[Layout], int, str]:
    """The layout of a log, the time, and the salt of the splits. Raises InputError if the log cannot be imported as
    requested."""
    layout: type[Layout] = resolve_name(layouts.READERS[request.layout])
    if layout.wants_policy and request.policy is None:
        raise InputError(f"the layout {request.layout} needs a policy", hint="--policy NAME: the owner of the log")
    for name, value in request.options.items():
        if value is not None and name not in layout.reads:
            raise InputError(f"the layout {request.layout} has no use for --{name.replace('_', '-')}")
    with store.read() as unit:
        if request.policy is not None:
            find_owner(unit, request.policy)
        return layout, unit.now, settings.get(unit).split_salt


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Make garbage collections rare: a group of lines is many objects without cycles, and collections take a fifth of
    the time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


@dataclass(frozen=True)
class Import:
    """One running command. salt: of the splits."""

    store: Store
    request: Request
    files: Sequence[Layout]
    bad_lines: BadLines
    salt: str

    def run(self) -> ImportSummary:
        rejected = self.decode()
        if not self.bad_lines.quarantine:
            with self.store.read() as unit:
                self.check(unit, conflicts.names_of_store(unit))
        if self.request.check:
            with self.store.read() as unit:
                return self._count(unit, rejected)
        return self._store(rejected)

    def decode(self) -> int:
        """Decode all files. Returns the number of refused lines."""
        rejected = sum(map(self._decode, self.files))
        zoneless = sum(file.sums.zoneless for file in self.files if not file.source.grows)
        for line in chain(on_zones(zoneless), self.files[0].join(self.files)):
            self.store.notice(line)
        return rejected

    def groups(self, file: Layout) -> Iterator[LogColumns]:
        """The rows of a file, with propensities filled in if requested."""
        if self.request.propensity is None:
            return file.groups()
        weights = self._weights
        return (propensities.fill(rows, weights) for rows in file.groups())

    @cached_property
    def _weights(self) -> Mapping[str, float]:
        """The weights of the arms, which give propensities to rows without any."""
        if self.request.propensity == "uniform":
            return propensities.UNIFORM
        return propensities.fit(rows for file in self.files for rows in file.groups())

    def _count(self, unit: Unit, rejected: int) -> ImportSummary:
        """The summary of what would be stored."""
        counts, lines = ImportCounts(), defaultdict[str, set[bytes]](set)  # digests by policy, of several files
        for file in self.files:
            self.bad_lines.reading(file.source.name)
            for rows in self.groups(file):
                for name in distinct(rows.policy):
                    owner = find_owner(unit, name)
                    listed = new = rows.select([name == other for other in values(rows.policy, len(rows))])
                    if owner is not None:
                        new = new.without_lines(name, loading.stored_lines(unit, owner.policy.id, new.digest))
                    new = new.without_lines(name, lines[name])
                    if len(self.files) > 1:
                        lines[name].update(new.digest)
                    at = filled(new.at, [unit.now] * len(new))
                    reward = lookup.reward(unit, "default") if owner is None else owner.reward
                    altered = altered_rewards.find(reward, new, at)
                    estimated = values(new.estimated, len(new)).count(1)
                    counts += ImportCounts(len(new), len(listed) - len(new), estimated, altered)
        return self._summary(counts, rejected)

    def _decode(self, file: Layout) -> int:
        """Decode a file. Returns the number of its refused lines."""
        self.bad_lines.reading(file.source.name)
        count = 0
        with closing(file.decode_all(with_text=self.bad_lines.quarantine)) as groups:
            for bad in groups:
                count += len(bad)
                self.store.progress("lines checked", file.sums.decisions, file.share)
                for line in bad:
                    self.bad_lines.refuse(*line)
        return count

    def check(self, unit: Unit, store_names: LineNames | None) -> None:
        """Refuse lines that the store, or an earlier line, contradicts, before anything is stored. store_names: all
        names in the store, None if there are too many."""
        file_names = [file.names() for file in self.files]
        names = LineNames.join(file_names if store_names is None else [*file_names, store_names])
        counts = [len(lines.name) for lines in file_names]
        del file_names  # frees 16 bytes per name, which `names` holds, too
        disputed, earlier = names.disputed_hashes(), conflicts.NameValues()
        for file, count in zip(self.files, counts, strict=True):
            self.bad_lines.reading(file.source.name)
            owners = {}
            for name, line in sorted(file.policies.items(), key=itemgetter(1)):
                try:
                    owners[name] = find_owner(unit, name)
                except InputError as error:
                    error.line = line
                    self.bad_lines.refuse(error, b"")
            may_contradict = count and (store_names is None or len(disputed))
            for rows in file.groups() if may_contradict else ():
                for name, owner in owners.items():
                    if owner is not None:
                        stored = loading.stored_lines(unit, owner.policy.id, rows.digest)
                        rows = rows.without_lines(name, stored)
                rows = conflicts.with_main_users(unit, rows)
                users = conflicts.users_of_sessions(unit, rows)
                contradicted = conflicts.find(unit, rows, users, disputed=disputed, earlier=earlier)
                for row, conflict in list(contradicted.items())[:1]:
                    conflict.line = rows.number[row]
                    self.bad_lines.refuse(conflict, b"")

    def _store(self, rejected: int) -> ImportSummary:
        request, owners = self.request, {name for file in self.files for name in file.policies}
        options = {"layout": request.layout, "policy": request.policy, "files": [file.name for file in request.files]}
        state = ImportState(owners, options, VisitMoves(), agree=not self.bad_lines.quarantine)
        total, stored = sum(file.sums.decisions for file in self.files), 0
        for file in self.files:
            self.bad_lines.reading(file.source.name)
            state = replace(state, marks=())
            prepared = (PreparedRows.prepare(rows, salt=self.salt) for rows in self.groups(file))
            with closing(BackgroundItems(prepared, forks=file.is_large)) as groups:
                for group in groups:
                    work = partial(_write, state=state, group=group)
                    state, bad = self.store.write(work, references_hold=True, repeatable=True)
                    stored += len(group.rows)
                    self.store.progress("lines stored", stored, stored / max(total, 1))
                    rejected += len(bad)
                    for error, text in bad:
                        if not self.bad_lines.quarantine:
                            stored_lines = quantity(state.counts.accepted, "line")
                            error.hint = f"stored: {stored_lines}; the same command goes on after them"
                        self.bad_lines.refuse(error, text)
        summary = self._summary(state.counts, rejected)
        if state.run is not None:
            end = partial(settings.end_run, run_id=state.run, result=asdict(summary))
            self.store.write(end, repeatable=True)
            self.store.analyse()
        return summary

    def _summary(self, counts: ImportCounts, rejected: int) -> ImportSummary:
        lines = sum((file.sums for file in self.files), LineSums(rejected=rejected))
        return summarised(self.store, self.request, counts, lines)


def summarised(store: Store, request: Request, counts: ImportCounts, lines: LineSums) -> ImportSummary:
    """The answer to a command; prints notices for the user."""
    altered, silent, kind = counts.altered, lines.without_propensity, request.propensity
    for line in chain(altered.notices(), _notices(kind, counts, lines)):
        store.notice(line)
    return ImportSummary(
        accepted=counts.accepted, duplicates=counts.duplicates + lines.duplicates, rejected=lines.rejected,
        clipped=altered.clipped, ignored=altered.ignored, skipped=lines.skipped,
        clipped_share=altered.clipped / max(counts.accepted, 1), ignored_kinds=sorted(altered.kinds),
        without_propensity=silent if kind is None else 0,
    )  # fmt: skip


def on_zones(count: int) -> list[str]:
    """A line for the user if lines of a log have times without a zone."""
    return [f"{quantity(count, 'line')} with a time without a zone, which is read as UTC"] if count else []


def _notices(kind: str | None, counts: ImportCounts, lines: LineSums) -> Iterator[str]:
    """Lines for the user: on decisions with no propensity or an estimated one, and on known lines, which this import
    does not change. kind: of propensities."""
    if lines.without_propensity and kind is None:
        yield (
            f"{quantity(lines.without_propensity, 'decision')} without a propensity: estimates leave them out; "
            "--propensity uniform or fitted gives them some, in a store that does not have these lines yet"
        )
    if counts.estimated and kind is not None:
        yield f"{quantity(counts.estimated, 'decision')} with estimated propensities ({kind}): no gate passes by them"
    if lines.without_propensity and kind is not None and counts.duplicates:
        yield (
            f"{quantity(counts.duplicates, 'line')} stored before, with the propensities of that time: "
            "--propensity does not change them, another store takes them anew"
        )
    if counts.duplicates and lines.observes:
        yield (
            f"{quantity(counts.duplicates, 'line')} stored before, with the observations of that time: others do not "
            "change them, `rlrec feedback --input` does, by request_id"
        )


def _write(unit: Unit, *, state: ImportState, group: PreparedRows) -> tuple[ImportState, list[RefusedLine]]:
    return GroupWriter(unit, state).write(group)
