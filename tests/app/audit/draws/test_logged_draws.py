"""The doctor sees what estimates rest on by the checks of `evaluate`: rules of contexts, cut propensities, copies."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from rlrec.store.log.reader import Batch
from tests.app.evaluation import worlds
from tests.app.evaluation.worlds import World
from tests.conftest import Run


def import_log(run: Run, world: World, *, session: str = "s") -> None:
    """Import the log, of visits of one decision, with keys of sessions that begin so."""
    text = "\n".join(lines(world, session))
    assert run("import-log", "-", "--layout", "jsonl", "--policy", "foreign", stdin=text).exit_code == 0


def lines(world: World, session: str) -> Iterator[str]:
    for row, (arms, p) in enumerate(zip(world.arm.tolist(), world.p.tolist(), strict=True)):
        slate = [{"position": 1, "arm": f"a{arms[0]}", "propensity": p[0]}]
        yield json.dumps({
            "session": f"{session}{row}", "at": f"2026-01-{1 + row % 28:02}T{row // 28 % 24:02}:{row // 672:02}:00Z",
            "context": world.contexts[world.context[row]], "eligible": [f"a{arm}" for arm in range(world.arms)],
            "slate": slate,
        })  # fmt: skip


def findings(run: Run, world: World) -> list[tuple[str, str, str]]:
    """The check, the severity and the subject of each finding about an imported log that its own counts are behind."""
    import_log(run, world)
    rows = [(row["check"], row["severity"], row["subject"]) for row in run("doctor", "--json").json["findings"]]
    return [row for row in rows if row[0] in ("shown", "clipped", "repeats")]


@pytest.mark.slow
def test_a_rule_by_segment_with_shares_logged_is_an_error(run_sqlite: Run) -> None:
    assert findings(run_sqlite, worlds.rule_by_segment("impressions", 3)) == [("shown", "error", "policy foreign")]
    (detail,) = (row["detail"] for row in run_sqlite("doctor", "--json").json["findings"] if row["check"] == "shown")
    remedy = "a backup does not help: `rlrec import-log FILE` into a new store with the right propensities"
    assert remedy in run_sqlite("doctor").stderr
    assert "into a new store with the probability that each draw had" in run_sqlite("evaluate", "uniform").stdout
    assert '"segment":"s' in detail


@pytest.mark.slow
def test_propensities_that_were_cut_are_a_warning(run_sqlite: Run) -> None:
    assert findings(run_sqlite, worlds.clipped("impressions", 4)) == [("clipped", "warning", "policy foreign")]


@pytest.mark.slow
def test_a_log_that_is_there_twice_is_a_warning(run_sqlite: Run) -> None:
    world = worlds.honest("impressions", 2, decisions=400)
    for session in ("s", "t"):
        import_log(run_sqlite, world, session=session)
    (finding,) = run_sqlite("doctor", "--json").json["findings"]
    assert (finding["check"], finding["detail"].endswith("into a new store, each decision once")) == ("repeats", True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_an_honest_log_of_a_logger_that_reads_contexts_is_sound(seed: int, run_sqlite: Run) -> None:
    """At most one in a thousand alarms: `python -m tests.benchmarks -k checks`."""
    world = worlds.honest("impressions", seed, decisions=800)
    is_certain = bool(np.isclose(world.p, 1).all())
    assert findings(run_sqlite, world) == [] or is_certain


def test_a_batch_is_cut_between_sessions() -> None:
    slots = {"decision_id": np.arange(8), "session_id": np.array([1, 1, 1, 2, 3, 3, 4, 5])}
    batch = Batch(slots=slots, events={"decision_id": np.array([0, 2, 5, 7]), "kind": np.array([*"abcd"], np.object_)})
    portions = list(batch.cut(np.array([5, 0, 1, 1, 0, 4, 0, 9]), 6))
    assert [portion.slots["decision_id"].tolist() for portion in portions] == [[0, 1, 2], [3, 4, 5, 6], [7]]
    assert ["".join(portion.events["kind"]) for portion in portions] == ["ab", "c", "d"]
    assert [*batch.cut(np.full(8, 1), 8)] == [batch]
