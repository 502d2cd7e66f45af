"""`train-pg` against epochs of plain numpy over arrays in memory: time an epoch, growth, and memory."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np

from rlrec.app.log.splits import TRAIN
from rlrec.store import Store
from rlrec.store.log import settings
from tests.benchmarks.logs import FLAT, READ
from tests.benchmarks.measure import Figure, Sample, Setting, beyond, growth, medians, process, python, rlrec, three
from tests.benchmarks.shops import ARMS, LATER, Lite, logged, tell

SESSIONS, STEPS = 100_000, 10
FEW = 100  # sessions of the run that stands for the start-up
EPOCHS = 60  # at most: as many as the command goes over by default
EPOCHS_OF_REFERENCE = 10
REPEATS = 3
FEATURES = {
    "context": {"fields": {"hour": {"type": "number", "mean": 12, "scale": 7}, "segment": {"hash": 16},
                           "device": [f"d{n}" for n in range(7)]}},
    "arm": {"fields": {}},
}  # fmt: skip
STATE_SIZE = 32  # features of a state: 25 of the context, 5 of the session, 2 of the arms shown
PORTION = 20_000

# One epoch in float32, as one would write it by hand over arrays in memory: softmax, clipped weights, Adam. Scores are
# those of the policy: weights of the state, and of what a decision remembers of each arm that its visit has shown.
EPOCH = """
import sys
import numpy as np
visits, steps, arms, wide, epochs = map(int, sys.argv[1:])
rng, n = np.random.default_rng(0), visits * steps
x = rng.normal(size=(n, wide)).astype("f4")
pages = np.array([rng.choice(arms, steps, replace=False) for _ in range(1000)])[np.arange(visits) % 1000]
reward, logged = (rng.random((visits, steps)) < 0.02).astype("f4"), np.full(n, 1 / arms, "f4")
shown, (later, earlier) = pages.ravel(), np.tril_indices(steps, -1)
row = (np.arange(visits)[:, None] * steps + later).ravel()
seen, memory = pages[:, earlier].ravel(), rng.normal(size=(len(row), 4)).astype("f4")
weights, bias, own = np.zeros((arms, wide), "f4"), np.zeros(arms, "f4"), np.zeros((arms, 4), "f4")
first, second = ([np.zeros_like(values) for values in (weights, bias, own)] for _ in range(2))
count = 0
for _ in range(epochs):
    returns, after = np.empty_like(reward), np.zeros(visits, "f4")
    for step in range(steps - 1, -1, -1):
        returns[:, step] = after = reward[:, step] + after
    gain = returns.ravel() - returns.mean()
    for start in range(0, n, 5000):
        part = slice(start, start + 5000)
        entries = slice(*np.searchsorted(row, [start, start + 5000]))
        rows, arm, past = np.arange(len(x[part])), shown[part], seen[entries]
        cells = (row[entries] - start) * arms + past
        chance = x[part] @ weights.T + bias
        chance.reshape(-1)[cells] += np.einsum("eh,eh->e", memory[entries], own.take(past, axis=0))
        chance -= chance.max(axis=1, keepdims=True)
        np.exp(chance, out=chance)
        chance /= chance.sum(axis=1, keepdims=True)
        worth = np.minimum(chance[rows, arm] / logged[part], 20) * gain[part]
        chance *= -worth[:, None]
        chance[rows, arm] += worth
        count += 1
        kept = chance.reshape(-1)[cells]
        by_memory = [np.bincount(past, kept * column, arms) for column in memory[entries].T]
        slopes = chance.T @ x[part] / len(rows), chance.mean(axis=0), np.column_stack(by_memory) / len(rows)
        for place, (values, slope) in enumerate(zip((weights, bias, own), slopes)):
            first[place] = 0.9 * first[place] + 0.1 * slope
            second[place] = 0.999 * second[place] + 0.001 * slope**2
            values += 0.005 * (first[place] / (1 - 0.9**count)) / (np.sqrt(second[place] / (1 - 0.999**count)) + 1e-8)
"""
# What the command reads: no such read of as many columns is faster.
COLUMNS = (
    "SELECT d.id, d.session_id, d.policy_id, d.version_id, d.visit, d.step, d.context_id, d.eligible_id,"
    " d.catalogue_revision, d.size, d.log_propensity, d.at, d.imported, coalesce(d.keep_probability, 1.0),"
    " s.position, s.arm_id, s.propensity, s.marginal, s.min_propensity, s.censored"
    " FROM decision d JOIN slot s ON s.decision_id = d.id",
    "SELECT id, coalesce(history, x'') FROM decision",
    "SELECT decision_id, position, kind, value, at FROM event",
    "SELECT n.id, n.key, n.digest, n.split, n.created_at, coalesce(u.key, ''), coalesce(u.digest, 0) FROM session n"
    " LEFT JOIN users u ON u.id = n.user_id",
    "SELECT session_id, number, started_at, last_at, coalesce(ended_at, -1), steps FROM visit",
)


def epochs(setting: Setting) -> Iterator[Figure]:
    """100 arms, 32 features; the command reads the store, writes a dataset, climbs, judges every epoch, and judges at
    the end.

    Steps are compared where all sessions teach: there an epoch is one pass over all visits, as the reference makes it.
    Elsewhere 60 % teach, each epoch is judged on the next 20 % (probabilities, a doubly robust value with its interval,
    an effective sample size, entropy and KL), and each up to the best one is made again on both. Reading is compared
    with a bare Arrow read of the same columns."""
    *_, size = sizes = three(setting.size(SESSIONS))
    shops = {number: remembering(setting, number) for number in (FEW, *sizes)}
    calls: dict[str, Callable[[], Sample]] = {str(number): partial(_train, shop) for number, shop in shops.items()}
    calls["one epoch"] = partial(_train, shops[size], epochs=1)
    teaching = shops[size].copy()
    _teach_all(teaching)
    calls |= {"steps": partial(_train, teaching), "steps of one": partial(_train, teaching, epochs=1)}
    for name, number in (("read", size), ("read few", FEW)):  # it ends there: so many visits are never new
        calls[name] = partial(_train, shops[number], "--min-new", 10**9)
    for name, queries in (("bare read", COLUMNS), ("bare start", ())):
        calls[name] = partial(process, [*python(READ), shops[size].db, *queries])
    shape = [size, STEPS, ARMS, STATE_SIZE]
    calls["reference"] = partial(_reference, [*shape, EPOCHS_OF_REFERENCE])
    calls["its start"] = partial(_reference, [*shape, 0])
    result = medians(setting.times(REPEATS), calls)
    seconds = {name: setting.seconds(sample) for name, sample in result.items()}
    name = f"train-pg, {size:,} sessions of {STEPS}"
    ran = epochs_of(teaching)
    steps = (seconds["steps"] - seconds["steps of one"]) / (ran - 1)
    reference = (seconds["reference"] - seconds["its start"]) / EPOCHS_OF_REFERENCE
    what = f"{name}: the steps of an epoch, where all teach (of the {ran} that ran)"
    yield Figure(name=what, value=steps, unit="s", reference=reference, at_most=1.2)
    ran = epochs_of(shops[size])
    more = (seconds[str(size)] - seconds["one epoch"]) / (ran - 1) if ran > 1 else math.nan
    what = f"{name}: one epoch more, judged, and made again with the visits that judged (of the {ran} that ran)"
    yield Figure(name=what, value=more, unit="s")
    read, bare = seconds["read"] - seconds["read few"], seconds["bare read"] - seconds["bare start"]
    yield Figure(name=f"{name}: to read them", value=read, unit="s", reference=bare, at_most=3.5)
    yield Figure(name=f"{name}: decisions a second that are read", value=size * STEPS / read, unit="/s")
    rate = size * STEPS / (seconds["one epoch"] - seconds[str(FEW)] - more)
    yield Figure(name=f"{name}: decisions a second without epochs, the gate's look included", value=rate, unit="/s")
    peaks = [result[str(number)].memory for number in sizes]
    shown = ", ".join(f"{peak:.0f} MB at {number:,}" for number, peak in zip(sizes, peaks, strict=True))
    yield Figure(name=f"train-pg: peak memory ({shown})", value=peaks[-1], unit="MB", reference=peaks[-2], at_most=FLAT)
    yield growth("train-pg", beyond(seconds, FEW, sizes))


def _train(shop: Lite, *options: object, epochs: int = EPOCHS) -> Sample:
    options = ("--epochs", epochs, "--patience", epochs, "--seed", 1, "--log", "policy=log", *options)
    return process(rlrec("-q", "--db", shop.db, "train-pg", "visits", *options), added=LATER)


def epochs_of(shop: Lite) -> int:
    """How many epochs the longest training of the policy went over: it ends early where none supports the next."""
    with closing(sqlite3.connect(shop.db)) as connection:
        reports = connection.execute("SELECT report FROM version WHERE report LIKE '%curve%'").fetchall()
    return max(len(json.loads(report)["curve"]) for (report,) in reports)


def _reference(numbers: list[int]) -> Sample:
    return process([*python(EPOCH), *map(str, numbers)], added={"OPENBLAS_NUM_THREADS": "1"})


def remembering(setting: Setting, sessions: int) -> Lite:
    """A log whose decisions remember their visits, whose splits are those of its users, and a policy to train."""
    shop = Lite(setting)
    logged(shop, setting, sessions * STEPS, visit=STEPS)
    features = setting.path(".json")
    features.write_text(json.dumps(FEATURES))
    tell(shop, "policy", "create", "visits", "--kind", "gradient", "--features", features, now=LATER["RLREC_NOW"])
    with closing(Store(shop.db)) as store, store.read() as unit:
        salt = settings.get(unit).split_salt
    with closing(sqlite3.connect(shop.db, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")  # nothing is lost if this fails: it is made anew
        connection.execute("BEGIN")
        _split(connection, salt)
        _remember(connection)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    os.sync()
    return shop


def _split(connection: sqlite3.Connection, salt: str) -> None:
    from rlrec.app.log.splits import splits

    rows = connection.execute("SELECT s.id, u.key FROM session s JOIN users u ON u.id = s.user_id").fetchall()
    numbers = splits(salt, [key for _, key in rows])
    pairs = zip(numbers, (number for number, _ in rows), strict=True)
    connection.executemany("UPDATE session SET split = ? WHERE id = ?", pairs)


SHOWN = """SELECT d.id, d.step, s.arm_id, e.number IS NOT NULL FROM decision d JOIN slot s ON s.decision_id = d.id
    LEFT JOIN event e ON e.decision_id = d.id JOIN policy p ON p.id = d.policy_id WHERE p.name = 'log' ORDER BY d.id"""


def _teach_all(shop: Lite) -> None:
    """Give the sessions that judge to users whose sessions teach, and wait until the disk has them."""
    with closing(sqlite3.connect(shop.db)) as connection:
        teaching = connection.execute("SELECT DISTINCT user_id FROM session WHERE split = ? ORDER BY 1", [TRAIN])
        users = [user for (user,) in teaching if user is not None]
        rows = connection.execute("SELECT id FROM session WHERE split <> ?", [TRAIN]).fetchall()
        pairs = [(users[number % len(users)], TRAIN, session) for number, (session,) in enumerate(rows)]
        connection.executemany("UPDATE session SET user_id = ?, split = ? WHERE id = ?", pairs)
        connection.commit()
    os.sync()


def _remember(connection: sqlite3.Connection) -> None:
    """The histories of the log, one visit after another."""
    reported = connection.execute(SHOWN)
    while rows := list(islice(reported, PORTION * STEPS)):
        connection.executemany("UPDATE decision SET history = ? WHERE id = ?", _histories(np.array(rows)))


def _histories(rows: Any) -> list[tuple[bytes, int]]:
    from tests.policy import histories

    result = []
    starts = [*np.flatnonzero(rows[:, 1] == 0).tolist(), len(rows)]
    for start, end in pairwise(starts):
        visit = rows[start:end].tolist()
        for step, (number, _, _, _) in enumerate(visit):
            past = [(arm, step - at, float(clicked)) for at, (_, _, arm, clicked) in enumerate(visit[:step])]
            blob = histories.pack(50, step, sum(earned for _, _, earned in past), past) if step else b""
            result.append((blob, number))
    return result
