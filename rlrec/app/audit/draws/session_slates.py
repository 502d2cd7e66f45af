"""Slates of kinds that read the session state, derived again from the state that each decision stored."""

from __future__ import annotations

import numpy as np

from rlrec.app.audit.draws.stored_slates import CHECK, DerivedSlates, References, SlateGroup, StoredSlates
from rlrec.app.audit.integrity.findings import UNREADABLE, Findings
from rlrec.app.distributions.trained import EligibleGroup, TrainedModel
from rlrec.arrays import Array, Flags, Index
from rlrec.policy.gradients.history import REMEMBERED, History, match_steps, unpack
from rlrec.policy.slates import slate_draws
from rlrec.records import Version
from rlrec.store import Unit
from rlrec.store.upkeep import audit

PORTION = 5_000  # decisions whose histories are held at once


class SessionSlates:
    """The decisions that one version drew, each from a distribution of its own."""

    def __init__(self, unit: Unit, version: Version, findings: Findings) -> None:
        self.unit, self.version, self.findings = unit, version, findings
        self.trained = TrainedModel(unit, version)
        self.references = References(unit, findings, reads=self.trained.policy.reads)

    def check(self, slates: StoredSlates) -> int:
        sets = map(self.references.eligible, slates.per_decision("eligible_id").tolist())
        readable = np.array([arms is not None and len(arms[0]) > 0 for arms in sets], np.bool_)
        slates, n_done = slates.take(readable), 0
        for start in range(0, len(slates), PORTION):
            rows = np.zeros(len(slates), np.bool_)
            rows[start : start + PORTION] = True
            with np.errstate(all="ignore"):
                n_done += self._check_portion(slates.take(rows))
        return n_done

    def _check_portion(self, slates: StoredSlates) -> int:
        is_possible, histories = self._read_histories(slates)
        slates = slates.take(is_possible)
        if not len(slates):
            return 0
        revision = slates.per_decision("catalogue_revision")
        ids, context_index = np.unique(slates.per_decision("context_id"), return_inverse=True)
        self.references.read(ids)
        contexts = self.trained.encoded([self.references.context(key) for key in ids.tolist()])
        state = self.trained.states(contexts[context_index.reshape(-1)], histories, revision)
        cases = self.trained.cases(state, slates.per_decision("eligible_id"), revision)
        return sum(self._check_case(slates, case) for case in cases)

    def _read_histories(self, slates: StoredSlates) -> tuple[Flags, History]:
        """Which slates have a history that can be, and these histories."""
        stored = audit.visit_histories(self.unit, slates.per_decision("decision_id").tolist())
        sound_rows = stored["recorded"] & match_steps(stored["history"].tolist(), stored["step"])
        self._report(stored["decision_id"][~stored["recorded"]], "is missing")
        self._report(stored["decision_id"][stored["recorded"] & ~sound_rows], "cannot be unpacked")
        past = unpack(stored["history"][sound_rows].tolist(), stored["step"][sound_rows])
        is_possible = _possible_histories(past)
        self._report(stored["decision_id"][sound_rows][~is_possible], "cannot be")
        readable = sound_rows.copy()
        readable[sound_rows] = is_possible
        return readable, past.take(is_possible)

    def _report(self, decision_ids: Index, reason: str) -> None:
        for key in decision_ids.tolist():
            self.findings.decision_error(CHECK, key, f"it cannot be derived again: what it knew of its visit {reason}")

    def _check_case(self, slates: StoredSlates, case: EligibleGroup) -> int:
        size = slates.per_decision("size")[case.rows]
        n_done = 0
        for length in np.unique(size).tolist():
            rows = np.flatnonzero(size == length)
            rows = rows[np.isin(slates.per_slot("arm_id", case.rows[rows], length), case.arms).all(axis=1)]
            if not len(rows):
                continue
            stored = SlateGroup(slates, case.rows[rows], length)
            try:
                derived = self._derive(case.score[rows], stored, np.searchsorted(case.arms, stored.arms))
            except UNREADABLE as error:
                self.findings.decision_error(CHECK, stored.ids[0], f"it cannot be derived again: {error}")
                continue
            source = f"the weights of {self.version.reference} and the history"
            stored.compare(derived, source=source, findings=self.findings)
            n_done += len(rows)
        return n_done

    def _derive(self, score: Array, stored: SlateGroup, arm_indices: Index) -> DerivedSlates:
        floor, size = self.trained.policy.exploration, arm_indices.shape[1]
        logits = score / self.trained.policy.temperature
        draw = slate_draws.draw_each(logits, size=size, floor=floor, seeds=stored.seeds, decisions=stored.ids)
        logged = slate_draws.log_each(logits, arm_indices, floor=floor)
        redrawn, shown_scores = (draw.slates != arm_indices).any(axis=1), np.take_along_axis(score, arm_indices, axis=1)
        return DerivedSlates(redrawn, logged.propensity, logged.marginal, logged.minimum, shown_scores)


def _possible_histories(past: History) -> Flags:
    """Which histories say nothing that no visit can have had, (n,)."""
    wrong = (past.ago < 1) | (past.ago > past.step[past.rows]) | (past.arm < 1) | ~np.isfinite(past.earned)
    entries = np.diff(past.start)
    return (
        (np.bincount(past.rows, weights=wrong, minlength=len(past)) == 0)
        & (np.minimum(past.shown, REMEMBERED) == entries)
        & (past.gap_s >= 0) & np.isfinite(past.reward)
    )  # fmt: skip
