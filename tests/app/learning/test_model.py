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

from rlrec.app.learning import slot_statistics
from rlrec.app.policies import versions
from rlrec.app.requests import settle
from rlrec.app.requests.feedback import Line, feedback, feedback_stream
from rlrec.app.requests.recommend import Request, recommend_group
from rlrec.app.setup import arm
from rlrec.errors import CheckFailed, Conflict, InputError
from rlrec.store import Store
from rlrec.store.database import tables
from rlrec.store.policies import arms, beliefs, policies
from tests.app import shop
from tests.app.defined import defined, gap, remembering
from tests.app.shop import MINUTE, SECOND, START, apart, clock, stocked
from tests.conftest import _create

EXAMPLES = {"sqlite": 15, "postgres": 3}  # were run with 400 and 60
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

    def eligible(self, options: dict[str, Any]) -> set[str]:
        active = {key for key, on in self.arms.items() if on}
        return active if options["arms"] is None else active & set(options["arms"])

    def refusal(self, options: dict[str, Any]) -> type[Exception] | int | None:
        """What a request meets: the decision it had before, an error, or nothing."""
        content = self.content(options)
        if options["request_id"] in self.requests:
            stored, index = self.requests[options["request_id"]]
            return index if stored == content else Conflict
        if any(key not in self.arms for key in options["arms"] or ""):
            return InputError
        if len(self.eligible(options)) < max(1, options["size"]):
            return InputError
        user = self.sessions.get(options["session"], {}).get("user")
        return Conflict if user and options["user"] and user != options["user"] else None

    def content(self, options: dict[str, Any]) -> Any:
        wanted = None if options["arms"] is None else frozenset(options["arms"])
        return options["policy"], options["session"], options["user"], options["size"], wanted

    def drawn(self, options: dict[str, Any], shown: list[str]) -> dict[str, Any]:
        """The decision that a request makes; the store says which arms were drawn."""
        session = self.sessions.setdefault(options["session"], {"user": None, "visit": 0, "last": None, "steps": 0})
        session["user"] = session["user"] or options["user"]
        if session["last"] is None or self.now - session["last"] > TIMEOUT:
            session |= {"visit": session["visit"] + 1, "steps": 0}
        answers = {
            "policy": options["policy"], "arms": shown, "at": self.now, "visit": session["visit"],
            "step": session["steps"], "user": session["user"], "version": self.live[options["policy"]][-1],
            "events": [], "censored": set(),
        }  # fmt: skip
        session |= {"last": self.now, "steps": session["steps"] + 1}
        self.decisions.append(answers)
        if options["request_id"] is not None:
            self.requests[options["request_id"]] = self.content(options), len(self.decisions) - 1
        return answers

    # -- learn --

    def settle(self, name: str) -> int:
        """Decisions older than their window enter: how many slots."""
        overdue = [
            index
            for index, decision in enumerate(self.decisions)
            if decision["policy"] == name and self.now - decision["at"] > WINDOW and index not in self.entered[name]
        ]
        self.entered[name] |= set(overdue)
        return sum(len(self.decisions[index]["arms"]) for index in overdue)

    def worth(self, item: dict[str, Any], position: int | None, *, for_belief: bool = False) -> float:
        """The reward of a slot, or of what happened to the page itself. Only beliefs may count events after the
        window."""
        options = REWARDS[item["policy"]]
        counts_late = for_belief and options.late == "count"
        weights = {k: float(w) for k, w in (piece.split("=") for piece in options.weights.split(", "))}
        result = [
            weights[kind] * value
            for where, kind, value, at in item["events"]
            if where == position and kind in weights and (counts_late or at - item["at"] <= WINDOW)
        ]
        if position is None:
            return sum(result)
        if not result:
            return float(options.default)
        return min(max(sum(result), options.clip[0]), options.clip[1]) if options.clip else sum(result)

    def page(self, item: dict[str, Any]) -> float:
        return sum(self.worth(item, position) for position in [*range(1, len(item["arms"]) + 1), None])

    def belief(self, name: str, *, mature: bool = False) -> dict[str, tuple[float, float, float]]:
        """Sums per arm of the slots that the learning belief holds; mature: of those that a frozen one takes."""
        total: dict[str, list[float]] = {}
        for index, decision in enumerate(self.decisions):
            ripe = self.now - decision["at"] > WINDOW
            held = ripe if mature else REWARDS[name].learn == "served" or index in self.entered[name]
            for position, key in enumerate(decision["arms"], 1):
                if decision["policy"] == name and held and position not in decision["censored"]:
                    r = self.worth(decision, position, for_belief=True)
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
        arm.put(self.tick(), lambda: [[(key, {})]])
        self.model.arms.setdefault(key, True)

    @rule(key=keys, on=st.booleans())
    def retire_or_restore(self, key: str, on: bool) -> None:
        if key not in self.model.arms:
            with pytest.raises(InputError):
                arm.retire(self.tick(), [key], is_retired=not on)
            return
        moved = arm.retire(self.tick(), [key], is_retired=not on)
        assert moved.changed == (self.model.arms[key] != on)
        self.model.arms[key] = on

    @rule(by=st.sampled_from([1, SECOND, 5 * MINUTE, WINDOW, WINDOW + 1, TIMEOUT, TIMEOUT + 1]))
    def wait(self, by: int) -> None:
        self.model.now += by

    # -- the loop --

    @rule(group=st.lists(requests, min_size=1, max_size=3))
    def recommend(self, group: list[dict[str, Any]]) -> None:
        created = [Request(**options) for options in group]
        answers = recommend_group(self.tick(), created)
        claimed: set[str] = set()  # request ids of this group whose session turned out to be somebody else's
        for options, answer in zip(group, answers, strict=True):
            self.answered(options, answer, claimed)
        for options, answer in zip(group, answers, strict=True):
            if isinstance(answer, dict):  # a group gives a session its user in one transaction
                assert answer["user"] == self.model.sessions[options["session"]]["user"]

    def answered(self, options: dict[str, Any], answer: Any, claimed: set[str]) -> None:
        refused = Conflict if options["request_id"] in claimed else self.model.refusal(options)
        if isinstance(refused, type):
            assert type(answer) is refused, (answer, refused)
            if refused is Conflict and options["request_id"] not in {None, *self.model.requests}:
                claimed.add(options["request_id"])
            return
        assert isinstance(answer, dict), answer
        shown = [slot["arm"] for slot in answer["slate"]]
        if isinstance(refused, int):
            decisions = self.model.decisions[refused]
            assert answer["duplicate"]
            assert answer["decision_id"] == decisions["id"]
        else:
            self.model.settle(options["policy"])
            m, k = len(self.model.eligible(options)), options["size"]
            decisions = self.model.drawn(options, shown) | {"id": answer["decision_id"]}
            self.model.decisions[-1] = decisions
            assert not answer["duplicate"]
            assert set(shown) <= self.model.eligible(options)
            if options["policy"] in PLAIN:
                assert [slot["propensity"] for slot in answer["slate"]] == pytest.approx(
                    [1 / (m - p) for p in range(k)]
                )
        assert len(set(shown)) == len(shown) == options["size"]
        assert [answer[name] for name in ("visit", "step", "version")] == [
            decisions[name] for name in ("visit", "step", "version")
        ]
        assert shown == decisions["arms"]

    @rule(line=lines)
    def feedback(self, line: dict[str, Any]) -> None:
        answers, item = self.line(line)
        wanted = self.outcome_of(answers, item)
        if isinstance(wanted, type):
            with pytest.raises(wanted) as caught:
                feedback(self.tick(), answers)
            assert type(caught.value) is wanted
            return
        result = feedback(self.tick(), answers)
        self.model.settle(item["policy"])
        assert (result.events, result.duplicates) == wanted
        assert result.reward == pytest.approx(self.reward(answers, item), abs=1e-9)

    @rule(group=st.lists(lines, min_size=2, max_size=5))
    def feedback_in_a_transaction(self, group: list[dict[str, Any]]) -> None:
        """Good lines are stored and bad ones refused, all in one transaction."""
        refused, settled = 0, set()
        answers = []
        for line in group:
            options, item = self.line(line)
            answers.append(options)
            refused += isinstance(self.outcome_of(options, item), type)
            settled |= {item["policy"]} if item else set()
        reported: list[InputError] = []
        summary = feedback_stream(self.tick(), lambda: [answers], quarantine=True, reject=reported.append)
        for name in settled:
            self.model.settle(name)
        assert (summary.rejected, len(reported)) == (refused, refused)

    def line(self, line: dict[str, Any]) -> tuple[Line, dict[str, Any] | None]:
        decisions = self.model.decisions
        item = decisions[line["decision"] % len(decisions)] if decisions and line["decision"] >= 0 else None
        at = None if line["age"] is None else (item["at"] if item else START) + line["age"]
        retained = {name: line[name] for name in ("position", "events", "key", "censor")}
        return Line(decision_id=item["id"] if item else 10**9, at=at, **retained), item

    def outcome_of(self, line: Line, item: dict[str, Any] | None) -> type[Exception] | tuple[int, int]:
        """What the store should say of a line; the model takes it in."""
        size = len(item["arms"]) if item else 0
        if item is None or (line.position or 1) > size:
            return InputError
        position = 1 if size == 1 else line.position
        count = len(line.events) + (line.censor is not None)
        content = item["id"], position, {k: float(v) for k, v in line.events.items()}, line.censor, line.at
        if line.key in self.model.keys:
            return (0, count) if self.model.keys[line.key] == content else Conflict
        at = self.model.now if line.at is None else line.at
        if not count or not item["at"] <= at <= self.model.now:
            return InputError
        item["events"] += [(position, kind, value, at) for kind, value in line.events.items()]
        if line.censor is not None:
            positions = set(range(1, size + 1)) if line.position is None else {line.position}
            item["censored"] = item["censored"] | positions if line.censor else item["censored"] - positions
        if line.key is not None:
            self.model.keys[line.key] = content
        return count, 0

    def reward(self, line: Line, item: dict[str, Any]) -> float:
        if len(item["arms"]) == 1 or line.position is not None:
            return self.model.worth(item, line.position or 1)
        return self.model.page(item)

    @rule()
    def settle(self) -> None:
        settling = [name for name in NAMES if REWARDS[name].learn == "settled"]
        settled = sum(self.model.settle(name) for name in settling)
        waiting = [
            len(decision["arms"])
            for index, decision in enumerate(self.model.decisions)
            if decision["policy"] in settling and index not in self.model.entered[decision["policy"]]
        ]
        assert settle.settle(self.tick()) == settle.Result(settled=settled, open=sum(waiting))

    # -- versions --

    @rule(name=names)
    def freeze(self, name: str) -> None:
        answers = versions.freeze(self.tick(), f"{name}@1")
        self.model.frozen[name].append(self.model.belief(name, mature=True))
        assert answers["version"] == len(self.model.frozen[name]) + 1

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
            shown = {item.id: item.key for item in arms.all_arms(unit)}
            for name in live:
                result = policies.versions(unit, [live[name][0].policy.id])
                right = [self.model.belief(name), *self.model.frozen[name]]
                if name in REMEMBERING:
                    now = policies.ordinal(unit, result[0].policy.id)
                    assert (
                        gap(slot_statistics.stored_sums(unit, result[0], ordinal=now), defined(unit, result[0])) < 1e-9
                    )
                    continue
                for version, wanted in zip(result, right, strict=True):
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
            reported = unit.ask_value("SELECT count(*) FROM event WHERE kind <> '!censor'")
            answers = unit.ask_value("SELECT count(*) FROM decision")
            stored = unit.ask_value("SELECT count(*) FROM feedback_key")
        newest = {key: (number, steps, last) for key, number, steps, last in visits}
        assert newest == {
            key: (session["visit"], session["steps"], session["last"]) for key, session in self.model.sessions.items()
        }
        assert reported == sum(len(decision["events"]) for decision in self.model.decisions)
        assert (answers, stored) == (len(self.model.decisions), len(self.model.keys))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_store_and_its_model_agree(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    answers: list[Store] = []

    def make() -> Store:
        if kind == "sqlite":
            path = tmp_path / f"{uuid.uuid4().hex}.db"
            shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
            answers.append(Store(str(path)))
        else:
            template = request.getfixturevalue("postgres_template")
            answers.append(Store(_create(request.getfixturevalue("postgres_server"), f"m{uuid.uuid4().hex}", template)))
        answers[-1].notice = lambda _: None
        return answers[-1]

    few = settings(
        max_examples=EXAMPLES[kind], stateful_step_count=STEPS, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    run_state_machine_as_test(lambda: Commands(make), settings=few)
