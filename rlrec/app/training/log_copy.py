"""This module creates version 1 of a trained policy so that it serves in the same way as the policies that served a
log, whatever these policies were."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from rlrec.app.distributions import designs
from rlrec.app.distributions.trained import TrainedModel
from rlrec.app.inputs import filters
from rlrec.app.learning import graduation
from rlrec.app.learning.warm_start import InitialBelief
from rlrec.app.log import lineage
from rlrec.app.log.ended_visits import Cutoff
from rlrec.app.log.splits import TRAIN, TUNE
from rlrec.app.training.ascent import group_slates
from rlrec.app.training.dataset import Dataset, DatasetSplit
from rlrec.app.training.dataset_writer import DatasetWriter
from rlrec.app.training.holdout_value import VISITS
from rlrec.policy.gradients import imitation
from rlrec.policy.gradients.reinforce import LoggedSlates
from rlrec.records import Reward
from rlrec.store import Unit

MAX_SLOTS, MAX_CELLS = 50_000, 20_000_000  # slots, and scores, that are fitted at most


def copy_log(
    unit: Unit, belief: InitialBelief, options: Mapping[str, Any], reward: Reward, from_log: str
) -> InitialBelief:
    """Return the belief of a trained policy with weights fitted to a log, so that the policy draws slates as similar to
    the logged slates as possible. The weights are fitted to the training visits. The KL divergence that remains is
    measured on the tuning visits.

    belief: the belief without weights, which is returned where no visit of the log is usable; options: the
    parameters of the policy; from_log: the filter of the log."""
    draft = replace(designs.make_draft(graduation.KIND, options, reward), parameters=belief.parameters)
    reader, selection = TrainedModel(unit, draft, weights=()), filters.selection(unit, from_log)
    cutoff = Cutoff.compute(unit, reward)
    with closing(Dataset()) as dataset:
        writer = DatasetWriter(unit, selection, reader, reward, cutoff, seed=0, log=from_log)
        report = writer.write(dataset, engine=None, progress=lambda: None)
        policy, start = reader.policy, reader.policy.zero_parameters(len(writer.arms))
        if policy.is_sparse:
            policy, start = policy.with_columns(dataset.columns, start)
        dataset.arrange({TRAIN: VISITS, TUNE: VISITS}, columns=policy.design.columns)
        n_slots = min(MAX_SLOTS, max(1, MAX_CELLS // max(1, len(writer.arms))))
        train_slates, tune_slates = (
            _read_slates(dataset.splits[split], max_visits=max(1, n_slots * report.visits // max(1, report.slots)))
            for split in (TRAIN, TUNE)
        )
    if not train_slates:
        return belief
    parameters = imitation.fit(policy, start, train_slates, is_contextual=True)
    weights, shared_weights = policy.pack(parameters, writer.arms)
    record = lineage.make_record(
        unit, from_log, selection, last_id=report.last_id, window_us=reward.window_us, slots=report.slots
    )
    kl = imitation.divergence(policy, parameters, tune_slates or train_slates)
    return replace(
        belief, weights=weights, parameters={**belief.parameters, **policy.design.to_json(), "shared": shared_weights},
        record={**record, "splits": [TRAIN, TUNE], "kl": kl},
    )  # fmt: skip


def _read_slates(split: DatasetSplit, *, max_visits: int) -> list[LoggedSlates]:
    """Return the slates of a split's visits in groups. Each slate has weight 1, and the logged probability of every
    slot given the slots above."""
    result = list[LoggedSlates]()
    for rows in split.batches(max_visits):
        n = len(rows.eligible)
        slates = group_slates(
            rows, np.ones(n), np.ones(n), np.ones(n), by_position=np.zeros(int(rows.size.max(initial=1)))
        )
        result += [replace(group, gain=np.ones(n), returns=np.ones(n)) for group in slates if (n := len(group))]
    return result
