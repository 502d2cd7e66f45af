"""Drift in a real store: an arm whose click rate changes is named, and learning is not called drift. The cheap checks
say of the newest decisions what `doctor` says of all."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrec.app.audit.draws import newest
from rlrec.app.audit.draws.newest import RewardDrift, recent_changes
from rlrec.app.audit.integrity.findings import Finding, Findings
from rlrec.app.upkeep.doctor import Request, doctor
from rlrec.store import Store
from rlrec.store.log.reader import Batch
from rlrec.store.policies import arms, policies
from rlrec.store.upkeep import audit
from tests.cli.commands.judging.test_exposure import stocked
from tests.conftest import Run, click_events, runner

FIRST, BEFORE, THEN = "2026-01-01T00:00:00Z", "2026-01-01T00:55:00Z", "2026-01-01T01:00:00Z"
RATES = {"a1": 0.1, "a2": 0.1, "a3": 0.4}
CHANGED = RATES | {"a1": 0.8}
LAST, THEN_FIRST = 450, 1051  # decisions of `home` before the change and after it


def serve(run: Run, name: str, at: str, rates: Mapping[str, float], *, n: int, size: int = 1, seed: int = 1) -> None:
    """n pages of a policy, and the clicks on their slots."""
    options = [{"policy": name, "session": f"{name}{at}{i}", "k": size} for i in range(n)]
    drawn = run("--now", at, "recommend", "--input", "-", "--seed", seed, "--format", "ndjson", stdin=options)
    rng = np.random.default_rng(seed)
    lines = click_events(drawn.done().lines, lambda slot: rng.random() < rates[slot["arm"]])
    run("--now", at, "feedback", "--input", "-", stdin=lines).done()


@pytest.fixture(scope="module")
def drifted(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two policies: `home` of which a1 gets better in its second half, `still` in a world that stands still."""
    path = tmp_path_factory.mktemp("drifted") / "rlrec.db"
    path.write_bytes(sqlite_template.read_bytes())
    run = runner(str(path))
    run("--now", FIRST, "arm", "import", "-", stdin=[{"arm": arm} for arm in RATES]).done()
    for name, kind in (("home", "uniform"), ("still", "thompson")):
        run("--now", FIRST, "policy", "create", name, "--kind", kind).done()
    serve(run, "home", FIRST, RATES, n=400, size=2)
    serve(run, "home", BEFORE, RATES, n=50, size=2)
    for seed in range(4):
        serve(run, "still", BEFORE, RATES, n=150, seed=seed)
    serve(run, "home", THEN, CHANGED, n=450, size=2, seed=2)
    return str(path)


def drift(db: str) -> list[Finding]:
    with closing(Store(db)) as store:
        return [finding for finding in doctor(store, Request(sample=0)).findings if finding.check == "drift"]


def looked(
    db: str, *, params: Mapping[str, Any] | None = None, parameters: Mapping[str, Any] | None = None,
    status: str = "learning",
) -> list[Finding]:  # fmt: skip
    """The audit of `home`, as if it had other parameters."""
    with closing(Store(db)) as store, store.read() as unit:
        live = policies.live(unit, ["home"])["home"][0]
        if params:
            live = replace(live, policy=live.policy._replace(kind="epsilon-greedy", params=params))
        live = replace(live, parameters=parameters or {}, status=status)
        result = RewardDrift(unit, live, {arm.id: arm.key for arm in arms.all_arms(unit)})
        for batch in audit.ranges(unit, live.policy.id, size=100):
            result.take(batch)
        lines = Findings()
        result.finish(lines)
    return lines.in_order()


@pytest.mark.slow
def test_an_arm_that_gets_better_is_a_warning_and_its_policy_is_told(drifted: str) -> None:
    """The streams without a change alarm falsely with probability below 0.0002."""
    result = drift(drifted)
    assert [(finding.severity, finding.subject) for finding in result] == [
        ("warning", "policy home arm a1"), ("info", "policy home"),
    ]  # fmt: skip
    assert "beliefs still count what came before" in result[0].detail
    assert "a policy that learns causes that, too" in result[1].detail


@pytest.mark.parametrize("options", [{"params": {"discount": 0.99}}, {"parameters": {"context": [], "arm": []}}])
def test_drift_that_the_policy_copes_with_is_no_warning(drifted: str, options: dict[str, Any]) -> None:
    assert {finding.severity for finding in looked(drifted, **options)} == {"info"}


def test_a_frozen_version_is_not_called_one_that_counts_what_came_before(drifted: str) -> None:
    """Nor rebuilt, amid an experiment, say."""
    warning, _ = looked(drifted, status="frozen")
    assert warning.detail.endswith("; this version is frozen, and learns nothing of it")


def test_batches_of_any_size_tell_the_same(drifted: str) -> None:
    assert looked(drifted) == drift(drifted)


def test_a_change_is_dated_and_measured(drifted: str) -> None:
    with closing(Store(drifted)) as store, store.read() as unit:
        result = recent_changes(unit, policies.live(unit, ["home"])["home"][0])
        a1 = result.pop(arms.ids(unit, ["a1"])["a1"])
    assert list(result) == ["policy"]
    assert LAST - 30 < a1["decision_id"] < THEN_FIRST + 30
    assert THEN_FIRST < a1["noticed"] < THEN_FIRST + 150
    assert a1["at"][:19] == (THEN if a1["decision_id"] > LAST else BEFORE)[:19]
    assert a1["before"] == pytest.approx(0.1, abs=0.1)
    assert a1["after"] == pytest.approx(0.8, abs=0.2)


def test_an_estimate_names_the_same_time_of_a_change(drifted: str) -> None:
    """As `doctor`, not the middle of the log."""
    (at,) = {finding.detail.partition(" of ")[2][:19] for finding in drift(drifted) if "arm a1" in finding.subject}
    words = ("evaluate", "still", "--log", "policy=home", "--cluster", "session")
    assert f"--log policy=home,since={at}Z`" in runner(drifted)(*words).done().stdout


def test_excluded_decisions_are_not_looked_at(drifted: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(Path(drifted).read_bytes())
    runner(str(copy))("log", "exclude", "late", "--where", f"since={THEN}").done()
    with closing(Store(str(copy))) as store, store.read() as unit:
        assert recent_changes(unit, policies.live(unit, ["home"])["home"][0]) == {}


def test_only_recent_decisions_are_looked_at(drifted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newest, "MAX_DECISIONS", 400)
    with closing(Store(drifted)) as store, store.read() as unit:
        assert recent_changes(unit, policies.live(unit, ["home"])["home"][0]) == {}


@pytest.mark.parametrize(("decisions", "noticed"), [(1, True), (20, False)])
def test_a_visit_counts_once_however_many_decisions_it_has(drifted: str, decisions: int, noticed: bool) -> None:
    """120 decisions, of which the second half is liked: 120 visits show a change, 6 visits show none."""
    visits = 120 // decisions
    n = visits * decisions
    visit = np.repeat(np.arange(visits), decisions)
    slots = {name: np.ones(n, np.int64) for name in ("position", "arm_id", "visit")} | {
        "at": np.zeros(n, np.int64), "imported": np.zeros(n, np.bool_), "censored": np.zeros(n, np.bool_),
        "decision_id": np.arange(n) + 1, "session_id": visit,
    }  # fmt: skip
    liked = np.flatnonzero(visit >= visits / 2)
    events = {
        "decision_id": liked + 1, "position": np.ones(len(liked), np.int64), "kind": np.full(len(liked), "click"),
        "value": np.ones(len(liked)), "age_us": np.ones(len(liked), np.int64),
    }  # fmt: skip
    with closing(Store(drifted)) as store, store.read() as unit:
        watch = RewardDrift(unit, policies.live(unit, ["home"])["home"][0], {})
        watch.take(Batch(slots=slots, events=events))
    assert bool(watch.newest_changes) is noticed


def check(store: Store, *, on_its_clock: bool = True) -> list[Finding]:
    with store.read() as unit:
        return newest.check(unit, policies.all_policies(unit), on_its_clock=on_its_clock)


def test_a_healthy_store_has_no_finding(db: str, store: Store) -> None:
    stocked(db)
    assert check(store) == []


def test_an_exclusion_that_cannot_be_read_is_a_finding(db: str, store: Store) -> None:
    stocked(db)
    damage = "INSERT INTO exclusion (name, filter, by_unit, created_at) VALUES ('staff', 'nonsense=1', 0, 1)"
    store.write(lambda unit: unit.tell(damage))
    details = {finding.detail for finding in check(store)}
    assert details == {"the check could not go on: 'nonsense=1' is not a log filter"}


@pytest.mark.parametrize(("on_its_clock", "checks"), [(True, ["clock"]), (False, [])])
def test_decisions_ahead_of_the_clock_are_an_error_where_nobody_set_it(
    db: str, store: Store, on_its_clock: bool, checks: list[str]
) -> None:
    stocked(db)
    store.write(lambda unit: unit.tell("UPDATE decision SET at = at + 100000000000000"))
    assert [finding.check for finding in check(store, on_its_clock=on_its_clock)] == checks
