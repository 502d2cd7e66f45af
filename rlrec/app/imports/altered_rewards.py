"""Rewards of a log that its policy's definition does not count as they are, or that lack those who earned nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlrec.app.imports.columns import NULL, LogColumns, distinct, values
from rlrec.app.log import reward_log
from rlrec.errors import quantity
from rlrec.records import Reward
from rlrec.store.log.events import CENSOR

TOLERANCE = 1e-6  # relative, of stated rewards
MIN_DECISIONS = 100  # that all earn the same, of a log that lost the others


@dataclass(frozen=True)
class AlteredRewards:
    """How many decisions of a log have a reward outside their definition's range, how many one that it ignores, of how
    many; the kinds of events that it does not weigh; and the rewards of slots, up to two."""

    clipped: int = 0
    ignored: int = 0
    decisions: int = 0
    kinds: frozenset[str] = frozenset()
    rewards: frozenset[float] = frozenset()
    definition: Reward | None = None

    def __add__(self, other: AlteredRewards) -> AlteredRewards:
        counts = self.clipped + other.clipped, self.ignored + other.ignored, self.decisions + other.decisions
        texts = self.kinds | other.kinds, self.rewards | other.rewards
        return AlteredRewards(*counts, *texts, self.definition or other.definition)

    def notices(self) -> list[str]:
        """Lines for a person."""
        lines: list[str] = []
        if self.definition is None:
            return lines
        name, low, high = self.definition.name, self.definition.clip_low, self.definition.clip_high
        if self.clipped:
            span = f"{-np.inf if low is None else low:g} to {np.inf if high is None else high:g}"
            subject = f"rewards of {quantity(self.clipped, 'decision')}"
            lines.append(f"{subject}: {name!r} clips them to {span}; {_way_out(['reward'])}")
        if self.ignored:
            kinds = sorted(self.kinds)[:5]
            weighed = f" (it does not weigh {', '.join(kinds)})" if kinds else ""
            subject = f"events or rewards of {quantity(self.ignored, 'decision')}"
            lines.append(f"{subject}: {name!r} ignores them{weighed}; {_way_out(kinds)}")
        if self.decisions >= MIN_DECISIONS and len(self.rewards) == 1 and self.definition.default not in self.rewards:
            lines.append(
                f"each of {quantity(self.decisions, 'decision')} earned {max(self.rewards):g}: a log of decisions with "
                "a click alone, say, judges no policy; import those that earned nothing, too"
            )
        return lines


def _way_out(kinds: Sequence[str]) -> str:
    terms = ",".join(f"{kind}=1" for kind in kinds) or "..."
    return f"`rlrec reward define NAME {terms}` counts them, and `evaluate --reward NAME` judges by that"


def find(definition: Reward, rows: LogColumns, served_at: Sequence[int]) -> AlteredRewards:
    """The rewards that a definition alters, of decisions that were served at these times."""
    n = len(rows)
    if not rows.events.row and rows.reward == NULL:
        return AlteredRewards(decisions=n, rewards=frozenset({definition.default}), definition=definition)
    batch = rows.batch(served_at)
    slot_row, event_row, kinds = batch.slots["decision_id"], batch.events["decision_id"], batch.events["kind"]
    # slots whose sum is cut
    clipped, ignored = np.zeros((2, n), np.bool_)
    reward = reward_log.with_rewards(batch, definition).reward
    unclipped = reward_log.with_rewards(batch, definition._replace(clip_low=None, clip_high=None)).reward
    clipped[slot_row[reward != unclipped]] = True
    # events that count for nothing, and stated rewards that are not what the events are worth
    is_weighed = reward_log.kind_numbers(batch, definition.weights) >= 0
    is_weighed &= batch.events["age_us"] <= definition.window_us
    ignored[event_row[(kinds != CENSOR) & ~is_weighed]] = True
    if rows.reward != NULL:
        worth = np.bincount(slot_row, reward, n) + reward_log.page_events(batch, definition, np.arange(n))
        stated_reward = np.array(values(rows.reward, n), np.float64)  # NaN: none
        ignored |= np.abs(stated_reward - worth) > TOLERANCE * np.maximum(1.0, np.abs(worth))
    unweighed = distinct(rows.events.kind) - definition.weights.keys() - {CENSOR}
    return AlteredRewards(
        clipped=int(clipped.sum()), ignored=int((ignored & ~clipped).sum()), decisions=n, kinds=frozenset(unweighed),
        rewards=frozenset(np.unique(unclipped)[:2].tolist()), definition=definition,
    )  # fmt: skip
