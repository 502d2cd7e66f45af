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
MIN_ESS_SHARE = 0.5  # effective share of decisions, by weights of slates before any step, below which slots are weighed
MIN_EARNED_BY_SLOTS = 0.1  # share of the rewards that slots earn, from which on slots are weighed
MAX_CLIPPED_SHARE = 0.05  # share of these weights above the largest one allowed, beyond which slots are weighed


@dataclass(frozen=True, kw_only=True)
class PageWeights:
    """The weights of whole slates before any step. ess_share: ESS as a share of the decisions; clipped_share: of the
    weights, what clipping removes; max_positions: of a slate; earned_by_slots: share of all rewards that single slots
    earned, and no page as a whole."""

    ess_share: float
    clipped_share: float
    max_positions: int
    has_missing_propensities: bool
    earned_by_slots: float

    @classmethod
    def from_visits(cls, rows: VisitRows, log_joint: Array, *, clip: float) -> PageWeights:
        """The weights of some visits. log_joint (n,): of each slate, by the policy that is trained."""
        weight = np.exp(np.minimum(log_joint - rows.log_propensity, HIGHEST))
        total, squares = float(weight.sum()), float((weight**2).sum())
        slots = float(np.abs(rows.earned).sum())
        pages = float(np.abs(rows.reward - np.add.reduceat(rows.earned, rows.first[:-1])).sum())
        return cls(
            ess_share=total**2 / squares / len(weight) if squares else 0.0,
            clipped_share=float(np.maximum(weight - clip, 0.0).sum()) / total if total else 0.0,
            max_positions=int(rows.size.max(initial=0)), earned_by_slots=slots / (slots + pages) if slots else 0.0,
            has_missing_propensities=bool(np.isnan(rows.conditional).any()),
        )  # fmt: skip

    @property
    def auto_weights(self) -> str:
        """The weights that `auto` stands for. What a slot earns is not due to what stands above: slots have less noise,
        and are exact on the log of the policy itself. What a page earns is due to all of it."""
        hopeless = self.ess_share < MIN_ESS_SHARE or self.clipped_share > MAX_CLIPPED_SHARE
        by_slot = self.earned_by_slots >= MIN_EARNED_BY_SLOTS or hopeless
        return SLOT if self.max_positions > 1 and by_slot and not self.has_missing_propensities else SLATE

    def sentence(self, weights: str) -> str:
        """The weights that are used, and why."""
        earned = f"slots earn {self.earned_by_slots:.0%} of the rewards, pages as a whole the rest"
        shares = f"{earned}; weights of whole slates: {self.ess_share:.1%} effective, {self.clipped_share:.1%} clipped"
        return f"weights: by {weights} ({shares})"
