"""This module imports logs of other systems: each line once, under a policy that only labels the imported decisions.

Every line is decoded and checked before the first line is stored. Lines are stored in portions, one transaction
each, so that other processes are served meanwhile. Each line has an identity, so that an interrupted import can be
repeated. Imported decisions teach no belief.

A log that grows is also read in portions. A portion is checked and stored before the next portion is read, and its end
position is stored in the same transaction. If the process ends for any reason, the next process therefore reads exactly
the lines that were not stored. Lines that another import stored are duplicates."""

from __future__ import annotations

import gc
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, field, replace
from functools import cached_property, partial
from itertools import chain, compress
from operator import itemgetter
from pkgutil import resolve_name
from typing import Any, BinaryIO, NamedTuple, NoReturn

from rlrec.app.imports import conflicts, layouts, propensities, writer
from rlrec.app.imports.background import BackgroundItems
from rlrec.app.imports.columns import LogColumns, fill_column, value_set, values
from rlrec.app.imports.growing import GrowingFile, Portion, Position, Stream
from rlrec.app.imports.layouts.base import Layout, LineSums, Observation, RefusedLine, Source
from rlrec.app.imports.visits import VisitMoves
from rlrec.app.imports.writer import GroupWriter, ImportCounts, ImportState, PreparedRows, find_owner
from rlrec.app.inputs import lookup
from rlrec.errors import Conflict, InputError, quantity
from rlrec.records import Record
from rlrec.store import Store, Unit
from rlrec.store.database import loading
from rlrec.store.log import decisions, sessions, settings
from rlrec.store.policies import policies
from rlrec.store.policies.users import main_keys


class Request(Record):
    """This record has the options of `import-log`. layout: the name of the format of the files; policy: the policy of
    all lines, or None if each line names its policy."""

    files: Sequence[Source]
    layout: str
    policy: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # of some layouts; None: not given
    propensity: str | None = None  # uniform or fitted, for rows without propensities
    check: bool = False  # count, and store nothing


class BadLines(Record):
    """This record says how bad lines are handled. quarantine: whether bad lines are recorded instead of raised as
    errors; refuse: a function that records a bad line or raises its error; report_file: a function that gets each
    file's name."""

    quarantine: bool
    refuse: Callable[[InputError, bytes], None]
    report_file: Callable[[str], None]


class ImportSummary(Record):
    """This record has the counts of an import.

    accepted, duplicates, rejected: the number of decisions that were stored, were stored before, and were refused;
    clipped: the number of stored decisions with a reward that the policy's definition clips, and clipped_share the
    share of these decisions; ignored: the number of stored decisions with an event or a stated reward that the
    definition does not count; skipped: the number of lines that the format marks as no decision; ignored_kinds: the
    kinds of events that do not count; without_propensity: the number of decisions in the files that have no
    propensity and got no estimated one."""

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
    """Store the decisions of files that are not stored yet, and return the summary."""
    layout, now, salt = checked_layout(store, request)
    with ExitStack() as stack, _rare_collections():
        files = [
            stack.enter_context(closing(layout(source, policy=request.policy, now=now, options=request.options)))
            for source in request.files
        ]
        return Import(store, request, files, bad_lines, salt).run()


def checked_layout(store: Store, request: Request) -> tuple[type[Layout], int, str]:
    """Return the class that reads the requested format of the log, the time, and the salt of the splits. Raises
    InputError if the log cannot be imported as requested."""
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
    """Make garbage collections rare in this context. A group of lines is many objects without cycles, and garbage
    collections would take a fifth of the time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


class Import(Record, kw_only=False):
    """An Import is one run of `import-log`. salt: the salt of the splits."""

    store: Store
    request: Request
    files: Sequence[Layout]
    bad_lines: BadLines
    salt: str

    def run(self) -> ImportSummary:
        n_rejected = self.decode()
        if not self.bad_lines.quarantine:
            with self.store.read() as unit:
                self.check(unit, conflicts.names_of_store(unit))
        if self.request.check:
            with self.store.read() as unit:
                return self._count_lines(unit, n_rejected)
        return self._store(n_rejected)

    def decode(self) -> int:
        """Decode all files, and return the number of refused lines."""
        n_rejected = sum(map(self._decode_file, self.files))
        zoneless = sum(file.sums.n_zoneless for file in self.files if not file.source.grows)
        for line in chain(on_zones(zoneless), self.files[0].join(self.files)):
            self.store.notice(line)
        return n_rejected

    def groups(self, file: Layout) -> Iterator[LogColumns]:
        """Yield the rows of a file in groups. Missing propensities are filled in if the request names a way to do
        so."""
        if self.request.propensity is None:
            return file.groups()
        weights = self._weights
        return (propensities.fill(rows, weights) for rows in file.groups())

    @cached_property
    def _weights(self) -> Mapping[str, float]:
        """Return a weight for each arm. Missing propensities are computed from these weights."""
        if self.request.propensity == "uniform":
            return propensities.UNIFORM
        return propensities.fit(rows for file in self.files for rows in file.groups())

    def _count_lines(self, unit: Unit, n_rejected: int) -> ImportSummary:
        """Return the summary of what would be stored. n_rejected: the number of refused lines."""
        counts, lines = ImportCounts(), defaultdict[str, set[bytes]](set)  # digests by policy, of several files
        for file in self.files:
            self.bad_lines.report_file(file.source.name)
            for rows in self.groups(file):
                for name in value_set(rows.policy):
                    owner = find_owner(unit, name)
                    policy_rows = new_rows = rows.select([name == policy for policy in values(rows.policy, len(rows))])
                    if owner is not None:
                        new_rows = new_rows.without_lines(
                            name, loading.stored_digests(unit, owner.policy.id, new_rows.digest)
                        )
                    new_rows = new_rows.without_lines(name, lines[name])
                    if len(self.files) > 1:
                        lines[name].update(new_rows.digest)
                    at = fill_column(new_rows.at, [unit.now] * len(new_rows))
                    reward = lookup.reward(unit, "default") if owner is None else owner.reward
                    altered_rewards = writer.find_alterations(reward, new_rows, at)
                    n_estimated = values(new_rows.estimated, len(new_rows)).count(1)
                    counts += ImportCounts(
                        len(new_rows), len(policy_rows) - len(new_rows), n_estimated, altered_rewards
                    )
        return self._summary(counts, n_rejected)

    def _decode_file(self, file: Layout) -> int:
        """Decode a file, and return the number of its refused lines."""
        self.bad_lines.report_file(file.source.name)
        n_refused = 0
        with closing(file.decode_all(with_text=self.bad_lines.quarantine)) as groups:
            for bad_lines in groups:
                n_refused += len(bad_lines)
                self.store.progress("lines checked", file.sums.decisions, file.share)
                for line in bad_lines:
                    self.bad_lines.refuse(*line)
        return n_refused

    def check(self, unit: Unit, store_names: conflicts.LineNames | None) -> None:
        """Before anything is stored, refuse lines that contradict the store or an earlier line. store_names: hashes of
        the names in all stored lines, such as request ids, or None if there are too many."""
        file_names = [file.names() for file in self.files]
        names = conflicts.LineNames.join(file_names if store_names is None else [*file_names, store_names])
        counts = [len(lines.name) for lines in file_names]
        del file_names  # frees 16 bytes per name, which `names` holds, too
        hashes, meanings = names.disputed_hashes(), conflicts.NameValues()
        for file, count in zip(self.files, counts, strict=True):
            self.bad_lines.report_file(file.source.name)
            owners = {}
            for name, line in sorted(file.policies.items(), key=itemgetter(1)):
                try:
                    owners[name] = find_owner(unit, name)
                except InputError as error:
                    error.line = line
                    self.bad_lines.refuse(error, b"")
            may_contradict = count and (store_names is None or len(hashes))
            for rows in file.groups() if may_contradict else ():
                for name, owner in owners.items():
                    if owner is not None:
                        stored_digests = loading.stored_digests(unit, owner.policy.id, rows.digest)
                        rows = rows.without_lines(name, stored_digests)
                rows = conflicts.with_main_users(unit, rows)
                users = conflicts.users_of_sessions(unit, rows)
                conflicts_by_row = conflicts.find(unit, rows, users, disputed_hashes=hashes, meanings=meanings)
                for row, conflict in list(conflicts_by_row.items())[:1]:
                    conflict.line = rows.number[row]
                    self.bad_lines.refuse(conflict, b"")

    def _store(self, n_rejected: int) -> ImportSummary:
        request, owners = self.request, {name for file in self.files for name in file.policies}
        options = {"layout": request.layout, "policy": request.policy, "files": [file.name for file in request.files]}
        state = ImportState(owners, options, VisitMoves(), lines_agree=not self.bad_lines.quarantine)
        n_lines, n_stored = sum(file.sums.decisions for file in self.files), 0
        for file in self.files:
            self.bad_lines.report_file(file.source.name)
            state = replace(state, marks=())
            prepared_rows = (PreparedRows.prepare(rows, salt=self.salt) for rows in self.groups(file))
            with closing(BackgroundItems(prepared_rows, forks=file.is_large)) as groups:
                for group in groups:
                    write_group = partial(_write, state=state, group=group)
                    state, bad_lines = self.store.write(write_group, references_hold=True, repeatable=True)
                    n_stored += len(group.rows)
                    self.store.progress("lines stored", n_stored, n_stored / max(n_lines, 1))
                    n_rejected += len(bad_lines)
                    for error, text in bad_lines:
                        if not self.bad_lines.quarantine:
                            stored_lines = quantity(state.counts.n_accepted, "line")
                            error.hint = f"stored: {stored_lines}; the same command goes on after them"
                        self.bad_lines.refuse(error, text)
        _credit_returns(self.store)
        return self._summary(state.counts, n_rejected, run=state.run)

    def _summary(self, counts: ImportCounts, n_rejected: int, *, run: int | None = None) -> ImportSummary:
        lines = sum((file.sums for file in self.files), LineSums(n_rejected=n_rejected))
        return summarise_import(self.store, self.request, counts, lines, run=run)


def summarise_import(
    store: Store, request: Request, counts: ImportCounts, lines: LineSums, *, run: int | None
) -> ImportSummary:  # fmt: skip
    """Return the answer to an import, and print notices for the user. If `run` is given, store the answer in the row
    with this id, which records the command."""
    altered_rewards, n_without_propensity, kind = counts.altered_rewards, lines.without_propensity, request.propensity
    with store.read() as unit:
        rewards = policies.rewards(unit)
    for line in chain(altered_rewards.notices(rewards), _notice_lines(kind, counts, lines)):
        store.notice(line)
    summary = ImportSummary(
        accepted=counts.n_accepted, duplicates=counts.duplicates + lines.duplicates, rejected=lines.n_rejected,
        clipped=altered_rewards.n_clipped, ignored=altered_rewards.n_ignored, skipped=lines.n_skipped,
        clipped_share=altered_rewards.n_clipped / max(counts.n_accepted, 1),
        ignored_kinds=sorted(altered_rewards.kinds), without_propensity=n_without_propensity if kind is None else 0,
    )  # fmt: skip
    if run is not None:
        store.write(partial(settings.end_run, run_id=run, result=asdict(summary)), repeatable=True)
    if counts.n_accepted and not request.check:
        store.analyse()
    return summary


def on_zones(count: int) -> list[str]:
    """Return a sentence for the user, in a list, if `count` lines of a log have times without a zone; else an empty
    list."""
    return [f"{quantity(count, 'line')} with a time without a zone, which is read as UTC"] if count else []


def _notice_lines(kind: str | None, counts: ImportCounts, lines: LineSums) -> Iterator[str]:
    """Yield sentences for the user: on decisions with no propensity or an estimated propensity, and on lines that were
    stored before, which this import does not change. kind: how propensities are estimated, or None."""
    if lines.without_propensity and kind is None:
        yield (
            f"{quantity(lines.without_propensity, 'decision')} without a propensity: estimates leave them out; "
            "--propensity uniform or fitted gives them some, in a store that does not have these lines yet"
        )
    if lines.copies:
        yield (
            f"{quantity(lines.copies, 'decision')} with session, time and all else of an earlier one in the file: "
            "each counts once more; `awk '!n[$0]++' FILE` drops such lines, and a `request_id` would tell"
        )
    if counts.n_changed:
        yield (
            f"{quantity(counts.n_changed, 'decision')} with policy, session and time of one that was stored before: a "
            "corrected line is another decision, and replaces none; import a corrected file into a new store"
        )
    if counts.n_estimated and kind is not None:
        yield f"{quantity(counts.n_estimated, 'decision')} with estimated propensities ({kind}): no gate passes by them"
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


def _credit_returns(store: Store, users: Collection[str] | None = None) -> None:
    """If any reward weighs returns, store the event `return` for visits of users who came back. users: the keys of the
    users, or None for all users."""
    from rlrec.app.requests.user import derive_returns, on_returns  # most imports need neither

    with store.read() as unit:
        if not settings.get(unit).weighs_returns:
            return
        user_ids: list[int] | None = None
        if users is not None:
            keys_of_persons = main_keys(unit, users)
            user_ids = [*sessions.user_ids(unit, {keys_of_persons.get(key, key) for key in users}).values()]
    count = store.write(partial(derive_returns, user_ids=user_ids), repeatable=True)
    if count and users is None:
        store.notice(on_returns(count))


def _write(unit: Unit, *, state: ImportState, group: PreparedRows) -> tuple[ImportState, list[RefusedLine]]:
    return GroupWriter(unit, state).write(group)


COMMAND = "import-log --follow"  # of the row that holds the position in a file
PASSED_OVER = "what comes before it is stored; --on-error quarantine --rejects FILE passes over it"


def follow_log(
    store: Store, request: Request, bad_lines: BadLines, *, stream: BinaryIO | None, poll_s: float,
    wait: Callable[[float | None, BinaryIO | None], bool],
) -> ImportSummary:  # fmt: skip
    """Store the decisions of a log while it grows, and return the summary. The log is the only file of the request,
    which is followed until `wait` returns False, or a stream, which is read to its end.

    wait: a function that waits for a number of seconds (None: without a limit), or until a stream can be read;
    poll_s: the time between two looks at the file, in seconds."""
    if request.layout not in layouts.GROWING:
        hint = f"--follow takes {', '.join(layouts.GROWING)}"
        raise InputError(f"the layout {request.layout} is read as a whole", hint=hint)
    if request.propensity == "fitted":
        raise InputError("--propensity fitted needs the whole log", hint="--propensity uniform goes with --follow")
    layout, now, salt = checked_layout(store, request)
    (source,) = request.files
    with closing(layout(source, policy=request.policy, now=now, options=request.options)) as model:
        follower = _Following(store, request, bad_lines, model, salt)
        with closing(Stream(stream) if stream is not None else follower.open_file()) as log:
            while not log.is_over:
                portion = log.portion(model.complete_bytes)
                if portion is not None:
                    follower.advance(log, portion)
                if not (wait(0.0, None) if portion is not None else wait(None if stream else poll_s, stream)):
                    break
        return follower.summary()


class Stored(NamedTuple):
    """This record is the result of a transaction of `import-log --follow`. position: where the stored portion ends in
    the file; n_matched, n_unmatched: the number of events about a decision in another line, for decisions that this log
    brought and for all others."""

    state: ImportState
    position: Position | None
    refused_lines: Sequence[RefusedLine] = ()
    n_matched: int = 0
    n_unmatched: int = 0


class _Following:
    """A _Following is one run of `import-log --follow`. model: an instance of the reader of the format, without lines;
    salt: the salt of the splits."""

    def __init__(self, store: Store, request: Request, bad_lines: BadLines, model: Layout, salt: str) -> None:
        self.store, self.request, self.model, self.salt = store, request, model, salt
        self.bad_lines = bad_lines if bad_lines.quarantine else replace(bad_lines, refuse=_refuse_line)
        options = {"layout": request.layout, "policy": request.policy, "files": [model.source.name]}
        self.state = ImportState((), options, VisitMoves(), lines_agree=not bad_lines.quarantine, follows=True)
        self.position: Position | None = None  # as stored
        self.run = 0  # the id of the row that holds it, for a file
        self.process = os.urandom(8).hex()
        self.lines, self.n_matched, self.n_unmatched = LineSums(), 0, 0

    def open_file(self) -> GrowingFile:
        """Open the file at the position up to which its lines are stored."""
        path = os.path.abspath(self.model.source.name)
        options = {"file": path, "host": socket.gethostname(), "policy": self.request.policy}
        open_run = partial(settings.open_run, command=COMMAND, options=options)
        self.run, result = self.store.write(open_run, repeatable=True)
        self.position = None if result is None else Position(**result)
        self.state = replace(self.state, run=self.run)
        log = GrowingFile(path, self.position, self.store.notice)
        self.store.notice(f"following {path} from line {log.position.lines + 1:,}; SIGTERM or Ctrl-C ends it")
        return log

    def advance(self, log: GrowingFile | Stream, portion: Portion) -> None:
        """Store a portion. If a line of the portion is refused, only the lines before this line are stored, and
        InputError is raised for this line."""
        remaining_portion: Portion | None = portion
        error_of_line = None
        while remaining_portion is not None:
            try:
                self._store(log, remaining_portion)
                break
            except InputError as error:
                if error.line is None:
                    raise
                error_of_line, remaining_portion = (
                    error,
                    remaining_portion.before(error.line, self.model.complete_bytes),
                )
        if error_of_line is not None:
            raise error_of_line

    def _store(self, log: GrowingFile | Stream, portion: Portion) -> None:
        with self.store.read() as unit:
            now = unit.now
        source = replace(
            self.model.source, file=portion.file, start=portion.start, end=portion.end, number=portion.lines + 1
        )
        with closing(
            type(self.model)(source, policy=self.request.policy, now=now, options=self.request.options)
        ) as file:
            task = Import(self.store, self.request, [file], self.bad_lines, self.salt)
            n_rejected = task.decode()
            with self.store.read() as unit:
                digests = _mark_repeats(unit, file, log)
                if self.state.lines_agree:
                    task.check(unit, None)
            prepared_rows = [PreparedRows.prepare(rows, salt=self.salt) for rows in task.groups(file)]
            groups: Sequence[PreparedRows | None] = prepared_rows or [None]
            for number, group in enumerate(groups, 1):
                end = portion if number == len(groups) else None
                write = partial(self._write, policies={*file.policies}, group=group, end=end, observations=file.strays)
                result = self.store.write(write, references_hold=True, repeatable=True)
                self.state = result.state
                _credit_returns(self.store, () if group is None else group.users)
                for line in result.refused_lines:
                    self.bad_lines.refuse(*line)
                n_rejected += len(result.refused_lines)
            self.lines += replace(file.sums, n_rejected=n_rejected)
        self.position = result.position
        self.n_matched, self.n_unmatched = self.n_matched + result.n_matched, self.n_unmatched + result.n_unmatched
        log.go_on(portion, digests)

    def _write(
        self, unit: Unit, *, policies: Collection[str], group: PreparedRows | None, end: Portion | None,
        observations: Mapping[str, Observation],
    ) -> Stored:  # fmt: skip
        """Store a group of lines of a portion. With the last group of the portion (`end` is given), store also the end
        position of the portion, and its observations: events that one line states about a decision in another line."""
        state, refused_lines, position = replace(self.state, policies=policies), list[RefusedLine](), None
        if end is not None and end.position is not None:
            position = end.position._replace(process=self.process)
            if settings.run_state(unit, self.run) == position._asdict():
                return Stored(state, position)  # the connection broke after this was stored
        if group is not None:
            state, refused_lines = GroupWriter(unit, state).write(group)
            if refused_lines and state.lines_agree:  # another process stored a contradicting line after the check
                _refuse_line(*refused_lines[0])
        n_matched, n_unmatched = (0, 0) if end is None else _store_observations(unit, state.run, observations)
        if position is not None:
            old_position = None if self.position is None else self.position._asdict()
            if not settings.move_run(unit, self.run, old_position, position._asdict()):
                raise Conflict(f"another process follows {self.model.source.name}", hint="one is enough")
        return Stored(state, position, refused_lines, n_matched, n_unmatched)

    def summary(self) -> ImportSummary:
        """Return the summary of all portions that this run has stored."""
        for line in on_zones(self.lines.n_zoneless):
            self.store.notice(line)
        if self.n_matched:
            self.store.notice(f"{quantity(self.n_matched, 'observation')} joined decisions that were stored before")
        if self.n_unmatched:
            message = f"{quantity(self.n_unmatched, 'observation')} without a decision that was stored here"
            self.store.notice(f"{message}: `rlrec feedback --input` takes them, by request_id")
        run = None if self.run else self.state.run  # the row of a file that is followed holds its position
        return summarise_import(self.store, self.request, self.state.counts, self.lines, run=run)


def _refuse_line(error: InputError, text: bytes) -> NoReturn:
    error.hint = error.hint or PASSED_OVER
    raise error


def _mark_repeats(unit: Unit, file: Layout, log: GrowingFile | Stream) -> list[bytes]:
    """Tell the reader of a file which of its lines the log already had in earlier portions. Return the digests of all
    lines without a request id."""
    digests, stored_before = list[bytes](), set[bytes]()
    for rows in file.read_spool():
        is_nameless = [request is None for request in values(rows.request_id, len(rows))]
        names = list(compress(values(rows.policy, len(rows)), is_nameless))
        new_digests = list(compress(rows.digest, is_nameless))
        for name in set(names):
            with suppress(InputError):  # the policy cannot own a log, so its lines are refused
                if (owner := find_owner(unit, name)) is not None:
                    stored_before |= loading.stored_digests(unit, owner.policy.id, new_digests)
        digests += new_digests
    if stored_before:
        file.come_after(log.count_earlier(file, sorted(stored_before)))
    return digests


def _store_observations(unit: Unit, run: int | None, observations: Mapping[str, Observation]) -> tuple[int, int]:
    """Store events that one line states about a decision in another line. Only decisions that this log brought get
    events. Returns the number of stored events, and the number of all other events.

    run: the id of the row that records this import; observations: the observations by request id."""
    from rlrec.app.learning.ledger import Ledger  # an import without --follow needs neither
    from rlrec.app.requests.feedback import FeedbackTransaction, Line

    ids_by_request = {key: number for key, (_, number) in decisions.requests(unit, list(observations)).items()}
    stored_decisions = decisions.find(unit, list(ids_by_request.values())) if ids_by_request else {}
    lines, n_unmatched = list[Line](), 0
    for key, events, is_active in observations.values():
        decision = stored_decisions[ids_by_request[key]] if key in ids_by_request else None
        if decision is None or decision.run_id != run:
            n_unmatched += len(events)
            continue
        positions = [slot.position for slot in decision.slots]
        line = Line(decision.id, position=positions[0] if decision.size == 1 else None)
        for kind, value, at in events:
            lines.append(line._replace(events={kind: value}, at=max(at or decision.at, decision.at)))
        if is_active:
            lines += [line._replace(position=position, censor=False) for position in positions]
    if lines:
        ledger = Ledger(unit, ())
        transaction = FeedbackTransaction(unit, ledger, lines)
        ledger.close()
        if transaction.errors:
            raise transaction.errors[0]
    return sum(bool(line.events) for line in lines), n_unmatched
