"""How pages are weighed: whole slates by their joint probability, or slot by slot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlrec.app.training.dataset import VisitRows
from rlrec.arrays import Array
from rlrec.policy.gradients.reinforce import HIGHEST

AUTO, SLOT, SLATE = "auto", "slot", "slate"
WEIGHTS = (AUTO, SLOT, SLATE)
TOP_K = "top-k"  # slots as draws with replacement, where --top-k asks for it
LEAST_SHARE = 0.5  # effective share of decisions, by weights of slates before any step, below which slots are weighed
ENOUGH_BY_SLOTS = 0.1  # share of the rewards that slots earn, from which on slots are weighed
MOST_CLIPPED = 0.05  # share of these weights above the largest one allowed, beyond which slots are weighed


@dataclass(frozen=True, kw_only=True)
class PageWeights:
    """The weights of whole slates before any step. effective: ESS as a share of the decisions; clipped: share of the
    weights that clipping removes; positions of the longest slate; unknown: whether a slot has no propensity;
    of_slots: the share of all rewards that single slots earned, and no page as a whole."""

    effective: float
    clipped: float
    positions: int
    unknown: bool
    of_slots: float

    @classmethod
    def of(cls, rows: VisitRows, log_joint: Array, *, clip: float) -> PageWeights:
        """log_joint (n,): of each slate, by the policy that is trained."""
        weight = np.exp(np.minimum(log_joint - rows.log_propensity, HIGHEST))
        total, squares = float(weight.sum()), float((weight**2).sum())
        slots, pages = (
            float(np.abs(rows.earned).sum()),
            float(np.abs(rows.reward - np.add.reduceat(rows.earned, rows.first[:-1])).sum()),
        )
        return cls(
            effective=total**2 / squares / len(weight) if squares else 0.0,
            clipped=float(np.maximum(weight - clip, 0.0).sum()) / total if total else 0.0,
            positions=int(rows.size.max(initial=0)), unknown=bool(np.isnan(rows.conditional).any()),
            of_slots=slots / (slots + pages) if slots else 0.0,
        )  # fmt: skip

    @property
    def chosen(self) -> str:
        """The weights that `auto` stands for. What a slot earns is not due to what stands above: slots have less noise,
        and are exact on the log of the policy itself. What a page earns is due to all of it."""
        hopeless = self.effective < LEAST_SHARE or self.clipped > MOST_CLIPPED
        by_slot = self.of_slots >= ENOUGH_BY_SLOTS or hopeless
        return SLOT if self.positions > 1 and by_slot and not self.unknown else SLATE

    def sentence(self, weights: str) -> str:
        """Which weights are used, and why."""
        earned = f"slots earn {self.of_slots:.0%} of the rewards, pages as a whole the rest"
        why = f"{earned}; weights of whole slates: {self.effective:.1%} effective, {self.clipped:.1%} clipped"
        return f"weights: by {weights} ({why})"
