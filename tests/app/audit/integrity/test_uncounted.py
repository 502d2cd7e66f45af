"""A policy that learns nothing from the events that come is reported; one without events to learn from is not."""

from __future__ import annotations

from contextlib import closing

import pytest

from rlrec.app.judging import status
from rlrec.app.policies import policy
from rlrec.app.requests import feedback, recommend
from rlrec.app.upkeep import doctor
from tests.app import logs
from tests.conftest import Run

CASES = {  # kind: reward that the policy learns, kind and value of the events, whether they name a slot, finding
    "another kind": ("default", "clicked", 1.0, True, "error"),
    "a kind of another reward": ("default", "watched", 1.0, True, "warning"),
    "a kind that a rule names": ("default", "hidden", 1.0, True, None),
    "pages": ("default", "click", 1.0, False, "error"),
    "wrong sign": ("default", "click", -1.0, True, "warning"),
    "losses": ("losses", "complaint", 1.0, True, None),
    "rare losses": ("losses", "clicked", 1.0, True, None),
    "returns alone": ("returns", "clicked", 1.0, True, None),
    "not due": ("late", "clicked", 1.0, True, None),
    "all is well": ("default", "click", 1.0, True, None),
}


def served(db: str, run: Run, case: str, *, kind: str = "epsilon-greedy") -> None:
    learned, event, value, has_position, _ = CASES[case]
    logs.catalogue(db, 3)
    for name, weights, window in (
        ("watch", "watched=1", "30m"), ("losses", "complaint=-1", "30m"), ("returns", "return=1", "30m"),
        ("late", "purchase=1", "7d"),
    ):  # fmt: skip
        run("reward", "define", name, weights, "--window", window).done()
    logs.create(db, "other", "thompson", not_after="hidden")
    with closing(logs.at(db, 0)) as store:
        policy.create(store, policy.Request(name="home", kind=kind, reward=learned))
    with closing(logs.at(db, 1)) as store:
        requests = [recommend.Request(policy="home", session=f"s{page}", size=2) for page in range(1_000)]
        answers = recommend.recommend_group(store, requests, seed=1)
        position = 1 if has_position else None
        lines = [
            feedback.Line(decision_id=answer["decision_id"], position=position, events={event: value})
            for answer in answers[::3]
            if isinstance(answer, dict)
        ]
        feedback.feedback_stream(store, lambda: [lines], quarantine=False, reject=print)


@pytest.mark.parametrize("case", CASES)
def test_a_policy_that_learns_nothing_from_its_events_is_reported(sqlite_db: str, run_sqlite: Run, case: str) -> None:
    served(sqlite_db, run_sqlite, case)
    with closing(logs.at(sqlite_db, 60)) as store:
        report = doctor.doctor(store, doctor.Request())
        warnings = status.status(store)["warnings"]
    severity = CASES[case][-1]
    findings = [(finding.check, finding.severity) for finding in report.findings if finding.check == "feedback"]
    assert findings == ([] if severity is None else [("feedback", severity)])
    assert [(row["check"], row["severity"]) for row in warnings] == findings


def test_what_the_findings_suggest_makes_a_version_that_learns(sqlite_db: str, run_sqlite: Run) -> None:
    served(sqlite_db, run_sqlite, "another kind", kind="thompson")
    for words in ("reward define NAME", "policy rebuild home"):
        with closing(logs.at(sqlite_db, 60)) as store:
            (finding,) = doctor.doctor(store, doctor.Request()).findings
        command = finding.detail.partition("`rlrec ")[2].partition("`")[0]
        assert command.startswith(words)
        run_sqlite(*command.split()).done()


def test_a_policy_that_does_not_learn_is_not_reported(sqlite_db: str, run_sqlite: Run) -> None:
    served(sqlite_db, run_sqlite, "another kind", kind="uniform")
    with closing(logs.at(sqlite_db, 60)) as store:
        assert doctor.doctor(store, doctor.Request()).findings == []
