"""Answers as records and as data frames."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

import pytest

from rlrec.api import Recommender
from rlrec.cli.doors.frames import to_records, to_result
from tests.cli.doors.test_calls import store, store_file

__all__ = ["store", "store_file"]
ROWS = [
    {"name": "a", "value": 1, "note": None, "tags": ["x"], "params": {"n": 1}, "mixed": 1, "large": 2**64 - 1},
    {"name": "b", "value": 0.5, "note": None, "tags": [], "params": {"m": [1]}, "mixed": "y", "large": -1},
]


def test_keys_are_attributes_at_every_depth() -> None:
    answer = to_result({"list": [{"n": 1}, {"n": 2}], "inner": {"deep": {"x": 0.5}}, "plain": [1, "a"]})
    assert (answer.list[1].n, answer.inner.deep.x, answer.plain) == (2, 0.5, [1, "a"])
    with pytest.raises(AttributeError, match="it has list, inner, plain"):
        answer.other  # noqa: B018
    assert repr(answer.inner) == "{'deep': {'x': 0.5}}"


def test_a_table_of_arrow_has_a_row_for_each_record() -> None:
    pa = pytest.importorskip("pyarrow")
    table = to_records(ROWS).to_arrow()
    assert table.select(["name", "value", "tags"]).to_pylist() == [
        {"name": "a", "value": 1, "tags": ["x"]},
        {"name": "b", "value": 0.5, "tags": []},
    ]
    for name in ("params", "mixed", "large"):  # as JSON
        assert table.schema.field(name).type == pa.string()
        assert [json.loads(text) for text in table[name].to_pylist()] == [row[name] for row in ROWS]


def test_a_frame_of_pandas_has_a_row_for_each_record() -> None:
    pytest.importorskip("pandas")
    frame = to_records(ROWS).to_pandas()
    assert frame["params"].tolist() == [row["params"] for row in ROWS]
    assert frame.columns.tolist() == [*ROWS[0]]


def test_a_frame_of_polars_has_a_row_for_each_record() -> None:
    pytest.importorskip("polars", reason="Polars is not installed")
    assert to_records(ROWS).to_polars()["name"].to_list() == ["a", "b"]


def test_a_record_becomes_the_rows_of_its_csv(store: Recommender) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    assert store.session("s1").to_pandas()["position"].tolist() == [1, 2]
    beliefs = store.policy("home").to_arrow()
    assert (beliefs.num_rows, beliefs.column_names[:2]) == (2, ["arm", "status"])
    assert store.arm.add("new", dry_run=True).to_pandas()["added"].tolist() == [1]


def test_an_empty_answer_has_its_columns(store: Recommender) -> None:
    pytest.importorskip("pandas")
    assert store.experiment.list().to_pandas().columns.tolist()[:2] == ["experiment", "status"]


def test_slots_and_events_of_the_log_are_tables(store: Recommender) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    log = store.log("policy=home")
    slots, events = log.slots().to_arrow(), log.events().to_arrow()
    assert slots.num_rows == 2 * log.to_arrow().num_rows
    assert slots.slice(0, 2)["position"].to_pylist() == [1, 2]
    assert {*slots["propensity"].to_pylist()} == {row["propensity"] for decision in log for row in decision["slate"]}
    earned = {decision["decision_id"]: decision["reward"] for decision in log}
    assert sum(earned.values()) == sum(slots["reward"].to_pylist()) == 14
    assert slots.slice(0, 2)["reward"].to_pylist() == [1.0, 0.0]
    assert log.slots().to_pandas()["reward"].tolist() == slots["reward"].to_pylist()
    assert events.num_rows == 14
    assert events.slice(0, 1).select(["decision_id", "session", "kind", "value", "at"]).to_pylist() == [
        {"decision_id": 1, "session": "s0", "kind": "click", "value": 1.0, "at": datetime(2026, 2, 1, tzinfo=UTC)}
    ]
    assert [row["decision_id"] for row in log.slots()] == slots["decision_id"].to_pylist()
    assert len(log.events().to_pandas()) == 14


@pytest.mark.parametrize(
    ("name", "convert", "extra"),
    [("pandas", "to_pandas", "notebook"), ("pyarrow", "to_arrow", "notebook"), ("polars", "to_polars", "polars")],
)
def test_a_missing_library_is_named(name: str, convert: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"this needs {name}: pip install 'rlrec\[{extra}\]'"):
        getattr(to_records(ROWS), convert)()
