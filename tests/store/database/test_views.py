"""The views for people who write SQL say what the commands say."""

from __future__ import annotations

import numpy as np

from rlrec.app.inputs import lookup
from rlrec.app.log import reward_log
from rlrec.store import Store
from rlrec.store.log.selected import Selection
from tests.conftest import Run

START, EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-01T00:10:00Z", "2026-01-01T02:00:00Z"
REWARDS = {
    "default": [],
    "mixed": ["click=0.3, purchase=2.5", "--clip", "-1,2", "--default", "0.125", "--late", "ignore"],
    "long": ["log1p(min(dwell_s,40))=0.7, like=-0.4", "--window", "20m"],
}


def filled(run: Run) -> None:
    """Three policies with rewards of every shape, events of many sizes, some late, some of pages, some censored."""
    rng = np.random.default_rng(3)
    run("--now", START, "arm", "import", "-", stdin=[{"arm": arm} for arm in ("a1", "a2", "a3", "a4")]).done()
    for name, words in REWARDS.items():
        if words:
            run("--now", START, "reward", "define", name, *words).done()
        run("--now", START, "policy", "create", name, "--kind", "uniform", "--reward", name).done()
        pages = [
            {"policy": name, "session": f"{name}{i // 2}", "user": f"u{i // 4}", "k": 1 + i % 3} for i in range(30)
        ]
        run("--now", START, "-q", "recommend", "--input", "-", "--seed", 1, stdin=pages).done()
    kinds = ("click", "purchase", "dwell_s", "like", "seen")
    for at in (EARLY, "2026-01-01T00:25:00Z", LATE):
        lines = [
            {"decision_id": int(i), "events": {str(rng.choice(kinds)): round(float(rng.normal(0, 30)), 6)}}
            | ({"position": 1} if rng.random() < 0.8 else {})
            for i in rng.integers(1, 91, 120)
        ]
        lines.append({"decision_id": 5, "censor": True})
        run("--now", at, "-q", "feedback", "--input", "-", stdin=lines).done()


def test_a_slot_has_the_reward_of_estimates(store: Store, run: Run) -> None:
    filled(run)
    with store.read() as unit:
        viewed = unit.ask("SELECT policy, decision_id, position, reward, censored FROM v_slot")
        stored = {(policy, number, position): reward for policy, number, position, reward, _ in viewed}
        assert len(viewed) == len(stored) == 180
        distinct = set()
        for name in REWARDS:
            policy_id = lookup.version(unit, name)[0].policy.id
            columns = ("position", "decision_id")
            selected = Selection(policy_ids=[policy_id])
            for rows in reward_log.impressions(unit, selected, lookup.reward(unit, name), columns=columns):
                slots = zip(rows.slots["decision_id"].tolist(), rows.slots["position"].tolist(), strict=True)
                rewards = np.array([stored[name, *slot] for slot in slots])
                assert np.abs(rewards - rows.reward).max() < 1e-12
                distinct |= set(rows.reward.tolist())
        assert len(distinct) > 12
        assert {number for _, number, _, _, censored in viewed if censored} == {5}


def test_decisions_and_versions_read_as_commands_print_them(store: Store, run: Run) -> None:
    filled(run)
    run("--now", LATE, "policy", "freeze", "mixed").done()
    answer = run("decision", "show", 40, "--json").json
    with store.read() as unit:
        columns = "decision_id, at, policy, version, session_key, user_key, visit, step, context, size, eligible"
        row = unit.ask(f"SELECT {columns} FROM v_decision WHERE decision_id = 40")[0]
        names = ("decision_id", "at", "policy", "version", "session", "user", "visit", "step")
        assert row == (*(answer[name] for name in names), "{}", len(answer["slate"]), 4)
        versions = unit.ask("SELECT policy, version, status, live, parent FROM v_version WHERE policy = 'mixed'")
        assert sorted(versions) == [("mixed", 1, "learning", 1, None), ("mixed", 2, "frozen", 0, "mixed@1")]
        matures = unit.ask("SELECT DISTINCT reward_name, mature_at FROM v_slot WHERE reward_name <> 'mixed'")
        assert sorted(matures) == [("default", "2026-01-01T00:30:00.000000Z"), ("long", "2026-01-01T00:20:00.000000Z")]
