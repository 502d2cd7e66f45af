"""The ledger against a model of it in plain dicts: any sequence of commands leaves both with the same answers."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rlrec.app import arm, settle, versions
from rlrec.app.feedback import Line, feedback, feedback_stream
from rlrec.app.learning import slot_statistics
from rlrec.app.recommend import Request, recommend_group
from rlrec.errors import CheckFailed, Conflict, InputError
from rlrec.store import Store, arms, beliefs, policies, tables
from tests.app import shop
from tests.app.defined import defined, gap, remembering
from tests.app.shop import MINUTE, SECOND, START, apart, clock, stocked
from tests.conftest import _create

EXAMPLES = {"sqlite": 25, "postgres": 5}  # were run with 400 and 60
STEPS = 40
PLAIN = ("counted", "ignored", "plain", "dwell", "settled", "settled-dwell")
REMEMBERING = {"fades": "ignored", "sees-fading": "settled-dwell"}  # the policies that forget or see contexts
NAMES = (*PLAIN, *REMEMBERING)
REWARDS = shop.REWARDS | {name: shop.REWARDS[learns] for name, learns in REMEMBERING.items()}
WINDOW, TIMEOUT = 10 * MINUTE, 30 * MINUTE

names = st.sampled_from(NAMES)
keys = st.sampled_from("abcdef")
requests = st.fixed_dictionaries(
    {
        "policy": names,
        "session": st.sampled_from(["s0", "s1", "s2"]),
        "user": st.sampled_from([None, None, "u0", "u1"]),
        "size": st.integers(1, 3),
        "arms": st.sampled_from([None, None, None, "ab", "bca", "f"]),
        "request_id": st.sampled_from([None, None, "r0", "r1", "r2"]),
    }
)
lines = st.fixed_dictionaries(
    {
        "decision": st.integers(-1, 60),
        "position": st.sampled_from([None, 1, 1, 2, 3]),
        "events": st.dictionaries(
            st.sampled_from(["click", "dwell_s", "seen"]), st.sampled_from([1, 1.0, 2, -1, -3, 0.7]), max_size=2
        ),
        "age": st.sampled_from([None, None, None, 0, SECOND, WINDOW, WINDOW + 1, -1, 10**15]),
        "key": st.sampled_from([None, None, "k0", "k1", "k2"]),
        "censor": st.sampled_from([None, None, None, None, True, False]),
    }
)


class Model:
    """What a store holds, in words that a person would use."""

    def __init__(self) -> None:
        self.now = START
        self.arms: dict[str, bool] = {}  # whether it is active
        self.sessions: dict[str, dict[str, Any]] = {}
        self.decisions: list[dict[str, Any]] = []
        self.requests: dict[str, tuple[Any, int]] = {}
        self.keys: dict[str, Any] = {}
        self.entered: dict[str, set[int]] = {name: set() for name in NAMES}
        self.frozen: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
        self.live: dict[str, list[int]] = {name: [1] for name in NAMES}  # the last one is live

    # -- draw --

    def eligible(self, asked: dict[str, Any]) -> set[str]:
        active = {key for key, on in self.arms.items() if on}
        return active if asked["arms"] is None else active & set(asked["arms"])

    def refusal(self, asked: dict[str, Any]) -> type[Exception] | int | None:
        """What a request meets: the decision it had before, an error, or nothing."""
        content = self.content(asked)
        if asked["request_id"] in self.requests:
            known, place = self.requests[asked["request_id"]]
            return place if known == content else Conflict
        if any(key not in self.arms for key in asked["arms"] or ""):
            return InputError
        if len(self.eligible(asked)) < max(1, asked["size"]):
            return InputError
        user = self.sessions.get(asked["session"], {}).get("user")
        return Conflict if user and asked["user"] and user != asked["user"] else None

    def content(self, asked: dict[str, Any]) -> Any:
        wanted = None if asked["arms"] is None else frozenset(asked["arms"])
        return asked["policy"], asked["session"], asked["user"], asked["size"], wanted

    def drawn(self, asked: dict[str, Any], shown: list[str]) -> dict[str, Any]:
        """The decision that a request makes; the store says which arms were drawn."""
        session = self.sessions.setdefault(asked["session"], {"user": None, "visit": 0, "last": None, "steps": 0})
        session["user"] = session["user"] or asked["user"]
        if session["last"] is None or self.now - session["last"] > TIMEOUT:
            session |= {"visit": session["visit"] + 1, "steps": 0}
        made = {
            "policy": asked["policy"], "arms": shown, "at": self.now, "visit": session["visit"],
            "step": session["steps"], "user": session["user"], "version": self.live[asked["policy"]][-1],
            "events": [], "censored": set(),
        }  # fmt: skip
        session |= {"last": self.now, "steps": session["steps"] + 1}
        self.decisions.append(made)
        if asked["request_id"] is not None:
            self.requests[asked["request_id"]] = self.content(asked), len(self.decisions) - 1
        return made

    # -- learn --

    def settle(self, name: str) -> int:
        """Decisions older than their window enter: how many slots."""
        overdue = [
            place
            for place, one in enumerate(self.decisions)
            if one["policy"] == name and self.now - one["at"] > WINDOW and place not in self.entered[name]
        ]
        self.entered[name] |= set(overdue)
        return sum(len(self.decisions[place]["arms"]) for place in overdue)

    def worth(self, one: dict[str, Any], position: int | None) -> float:
        """The reward of a slot, or of what happened to the page itself."""
        asked = REWARDS[one["policy"]]
        weights = {k: float(w) for k, w in (part.split("=") for part in asked.weights.split(", "))}
        found = [
            weights[kind] * value
            for where, kind, value, at in one["events"]
            if where == position and kind in weights and (asked.late == "count" or at - one["at"] <= WINDOW)
        ]
        if position is None:
            return sum(found)
        if not found:
            return float(asked.default)
        return min(max(sum(found), asked.clip[0]), asked.clip[1]) if asked.clip else sum(found)

    def page(self, one: dict[str, Any]) -> float:
        return sum(self.worth(one, position) for position in [*range(1, len(one["arms"]) + 1), None])

    def belief(self, name: str, *, mature: bool = False) -> dict[str, tuple[float, float, float]]:
        """Sums per arm of the slots that the learning belief holds; mature: of those that a frozen one takes."""
        total: dict[str, list[float]] = {}
        for place, one in enumerate(self.decisions):
            ripe = self.now - one["at"] > WINDOW
            held = ripe if mature else REWARDS[name].learn == "served" or place in self.entered[name]
            for position, key in enumerate(one["arms"], 1):
                if one["policy"] == name and held and position not in one["censored"]:
                    r = self.worth(one, position)
                    sums = total.setdefault(key, [0.0, 0.0, 0.0])
                    total[key] = [sums[0] + 1, sums[1] + r, sums[2] + r * r]
        return {key: (row[0], row[1], row[2]) for key, row in total.items()}


class Commands(RuleBasedStateMachine):
    """Each rule gives a command to the store and to the model, and compares what they say."""

    def __init__(self, make: Callable[[], Store]) -> None:
        super().__init__()
        self.store = make()
        self.model = Model()

    @initialize()
    def stock(self) -> None:
        stocked(self.tick(), arms="abcd", **{name: f"uniform/{name}" for name in PLAIN})
        for name, learns in REMEMBERING.items():
            remembering(self.tick(), name, learns=learns)
        self.model.arms = dict.fromkeys("abcd", True)

    def tick(self) -> Store:
        return clock(self.store, self.model.now)

    def teardown(self) -> None:
        self.store.close()

    # -- the catalogue and time --

    @rule(key=keys)
    def add(self, key: str) -> None:
        arm.put(self.tick(), lambda: [[arm.ArmFeatures(arm=key, features={})]])
        self.model.arms.setdefault(key, True)

    @rule(key=keys, on=st.booleans())
    def retire_or_restore(self, key: str, on: bool) -> None:
        if key not in self.model.arms:
            with pytest.raises(InputError):
                arm.retire(self.tick(), [key], retired=not on)
            return
        moved = arm.retire(self.tick(), [key], retired=not on)
        assert moved.changed == (self.model.arms[key] != on)
        self.model.arms[key] = on

    @rule(by=st.sampled_from([1, SECOND, 5 * MINUTE, WINDOW, WINDOW + 1, TIMEOUT, TIMEOUT + 1]))
    def wait(self, by: int) -> None:
        self.model.now += by

    # -- the loop --

    @rule(group=st.lists(requests, min_size=1, max_size=3))
    def recommend(self, group: list[dict[str, Any]]) -> None:
        made = [Request(**asked) for asked in group]
        answers = recommend_group(self.tick(), made)
        claimed: set[str] = set()  # request ids of this group whose session turned out to be somebody else's
        for asked, answer in zip(group, answers, strict=True):
            self.answered(asked, answer, claimed)
        for asked, answer in zip(group, answers, strict=True):
            if isinstance(answer, dict):  # a group gives a session its user in one transaction
                assert answer["user"] == self.model.sessions[asked["session"]]["user"]

    def answered(self, asked: dict[str, Any], answer: Any, claimed: set[str]) -> None:
        refused = Conflict if asked["request_id"] in claimed else self.model.refusal(asked)
        if isinstance(refused, type):
            assert type(answer) is refused, (answer, refused)
            if refused is Conflict and asked["request_id"] not in {None, *self.model.requests}:
                claimed.add(asked["request_id"])
            return
        assert isinstance(answer, dict), answer
        shown = [slot["arm"] for slot in answer["slate"]]
        if isinstance(refused, int):
            one = self.model.decisions[refused]
            assert answer["duplicate"]
            assert answer["decision_id"] == one["id"]
        else:
            self.model.settle(asked["policy"])
            m, k = len(self.model.eligible(asked)), asked["size"]
            one = self.model.drawn(asked, shown) | {"id": answer["decision_id"]}
            self.model.decisions[-1] = one
            assert not answer["duplicate"]
            assert set(shown) <= self.model.eligible(asked)
            if asked["policy"] in PLAIN:
                assert [slot["propensity"] for slot in answer["slate"]] == pytest.approx(
                    [1 / (m - p) for p in range(k)]
                )
        assert len(set(shown)) == len(shown) == asked["size"]
        assert [answer[name] for name in ("visit", "step", "version")] == [
            one[name] for name in ("visit", "step", "version")
        ]
        assert shown == one["arms"]

    @rule(line=lines)
    def feedback(self, line: dict[str, Any]) -> None:
        made, one = self.line(line)
        wanted = self.told(made, one)
        if isinstance(wanted, type):
            with pytest.raises(wanted) as caught:
                feedback(self.tick(), made)
            assert type(caught.value) is wanted
            return
        said = feedback(self.tick(), made)
        self.model.settle(one["policy"])
        assert (said.events, said.duplicates) == wanted
        assert said.reward == pytest.approx(self.reward(made, one), abs=1e-9)

    @rule(group=st.lists(lines, min_size=2, max_size=5))
    def feedback_in_one_transaction(self, group: list[dict[str, Any]]) -> None:
        """Good lines are stored and bad ones refused, all in one transaction."""
        refused, settled = 0, set()
        made = []
        for line in group:
            asked, one = self.line(line)
            made.append(asked)
            refused += isinstance(self.told(asked, one), type)
            settled |= {one["policy"]} if one else set()
        told: list[InputError] = []
        summary = feedback_stream(self.tick(), lambda: [made], quarantine=True, rejected=told.append)
        for name in settled:
            self.model.settle(name)
        assert (summary.rejected, len(told)) == (refused, refused)

    def line(self, line: dict[str, Any]) -> tuple[Line, dict[str, Any] | None]:
        known = self.model.decisions
        one = known[line["decision"] % len(known)] if known and line["decision"] >= 0 else None
        at = None if line["age"] is None else (one["at"] if one else START) + line["age"]
        kept = {name: line[name] for name in ("position", "events", "key", "censor")}
        return Line(decision_id=one["id"] if one else 10**9, at=at, **kept), one

    def told(self, line: Line, one: dict[str, Any] | None) -> type[Exception] | tuple[int, int]:
        """What the store should say of a line; the model takes it in."""
        size = len(one["arms"]) if one else 0
        if one is None or (line.position or 1) > size:
            return InputError
        position = 1 if size == 1 else line.position
        count = len(line.events) + (line.censor is not None)
        content = one["id"], position, {k: float(v) for k, v in line.events.items()}, line.censor, line.at
        if line.key in self.model.keys:
            return (0, count) if self.model.keys[line.key] == content else Conflict
        at = self.model.now if line.at is None else line.at
        if not count or not one["at"] <= at <= self.model.now:
            return InputError
        one["events"] += [(position, kind, value, at) for kind, value in line.events.items()]
        if line.censor is not None:
            positions = set(range(1, size + 1)) if line.position is None else {line.position}
            one["censored"] = one["censored"] | positions if line.censor else one["censored"] - positions
        if line.key is not None:
            self.model.keys[line.key] = content
        return count, 0

    def reward(self, line: Line, one: dict[str, Any]) -> float:
        if len(one["arms"]) == 1 or line.position is not None:
            return self.model.worth(one, line.position or 1)
        return self.model.page(one)

    @rule()
    def settle(self) -> None:
        settling = [name for name in NAMES if REWARDS[name].learn == "settled"]
        settled = sum(self.model.settle(name) for name in settling)
        waiting = [
            len(one["arms"])
            for place, one in enumerate(self.model.decisions)
            if one["policy"] in settling and place not in self.model.entered[one["policy"]]
        ]
        assert settle.settle(self.tick()) == settle.Result(settled=settled, open=sum(waiting))

    # -- versions --

    @rule(name=names)
    def freeze(self, name: str) -> None:
        made = versions.freeze(self.tick(), f"{name}@1")
        self.model.frozen[name].append(self.model.belief(name, mature=True))
        assert made["version"] == len(self.model.frozen[name]) + 1

    @precondition(lambda self: any(self.model.frozen.values()))
    @rule(name=names, number=st.integers(1, 4))
    def promote(self, name: str, number: int) -> None:
        if number > len(self.model.frozen[name]) + 1:
            with pytest.raises(InputError):
                versions.promote(self.tick(), f"{name}@{number}")
            return
        assert versions.promote(self.tick(), f"{name}@{number}")["previous"] == self.model.live[name][-1]
        if self.model.live[name][-1] != number:
            self.model.live[name].append(number)

    @rule(name=names)
    def rollback(self, name: str) -> None:
        if len(self.model.live[name]) == 1:
            with pytest.raises(CheckFailed):
                versions.rollback(self.tick(), name)
            return
        self.model.live[name].pop()
        assert versions.rollback(self.tick(), name)["version"] == self.model.live[name][-1]

    # -- what always holds --

    @invariant()
    def beliefs_agree(self) -> None:
        with self.tick().read() as unit:
            live = policies.live(unit, NAMES)
            shown = {one.id: one.key for one in arms.every(unit)}
            for name in live:
                found = policies.versions(unit, [live[name][0].policy.id])
                right = [self.model.belief(name), *self.model.frozen[name]]
                if name in REMEMBERING:
                    now = policies.ordinal(unit, found[0].policy.id)
                    assert gap(slot_statistics.stored_sums(unit, found[0], ordinal=now), defined(unit, found[0])) < 1e-9
                    continue
                for version, wanted in zip(found, right, strict=True):
                    held = {shown[row[0]]: row[1:] for row in beliefs.sums(unit, version.id)}
                    assert apart(held, wanted) < 1e-9

    @invariant()
    def counts_agree(self) -> None:
        with self.tick().read() as unit:
            visits = unit.rows(
                sa.select(tables.session.c.key, tables.visit.c.number, tables.visit.c.steps, tables.visit.c.last_at)
                .join(tables.session, tables.session.c.id == tables.visit.c.session_id)
                .order_by(tables.visit.c.number)
            )
            told = unit.ask_value("SELECT count(*) FROM event WHERE kind <> '!censor'")
            made = unit.ask_value("SELECT count(*) FROM decision")
            known = unit.ask_value("SELECT count(*) FROM feedback_key")
        newest = {key: (number, steps, last) for key, number, steps, last in visits}
        assert newest == {key: (one["visit"], one["steps"], one["last"]) for key, one in self.model.sessions.items()}
        assert told == sum(len(one["events"]) for one in self.model.decisions)
        assert (made, known) == (len(self.model.decisions), len(self.model.keys))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_store_and_its_model_agree(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    made: list[Store] = []

    def make() -> Store:
        if kind == "sqlite":
            path = tmp_path / f"{uuid.uuid4().hex}.db"
            shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
            made.append(Store(str(path)))
        else:
            template = request.getfixturevalue("postgres_template")
            made.append(Store(_create(request.getfixturevalue("postgres_server"), f"m{uuid.uuid4().hex}", template)))
        made[-1].notice = lambda _: None
        return made[-1]

    few = settings(
        max_examples=EXAMPLES[kind], stateful_step_count=STEPS, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    run_state_machine_as_test(lambda: Commands(make), settings=few)
