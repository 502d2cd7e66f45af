"""Rewards of a log that its policy's definition clips or ignores, and logs that lack the decisions which earned
nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlrec.app.imports.columns import NULL, LogColumns, distinct, values
from rlrec.app.log import reward_log
from rlrec.errors import quantity
from rlrec.records import Reward
from rlrec.store.log.events import CENSOR

TOLERANCE = 1e-6  # relative, for rewards that lines state
MIN_DECISIONS = 100  # decisions from which on equal rewards suggest that the others were lost


@dataclass(frozen=True)
class AlteredRewards:
    """The number of decisions of a log with a reward outside their definition's range, the number with a reward that it
    ignores, and that of all; the kinds of events that it does not weigh; and up to two distinct rewards of slots."""

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
        """Lines for the user."""
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
    # slots whose reward is clipped
    clipped, ignored = np.zeros((2, n), np.bool_)
    reward = reward_log.with_rewards(batch, definition).reward
    unclipped = reward_log.with_rewards(batch, definition._replace(clip_low=None, clip_high=None)).reward
    clipped[slot_row[reward != unclipped]] = True
    # events without weight, and stated rewards that differ from the sum over events
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
