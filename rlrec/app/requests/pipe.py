"""This module answers a stream that mixes requests and feedback. The lines of the stream come in groups, and each group
is stored in one transaction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import copy
from typing import Any, cast

from rlrec.app.requests.feedback import FeedbackTransaction, Group, Line, Outcome, feedback_group, warn_of_kinds
from rlrec.app.requests.recommend import Answer, Answered, Request, RequestGroup
from rlrec.app.serving.cache import ServingCache
from rlrec.app.serving.requests import DrawnAnswer
from rlrec.errors import InputError, OutcomeUnknown, StoreBusy
from rlrec.store import Store

__all__ = ["Line", "Pipe", "Request"]


PATIENCE_S = 600  # how long a group is retried while the store is busy or out of reach
PAUSES_S = 0.05, 5.0  # between retries: the first and the longest


class Pipe:
    """A Pipe answers one stream, a group of lines at a time. Slates are drawn from the beliefs before the group.
    Feedback may name decisions of its own group."""

    def __init__(
        self, store: Store, *, seed: int | None = None, dry_run: bool = False, patience_s: float | None = None
    ) -> None:
        """Open a stream. seed: a seed of 64 bits, None for a random seed; dry_run: whether to store nothing;
        patience_s: for how many seconds a group is retried, None for PATIENCE_S."""
        self.store = store
        self.seed, self.dry_run = seed, dry_run
        self.patience_s = PATIENCE_S if patience_s is None else patience_s
        self._cache = ServingCache()
        self._warned_kinds = set[str]()  # kinds of events that were warned of
        self.transaction: FeedbackTransaction | None = None  # the feedback of the last group

    def answer(self, lines: Sequence[Request | Line | InputError]) -> list[Answered | Outcome]:
        """Return the answer to each line of a group. The group is retried while the store is busy or out of reach;
        after `patience_s` StoreBusy is raised.

        If the connection breaks at the commit, nobody knows whether the group is stored. Lines with a request id or
        a key are then sent again, which is safe; all other lines get an error."""
        deadline, pause, unanswered_lines = time.monotonic() + self.patience_s, PAUSES_S[0], list(lines)
        while True:
            try:
                return self._answer(unanswered_lines)
            except OutcomeUnknown as error:
                hint = "give lines a request_id or a key, so that you can send them again"
                unknown_outcome = InputError(error.message, hint=hint)
                unanswered_lines = [
                    line if isinstance(line, InputError)
                    or (line.key if isinstance(line, Line) else line.request_id) is not None else copy(unknown_outcome)
                    for line in unanswered_lines
                ]  # fmt: skip
            except StoreBusy as error:
                if time.monotonic() > deadline:
                    raise
                if pause == PAUSES_S[0]:
                    self.store.notice(f"{error.message}; the group is tried again")
                time.sleep(pause)
                pause = min(2 * pause, PAUSES_S[1])

    def group(self, lines: Sequence[Request | Line | InputError]) -> list[Answer | Outcome]:
        """Return the answer to each line of a group. All lines are stored in one transaction, except those that wait
        for other lines of the group."""
        return [answer.to_json() if isinstance(answer, DrawnAnswer) else answer for answer in self._answer(lines)]

    def _answer(self, lines: Sequence[Request | Line | InputError]) -> list[Answered | Outcome]:
        feedback = [line for line in lines if isinstance(line, Line)]
        if feedback and all(isinstance(line, Line | InputError) for line in lines):
            self.transaction = transaction = feedback_group(self.store, cast(Group, lines), self._warned_kinds)
            self._cache.note_changes(transaction.ledger.changes())
            return list(transaction.outcomes)
        requests: Sequence[Any] = [line for line in lines if not isinstance(line, Line)] if feedback else lines
        group = RequestGroup(
            self.store, requests, seed=self.seed, dry_run=self.dry_run, cache=self._cache, feedback=feedback
        )
        answers = iter(group.answer())
        self.transaction = group.transaction
        if self.transaction is None:
            return list(answers)
        warn_of_kinds(self.store, self.transaction.unweighed_kinds, self._warned_kinds)
        outcomes = iter(self.transaction.outcomes)
        return [next(outcomes if isinstance(line, Line) else answers) for line in lines]
