"""Machines in the news audience: how many of them, and of the people, the check names; and whether a store that leaves
them out says what one says that never had them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rlrec.app.audit.draws import machine_sessions
from rlrec.app.policies import policy
from rlrec.app.setup import init, simulate
from rlrec.app.setup.simulate import VisitWorld
from rlrec.arrays import Index
from rlrec.simulate.news import BOT_TRAIT, News
from rlrec.store import Store
from tests.benchmarks.measure import Figure, Setting, rlrec, said

SEEDS, SESSIONS, SLOTS = 6, 1_500, (2, 3, 5)
NAMED, MISTAKEN = 0.95, 0.01


def read_news(path: Path, *, size: int, seed: int, **parameters: str) -> dict[str, bool]:
    """Whether each unit, by its key, is a machine, of a new store that served the audience pages of so many slots."""
    machines, serve_seats = dict[str, bool](), VisitWorld._serve_seats

    def serve_and_note(world: VisitWorld, seats: Index) -> None:
        assert isinstance(world.audience, News)
        session_keys = (world._session_key(number) for number in world.crowd.visit[seats].tolist())
        user_keys, is_anonymous = (
            map(world._visitor_key, world.crowd.visitor[seats].tolist()),
            world._is_anonymous[seats].tolist(),
        )
        traits = world.audience.traits[seats].tolist()
        for session, user, anonymous, trait in zip(session_keys, user_keys, is_anonymous, traits, strict=True):
            machines[session if anonymous else user] = trait == BOT_TRAIT
        serve_seats(world, seats)

    options: dict[str, Any] = {"environment": "news", "policy": "clicks", "sessions": SESSIONS, "group": 100}
    with closing(Store(str(path))) as store, patch.object(VisitWorld, "_serve_seats", serve_and_note):
        init.init(store)
        policy.create(store, policy.Request(name="clicks", kind="thompson", parameters={"floor": "0.05"}))
        simulate.simulate(store, simulate.Request(size=size, seed=seed, parameters=parameters, **options))
    return machines


def named_units(path: Path) -> set[str]:
    """The keys of the units that the check names."""
    with closing(Store(str(path))) as store, store.read() as unit:
        units = machine_sessions.find_machines(unit)
        keys: dict[str, dict[int, str]] = {
            table: dict(unit.ask(f"SELECT id, key FROM {table}")) for table in ("users", "session")
        }
    return {keys["session"][session] if user is None else keys["users"][user] for user, session in units}


def bots(setting: Setting) -> Iterator[Figure]:
    """Shares, the worst of some seeds: pages of two slots are the hardest, where people click both, too."""
    seeds = range(1, 1 + max(1, round(SEEDS * setting.scale)))
    for size in SLOTS:
        shares = list[tuple[float, float]]()
        for seed in seeds:
            machines = read_news(path := setting.path(".db"), size=size, seed=seed)
            named, total = named_units(path), sum(machines.values())
            hits = sum(machines[key] for key in named)
            shares.append((hits / total, (len(named) - hits) / (len(machines) - total)))
        name = f"pages of {size} slots, the worst of {len(shares)} seeds"
        yield Figure(name=f"{name}: machines that are named", value=min(shares)[0], unit="", at_least=NAMED)
        worst = max(mistaken for _, mistaken in shares)
        yield Figure(name=f"{name}: people who are", value=worst, unit="", at_most=MISTAKEN)
    yield from left_out(setting)


def left_out(setting: Setting) -> Iterator[Figure]:
    """A store that leaves the machines out, and a copy in which they were forgotten."""
    machines = read_news(excluding := setting.path(".db"), size=5, seed=1, anonymous="0")
    keys, other = [key for key, is_machine in machines.items() if is_machine], setting.path(".db")
    other.unlink()
    ask(excluding, "db", "backup", other)
    ask(excluding, "log", "exclude", "bots", "--where", f"user={'+'.join(keys)}")
    for key in keys:
        ask(other, "db", "forget", "--user", key, "--yes")
    answers = []
    for path in (excluding, other):
        ask(path, "policy", "rebuild", "clicks")
        curve = [row["examination"] for row in ask(path, "position", "fit", "curve")["positions"]]
        arms = ask(path, "policy", "show", "clicks@2", "--all")["arms"]
        beliefs = [row[name] or 0.0 for row in arms for name in ("pulls", "mean")]
        outcomes = [row["value"] or 0.0 for row in ask(path, "outcomes")["outcomes"]]
        answers.append({"curve": curve, "beliefs": beliefs, "outcomes": outcomes})
    for name, values in answers[0].items():
        furthest = max(abs(value - rival) for value, rival in zip(values, answers[1][name], strict=True))
        text = f"{name} without {len(keys)} machines, and where they were forgotten: furthest apart"
        yield Figure(name=text, value=furthest, unit="", at_most=1e-12)


def ask(path: Path, *words: object) -> Any:
    """The answer of a command."""
    return json.loads(said(rlrec("-q", "--db", path, *words, "--json")))
