"""Inverse-propensity means of `policy show`, from the log of the store."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.conftest import runner

START, LATER, LAST = "2026-01-01T00:00:00Z", "2026-01-01T00:10:00Z", "2026-01-01T01:00:00Z"


def test_means_weigh_mature_uncensored_slots_by_their_marginals(db: str) -> None:
    run = runner(db)
    for arm in ("a1", "a2", "a3", "a4"):
        run("--now", START, "arm", "add", arm)
    run("--now", START, "policy", "create", "p", "--kind", "thompson", "--param", "floor=0.1")
    slots = []
    for now in (START, LATER, LAST):  # the last ones are not mature
        options = "".join(json.dumps({"policy": "p", "session": f"{now}{i}", "k": 2}) + "\n" for i in range(20))
        answers = run("--now", now, "recommend", "--input", "-", "--seed", 3, "--format", "ndjson", stdin=options).lines
        reported = [
            {"decision_id": answer["decision_id"], "position": 2, "events": {"click": 1}} for answer in answers[::3]
        ]
        reported += [{"decision_id": answers[3]["decision_id"], "censor": True}]
        lines = "".join(json.dumps(line) + "\n" for line in reported)
        assert run("--now", now, "feedback", "--input", "-", stdin=lines).exit_code == 0
        rows = [
            (slot, float(row % 3 == 0)) for row, answer in enumerate(answers) if row != 3 for slot in answer["slate"]
        ]
        slots += [(slot, clicked * (slot["position"] == 2)) for slot, clicked in rows if now != LAST]
    for row in run("--now", LAST, "policy", "show", "p", "--json").json["arms"]:
        selected = [(slot["marginal"] ** -0.5, reward) for slot, reward in slots if slot["arm"] == row["arm"]]
        weight, reward = np.array(selected).T
        assert row["ipw_mean"] == pytest.approx((weight * reward).sum() / weight.sum())
        assert row["ipw_lower"] < row["ipw_mean"] < row["ipw_upper"]
