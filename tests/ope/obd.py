"""The Open Bandit Dataset sample, and the exact page of a Thompson policy, by a quadrature of its own.

Data: Saito, Aihara, Matsutani & Narita 2020, "Open Bandit Dataset and Pipeline", arXiv 2008.07146."""

from __future__ import annotations

import csv
import gzip
from functools import cache
from pathlib import Path

import numpy as np
from scipy.special import betainc, betaln

from rlrec.arrays import Array, Ids
from rlrec.ope.sums.base import LogBatch

SAMPLE = Path(__file__).parents[2] / "sample_data"
ARMS, POSITIONS = 80, 3


@cache
def log(name: str) -> tuple[Ids, Ids, Array, Array]:
    """Arm, position (from 1), click and propensity of the rows of `name`, (n,) each."""
    with gzip.open(SAMPLE / f"{name}.csv.gz", "rt", newline="") as lines:
        rows = [(r["item_id"], r["position"], r["click"], r["propensity_score"]) for r in csv.DictReader(lines)]
    arm, position, click, propensity = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    return arm.astype(np.int64), position.astype(np.int64), click, propensity


@cache
def thompson_page() -> Array:
    """P(arm at position) of the published belief, (positions, arms): the r-th largest of independent Beta draws."""
    with (SAMPLE / "bts_all_prior.csv").open(newline="") as lines:
        belief = np.array([(float(r["alpha"]), float(r["beta"])) for r in csv.DictReader(lines)])
    alpha, beta = belief.T[:, :, None]
    node, weight = np.polynomial.legendre.leggauss(16)
    edge = np.linspace(0.0, 0.05, 401)
    x = (edge[:-1, None] + np.diff(edge)[:, None] * (node + 1) / 2).ravel()
    w = (np.diff(edge)[:, None] * weight / 2).ravel()
    density = np.exp((alpha - 1) * np.log(x) + (beta - 1) * np.log1p(-x) - betaln(alpha, beta)) * w
    above = 1 - betainc(alpha, beta, x)
    return np.stack([(density * _exactly(r, above)).sum(axis=1) for r in range(POSITIONS)])


def _exactly(number: int, above: Array) -> Array:
    """P(exactly `number` of the other arms are above x), (arms, nodes)."""
    marginal = np.empty_like(above)
    for arm in range(len(above)):
        ways = np.zeros((number + 1, above.shape[1]))
        ways[0] = 1
        for p in np.delete(above, arm, axis=0):
            ways[1:] = ways[1:] * (1 - p) + ways[:-1] * p
            ways[0] *= 1 - p
        marginal[arm] = ways[number]
    return marginal


def batch(name: str, page: Array, largest: Array | None = None) -> LogBatch:
    """The log as a target with this page sees it, every row its own cluster."""
    arm, position, click, propensity = log(name)
    target = page[position - 1, arm]
    cluster = np.arange(len(arm))
    return LogBatch(reward=click, propensity=propensity, target=target, cluster=cluster, largest=largest)
