"""Follow a log that grows: each portion of its lines is checked and stored before the next is read.

The end position of a portion is stored with its rows in one transaction. Lines before it are thus not read again, and
lines after it always are, whatever ends the process. Lines that an import stored before are duplicates, as in any
import.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import compress
from typing import BinaryIO, NamedTuple, NoReturn

from rlrec.app.imports import layouts
from rlrec.app.imports.columns import values
from rlrec.app.imports.growing import GrowingFile, Portion, Position, Stream
from rlrec.app.imports.layouts.base import LateObservation, Layout, LineSums, RefusedLine
from rlrec.app.imports.visits import VisitMoves
from rlrec.app.imports.writer import GroupWriter, ImportState, PreparedRows, find_owner
from rlrec.app.learning.ledger import Ledger
from rlrec.app.requests.feedback import FeedbackTransaction, Line
from rlrec.app.upkeep import import_log
from rlrec.app.upkeep.import_log import BadLines, ImportSummary, Request
from rlrec.errors import Conflict, InputError, quantity
from rlrec.store import Store, Unit
from rlrec.store.database import loading
from rlrec.store.log import decisions, settings

COMMAND = "import-log --follow"  # of the row that holds the position in a file
PASSED_OVER = "what comes before it is stored; --on-error quarantine --rejects FILE passes over it"


def follow_log(
    store: Store, request: Request, bad_lines: BadLines, *, stream: BinaryIO | None, poll_s: float,
    wait: Callable[[float | None, BinaryIO | None], bool],
) -> ImportSummary:  # fmt: skip
    """Store the decisions of the only file of a request as it grows, until `wait` returns False; or those of a stream,
    to its end. wait: waits for a number of seconds (None: without a limit), or until a stream can be read."""
    if request.layout not in layouts.GROWING:
        hint = f"--follow takes {', '.join(layouts.GROWING)}"
        raise InputError(f"the layout {request.layout} is read as a whole", hint=hint)
    if request.propensity == "fitted":
        raise InputError("--propensity fitted needs the whole log", hint="--propensity uniform goes with --follow")
    layout, now, salt = import_log.checked_layout(store, request)
    (source,) = request.files
    with closing(layout(source, policy=request.policy, now=now, options=request.options)) as model:
        following = _Following(store, request, bad_lines, model, salt)
        with closing(Stream(stream) if stream is not None else following.open_file()) as log:
            while not log.is_over:
                portion = log.portion(model.complete_bytes)
                if portion is not None:
                    following.advance(log, portion)
                if not (wait(0.0, None) if portion is not None else wait(None if stream else poll_s, stream)):
                    break
        return following.summary()


class Stored(NamedTuple):
    """The result of a transaction. position: the end of the portion, in a file; n_matched, n_unmatched: the numbers of
    observations whose decision was stored before, and of the others."""

    state: ImportState
    position: Position | None
    refused: Sequence[RefusedLine] = ()
    n_matched: int = 0
    n_unmatched: int = 0


class _Following:
    """One running command. model: an instance of the layout without lines."""

    def __init__(self, store: Store, request: Request, bad_lines: BadLines, model: Layout, salt: str) -> None:
        self.store, self.request, self.model, self.salt = store, request, model, salt
        self.bad_lines = bad_lines if bad_lines.quarantine else replace(bad_lines, refuse=_refuse)
        options = {"layout": request.layout, "policy": request.policy, "files": [model.source.name]}
        self.state = ImportState((), options, VisitMoves(), agree=not bad_lines.quarantine, follows=True)
        self.position: Position | None = None  # as stored
        self.run = 0  # the id of the row that holds it, for a file
        self.process = secrets.token_hex(8)
        self.lines, self.n_matched, self.n_unmatched = LineSums(), 0, 0

    def open_file(self) -> GrowingFile:
        """The file, at the stored position."""
        path = os.path.abspath(self.model.source.name)
        options = {"file": path, "host": socket.gethostname(), "policy": self.request.policy}
        opened = partial(settings.open_run, command=COMMAND, options=options)
        self.run, result = self.store.write(opened, repeatable=True)
        self.position = None if result is None else Position(**result)
        self.state = replace(self.state, run=self.run)
        log = GrowingFile(path, self.position, self.store.notice)
        self.store.notice(f"following {path} from line {log.position.lines + 1:,}; SIGTERM or Ctrl-C ends it")
        return log

    def advance(self, log: GrowingFile | Stream, portion: Portion) -> None:
        """Store a portion; if a line of it is refused, only the lines before. Raises InputError for that line."""
        left: Portion | None = portion
        refused = None
        while left is not None:
            try:
                self._store(log, left)
                break
            except InputError as error:
                if error.line is None:
                    raise
                refused, left = error, left.before(error.line, self.model.complete_bytes)
        if refused is not None:
            raise refused

    def _store(self, log: GrowingFile | Stream, portion: Portion) -> None:
        with self.store.read() as unit:
            now = unit.now
        source = replace(
            self.model.source, file=portion.file, start=portion.start, end=portion.end, number=portion.lines + 1
        )
        with closing(
            type(self.model)(source, policy=self.request.policy, now=now, options=self.request.options)
        ) as file:
            task = import_log.Import(self.store, self.request, [file], self.bad_lines, self.salt)
            rejected = task.decode()
            with self.store.read() as unit:
                digests = _mark_repeats(unit, file, log)
                if self.state.agree:
                    task.check(unit, None)
            prepared = [PreparedRows.prepare(rows, salt=self.salt) for rows in task.groups(file)]
            groups: Sequence[PreparedRows | None] = prepared or [None]
            for number, group in enumerate(groups, 1):
                end = portion if number == len(groups) else None
                work = partial(self._write, policies={*file.policies}, group=group, end=end, late=file.late)
                stored = self.store.write(work, references_hold=True, repeatable=True)
                self.state = stored.state
                for line in stored.refused:
                    self.bad_lines.refuse(*line)
                rejected += len(stored.refused)
            self.lines += replace(file.sums, rejected=rejected)
        self.position = stored.position
        self.n_matched, self.n_unmatched = self.n_matched + stored.n_matched, self.n_unmatched + stored.n_unmatched
        log.go_on(portion, digests)

    def _write(
        self, unit: Unit, *, policies: Collection[str], group: PreparedRows | None, end: Portion | None,
        late: Mapping[str, LateObservation],
    ) -> Stored:  # fmt: skip
        """Store a group of a portion; with the last group also the observations and the end position of the portion."""
        state, refused, position = replace(self.state, policies=policies), list[RefusedLine](), None
        if end is not None and end.position is not None:
            position = end.position._replace(process=self.process)
            if settings.run_state(unit, self.run) == position._asdict():
                return Stored(state, position)  # the connection broke after this was stored
        if group is not None:
            state, refused = GroupWriter(unit, state).write(group)
            if refused and state.agree:  # another process stored a contradicting line after the check
                _refuse(*refused[0])
        n_matched, n_unmatched = (0, 0) if end is None else _observe(unit, state.run, late)
        if position is not None:
            previous = None if self.position is None else self.position._asdict()
            if not settings.move_run(unit, self.run, previous, position._asdict()):
                raise Conflict(f"another process follows {self.model.source.name}", hint="one is enough")
        return Stored(state, position, refused, n_matched, n_unmatched)

    def summary(self) -> ImportSummary:
        """The answer to the command."""
        for line in import_log.on_zones(self.lines.zoneless):
            self.store.notice(line)
        if self.n_matched:
            self.store.notice(f"{quantity(self.n_matched, 'observation')} joined decisions that were stored before")
        if self.n_unmatched:
            missing = f"{quantity(self.n_unmatched, 'observation')} without a decision that was stored here"
            self.store.notice(f"{missing}: `rlrec feedback --input` takes them, by request_id")
        summary = import_log.summarised(self.store, self.request, self.state.counts, self.lines)
        if not self.run and self.state.run is not None:
            end = partial(settings.end_run, run_id=self.state.run, result=asdict(summary))
            self.store.write(end, repeatable=True)
        if summary.accepted:
            self.store.analyse()
        return summary


def _refuse(error: InputError, text: bytes) -> NoReturn:
    error.hint = error.hint or PASSED_OVER
    raise error


def _mark_repeats(unit: Unit, file: Layout, log: GrowingFile | Stream) -> list[bytes]:
    """Tell the layout which of its lines the log had before. Returns the digests of all lines that name no request."""
    digests, stored_before = list[bytes](), set[bytes]()
    for rows in file.spooled():
        nameless = [request is None for request in values(rows.request_id, len(rows))]
        names = list(compress(values(rows.policy, len(rows)), nameless))
        new = list(compress(rows.digest, nameless))
        for name in set(names):
            with suppress(InputError):  # the policy cannot own a log, so its lines are refused
                if (owner := find_owner(unit, name)) is not None:
                    stored_before |= loading.stored_lines(unit, owner.policy.id, new)
        digests += new
    if stored_before:
        file.come_after(log.count_earlier(file, sorted(stored_before)))
    return digests


def _observe(unit: Unit, run: int | None, late: Mapping[str, LateObservation]) -> tuple[int, int]:
    """Store observations of decisions that this log brought earlier. Returns the number of those, and of observations
    without such a decision."""
    numbers = {key: number for key, (_, number) in decisions.requests(unit, list(late)).items()}
    stored = decisions.find(unit, list(numbers.values())) if numbers else {}
    lines, n_unmatched = list[Line](), 0
    for key, (events, activates) in late.items():
        decision = stored[numbers[key]] if key in numbers else None
        if decision is None or decision.run_id != run:
            n_unmatched += len(events)
            continue
        positions = [slot.position for slot in decision.slots]
        line = Line(decision.id, position=positions[0] if decision.size == 1 else None)
        for kind, value, at in events:
            lines.append(line._replace(events={kind: value}, at=max(at or decision.at, decision.at)))
        if activates:
            lines += [line._replace(position=position, censor=False) for position in positions]
    if lines:
        ledger = Ledger(unit, ())
        recorded = FeedbackTransaction(unit, ledger, lines)
        ledger.close()
        for outcome in recorded.stored:
            if isinstance(outcome, InputError):
                raise outcome
    return sum(bool(line.events) for line in lines), n_unmatched
