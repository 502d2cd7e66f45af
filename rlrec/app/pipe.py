"""Requests and feedback in one stream: groups of both, each in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rlrec.app.feedback import Line, Outcome, record, tell
from rlrec.app.learning.ledger import Ledger
from rlrec.app.recommend import Answer, Request, recommend_group
from rlrec.app.serving.cache import ServingCache
from rlrec.errors import InputError
from rlrec.store import Store, Unit, decisions

__all__ = ["Line", "Pipe", "Request"]


class Pipe:
    """One stream. Its draws see the beliefs before their group; its feedback may name decisions of its own group."""

    def __init__(self, store: Store, *, seed: int | None = None) -> None:
        self.store = store
        self.seed = seed
        self._cache = ServingCache()
        self._unweighed = set[str]()

    def group(self, lines: Sequence[Request | Line | InputError]) -> list[Answer | Outcome]:
        """The answer to each line: all of them in one transaction."""
        feedback = FeedbackGroup([line for line in lines if isinstance(line, Line)])
        requests = [line for line in lines if not isinstance(line, Line | InputError)]
        also = feedback if feedback.lines else None
        answers = iter(recommend_group(self.store, requests, seed=self.seed, cache=self._cache, also=also))
        outcomes = iter(feedback.outcomes)
        tell(self.store, feedback.unweighed - self._unweighed)
        self._unweighed |= feedback.unweighed
        return [
            line if isinstance(line, InputError) else next(outcomes if isinstance(line, Line) else answers)
            for line in lines
        ]


class FeedbackGroup:
    """The feedback of a group, and what became of it."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.outcomes: list[Outcome] = []
        self.unweighed: set[str] = set()

    def policies(self, unit: Unit) -> Collection[int]:
        """Ids of the policies whose decisions the lines name."""
        by_request = decisions.requests(unit, {line.request_id for line in self.lines if line.request_id is not None})
        named = {line.decision_id for line in self.lines if line.decision_id is not None}
        return set(decisions.policy_ids(unit, named | {decision for _, decision in by_request.values()}).values())

    def store(self, unit: Unit, ledger: Ledger) -> None:
        """Record the lines. The transaction may be tried again: nothing is left of an earlier try."""
        self.unweighed = set()
        self.outcomes = record(unit, self.lines, unweighed=self.unweighed, ledger=ledger)
