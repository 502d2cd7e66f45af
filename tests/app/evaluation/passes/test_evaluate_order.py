"""The same log in another order, and in another store, gives the same figures: they follow keys, never ids."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec import ope
from tests.app import logs
from tests.app.judging.test_evaluate import estimates
from tests.conftest import filled, runner

SAMPLE = Path(__file__).parents[4] / "sample_data"
NAMES = [f"a{number}" for number in range(6)]


judged_once = cache(estimates)
"""Of a store that no test changes: the figures that those of several others are compared with."""


def check_equal(left: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]]) -> None:
    """Every figure is equal to 1e-12 relative, and whatever is no figure is the same."""
    assert len(left) == len(right) > 0
    for before, after in zip(left, right, strict=True):
        for name, value in before.items():
            figure = isinstance(value, float | tuple)
            assert after[name] == (pytest.approx(value, rel=1e-12) if figure else value), (before["estimator"], name)


# -- a log without users: every line is a session of its own --


def import_obd(db: str, *, reverse: bool) -> None:
    head, *lines = gzip.decompress((SAMPLE / "random_all.csv.gz").read_bytes()).splitlines(keepends=True)[:2_501]
    text, run = b"".join([head, *(reversed(lines) if reverse else lines)]), runner(db)
    assert run("import-log", "-", "--layout", "obd", "--policy", "random", stdin=text).exit_code == 0
    prior = f"{SAMPLE}/bts_all_prior.csv"
    assert run("policy", "create", "ts", "--kind", "thompson", "--prior", prior).exit_code == 0


@pytest.fixture(scope="module")
def obd(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> str:
    """The beginning of the Open Bandit sample as it comes."""
    path = tmp_path_factory.mktemp("order") / "forward.db"
    path.write_bytes(sqlite_template.read_bytes())
    import_obd(str(path), reverse=False)
    return str(path)


def reversed_obd(db: str) -> None:
    import_obd(db, reverse=True)


@pytest.fixture
def backward(db: str) -> str:
    """The same with its lines reversed, on either database."""
    filled(db, reversed_obd)
    return db


@pytest.mark.slow
@pytest.mark.parametrize(
    ("db", "options"),
    [
        ("postgres", {"estimators": "snips,dr"}),
        ("sqlite", {"estimators": "impression", "cluster": "row", "interval": "normal"}),
    ],
    indirect=["db"],
    ids=["bootstrap", "normal"],
)
def test_a_reversed_log_gives_the_same_figures(obd: str, backward: str, options: dict[str, str]) -> None:
    check_equal(judged_once(obd, "ts", "uniform", **options), estimates(backward, "ts", "uniform", **options))


# -- a log with users, visits of several pages, and slates --


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> tuple[str, ...]:
    """An exported log of slates for users, who come in sessions of two pages."""
    path = tmp_path_factory.mktemp("lines") / "served.db"
    path.write_bytes(sqlite_template.read_bytes())
    logs.begin(str(path), len(NAMES), "ts", "thompson", floor="0.2")
    rates, contexts = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3), [{"hour": hour / 7} for hour in range(5)]
    logs.serve(str(path), "ts", pages=300, rates=rates, size=2, group=100, users=40, contexts=contexts)
    return tuple(runner(str(path))("export-log", "-").stdout.splitlines())


def import_lines(db: str, lines: tuple[str, ...], order: tuple[int, ...] | None = None) -> None:
    """Import them and the arms, or the lines in this order, and the arms reversed."""
    run = runner(db)
    names = NAMES[::-1] if order else NAMES
    arms = [{"arm": name, "features": {"size": int(name[1:])}} for name in names]
    assert run("arm", "import", "-", stdin=arms).exit_code == 0
    log = "".join(f"{lines[number]}\n" for number in order or range(len(lines)))
    assert run("import-log", "-", "--layout", "jsonl", "--policy", "log", stdin=log).exit_code == 0
    for name, params in {"lin": [], "shared": ["--param", "model=shared", "--param", "samples=50"]}.items():
        options = ("policy", "create", name, "--kind", "lin-thompson", *params, "--from-log", "policy=log")
        assert run(*options).exit_code == 0


@pytest.fixture(scope="module")
def forward(lines: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> str:
    path = tmp_path_factory.mktemp("forward") / "forward.db"
    path.write_bytes(sqlite_template.read_bytes())
    import_lines(str(path), lines)
    return str(path)


@pytest.fixture
def shuffled(lines: tuple[str, ...], db: str) -> str:
    """The same lines, and the arms, in another order."""
    filled(db, import_lines, lines, tuple(np.random.default_rng(5).permutation(len(lines)).tolist()))
    return db


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "options"), [("uniform", {}), ("lin", {"by": "hour"}), ("lin", {"cluster": "session"})]
)
def test_shuffled_sessions_give_the_same_figures(
    forward: str, shuffled: str, target: str, options: dict[str, str]
) -> None:
    requests = {"estimators": "all", "gamma": 0.9, **options}
    check_equal(judged_once(forward, target, **requests), estimates(shuffled, target, **requests))


@pytest.mark.slow
@pytest.mark.parametrize(("db", "samples"), [("sqlite", 0), ("postgres", 50)], indirect=["db"])
def test_samples_of_decisions_follow_digests(forward: str, shuffled: str, samples: int) -> None:
    options = {"estimators": "ips,dr,sips,iips", "target_samples": samples}
    check_equal(judged_once(forward, "shared", **options), estimates(shuffled, "shared", **options))


@pytest.mark.slow
def test_the_log_has_every_estimator(forward: str) -> None:
    assert [row["estimator"] for row in estimates(forward, "uniform", estimators="all")] == list(ope.GROUPS["all"])
