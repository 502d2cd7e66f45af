"""Pages of a kind that reads the visit so far, derived again from what each decision remembers of it."""

from __future__ import annotations

import numpy as np

from rlrec.app.audit.findings import UNREADABLE, Findings
from rlrec.app.audit.stored_slates import CHECK, Again, Pages, Referred, Stored, compare
from rlrec.app.distributions.trained import EligibleGroup, Trained
from rlrec.arrays import Array, Flags, Index
from rlrec.policy import slate
from rlrec.policy.history import REMEMBERED, History, sound, unpack
from rlrec.records import Version
from rlrec.store import Unit, audit

PORTION = 5_000  # decisions whose histories are held at once


class States:
    """The decisions that one version drew, each from a distribution of its own."""

    def __init__(self, unit: Unit, version: Version, found: Findings) -> None:
        self.unit, self.version, self.found = unit, version, found
        self.trained = Trained(unit, version)
        self.referred = Referred(unit, found, reads=self.trained.policy.reads)

    def check(self, pages: Pages) -> int:
        readable = np.array([bool(self._size(key)) for key in pages.once("eligible_id").tolist()], np.bool_)
        pages, done = pages.take(readable), 0
        for start in range(0, len(pages), PORTION):
            mine = np.zeros(len(pages), np.bool_)
            mine[start : start + PORTION] = True
            with np.errstate(all="ignore"):
                done += self._portion(pages.take(mine))
        return done

    def _size(self, eligible: int) -> int:
        known = self.referred.eligible(eligible)
        return 0 if known is None else len(known[0])

    def _portion(self, pages: Pages) -> int:
        kept, histories = self._histories(pages)
        pages = pages.take(kept)
        if not len(pages):
            return 0
        revision = pages.once("catalogue_revision")
        state = self.trained.states(self._contexts(pages), histories, revision)
        cases = self.trained.cases(state, pages.once("eligible_id"), revision)
        return sum(self._case(pages, case) for case in cases)

    def _contexts(self, pages: Pages) -> Array:
        ids, which = np.unique(pages.once("context_id"), return_inverse=True)
        self.referred.read(ids)
        return self.trained.encoded([self.referred.context(key) for key in ids.tolist()])[which.reshape(-1)]

    def _histories(self, pages: Pages) -> tuple[Flags, History]:
        """Which pages have a history that can be, and these histories."""
        told = audit.remembered(self.unit, pages.once("decision_id").tolist())
        whole = told["recorded"] & sound(told["history"].tolist(), told["step"])
        self._refuse(told["decision_id"][~told["recorded"]], "is missing")
        self._refuse(told["decision_id"][told["recorded"] & ~whole], "cannot be unpacked")
        found = unpack(told["history"][whole].tolist(), told["step"][whole])
        possible = _possible(found)
        self._refuse(told["decision_id"][whole][~possible], "cannot be")
        kept = whole.copy()
        kept[whole] = possible
        return kept, found.take(possible)

    def _refuse(self, decision_ids: Index, why: str) -> None:
        for key in decision_ids.tolist():
            self.found.error(CHECK, f"decision {key}", f"it cannot be derived again: what it knew of its visit {why}")

    def _case(self, pages: Pages, case: EligibleGroup) -> int:
        size = pages.once("size")[case.rows]
        logits, done = case.score / self.trained.policy.temperature, 0
        for one in np.unique(size).tolist():
            rows = np.flatnonzero(size == one)
            rows = rows[np.isin(pages.of("arm_id", case.rows[rows], one), case.arms).all(axis=1)]
            if not len(rows):
                continue
            stored = Stored(pages, case.rows[rows], one)
            try:
                again = self._again(logits[rows], stored, np.searchsorted(case.arms, stored.arms))
            except UNREADABLE as error:
                self.found.error(CHECK, f"decision {stored.ids[0]}", f"it cannot be derived again: {error}")
                continue
            its = f"the weights of {self.version.policy.name}@{self.version.number} and the history"
            compare(stored, again, of=its, found=self.found)
            done += len(rows)
        return done

    def _again(self, logits: Array, stored: Stored, places: Index) -> Again:
        floor, size = self.trained.policy.exploration, places.shape[1]
        made = slate.draw_each(logits, size=size, floor=floor, seeds=stored.seeds, decisions=stored.ids)
        logged = slate.logged_each(logits, places, floor=floor)
        return Again((made.slates != places).any(axis=1), logged.propensity, logged.marginal, logged.minimum)


def _possible(past: History) -> Flags:
    """Which histories say nothing that no visit can have had, (n,)."""
    wrong = (past.ago < 1) | (past.ago > past.step[past.rows]) | (past.arm < 1) | ~np.isfinite(past.earned)
    entries = np.diff(past.start)
    found: Flags = (
        (np.bincount(past.rows, weights=wrong, minlength=len(past)) == 0)
        & (np.minimum(past.shown, REMEMBERED) == entries)
        & (past.gap_s >= 0) & np.isfinite(past.reward)
    )  # fmt: skip
    return found
