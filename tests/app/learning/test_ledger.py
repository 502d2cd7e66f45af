"""What the ledger promises: any order of events gives the same belief, and any past belief comes back bit for bit."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from itertools import product
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from rlrec.app.distributions import exact
from rlrec.app.inputs import canonical
from rlrec.app.learning.ledger import Ledger
from rlrec.app.requests import settle
from rlrec.app.requests.feedback import FeedbackTransaction, Line, feedback_stream
from rlrec.app.requests.recommend import Request, recommend_group
from rlrec.app.serving.draws import to_unsigned
from rlrec.errors import Conflict, InputError
from rlrec.policy.slates import slate_draws
from rlrec.records import Decision, Event
from rlrec.store import Store, Unit
from rlrec.store.database import tables
from rlrec.store.log import contents, decisions, events
from rlrec.store.policies import arms, beliefs, policies
from rlrec.store.policies.beliefs import Sums
from tests.app.shop import (
    MINUTE,
    REWARDS,
    SECOND,
    START,
    added_up,
    apart,
    ask,
    clock,
    dump,
    stocked,
    sums,
    tell,
    tell_all,
    version,
)
from tests.conftest import Run, begin

ORDERS = 8  # was run with 50
STEPS = 60  # of the loop whose beliefs are rebuilt
END = START + 60 * MINUTE


# -- any order --


def scripted(random: random.Random, answers: Sequence[dict[str, Any]]) -> tuple[list[Line], list[Line]]:
    """Lines that may come in any order, some keyed and to be repeated, and lines that close: the last word on slots."""
    lines, last = list[Line](), list[Line]()
    for answer in answers:
        number, size = answer["decision_id"], len(answer["slate"])
        for _ in range(random.randint(0, 4)):
            kinds = random.sample(["click", "dwell_s", "seen"], random.randint(1, 2))
            values = {kind: random.choice([1, 1, 2, -1, 31.7, -4.25, 1e-3]) for kind in kinds}
            at = START + random.choice([10, 300, 599, 601, 900, 2000]) * SECOND
            position = random.choice([None, *range(1, size + 1)])
            key = f"k{len(lines)}" if random.random() < 0.5 else None
            lines.append(Line(decision_id=number, position=position, events=values, at=at, key=key))
        if random.random() < 0.4:
            position = random.choice([None, size])
            words = random.choice([[True], [True, False], [False, True, True]])
            last += [Line(decision_id=number, position=position, censor=word, at=END) for word in words]
            lines.append(Line(decision_id=number, position=1, censor=random.random() < 0.5, at=START + 5 * MINUTE))
            last.append(Line(decision_id=number, position=1, censor=words[-1], at=END))
    return lines, last


def play(store: Store, random: random.Random, lines: Sequence[Line], last: Sequence[Line]) -> None:
    """Send lines in a random order, keyed ones up to three times, in groups, while time passes and slots settle."""
    sent = [line for line in lines for _ in range(1 if line.key is None else random.randint(1, 3))]
    random.shuffle(sent)
    now = START
    while sent:
        group, sent = sent[: (n := random.randint(1, 12))], sent[n:]
        now = max(now, *(line.at or 0 for line in group)) + random.randint(0, 20) * SECOND
        tell_all(clock(store, now), group)
        if random.random() < 0.2:
            settle.settle(store)
    tell_all(clock(store, END), last)
    settle.settle(store)


class Rewind:
    """Puts a store back to where it was, so that the same decisions can be told about again."""

    tables = (tables.belief, tables.belief_delta)

    def __init__(self, store: Store) -> None:
        with store.read() as unit:
            self.rows = {table: unit.rows(sa.select(table)) for table in self.tables}

    def __call__(self, unit: Unit) -> None:
        for table in (tables.event, tables.feedback_key, *self.tables):
            unit.connection.execute(sa.delete(table))
        for table, rows in self.rows.items():
            unit.insert(table, [column.name for column in table.columns], rows)
        unit.connection.execute(sa.update(tables.slot).values(censored=0))
        unit.connection.execute(
            sa.update(tables.version).where(tables.version.c.entered_to.is_not(None)).values(entered_to=0)
        )


def expected(unit: Unit, name: str, lines: Sequence[Line]) -> dict[int, Sums]:
    """The belief by the definition of the reward alone: sums of values, then default or clip, then per arm."""
    belief = version(unit, name)
    options, total = REWARDS[name], defaultdict[int, Any](lambda: np.zeros(3))
    weights = {kind: float(weight) for kind, weight in (p.split("=") for p in options.weights.split(", "))}
    rows = unit.rows(sa.select(tables.decision.c.id).where(tables.decision.c.policy_id == belief.policy.id))
    for decision in decisions.find(unit, [row[0] for row in rows]).values():
        for slot in decision.slots:
            if not slot.censored:
                r = worth(options, weights, decision, slot.position, lines)
                total[slot.arm_id] += (1, r, r * r)
    return {arm: tuple(row) for arm, row in total.items()}


def worth(options: Any, weights: dict[str, float], decision: Decision, position: int, lines: Sequence[Line]) -> float:
    result = [
        weights[kind] * value
        for line in lines
        if line.decision_id == decision.id and (line.position or (1 if decision.size == 1 else None)) == position
        for kind, value in line.events.items()
        if kind in weights and (options.late == "count" or line.at - decision.at <= options.window_us)
    ]
    if not result:
        return float(options.default)
    return float(np.clip(sum(result), *options.clip)) if options.clip else sum(result)


@pytest.mark.slow
def test_any_order_of_events_gives_the_same_beliefs(store: Store) -> None:
    stocked(clock(store, START), **{name: f"uniform/{name}" for name in REWARDS})
    chance = random.Random(8)
    answers = [ask(store, name, f"s{i}", 1 + i % 3, seed=i) for name in REWARDS for i in range(7)]
    lines, last = scripted(chance, answers)
    rewind = Rewind(store)
    for _ in range(ORDERS):
        store.write(rewind)
        play(store, chance, lines, last)
        for name in REWARDS:
            with store.read() as unit:
                right = expected(unit, name, lines)
            tolerance = 1e-9 if "dwell" in name else 0.0
            assert apart(sums(store, name), right) <= tolerance
            assert apart(added_up(store, name), right) <= 1e-9


def test_a_correction_takes_back_what_was_told(store: Store) -> None:
    stocked(store, home="thompson")
    shown = ask(store)
    before = sums(store, "home")
    tell(store, shown, click=1)
    assert tell(store, shown, click=-1).reward == 0
    assert sums(store, "home") == before


def test_a_late_event_counts_as_the_reward_says(store: Store) -> None:
    stocked(clock(store, START), counted="uniform/counted", ignored="uniform/ignored")
    answers = {name: ask(store, name) for name in ("counted", "ignored")}
    clock(store, END)
    for name, answer in answers.items():
        tell(store, answer, click=1, at=START + 10 * MINUTE + 1)
        assert [row[1] for row in sums(store, name).values()] == [1.0 if name == "counted" else 0.0]
        tell(store, answer, click=1, at=START + 10 * MINUTE)
        assert [row[1] for row in sums(store, name).values()] == [1.0]


# -- keys --


def test_a_retry_changes_nothing_at_all(store: Store) -> None:
    stocked(store, home="thompson")
    shown = ask(store, size=2, request_id="r1")
    tell(store, shown, 1, click=1, key="k1")
    before = dump(store)
    assert tell(store, shown, 1, click=1.0, key="k1").duplicates == 1
    assert ask(store, size=2, request_id="r1") == shown | {"duplicate": True}
    assert dump(store) == before


@pytest.mark.parametrize("change", [{"click": 2}, {"seen": 1}, {"position": 2}, {"at": START}, {"censor": True}])
def test_a_key_with_other_content_is_refused(store: Store, change: dict[str, Any]) -> None:
    stocked(clock(store, START), home="thompson")
    shown = ask(store, size=2)
    tell(store, shown, 1, click=1, key="k1")
    before = dump(store)
    with pytest.raises(Conflict, match="'k1' is known"):
        tell(store, shown, **{"position": 1, "click": 1, "key": "k1"} | change)
    assert dump(store) == before


def test_a_refused_line_leaves_no_trace_and_its_key_free(store: Store) -> None:
    stocked(store, home="thompson")
    shown = ask(store)
    before = dump(store)
    for bad in ({"position": 2}, {"at": START - 1}, {"click": 1e200}, {"seen!": 1}):
        with pytest.raises(InputError):
            tell(store, shown, **{"click": 1, "key": "k1"} | bad)
    assert dump(store) == before
    assert tell(store, shown, click=1, key="k1").events == 1


# -- groups --


def test_a_key_names_what_the_canonical_form_names() -> None:
    values = [1.0, -0.0, 0.5, 1e15, -3.25e-7, 2.0**62, 2.0**63, 1e100]
    for value, position, censor in product(values, (None, 3), (None, True, False)):
        reported: dict[str, float] = {"dwell_s": value, "click": 1.0}
        meant = [7, position, reported] + ([] if censor is None else [censor])
        assert canonical.line_digest(7, position, reported, censor) == canonical.digest_of(meant)


def test_a_group_teaches_what_its_lines_teach_one_by_one(store: Store) -> None:
    """Slots alike and not, several events of one, late ones, censored ones; two groups of one transaction."""
    stocked(clock(store, START), **{name: f"uniform/{name}" for name in REWARDS})
    chance = random.Random(3)
    answers = [ask(store, name, f"s{i}", 1 + i % 3, seed=i, arms="abc") for name in REWARDS for i in range(10)]
    lines = [
        Line(
            decision_id=(item := chance.choice(answers))["decision_id"],
            position=chance.choice([None, *range(1, len(item["slate"]) + 1)]),
            events={chance.choice(["click", "dwell_s", "seen"]): chance.choice([1.0, 1.0, -1.0, 0.25])},
            at=START + chance.choice([0, 0, 600, 601]) * SECOND,
            censor=chance.choice([None] * 9 + [True, False]),
        )
        for _ in range(300)
    ]
    feedback_stream(clock(store, END), lambda: [lines[:200], lines[200:]], quarantine=False, reject=print)
    settle.settle(store)
    for name in REWARDS:
        with store.read() as unit:
            assert apart(sums(store, name), expected(unit, name, lines)) <= 1e-9
        assert apart(sums(store, name), added_up(store, name)) <= 1e-9


def test_a_file_is_one_change_of_each_policy(store: Store) -> None:
    """In any order of policies: where a later group would wait out of order, all are locked before the first."""
    stocked(store, home="thompson", other="thompson")
    first, second = ask(store, "home"), ask(store, "other")
    groups = [[Line(decision_id=answer["decision_id"], events={"click": 1.0})] for answer in (second, first, second)]
    summary = feedback_stream(store, lambda: groups, quarantine=False, reject=print)
    assert (summary.accepted, summary.duplicates) == (3, 0)
    with store.read() as unit:
        rows = unit.ask("SELECT decision_id, number, seq FROM event ORDER BY decision_id, number")
        deltas = unit.ask("SELECT version_id, d_reward_sum FROM belief_delta WHERE d_pulls = 0 ORDER BY version_id")
    assert rows == [(first["decision_id"], 1, 2), (second["decision_id"], 1, 2), (second["decision_id"], 2, 2)]
    assert [row[1] for row in deltas] == [1.0, 1.0]  # the second click is clipped away


def test_a_group_inside_a_larger_transaction_shares_its_change(store: Store) -> None:
    stocked(store, home="thompson")
    number, shown = (rows := ask(store, size=2))["decision_id"], [slot["arm"] for slot in rows["slate"]]

    def work(unit: Unit) -> list[Any]:
        policy_id = decisions.find(unit, [number])[number].policy_id
        ledger = Ledger(unit, [policy_id])
        ledger.serve(policy_id, [([(1, arm, 1.0, 1.0)], 0, 0) for arm in arms.ids(unit, shown).values()])
        lines = [Line(decision_id=number, position=1, events={"click": 1.0}), Line(decision_id=0)]
        result = [FeedbackTransaction(unit, ledger, some, answers=True).outcomes for some in (lines, lines[:1])]
        ledger.close()
        return result

    (first, refused), (second,) = store.write(work)
    assert (first.reward, second.reward, type(refused)) == (1.0, 1.0, InputError)
    with store.read() as unit:
        head = policies.live(unit, ["home"])["home"][1]
        assert unit.ask("SELECT number, seq FROM event ORDER BY number") == [(1, head.seq), (2, head.seq)]
        assert unit.ask_value("SELECT count(*) FROM belief_delta WHERE seq = ?", head.seq) == 2


# -- the past --


def busy_loop(store: Store, chance: random.Random) -> list[tuple[str, int, list[Any]]]:
    """Recommend and tell at random; after every command the seq and the belief of each version, as they stood."""
    observed, answers = list[tuple[str, int, list[Any]]](), list[dict[str, Any]]()
    names = ("home", "ucb", "greedy")
    for step in range(STEPS):
        now = START + step * 20 * SECOND
        if chance.random() < 0.6:
            group = [
                Request(
                    policy=chance.choice(names), session=f"s{chance.randint(1, 9)}", size=chance.randint(1, 3),
                    arms=chance.choice([None, "abc", "cde"]),
                )
                for _ in range(chance.choice([1, 1, 5]))
            ]  # fmt: skip
            result = recommend_group(clock(store, now), group)
            answers += [answer for answer in result if not isinstance(answer, InputError)]
        elif answers:
            answer = chance.choice(answers)
            value = chance.choice([1, -1, 0.3])
            tell(clock(store, now), answer, chance.randint(1, len(answer["slate"])), click=value)
        with store.read() as unit:
            for name, (belief, head) in policies.live(unit, names).items():
                observed.append((name, head.seq, beliefs.sums(unit, belief.id)))
    return observed


def prepared(store: Store) -> Store:
    from rlrec.app.policies import policy

    stocked(clock(store, START), home="thompson")
    floors = {"ucb": {"floor": "0.1"}, "greedy": {"floor": "0.05"}}
    for name, kind in {"ucb": "ucb", "greedy": "epsilon-greedy"}.items():
        policy.create(store, policy.Request(name=name, kind=kind, parameters=floors[name]))
    return store


@pytest.mark.slow
def test_the_belief_of_any_moment_comes_back_bit_for_bit(store: Store) -> None:
    observed = busy_loop(prepared(store), random.Random(5))
    assert len(observed) == 3 * STEPS
    with store.read() as unit:
        live = policies.live(unit, ["home", "ucb", "greedy"])
        for name, seq, rows in observed:
            assert beliefs.sums(unit, live[name][0].id, seq=seq) == rows


@pytest.mark.slow
def test_a_past_belief_gives_the_logged_propensities_again(store: Store) -> None:
    busy_loop(prepared(store), random.Random(6))
    with store.read() as unit:
        ids = [row[0] for row in unit.rows(sa.select(tables.decision.c.id))]
        result = decisions.find(unit, ids)
        assert len(result) > STEPS
        assert max(redrawn(unit, decision) for decision in result.values()) <= 1e-12


def redrawn(unit: Unit, decision: Decision) -> float:
    """The largest difference between what a slate logged and what the belief it names says of it, drawn again."""
    belief = policies.by_id(unit, [decision.version_id])[decision.version_id]
    eligible = np.array(contents.eligible_arms(unit, [decision.eligible_id])[decision.eligible_id])
    served = exact.load(unit, belief, seq=decision.belief_seq)
    case = served.case(0, eligible, {}, keys=arms.keys(unit, eligible.tolist()))
    seeds = np.array([to_unsigned(decision.seed or 0)], np.uint64)
    answers = slate_draws.draw(
        case.scores, size=decision.size, floor=case.floor, seeds=seeds, decisions=np.array([decision.id])
    )
    assert eligible[answers.slates[0]].tolist() == [slot.arm_id for slot in decision.slots]
    logged = [(slot.propensity, slot.marginal, slot.min_propensity) for slot in decision.slots]
    again = np.column_stack([answers.propensity[0], answers.marginal[0], answers.minimum[0]])
    joint = abs(np.log(answers.propensity[0]).sum() - (decision.log_propensity or 0))
    return max(float(np.abs(again - np.array(logged, np.float64)).max()), float(joint))


def test_changes_are_numbered_by_the_transaction_that_made_them(store: Store) -> None:
    stocked(store, home="thompson")
    first, second = ask(store, size=3), ask(store, size=3)
    tell(store, first, 1, click=1)
    with store.read() as unit:
        result = decisions.find(unit, [first["decision_id"], second["decision_id"]])
        effect: list[Event] = events.by_decision(unit, [first["decision_id"]])[first["decision_id"]]
        options = "SELECT seq FROM belief_delta WHERE version_id = ? ORDER BY seq, arm_id"
        deltas = unit.ask(options, version(unit, "home").id)
    assert [(row.belief_seq, row.seq) for row in result.values()] == [(0, 1), (1, 2)]
    assert [event.seq for event in effect] == [3]
    assert [row[0] for row in deltas] == [1, 1, 1, 2, 2, 2, 3]


@pytest.mark.parametrize("words", [("policy", "show", "home"), ("recommend", "--policy", "home", "--session", "s")])
@pytest.mark.parametrize("create", [(), ("--param", "discount=0.9")])
def test_a_belief_with_negative_pulls_is_named(run_sqlite: Run, sqlite_db: str, create: Any, words: Any) -> None:
    begin(run_sqlite, "a", "home", "thompson", *create)
    decision = run_sqlite("recommend", "--policy", "home", "--session", "s", "--json").done().json["decision_id"]
    run_sqlite("feedback", decision, "click").done()
    with closing(Store(sqlite_db)) as store:
        store.write(lambda unit: unit.tell("UPDATE belief SET pulls = -3"))
    answer = run_sqlite(*words).failed(1)
    assert answer.startswith("Error: the store is damaged: the belief of home@1 counts -3 pulls of arm 1")
    assert run_sqlite("doctor").exit_code == 3
