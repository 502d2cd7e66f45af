"""A small shop to test the ledger on: arms, rewards of every manner of learning, and beliefs added up anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from tempfile import NamedTemporaryFile
from typing import Any

import sqlalchemy as sa

from rlrec.app.log import reward_log
from rlrec.app.policies import policy
from rlrec.app.requests.feedback import Line, feedback, feedback_stream
from rlrec.app.requests.recommend import Answer, Request, recommend
from rlrec.app.setup import arm, reward
from rlrec.records import Version
from rlrec.store import Store, Unit
from rlrec.store.database.tables import metadata
from rlrec.store.log import decisions, reader
from rlrec.store.policies import beliefs, policies
from rlrec.store.policies.beliefs import Sums
from tests.conftest import Run

START = 1_800_000_000_000_000
SECOND = 1_000_000
MINUTE = 60 * SECOND

REWARDS = {
    "counted": reward.Request(name="counted", weights="click=1", window_us=10 * MINUTE, clip=(0, 1)),
    "ignored": reward.Request(name="ignored", weights="click=1", window_us=10 * MINUTE, clip=(0, 1), late="ignore"),
    "plain": reward.Request(name="plain", weights="click=1", window_us=10 * MINUTE),
    "dwell": reward.Request(name="dwell", weights="click=1, dwell_s=0.013", window_us=10 * MINUTE, default=0.1),
    "settled": reward.Request(
        name="settled", weights="click=1", window_us=10 * MINUTE, clip=(0, 1), learn="settled"
    ),
    "settled-dwell": reward.Request(
        name="settled-dwell", weights="click=1, dwell_s=0.013", window_us=10 * MINUTE, default=-0.3, learn="settled",
        late="ignore",
    ),
}  # fmt: skip


def clock(store: Store, now: int | None) -> Store:
    """The same store under another clock, which may lie ahead."""
    store.now, store.allow_future = now, True
    return store


def stocked(store: Store, *, arms: Sequence[str] = "abcde", **kinds: str) -> Store:
    """Arms, every reward above, and policies by name: KIND, or KIND/REWARD."""
    arm.put(store, lambda: [[(key, {}) for key in arms]])
    for definition in REWARDS.values():
        reward.define(store, definition)
    for name, what in kinds.items():
        kind, _, learns = what.partition("/")
        policy.create(store, policy.Request(name=name, kind=kind, reward=learns or "default"))
    return store


def ask(store: Store, name: str = "home", session: str = "s", size: int = 1, **options: Any) -> Answer:
    seed = options.pop("seed", None)
    return recommend(store, Request(policy=name, session=session, size=size, **options), seed=seed)


def tell(store: Store, decision: Answer | int, position: int | None = None, **options: Any) -> Any:
    number = decision if isinstance(decision, int) else decision["decision_id"]
    retained = {name: options.pop(name) for name in ("at", "key", "censor") if name in options}
    return feedback(store, Line(decision_id=number, position=position, events=options, **retained))


def tell_all(store: Store, lines: Sequence[Line]) -> None:
    """All lines in one group; none may be refused."""
    feedback_stream(store, lambda: [lines], quarantine=True, reject=_raise)


def _raise(error: Exception) -> None:
    raise error


def version(unit: Unit, name: str, number: int | None = None) -> Version:
    """The live version of a policy, or that number."""
    live = policies.live(unit, [name])[name][0]
    every = policies.versions(unit, [live.policy.id])
    return live if number is None else next(item for item in every if item.number == number)


def sums(store: Store, name: str, number: int | None = None) -> dict[int, Sums]:
    """The belief that is served, without arms that count nothing."""
    with store.read() as unit:
        rows = beliefs.sums(unit, version(unit, name, number).id)
    return {row[0]: row[1:] for row in rows if any(row[1:])}


def added_up(store: Store, name: str) -> dict[int, Sums]:
    """The belief of version 1 as its slots and events give it, past every difference that was ever added."""
    total: dict[int, Sums] = {}
    with store.read() as unit:
        belief = version(unit, name, 1)
        last = decisions.newest_id(unit, belief.policy.id) if belief.entered_to is None else belief.entered_to
        for batch in reader.ranges(unit, belief.policy.id, first=1, last=last):
            result = reward_log.with_rewards(batch, belief.reward, settled_only=False)
            retained = zip(
                result.slots["arm_id"].tolist(), result.reward.tolist(), ~result.slots["censored"], strict=True
            )
            for arm_id, earned in [(arm_id, earned) for arm_id, earned, counts in retained if counts]:
                pulls, rewards, squares = total.get(arm_id, (0.0, 0.0, 0.0))
                total[arm_id] = pulls + 1, rewards + earned, squares + earned**2
    return {arm_id: row for arm_id, row in total.items() if any(row)}


def apart(item: Mapping[int, Sums], other: Mapping[int, Sums]) -> float:
    """The largest difference of two beliefs."""
    pairs = [(item.get(key, (0, 0, 0)), other.get(key, (0, 0, 0))) for key in item.keys() | other.keys()]
    return max((abs(a - b) for left, right in pairs for a, b in zip(left, right, strict=True)), default=0.0)


def dump(store: Store, *, without: Iterable[str] = ()) -> dict[str, list[Any]]:
    """Every row of every table, to tell whether anything changed."""
    left_out = set(without)
    with store.read() as unit:
        return {
            table.name: sorted(map(repr, unit.rows(sa.select(table))))
            for table in metadata.sorted_tables
            if table.name not in left_out
        }


def fixed(run: Run, name: str, probabilities: Mapping[str, float], *words: str) -> None:
    """A policy that shows each arm with the same probability to everybody; words: further options."""
    table = "".join(f"{arm},{probability}\n" for arm, probability in probabilities.items())
    with NamedTemporaryFile("w", suffix=".csv") as file:
        file.write(f"arm,probability\n{table}")
        file.flush()
        run("policy", "create", name, "--kind", "fixed", "--param", f"probabilities={file.name}", *words).done()
