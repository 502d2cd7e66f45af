"""This module checks whether a belief needs an examination curve: it does if the same arm earns less at lower
positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rlrec import policy as kinds
from rlrec.app.audit.draws.arm_counts import SumsByArm
from rlrec.app.audit.integrity.findings import Findings
from rlrec.app.log import reward_log
from rlrec.ope.checks.positions import ExaminedPosition
from rlrec.records import Version
from rlrec.sentences import DEFAULT_REWARD
from rlrec.store.log.reader import Batch

CHECK = "positions"
ALARM = 5.0  # standard deviations by which rewards must fall with the position
MAX_SHARE = 0.9  # lower positions that earn less than this share of position 1 need a curve


class Examination:
    """This check compares the rewards that the same arms earn at each position with the curve of the live version. The
    check covers the slots that the policy drew itself."""

    def __init__(self, version: Version, fit_curve: Callable[[Version], Sequence[ExaminedPosition]]) -> None:
        """Create an examination that has no rewards yet.

        version: the live version of the policy; fit_curve: a function that returns the curve that `position fit`
        estimates from the log of the version's policy, or an empty curve if there is no estimate."""
        self.version, self._fit_curve = version, fit_curve
        self._curve = version.params.get("position")
        self._values = len(version.params.get("examination") or ())
        self._learns_by_position = "position" in kinds.parameters(version.policy.kind)
        # slots, position, reward, squares of both, their product
        self._sums = SumsByArm(6)
        self._n_positions = 0
        self._is_online = kinds.load(version.policy.kind).learns_online

    def take(self, batch: Batch) -> None:
        if not self._learns_by_position:
            return
        slots = reward_log.with_rewards(batch, self.version.reward)
        rows = slots.take(~slots.slots["imported"] & ~slots.slots["censored"])
        position, reward = rows.slots["position"].astype(np.float64), rows.reward
        self._n_positions = max(self._n_positions, int(position.max(initial=0)))
        terms = (np.ones(len(rows)), position, reward, position**2, reward**2, position * reward)
        self._sums.add(rows.slots["arm_id"], terms)

    def finish(self, findings: Findings) -> None:
        subject = f"policy {self.version.policy.name}"
        if self._curve and self._n_positions > self._values:
            detail = f"slates have up to {self._n_positions} positions, and curve {self._curve} ends at {self._values}"
            findings.warning(CHECK, subject, f"{detail}: slots below it teach nothing")
        elif self._is_online and not self._curve and self._n_positions > 1 and self._examination_decreases():
            self._warn_of_decrease(findings, subject)

    def _warn_of_decrease(self, findings: Findings, subject: str) -> None:
        """Add a warning that rewards fall with the position. If `position fit` can estimate a curve, the warning has a
        figure from this curve. If by this curve lower positions earn nearly as much as position 1, no warning is added.

        subject: the subject of the finding."""
        policy, reward, earnings = self.version.policy, self.version.reward.name, "below position 1 earn less than"
        log, remark = "OTHER", " on the log of a policy with marginals and no pin, say `uniform` (its own cannot tell)"
        if lower_rows := self._fit_curve(self.version)[1:]:
            share = sum(row.examination * row.slots for row in lower_rows) / sum(row.slots for row in lower_rows)
            if share >= MAX_SHARE:
                return
            last = lower_rows[-1].position
            earnings = f"at {'position 2' if last == 2 else f'positions 2 to {last}'} earn {share:.0%} of"
            log, remark = policy.name, ""
        clause = "" if policy.base_id is None else ", once its experiment has ended,"  # none replaces it while it runs
        options = f"--log policy={log}{'' if reward == DEFAULT_REWARD else f' --reward {reward}'}"
        findings.warning(
            CHECK, subject,
            f"at equal arms, slots {earnings} those at position 1, and the belief uses no curve: "
            f"estimate one by `rlrec position fit {policy.base} {options}`{remark}, "
            f"then{clause} `rlrec policy rebuild {policy.base} --position {policy.base}`",
        )  # fmt: skip

    def _examination_decreases(self) -> bool:
        """Tell whether rewards clearly fall with the position if each arm is compared only with itself. Mean rewards
        over all arms could mislead, since a policy that learns shows an arm at other positions while the arm is new."""
        slot_count, position_sum, reward_sum, position_squares, reward_squares, product_sum = self._sums.sums
        n = np.maximum(slot_count, 1)
        # within each arm, the covariance of position and reward, and its variance by chance
        covariance = (product_sum - position_sum * reward_sum / n).sum()
        variance = ((position_squares - position_sum**2 / n) * (reward_squares - reward_sum**2 / n) / n).sum()
        return bool(0 < ALARM * np.sqrt(max(variance, 0.0)) <= -covariance)
