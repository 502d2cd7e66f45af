"""Logs whose probabilities were written with six decimals: their sums are off by rounding, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run

pytestmark = pytest.mark.usefixtures("folder")


def written(n: int) -> list[float]:
    """Equal probabilities of n arms with six decimals."""
    return [round(1 / n, 6)] * n


def jsonl(p: list[float], **slot: Any) -> dict[str, Any]:
    arms = [f"a{n}" for n in range(len(p))]
    line = {"session": "s", "eligible": arms, "slate": [{"arm": "a0", "propensity": p[0], **slot}]}
    return line if slot else line | {"support": dict(zip(arms, p, strict=True))}


def certain(value: float, field: str = "propensity") -> dict[str, Any]:
    return {"session": "s", "eligible": ["a"], "slate": [{"arm": "a", field: value}]}


def dsjson(p: list[float]) -> dict[str, Any]:
    actions = {"_multi": [{"id": f"a{n}"} for n in range(len(p))]}
    return {"EventId": "e", "_label_cost": 0, "a": [*range(1, len(p) + 1)], "c": actions, "p": p}


@pytest.mark.parametrize("n", [6, 7, 1500, 3000])  # sums of 1.000002, 0.999999, 1.0005 and 0.999
@pytest.mark.parametrize("layout", [jsonl, dsjson])
def test_a_sum_within_the_rounding_of_six_decimals_is_taken(run_sqlite: Run, layout: Any, n: int) -> None:
    Path("log").write_text(json.dumps(layout(written(n))) + "\n")
    done = run_sqlite("import-log", "log", "--layout", layout.__name__, "--dry-run", "--json")
    assert (done.exit_code, "sum" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize(
    ("taken", "refused"),
    [
        (certain(0.999999), certain(0.99)),
        (certain(0.999999, "marginal"), certain(0.99, "marginal")),
        (jsonl(written(6), min_propensity=0.166667), jsonl([0.168] * 6, min_propensity=0.168)),
        (jsonl([0.25] * 4), jsonl([0.24, 0.25, 0.25, 0.25])),
    ],
)
def test_what_rounding_explains_is_taken_and_no_more(run_sqlite: Run, taken: Any, refused: Any) -> None:
    for line, code in ((taken, 0), (refused, 2)):
        Path("log").write_text(json.dumps(line) + "\n")
        assert run_sqlite("import-log", "log", "--layout", "jsonl", "--dry-run").exit_code == code


@pytest.mark.parametrize("layout", ["csv", "parquet"])
@pytest.mark.parametrize(("value", "code"), [(0.999999, 0), (0.99, 2)])
def test_the_only_arm_of_a_table_is_certain_but_for_rounding(
    run_sqlite: Run, layout: str, value: float, code: int
) -> None:
    Path("map.json").write_text('{"session": "s", "arm": "a", "propensity": "p", "eligible": "e"}')
    if layout == "csv":
        Path("log").write_text(f"s,a,p,e\ns1,a1,{value},a1\n")
    else:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.table({"s": ["s1"], "a": ["a1"], "p": [value], "e": ["a1"]}), "log")
    assert run_sqlite("import-log", "log", "--layout", layout, "--map", "map.json", "--dry-run").exit_code == code


@pytest.mark.parametrize(("total", "code"), [(0.999998, 0), (1.000002, 0), (0.99, 2), (0.9999, 2)])
def test_a_fixed_policy_takes_probabilities_with_six_decimals(run_sqlite: Run, total: float, code: int) -> None:
    rows = [f"a{n},{p:.6f}" for n, p in enumerate([total - 0.75, 0.25, 0.25, 0.25])]
    Path("p.csv").write_text("\n".join(["arm,probability", *rows, ""]))
    created = run_sqlite("policy", "create", "f", "--kind", "fixed", "--param", "probabilities=p.csv")
    assert (created.exit_code, "add up to" in created.stderr) == (code, code == 2)
