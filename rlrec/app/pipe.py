"""Requests and feedback in one stream: groups of both, each in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

from rlrec.app.feedback import Line, Outcome, record, tell
from rlrec.app.learning.ledger import Ledger
from rlrec.app.recommend import Answer, Request, recommend_group
from rlrec.app.serving.cache import Warm
from rlrec.errors import InputError
from rlrec.store import Store, Unit, decisions

__all__ = ["Line", "Pipe", "Request"]


class Pipe:
    """One stream. Its draws see the beliefs before their group; its feedback may name decisions of its own group."""

    def __init__(self, store: Store, *, seed: int | None = None) -> None:
        self.store = store
        self.seed = seed
        self._warm = Warm()
        self._told = set[str]()

    def group(self, lines: Sequence[Request | Line | InputError]) -> list[Answer | Outcome]:
        """What became of each line: all of them in one transaction."""
        asked = [place for place, line in enumerate(lines) if not isinstance(line, Line | InputError)]
        told = [place for place, line in enumerate(lines) if isinstance(line, Line)]
        beside = _Told([line for line in lines if isinstance(line, Line)]) if told else None
        found: list[Answer | Outcome | None] = [line if isinstance(line, InputError) else None for line in lines]
        requests = [cast(Request, lines[place]) for place in asked]
        answers = recommend_group(self.store, requests, seed=self.seed, warm=self._warm, beside=beside)
        for place, answer in zip(asked, answers, strict=True):
            found[place] = answer
        if beside is not None:
            for place, outcome in zip(told, beside.outcomes, strict=True):
                found[place] = outcome
            tell(self.store, beside.unweighed - self._told)
            self._told |= beside.unweighed
        return [one for one in found if one is not None]


class _Told:
    """The feedback of a group."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.outcomes: list[Outcome] = []
        self.unweighed: set[str] = set()

    def policies(self, unit: Unit) -> Collection[int]:
        asked = decisions.requests(unit, {line.request_id for line in self.lines if line.request_id is not None})
        named = {line.decision_id for line in self.lines if line.decision_id is not None}
        return set(decisions.owners(unit, named | {decision for _, decision in asked.values()}).values())

    def work(self, unit: Unit, ledger: Ledger) -> None:
        self.unweighed = set()
        self.outcomes = record(unit, self.lines, unweighed=self.unweighed, ledger=ledger)
