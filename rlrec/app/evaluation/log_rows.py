"""Rows of the log as an evaluation weighs them: impressions with their reward, their cluster, and their page."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

from rlrec.app.log import reward_log
from rlrec.arrays import Array, Flags, Ids
from rlrec.ope.base import hash_bits
from rlrec.policy.slate import SMALLEST
from rlrec.records import Reward
from rlrec.store.bulk import Columns
from rlrec.store.reader import ABSENT, Batch

# The units that clusters can be, with the columns of the log that name them.
CLUSTERS = {
    "user": ("user_id", "user_digest", "session_digest"),
    "session": ("session_digest",),
    "row": ("session_digest", "visit", "step"),
}
# What is read of the log to fit a reward model, and to judge a target; those of CLUSTERS too.
FITTED = ("at", "context_id", "imported", "arm_id", "censored")
JUDGED = (
    *FITTED, "policy_id", "version_id", "belief_seq", "belief_ordinal", "seed", "eligible_id", "catalogue_revision",
    "variant_id", "size", "propensity", "marginal", "min_propensity",
)  # fmt: skip
STATES = ("step", "recorded", "history")  # for targets that read the session, too


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Mature, uncensored impressions of a batch, (n,) each but `shown`.

    cluster: which unit was randomised.
    shown: the arms of all impressions of the batch, also those cut; start: where in it the row's page begins; depth:
    how many impressions lie above on the page; whole: none is missing there.
    prefix: the logger's probability of the page down to here; lowest: the product of its smallest conditionals. NaN
    where one of them is not known."""

    slots: Columns
    reward: Array
    default: Flags
    cluster: Ids
    shown: Ids
    start: Ids
    depth: Ids
    whole: Flags
    prefix: Array
    lowest: Array

    def __len__(self) -> int:
        return len(self.reward)

    def take(self, rows: Flags) -> Rows:
        if rows.all():
            return self
        cut = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name not in _WHOLE}
        return Rows(slots={name: column[rows] for name, column in self.slots.items()}, shown=self.shown, **cut)


_WHOLE = ("slots", "shown")


@dataclass(frozen=True)
class Page:
    """Where each impression of a batch stands on its page; see `Rows`."""

    start: Ids
    depth: Ids
    whole: Flags
    prefix: Array
    lowest: Array


def page(slots: Columns) -> Page:
    """Pages of a batch that lies in order of decision and position. Without its propensities the products are NaN."""
    decision = slots["decision_id"]
    begins = np.flatnonzero(np.r_[True, decision[1:] != decision[:-1]][: len(decision)])
    start = np.repeat(begins, np.diff(np.r_[begins, len(decision)]))
    depth = np.arange(len(decision)) - start
    whole = slots["position"] == depth + 1
    prefix, lowest = (_down(slots, name, depth, whole) for name in ("propensity", "min_propensity"))
    return Page(start=start, depth=depth, whole=whole, prefix=prefix, lowest=lowest)


def _down(slots: Columns, name: str, depth: Ids, whole: Flags) -> Array:
    """Products from the top of each page down to each row, never below what a propensity is rounded to."""
    values = np.where(whole, slots[name], np.nan) if name in slots else np.full(len(depth), np.nan)
    product = values.copy()
    ends = np.cumsum(np.bincount(depth)) if name in slots else np.empty(0, np.int64)
    order = np.argsort(depth, kind="stable") if len(ends) > 1 else depth
    for above, below in pairwise(ends):
        rows = order[above:below]
        possible = (values[rows] > 0) & (product[rows - 1] > 0)
        product[rows] *= product[rows - 1]
        product[rows[possible]] = np.maximum(product[rows[possible]], SMALLEST)
    return product


def clusters(slots: Columns, unit: str, *, depth: Ids) -> Ids:
    """Digest of the randomised unit of each row, (n,): its user where one is known (`user`), its session, or itself.

    Digests follow keys, never ids: the same log in another order has the same clusters. The last bit tells users from
    sessions of the same key. unit: one of CLUSTERS, whose columns the slots have; depth (n,): how many rows of its page
    lie above each."""
    session = (decision_digests(slots, depth) if unit == "row" else slots["session_digest"]) | 1
    return np.where(slots["user_id"] != ABSENT, slots["user_digest"] & ~1, session) if unit == "user" else session


def decision_digests(slots: Columns, depth: Ids | None = None) -> Ids:
    """Digests of the decisions of the log, or of their rows, (n,): of session, visit, step, and depth on the page.

    That of the first row of a session is the session's: as clusters, sessions of one row are rows."""
    digest = slots["session_digest"]
    numbers = (slots["visit"] - 1, slots["step"], *(() if depth is None else (depth,)))
    for salt, number in enumerate(numbers):
        digest = np.where(number == 0, digest, hash_bits(digest ^ number, salt=salt).view(np.int64))
    return digest


def rows(batch: Batch, definition: Reward, standing: Page, *, now: int, cluster: Ids) -> tuple[Rows, int]:
    """What an estimate uses of a batch under a reward definition, and how many impressions are not yet mature."""
    found = reward_log.rewarded(batch, definition)
    mature = reward_log.mature(found.slots, definition, now=now)
    every = Rows(
        slots=found.slots,
        reward=found.reward,
        default=found.default,
        cluster=cluster,
        shown=found.slots["arm_id"],
        **vars(standing),
    )
    return every.take(mature & ~found.slots["censored"]), int((~mature).sum())
