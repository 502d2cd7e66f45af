"""rlrec user: one person under several keys is one user, from then on and in all that is derived from the past."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlrec
from rlrec.app.log import partitions
from rlrec.app.requests import user
from rlrec.app.requests.pipe import Pipe, Request
from rlrec.store import Store
from tests.app.shop import added_up, apart, ask, dump, stocked, sums, tell
from tests.app.workers import together
from tests.conftest import ON_BOTH, Run, empty_store, runner

HOUR = 3_600_000_000
FIRST = 1_767_225_600_000_000  # 2026-01-01
PEOPLE, VISITS = 12, 5
WINDOWS = ("1d", "3d")


def at(run: Run, time: str, *words: object) -> Any:
    return run("--now", f"2026-01-{time}:00:00Z", *words, "--json").done().json


def sound(run: Run, time: str = "31T00") -> None:
    done = run("--now", f"2026-01-{time}:00:00Z", "doctor", "--json")
    findings = [row for row in done.json["findings"] if row["severity"] != "info"]
    assert [row for row in findings if row["check"] not in ("starving", "entropy", "drift")] == []


@pytest.fixture
def shop(run: Run) -> Run:
    for words in (
        "arm add a", "arm add b", "reward define back return=1 --window 30d --clip 0,1",
        "policy create home --kind thompson --reward back", "policy create even --kind uniform",
    ):  # fmt: skip
        at(run, "01T00", *words.split())
    return run


def visit(run: Run, time: str, key: str, session: str, target: str = "home") -> Any:
    option = "--experiment" if target == "ab" else "--policy"
    return at(run, time, "recommend", option, target, "--session", session, "--user", key)


# -- what a merge does --


@ON_BOTH
def test_both_keys_serve_one_user_from_then_on(shop: Run) -> None:
    visit(shop, "02T00", "anon", "s1")
    merged = at(shop, "02T01", "user", "merge", "anon", "--into", "u1")
    assert {name: merged[name] for name in ("user", "into", "merged", "created", "sessions", "returns")} == {
        "user": "anon", "into": "u1", "merged": True, "created": ["u1"], "sessions": 1, "returns": 0,
    }  # fmt: skip
    assert [visit(shop, "03T00", key, f"{key}-2")["user"] for key in ("anon", "u1")] == ["u1", "u1"]
    goes_on = visit(shop, "03T00", "anon", "u1-2")  # the session of the other key
    assert (goes_on["user"], goes_on["step"]) == ("u1", 1)
    dry = shop("recommend", "--policy", "home", "--session", "new", "--user", "anon", "--dry-run", "--json").json
    assert dry["user"] == "u1"
    shown = [at(shop, "04T00", "user", "show", key) for key in ("u1", "anon")]
    assert shown[0] == shown[1]
    assert shown[0] == {"user": "u1", "keys": ["u1", "anon"]}
    assert at(shop, "04T00", "status")["users"] == 1
    sound(shop)


def test_a_session_without_a_user_takes_the_person(shop: Run) -> None:
    at(shop, "02T00", "recommend", "--policy", "home", "--session", "s1")
    at(shop, "02T00", "user", "merge", "anon", "--into", "u1")
    assert visit(shop, "02T00", "anon", "s1")["user"] == "u1"
    assert visit(shop, "02T00", "u1", "s1")["step"] == 2
    other = shop("recommend", "--policy", "home", "--session", "s1", "--user", "u2")
    assert (other.exit_code, other.stderr.count("\n"), "belongs to user 'u1', not 'u2'" in other.stderr) == (6, 1, True)


def test_returns_are_those_of_one_person(shop: Run) -> None:
    """u1 came on days 2, 4 and 6, and as anon on days 3 and 5: each decision was returned to a day later."""
    for day, key in (("02", "u1"), ("03", "anon"), ("04", "u1"), ("05", "anon"), ("06", "u1")):
        visit(shop, f"{day}T00", key, f"s{day}")
    assert at(shop, "07T00", "user", "merge", "anon", "--into", "u1")["returns"] == 3 + 4
    rows = shop("--now", "2026-01-07", "export-log", "-").lines
    events = [[(event["at"][8:10], event["value"]) for event in row["events"]] for row in rows]
    assert events == [
        [("04", 1), ("04", -1), ("03", 1)], [("05", 1), ("05", -1), ("04", 1)],
        [("06", 1), ("06", -1), ("05", 1)], [("06", 1)], [],
    ]  # fmt: skip
    assert [row["reward"] for row in rows] == [1, 1, 1, 1, 0]
    visit(shop, "08T00", "anon", "s8")
    sound(shop)
    pulls = {row["arm"]: row["reward_sum"] for row in at(shop, "09T00", "policy", "show", "home")["arms"]}
    assert sum(pulls.values()) == 5


# -- the same as if there had been one key --


def lived(db: str, key: Callable[[int, int], str], *, merged: bool) -> None:
    """People who come several times, each visit under one of their keys; draws follow the seed alone."""
    chance = random.Random(5)
    store = rlrec.open(db, now="2026-01-01T00:00:00Z")
    for arm in "abc":
        store.arm.add(arm)
    for window in WINDOWS:
        store.reward.define(f"w{window}", "click=0.5,return=1", window=window)
    store.policy.create("even", kind="uniform")
    visits = sorted((chance.randrange(2 * 24, 24 * 24), person) for person in range(PEOPLE) for _ in range(VISITS))
    for number, (hours, person) in enumerate(visits):
        store.store.now = FIRST + hours * HOUR
        shown = store.recommend("even", session=f"s{number}", user=key(person, number), k=2, seed=7)
        if shown["slate"][0]["arm"] == "a":
            store.feedback(shown["decision_id"], {"click": 1.0}, position=1)
    store.store.now = FIRST + 29 * 24 * HOUR
    for person in range(PEOPLE) if merged else ():
        store.user.merge(f"c{person}", into=f"u{person}")
    store.close()


def figures(db: str) -> list[Any]:
    """Every answer that counts people, and the rewards of all decisions."""
    run = runner(db)
    answers: list[Any] = []
    for window in WINDOWS:
        reward = f"w{window}"
        answers += [
            at(run, "30T00", "outcomes", "--reward", reward, "--users", "named"),
            at(run, "30T00", "outcomes", "--reward", reward, "--by", "week"),
            at(run, "30T00", "evaluate", "even", "--reward", reward, "--estimator", "snips", "--cluster", "user"),
            at(run, "30T00", "effects", "--reward", reward, "--horizon", "3d"),
            [row["reward"] for row in run("--now", "2026-01-30", "export-log", "-", "--reward", reward).lines],
        ]
    return answers


def alternating(person: int, number: int) -> str:
    return f"{'uc'[(person + number) % 2]}{person}"


def test_figures_are_those_of_a_store_that_knew_one_key(tmp_path: Path, sqlite_db: str) -> None:
    other_db = str(tmp_path / "one.db")
    empty_store(tmp_path / "one.db")
    lived(sqlite_db, alternating, merged=True)
    lived(other_db, lambda person, _: f"u{person}", merged=False)
    assert figures(sqlite_db) == figures(other_db)
    sound(runner(sqlite_db))


def test_an_export_of_a_merged_store_gives_the_same_figures(
    tmp_path: Path, sqlite_db: str, forked_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder was begun before the merge, when the decisions lay with other people."""
    monkeypatch.setattr(partitions, "count_partitions", lambda decisions: 4)
    lived(sqlite_db, alternating, merged=False)
    run, folder, lines = runner(sqlite_db), tmp_path / "log", tmp_path / "log.jsonl"
    words = ["evaluate", "even", "--reward", "w3d", "--estimator", "snips", "--cluster", "user"]
    at(run, "30T00", "export-log", folder, "--layout", "parquet")
    apart = at(run, "30T00", *words)
    for person in range(PEOPLE):
        at(run, "30T00", "user", "merge", f"c{person}", "--into", f"u{person}")
    at(run, "30T00", "export-log", folder, "--layout", "parquet")
    of_store = at(run, "30T00", *words)
    assert of_store != apart
    assert at(run, "30T00", *words, "--log", f"parquet:{folder}") == of_store
    assert at(run, "30T00", *words, "--log", f"parquet:{folder}", "--jobs", 2) == of_store
    assert run("--now", "2026-01-30", "export-log", lines).exit_code == 0
    other = empty_store(tmp_path / "other.db")
    at(other, "30T00", "reward", "define", "w3d", "click=0.5,return=1", "--window", "3d")
    assert other("import-log", lines, "--layout", "jsonl", "--policy", "old").exit_code == 0
    estimate = at(other, "30T00", *words[:1], "uniform", *words[2:])[0]
    expected = of_store[0]
    assert {name: estimate[name] for name in ("value", "lower", "upper")} == {
        name: expected[name] for name in ("value", "lower", "upper")
    }


# -- experiments --


@ON_BOTH
def test_the_variant_that_either_key_had_first_stays(shop: Run) -> None:
    at(shop, "01T00", "experiment", "create", "ab", "--variant", "x=home", "--variant", "y=even", "--unit", "user")
    variants: dict[str, str] = {}
    for number in range(8):
        variants[f"k{number}"] = visit(shop, f"02T{number:02}", f"k{number}", f"s{number}", "ab")["variant"]
    first = next(key for key, label in variants.items() if label != variants["k0"])
    pairs = [("k0", first), ("k7", "late")]  # the key merged into had its variant later, or none
    assert at(shop, "03T00", "user", "merge", *(pairs[0][0], "--into", pairs[0][1]))["merged"]
    assert at(shop, "03T00", "user", "merge", pairs[1][0], "--into", pairs[1][1])["created"] == ["late"]
    for key, other in pairs:
        for name in (key, other):
            assert visit(shop, "04T00", name, f"{name}-4", "ab")["variant"] == variants[key]
    shown = at(shop, "20T00", "experiment", "show", "ab")
    assert sum(row["units"] for row in shown["variants"]) == 7
    counted = [row["units"] for row in shown["outcomes"] if row["metric"] == "visits"]
    assert sum(counted) == 7
    sound(shop)
    # a third key, which had its variant before both, and a chain
    assert at(shop, "05T00", "user", "merge", first, "--into", "k1")["merged"]
    assert {visit(shop, "06T00", name, f"{name}-6", "ab")["variant"] for name in ("k0", "k1", first)} == {
        variants["k0"]
    }
    assert set(at(shop, "06T00", "user", "show", "k0")["keys"]) == {"k0", "k1", first}
    sound(shop)


def test_a_holdout_keeps_a_person_by_the_key_that_came_first(shop: Run) -> None:
    at(shop, "01T00", "route", "create", "front", "--to", "home", "--holdout", "50%")
    served: dict[str, str] = {}
    for number in range(12):
        shown = at(
            shop, f"02T{number:02}", "recommend", "--policy", "front", "--session", f"s{number}", "--user", f"k{number}"
        )
        served[f"k{number}"] = shown["policy"]
    other = next(key for key, policy in served.items() if policy != served["k0"])
    at(shop, "03T00", "user", "merge", "k0", "--into", other)
    for name in ("k0", other):
        again = at(shop, "04T00", "recommend", "--policy", "front", "--session", f"{name}-4", "--user", name)
        assert again["policy"] == served["k0"]
    sound(shop)


def test_a_stream_that_goes_on_knows_the_merge(shop: Run, store: Store, db: str) -> None:
    """A long process, whose cache was filled before."""
    at(shop, "01T00", "experiment", "create", "ab", "--variant", "x=home", "--variant", "y=even", "--unit", "user")
    stream = Pipe(store)
    first = [stream.group([Request(experiment="ab", session=f"s{n}", user=f"k{n}")])[0]["variant"] for n in range(8)]
    other = next(number for number in range(8) if first[number] != first[0])
    assert runner(db)("user", "merge", "k0", "--into", f"k{other}").exit_code == 0
    keys = ["k0", f"k{other}"]
    answers = stream.group([Request(experiment="ab", session=f"t-{key}", user=key) for key in keys])
    assert [(answer["user"], answer["variant"]) for answer in answers] == [(keys[1], first[0])] * 2


# -- a request that is sent again, imports, copies, removals --


def test_a_request_that_is_sent_again_is_recognised(shop: Run) -> None:
    words = ["recommend", "--policy", "home", "--session", "s1", "--user", "anon", "--request-id", "r1"]
    first = at(shop, "02T00", *words)
    at(shop, "02T01", "user", "merge", "anon", "--into", "u1")
    again = at(shop, "02T02", *words)
    assert (again["decision_id"], again["duplicate"], again["user"]) == (first["decision_id"], True, "u1")
    assert at(shop, "02T03", *words[:4], "s2", *words[5:-1], "r2")["user"] == "u1"
    sound(shop)


def test_an_import_that_names_a_merged_key_is_of_the_person(shop: Run, tmp_path: Path) -> None:
    row = {"session": "x1", "user": "anon", "at": "2026-01-01T09:00:00Z", "eligible": ["a"], "slate": [{"arm": "a"}]}
    file = tmp_path / "old.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps(row | {"at": "2026-01-01T09:00:01Z"}) + "\n")
    at(shop, "02T00", "user", "merge", "anon", "--into", "u1")
    words = ["import-log", file, "--layout", "jsonl", "--policy", "old"]
    assert at(shop, "02T00", *words)["accepted"] == 2
    assert at(shop, "02T00", *words)["duplicates"] == 2
    file.write_text(json.dumps(row | {"at": "2026-01-01T09:00:02Z"}) + "\n")
    assert at(shop, "02T00", *words)["accepted"] == 1  # of a session that the person has
    assert [row["user"] for row in shop("session", "list", "--json").json] == ["u1"]
    sound(shop)


def test_forgetting_any_key_forgets_the_person(shop: Run, store: Store) -> None:
    for day, key in (("02", "u1"), ("03", "anon"), ("04", "u1"), ("05", "u2")):
        visit(shop, f"{day}T00", key, f"s{day}")
    at(shop, "06T00", "user", "merge", "anon", "--into", "u1")
    at(shop, "06T00", "user", "merge", "later", "--into", "u1")
    for options in (["--dry-run"], ["--yes"]):
        forgotten = at(shop, "06T00", "db", "forget", "--user", "later", *options)
        assert (forgotten["keys"], forgotten["decisions"]) == (["anon", "later", "u1"], 3)
    assert [key for key in ("u1", "anon", "later", "u2") if shop("user", "show", key).exit_code == 0] == ["u2"]
    assert not any("anon" in row or "later" in row for rows in dump(store).values() for row in rows)
    sound(shop)


def test_keys_outlive_the_visits_that_are_pruned(shop: Run) -> None:
    visit(shop, "02T00", "anon", "s1")
    at(shop, "02T01", "user", "merge", "anon", "--into", "u1")
    done = shop("--now", "2026-06-01", "db", "prune", "--before", "2026-05-01", "--yes", "--json").json
    assert done["decisions"] == 1
    assert visit(shop, "02T02", "anon", "s2")["user"] == "u1"
    sound(shop)


def test_a_copy_has_the_keys(shop: Run, tmp_path: Path) -> None:
    visit(shop, "02T00", "anon", "s1")
    at(shop, "02T01", "user", "merge", "anon", "--into", "zz")  # a person who came later
    copied = runner(str(tmp_path / "copy.db"))
    assert shop("db", "copy", "--to", tmp_path / "copy.db").exit_code == 0
    assert visit(copied, "03T00", "anon", "s2")["user"] == "zz"
    sound(copied)


# -- what is refused, and damage --


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("merge u1 --into u1", 2, "user 'u1' cannot be merged into itself"),
        ("merge u1 --into anon", 6, "'anon' is a key of user 'u1' already"),
        ("merge anon --into u2", 6, "`rlrec user merge u1 --into u2`"),
        ("merge anon", 2, "--into"),
        ("show nobody", 2, "unknown user 'nobody'"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_line(
    shop: Run, store: Store, words: str, code: int, message: str
) -> None:
    at(shop, "02T00", "user", "merge", "anon", "--into", "u1")
    before = dump(store)
    refused = shop("user", *words.split())
    assert (refused.exit_code, refused.stdout, dump(store) == before) == (code, "", True)
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1 or "Usage" in refused.stderr


def test_once_more_changes_nothing_and_a_rehearsal_neither(shop: Run, store: Store) -> None:
    visit(shop, "02T00", "anon", "s1")
    before = dump(store)
    assert at(shop, "02T00", "user", "merge", "anon", "--into", "u1", "--dry-run")["sessions"] == 1
    assert dump(store) == before
    at(shop, "02T00", "user", "merge", "anon", "--into", "u1")
    before = dump(store)
    again = at(shop, "02T05", "user", "merge", "anon", "--into", "u1")
    assert (again["merged"], again["sessions"], again["created"]) == (False, 0, [])
    assert dump(store) == before


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ("UPDATE session SET user_id = (SELECT id FROM users WHERE key = 'anon')", "user anon"),
        (
            "INSERT INTO merged_user SELECT p.id, o.id, 0 FROM users p, users o WHERE p.key = 'u1' AND o.key = 'u2'",
            "anon",
        ),
        ("UPDATE assignment SET variant_id = 3 - variant_id", "its unit is not assigned to its variant"),
    ],
)
def test_doctor_finds_damage_of_merged_users(shop: Run, store: Store, change: str, finding: str) -> None:
    at(shop, "01T00", "experiment", "create", "ab", "--variant", "x=home", "--variant", "y=even", "--unit", "user")
    visit(shop, "02T00", "u2", "s0")
    visit(shop, "02T00", "anon", "s1", "ab")
    at(shop, "02T00", "user", "merge", "anon", "--into", "u1")
    store.write(lambda unit: unit.tell(change))
    done = shop("--now", "2026-01-31", "doctor")
    assert (done.exit_code, finding in done.stdout + done.stderr) == (3, True)


# -- many processes --


def lives(store: Store, number: int) -> None:
    """Ask for people under both keys, or merge them, each in an order of its own."""
    chance = random.Random(number)
    people = [*range(6)] * 2
    chance.shuffle(people)
    for turn, person in enumerate(people):
        if number % 2:
            user.merge(store, f"c{person}", f"u{person}")
        else:
            key, name = f"{chance.choice('cu')}{person}", chance.choice(["home", "front"])
            shown = ask(store, name, f"{number}-{turn}", user=key)
            tell(store, shown, click=1, key=f"{number}-{turn}")


@ON_BOTH
@pytest.mark.slow
def test_people_are_merged_while_others_serve_them(store: Store, db: str) -> None:
    stocked(store, home="thompson", other="uniform")
    run = runner(db)
    run("reward", "define", "back", "click=1,return=1", "--window", "7d")
    run("route", "create", "front", "--to", "home")
    run("route", "set", "front", "--to", "other", "--share", "50%")
    run("session", "list")
    together(lives, db, [0, 1, 2, 3])
    with store.read() as unit:
        owners = {row[0] for row in unit.ask("SELECT u.key FROM session s JOIN users u ON u.id = s.user_id")}
    assert owners <= {f"u{person}" for person in range(6)}
    assert apart(sums(store, "home"), added_up(store, "home")) == 0
    findings = [row for row in run("doctor", "--json").json["findings"] if row["severity"] == "error"]
    assert findings == []
