"""This module holds the thread through which a server writes to the store. All clients pass their lines to it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from rlrec.cli.commands.requests import recommend
from rlrec.cli.commands.requests.pipe import line_type
from rlrec.cli.output import plain
from rlrec.cli.program.shared import safe_text
from rlrec.errors import RlrecError, StoreBusy

if TYPE_CHECKING:
    from rlrec.app.requests.pipe import Pipe

GROUP_LINES = 1_000  # lines of a group, and of one client that may wait for the writer
GROUP_BYTES = 1_000_000  # of lines, after which a group ends
HEALTH_WAIT_S = 0.05  # for the store to answer /healthz; after that, the result of the last group is reported
MAX_GROUP_S = 5.0  # for one group; after that, /healthz reports a busy store

NumberedLines = Sequence[tuple[int, bytes]]


class AnsweredLines(NamedTuple):
    """An AnsweredLines object holds the answers to the lines of a body, as text.

    `error` says why none of the lines was stored, or is None if they were."""

    text: bytes
    error: RlrecError | None = None


class Submission(NamedTuple):
    lines: NumberedLines
    answers: asyncio.Future[AnsweredLines]


class SharedWriter(threading.Thread):
    """A SharedWriter is the thread through which a server writes to the store. Lines that wait are answered together as
    one group, whichever clients sent them, up to a limit of size."""

    def __init__(self, pipe: Pipe, loop: asyncio.AbstractEventLoop, *, db: str) -> None:
        super().__init__(name="rlrec writer", daemon=True)
        self.pipe, self.loop, self.db = pipe, loop, db
        # called after each group
        self.count_group: Callable[[Sequence[Any], float], None] = lambda answers, seconds: None
        self._queue = SimpleQueue[Submission | None]()
        self._next: Submission | None = None  # did not fit into the last group
        self._counts = {"lines": 0, "refused": 0, "groups": 0}
        self._check: asyncio.Future[AnsweredLines] | None = None  # of the store's health
        self._is_busy = False
        # the start of the present group, and the result of the last one
        self._began_at, self._last_result = time.monotonic(), AnsweredLines(b"")

    def submit(self, lines: NumberedLines, *, previous: AnsweredLines | None = None) -> asyncio.Future[AnsweredLines]:
        """Return a future for the answers to the lines of a body.

        `previous` has the answers to earlier lines of the same body. If those failed, these lines fail, too."""
        submission = Submission(lines, self.loop.create_future())
        if previous is not None and previous.error is not None:
            submission.answers.set_result(_failed_answers(lines, previous.error))
        else:
            self._queue.put(submission)
        return submission.answers

    def counts(self) -> dict[str, int]:
        """Return the counts that /healthz shows, by name."""
        return {**self._counts, "waiting": self.n_waiting()}

    def n_waiting(self) -> int:
        """Return the number of bodies that wait for the writer."""
        return self._queue.qsize()

    def busy_s(self) -> float:
        """Return the seconds that the writer has spent on the present group so far, or 0 while the writer waits for
        lines."""
        return time.monotonic() - self._began_at if self._is_busy else 0.0

    async def health(self) -> AnsweredLines:
        """Return an AnsweredLines without text, whose `error` says what is wrong with the store, or is None.

        If the writer is at work on a group, the error is that of the last group, or StoreBusy if the present group
        takes too long. Otherwise the store is asked."""
        if self._check is None or self._check.done():
            self._check = self.submit([])
        done, _ = await asyncio.wait([check := self._check], timeout=HEALTH_WAIT_S)
        if done:
            return check.result()
        if (since_s := time.monotonic() - self._began_at) > MAX_GROUP_S:
            return AnsweredLines(b"", StoreBusy(f"the store has worked on one group for {since_s:.0f} s"))
        return self._last_result

    def end(self) -> None:
        """End the thread once all submitted lines are answered."""
        self._queue.put(None)

    def run(self) -> None:
        with closing(self.pipe.store):
            while group := self._take_group():
                self._began_at, self._is_busy = time.monotonic(), True
                answers = self._answer(group)
                self._is_busy = False
                self._last_result = answers[-1]._replace(text=b"")
                self.loop.call_soon_threadsafe(_deliver_answers, group, answers)

    def _take_group(self) -> list[Submission]:
        """Return the next group of waiting bodies, with up to GROUP_LINES lines. A single body may have more lines. The
        group is empty at the end of the thread."""
        submission, self._next = self._next or self._queue.get(), None
        group, n_lines = list[Submission](), 0
        while submission is not None:
            n_bytes = sum(len(line) for _, line in submission.lines)
            n_lines += max(len(submission.lines), n_bytes * GROUP_LINES // GROUP_BYTES)
            if n_lines > GROUP_LINES and group:
                self._next = submission
                return group
            group.append(submission)
            try:
                submission = self._queue.get_nowait()
            except Empty:
                return group
        if group:
            self.end()  # after this group
        return group

    def _answer(self, group: Sequence[Submission]) -> list[AnsweredLines]:
        """Return the answers to each body of a group. If an error stops the group and no single line is at fault, each
        body gets a transaction of its own, unless the store is busy."""
        try:
            answers = iter(self._store([line for submission in group for line in submission.lines]))
            return [AnsweredLines(plain.json_lines([*islice(answers, len(submission.lines))])) for submission in group]
        except Exception as error:
            if len(group) > 1 and isinstance(error, RlrecError) and not isinstance(error, StoreBusy):
                return [self._answer([submission])[0] for submission in group]
            failure = self.failure(error)
            self.pipe.store.notice(failure.message)
            self.pipe.transaction = None  # of the group before
            if n_lines := sum(len(submission.lines) for submission in group):
                self._count([{"error": failure.message, "code": failure.code}] * n_lines, n_lines)
            return [_failed_answers(submission.lines, failure) for submission in group]

    def _store(self, lines: NumberedLines) -> list[Any]:
        if not lines:
            from rlrec.app.opening import ready

            ready(self.pipe.store, writes=True)
            return []
        answers, n_refused = recommend.answer_group(self.pipe, lines, line_type())
        self._count(answers, n_refused)
        return answers

    def _count(self, answers: Sequence[Any], n_refused: int) -> None:
        self.count_group(answers, time.monotonic() - self._began_at)
        for name, count in (("lines", len(answers)), ("refused", n_refused), ("groups", 1)):
            self._counts[name] += count

    def failure(self, error: Exception) -> RlrecError:
        """Return an error of the server in the form that clients see, without passwords."""
        if isinstance(error, StoreBusy):
            hint = "send it again: lines with a request_id or a key are not stored twice"
            return StoreBusy(safe_text(error.message, self.db), hint=hint)
        if isinstance(error, RlrecError):
            return RlrecError(safe_text(error.message, self.db), hint=error.hint)
        return RlrecError(safe_text(f"unexpected {type(error).__name__}: {error}", self.db))


def _failed_answers(lines: NumberedLines, error: RlrecError) -> AnsweredLines:
    return AnsweredLines(plain.json_lines([recommend.refused_answer(error, number) for number, _ in lines]), error)


def _deliver_answers(group: Sequence[Submission], answers: Sequence[AnsweredLines]) -> None:
    for submission, body_answers in zip(group, answers, strict=True):
        if not submission.answers.done():
            submission.answers.set_result(body_answers)
