"""`db forget`: nothing of the user is left, and everybody else's figures are what they were."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from rlrec.app.requests import recommend
from rlrec.app.requests.recommend import Request, recommend_group
from rlrec.app.serving.cache import ServingCache
from rlrec.app.upkeep import db_removals
from rlrec.store import Store, Unit
from rlrec.store.upkeep import removals
from tests.app.grown import grown, sql
from tests.conftest import ON_BOTH, Run, filled, runner
from tests.stops import cpu_of_children, wait_for_work

START, LATE = "2026-01-01T00:00:00Z", "2026-01-01T03:00:00Z"


@pytest.fixture
def healthy(db: str) -> str:
    filled(db, grown)
    return db


def at(run: Run, *words: object, **more: Any) -> Any:
    return run("--now", LATE, *words, "--json", **more).done().json


@pytest.mark.slow
@ON_BOTH
def test_beliefs_forget_what_the_slots_of_a_user_added(healthy: str) -> None:
    run = runner(healthy)
    at(run, "policy", "retire", "ts@1")
    before = at(run, "db", "forget", "--user", "u1", "--dry-run")
    forgotten = at(run, "db", "forget", "--user", "u1", "--yes")
    assert forgotten == before
    assert forgotten["decisions"] > 50
    assert forgotten["beliefs"] > 10
    assert forgotten["retrain"] == []
    at(run, "db", "forget", "--user", "u2", "--yes")
    assert run("--now", LATE, "doctor").exit_code == 0


def test_a_rebuilt_belief_equals_one_that_forgot(healthy: str) -> None:
    run = runner(healthy)
    at(run, "db", "forget", "--user", "u1", "--yes")
    for name in ("greedy", "ucb", "sees"):
        number = at(run, "policy", "rebuild", name)["version"]
        old, new = (at(run, "policy", "show", f"{name}@{version}")["arms"] for version in (1, number))
        assert [(arm["pulls"], arm["mean"]) for arm in old] == [
            (arm["pulls"], pytest.approx(arm["mean"], abs=1e-12)) for arm in new
        ]


def test_a_belief_that_forgot_everybody_is_empty(healthy: str) -> None:
    """No rounding is left, in pulls below 0 least of all."""
    run = runner(healthy)
    for (user,) in sql(healthy, "SELECT key FROM users"):
        at(run, "db", "forget", "--user", user, "--yes")
    online = "SELECT v.id FROM version v JOIN policy p ON p.id = v.policy_id WHERE p.name IN ('fades', 'ts', 'ends')"
    sums = sql(healthy, f"SELECT min(pulls), max(pulls), max(reward_sum) FROM belief WHERE version_id IN ({online})")
    assert sums == [(0, 0, 0)]
    assert run("--now", LATE, "doctor").exit_code == 0


@pytest.mark.slow
def test_copies_of_a_belief_and_what_was_fitted_to_its_log_forget_too(healthy: str) -> None:
    """Nothing came in since they were made, so that they equal the belief that they come from."""
    run = runner(healthy)
    variants = ("--variant", "a=fades", "--variant", "b=sees", "--variant", "c=ts@2", "--variant", "d=ends")
    at(run, "policy", "create", "learned", "--kind", "ucb", "--from-log", "policy=ucb")
    at(run, "experiment", "create", "copies", *variants)
    at(run, "policy", "freeze", "fades@copies/a")
    at(run, "policy", "rebuild", "learned")
    pairs = {
        "learned": "ucb", "learned@2": "ucb", "fades@copies/a": "fades", "sees@copies/b": "sees", "ts@copies/c": "ts@2",
        "ends@copies/d": "ends", "fades@copies/a@2": "fades",
    }  # fmt: skip
    for user in ("u1", "u2"):
        assert at(run, "db", "forget", "--user", user, "--yes")["retrain"] == []
        for copy, first in pairs.items():
            old, new = (at(run, "policy", "show", name)["arms"] for name in (first, copy))
            sums = [(arm["arm"], arm["pulls"], arm["reward_sum"]) for arm in old]
            assert sum(pulls for _, pulls, _ in sums) > 3
            assert [(arm["arm"], arm["pulls"], arm["reward_sum"]) for arm in new] == [
                (arm, pytest.approx(pulls, abs=1e-12), pytest.approx(reward, abs=1e-12)) for arm, pulls, reward in sums
            ]
    assert run("--now", LATE, "doctor").exit_code == 0


@pytest.mark.slow
def test_a_log_that_faded_is_forgotten_as_it_faded(healthy: str) -> None:
    """Two beliefs of one log and one past, one of them rebuilt, agree afterwards."""
    run = runner(healthy)
    at(run, "policy", "create", "fading", "--kind", "ucb", "--param", "discount=0.9", "--from-log", "policy=ucb")
    for n in range(6):
        at(run, "recommend", "--policy", "fading", "--session", f"fading{n}", "--user", f"u{n % 3}")
    at(run, "policy", "rebuild", "fading")
    before = [_pulls(healthy, "fading", number) for number in (1, 2)]
    at(run, "db", "forget", "--user", "u1", "--yes")
    after = [_pulls(healthy, "fading", number) for number in (1, 2)]
    assert before[0] == pytest.approx(before[1], rel=1e-12)
    assert after[0] == pytest.approx(after[1], rel=1e-12)
    assert sum(after[0]) < sum(before[0]) - 1
    assert run("--now", LATE, "doctor").exit_code == 0


@pytest.mark.slow
def test_a_retired_belief_forgets_what_it_held_when_it_ended(healthy: str) -> None:
    """It equals one that was frozen at that moment, whatever has come in since."""
    run = runner(healthy)
    numbers = [row[0] for row in sql(healthy, "SELECT id FROM decision WHERE policy_id = 4 ORDER BY id")]
    at(run, "policy", "rebuild", "greedy")
    at(run, "policy", "promote", "greedy@2")
    at(run, "policy", "freeze", "greedy@1")
    at(run, "policy", "retire", "greedy@1")
    for n, number in enumerate(numbers[:8]):
        at(run, "feedback", number, "click", "--position", 1)
        at(run, "recommend", "--policy", "greedy", "--session", f"later{n}", "--user", f"u{n % 4}")
    for user in ("u1", "u0", "u2"):
        at(run, "db", "forget", "--user", user, "--yes")
        frozen, retired = (at(run, "policy", "show", f"greedy@{number}")["arms"] for number in (3, 1))
        sums = [(arm["pulls"], arm["reward_sum"]) for arm in frozen]
        assert sum(pulls for pulls, _ in sums) > 1
        assert [(arm["pulls"], arm["reward_sum"]) for arm in retired] == sums


def _pulls(db: str, policy: str, number: int) -> list[float]:
    """The pulls of a belief that fades by 0.9, after 6 decisions, by arm."""
    joined = "belief b JOIN version v ON v.id = b.version_id JOIN policy p ON p.id = v.policy_id"
    chosen = f"SELECT b.pulls, b.ordinal FROM {joined} WHERE p.name = '{policy}' AND v.number = {number}"
    return [pulls * 0.9 ** (6 - ordinal) for pulls, ordinal in sql(db, f"{chosen} ORDER BY b.arm_id")]


def test_versions_whose_parameters_come_from_a_user_are_named(healthy: str, tmp_path: Path) -> None:
    run = runner(healthy)
    at(run, "policy", "create", "start", "--kind", "thompson", "--prior-from", "policy=greedy")
    at(run, "policy", "create", "encoded", "--kind", "linucb", "--from-log", "policy=sees")
    at(run, "policy", "create", "copied", "--kind", "gradient", "--from-policy", "start")
    at(run, "policy", "freeze", "start")
    assert at(run, "db", "forget", "--user", "u1", "--dry-run")["retrain"] == [
        "start@1",
        "start@2",
        "encoded@1",
        "copied@1",
    ]


def test_others_keep_their_rows_and_their_figures(healthy: str) -> None:
    run = runner(healthy)
    others = (
        "SELECT d.id, d.seed, d.log_propensity, s.position, s.arm_id, s.propensity FROM decision d JOIN slot s"
        " ON s.decision_id = d.id JOIN session v ON v.id = d.session_id JOIN users u ON u.id = v.user_id"
        " WHERE u.key <> 'u1' ORDER BY d.id, s.position"
    )
    rows, shown = sql(healthy, others), at(run, "session", "show", "uniform-6")
    at(run, "db", "forget", "--user", "u1", "--yes")
    assert sql(healthy, others) == rows
    assert at(run, "session", "show", "uniform-6") == shown


def two_users(db: str) -> None:
    """A store with two users, in which every key and text of one of them has the word `zelda`."""
    run = runner(db)
    for words in (
        ["arm", "add", "a1"], ["arm", "add", "a2"],
        ["reward", "define", "back", "click=1, return=2", "--window", "2h"],
        ["policy", "create", "home", "--kind", "ucb", "--reward", "back"],
        ["policy", "create", "pg", "--kind", "gradient"],
        ["route", "create", "front", "--to", "home"], ["policy", "shadow", "front", "pg"],
        ["experiment", "create", "ab", "--variant", "a=home", "--variant", "b=pg"],
    ):  # fmt: skip
        run("--now", START, *words).done()
    for minute, user in enumerate(["zelda", "max", "zelda", "max", "zelda"]):
        for target in (["--policy", "front"], ["--experiment", "ab"]):
            session, now = f"{user}-{minute}-{target[1]}", f"2026-01-01T0{minute // 2}:{minute}0:00Z"
            words = [*target, "--session", session, "--user", user, "--context", json.dumps({"who": user})]
            words += ["--request-id", f"{session}-r", "--json"]
            number = run("--now", now, "-q", "recommend", *words).done().json["decision_id"]
            run("--now", now, "feedback", number, "click", f"{user}_event=3", "--key", f"{session}-k").done()


@pytest.fixture
def personal(sqlite_db: str) -> Run:
    return filled(sqlite_db, two_users)


def remaining(path: str) -> int:
    """How often the word is in the files of the store."""
    return sum(file.read_bytes().count(b"zelda") for file in Path(path).parent.glob("rlrec.db*"))


def test_no_byte_of_a_user_is_left_in_the_file(personal: Run, sqlite_db: str) -> None:
    with closing(sqlite3.connect(sqlite_db)) as connection:  # an idle one keeps the log from being deleted
        connection.execute("PRAGMA user_version").fetchone()
        assert remaining(sqlite_db) > 50
        assert at(personal, "db", "forget", "--user", "zelda", "--yes") == {
            "user": "zelda", "keys": ["zelda"], "decisions": 6, "events": 14, "beliefs": 1, "retrain": [],
        }  # fmt: skip
        assert remaining(sqlite_db) == 0
    assert personal("--now", LATE, "doctor").exit_code == 0
    left = "SELECT key FROM users UNION SELECT body FROM context"
    assert sql(sqlite_db, left) == [("max",), ('{"who":"max"}',)]


def test_what_could_not_be_erased_is_erased_by_the_same_command_again(personal: Run, sqlite_db: str) -> None:
    with closing(sqlite3.connect(sqlite_db)) as reading, pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlrec.store.database.engine.BUSY_TIMEOUT_S", 0.1)
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM decision").fetchone()
        refused = personal("--now", LATE, "db", "forget", "--user", "zelda", "--yes")
        assert (refused.exit_code, refused.stderr.count("\n")) == (4, 1)
        assert "repeat the command" in refused.stderr
        assert remaining(sqlite_db) > 0
    assert at(personal, "db", "forget", "--user", "zelda", "--yes")["decisions"] == 0
    assert remaining(sqlite_db) == 0
    unknown = personal("--now", LATE, "db", "forget", "--user", "zelda", "--yes")
    assert (unknown.exit_code, unknown.stderr) == (2, "Error: unknown user 'zelda'. `rlrec session list` shows users\n")


def test_two_removals_that_were_refused_are_finished_by_the_next(personal: Run, sqlite_db: str) -> None:
    """`doctor` says so while bytes may be left, and not afterwards."""
    with closing(sqlite3.connect(sqlite_db)) as reading, pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlrec.store.database.engine.BUSY_TIMEOUT_S", 0.1)
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM decision").fetchone()
        for user in ("zelda", "max"):
            assert personal("--now", LATE, "db", "forget", "--user", user, "--yes").exit_code == 4
    assert [finding["check"] for finding in at(personal, "doctor")["findings"]] == ["removals"]
    assert at(personal, "db", "forget", "--user", "zelda", "--yes")["decisions"] == 0
    assert remaining(sqlite_db) == 0
    assert at(personal, "doctor")["findings"] == []


@contextmanager
def interrupted_forget(run: Run, *, file_limit: int | None = None) -> Iterator[BaseProcess]:
    """A process that forgets, and can be killed; file_limit: bytes that a file of it may have, as on a full disk."""

    def work() -> None:
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        os._exit(run("--now", LATE, "db", "forget", "--user", "zelda", "--yes").exit_code)

    process = get_context("fork").Process(target=work)
    process.start()
    yield process
    process.kill()
    process.join()


def finishes(run: Run, path: str) -> bool:
    """Whether rows or bytes were left, of which `doctor` must have told; then the same command takes them away."""
    bytes_left, user_left = remaining(path) > 0, sql(path, "SELECT count(*) FROM users WHERE key = 'zelda'") == [(1,)]
    is_warned = [finding["check"] for finding in at(run, "doctor")["findings"]] == ["removals"]
    assert is_warned or user_left or not bytes_left
    assert run("--now", LATE, "db", "forget", "--user", "zelda", "--yes").exit_code == (
        0 if user_left or is_warned else 2
    )
    assert remaining(path) == 0
    assert at(run, "doctor")["findings"] == []
    return is_warned or user_left


def test_a_forgotten_user_is_erased_whenever_the_command_was_killed(personal: Run, sqlite_db: str) -> None:
    content = Path(sqlite_db).read_bytes()
    before = cpu_of_children()
    with interrupted_forget(personal) as process:
        process.join()
    took, unfinished = cpu_of_children() - before, 0
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        Path(sqlite_db).write_bytes(content)
        with interrupted_forget(personal) as process:
            wait_for_work(process, share * took)
        unfinished += finishes(personal, sqlite_db)
    assert unfinished > 0


def test_a_forgotten_user_is_erased_after_the_disk_was_full(personal: Run, sqlite_db: str) -> None:
    content, codes, unfinished = Path(sqlite_db).read_bytes(), list[int | None](), 0
    for share in (0.1, 0.3, 0.5, 1, 2):  # of the file: the deletion is stopped, or writing the file anew, or neither
        Path(sqlite_db).write_bytes(content)
        with interrupted_forget(personal, file_limit=int(share * len(content))) as process:
            process.join()
        codes.append(process.exitcode)
        unfinished += finishes(personal, sqlite_db)
    assert (codes[0], codes[-1], unfinished) == (1, 0, 4)


def test_a_removal_behind_the_new_file_of_another_is_not_finished_by_that(
    personal: Run, sqlite_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_anew = removals._rewrite_file

    def delete_behind(store: Store) -> None:
        write_anew(store)
        with closing(Store(sqlite_db)) as other:
            other.write(lambda unit: db_removals.delete_user(unit, "max"), references_hold=True)

    with monkeypatch.context() as patch:
        patch.setattr(removals, "_rewrite_file", delete_behind)
        at(personal, "db", "forget", "--user", "zelda", "--yes")
    assert [finding["check"] for finding in at(personal, "doctor")["findings"]] == ["removals"]
    at(personal, "db", "forget", "--user", "max", "--yes")
    assert at(personal, "doctor")["findings"] == []


def test_without_a_terminal_nothing_is_deleted_unasked(personal: Run, sqlite_db: str) -> None:
    assert "give --yes" in personal("--now", LATE, "db", "forget", "--user", "zelda").failed(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda stream: True, raising=False)
        declined = personal("--now", LATE, "db", "forget", "--user", "zelda", stdin="n\n")
    assert (declined.exit_code, declined.stdout) == (1, "")
    assert at(personal, "db", "forget", "--user", "zelda", "--dry-run")["decisions"] == 6
    assert sql(sqlite_db, "SELECT count(*) FROM decision") == [(10,)]


def test_ids_of_deleted_decisions_are_never_drawn_again(store: Store, run: Run) -> None:
    for words in (["arm", "add", "a1"], ["policy", "create", "home", "--kind", "uniform"]):
        run("--now", START, *words).done()
    serve = ("recommend", "--policy", "home", "--session", "s", "--user")
    first = at(run, *serve, "u1")["decision_id"]
    at(run, "db", "forget", "--user", "u1", "--yes")
    assert at(run, *serve, "u2")["decision_id"] == first + 1


def test_a_process_that_serves_on_forgets_contexts_and_beliefs(store: Store, run: Run) -> None:
    """What it read before is gone, or has changed: it reads it anew."""
    for words in (
        ["arm", "add", "a1"], ["arm", "add", "a2"], ["policy", "create", "home", "--kind", "thompson"],
        ["policy", "freeze", "home"], ["policy", "promote", "home@2"],
    ):  # fmt: skip
        run("--now", START, *words).done()
    cache = ServingCache()
    lines = [Request(policy="home", session=f"s{i}", user="u1", context={"who": 1}) for i in range(2)]
    recommend_group(store, lines, cache=cache)
    run("db", "forget", "--user", "u1", "--yes").done()
    answers = recommend_group(store, lines, cache=cache)
    assert [answer["step"] for answer in answers if isinstance(answer, dict)] == [0, 0]
    assert run("doctor").exit_code == 0


def test_a_group_that_was_planned_before_is_planned_anew(
    store: Store, run: Run, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its context was deleted between its snapshot and its transaction."""
    for words in (["arm", "add", "a1"], ["policy", "create", "home", "--kind", "linucb", "--param", "floor=0.1"]):
        run("--now", START, *words).done()
    recommend_group(store, [Request(policy="home", session="s1", user="u1", context={"who": 1})])
    notice, deleted = recommend._notice_ignored, list[object]()

    def delete_meanwhile(*arguments: Any) -> None:
        notice(*arguments)
        if not deleted:
            with closing(Store(db)) as other:
                deleted.append(other.write(lambda unit: db_removals.delete_user(unit, "u1"), references_hold=True))

    monkeypatch.setattr(recommend, "_notice_ignored", delete_meanwhile)
    monkeypatch.setattr(recommend, "MAX_QUICK_CELLS", 0)  # else nobody comes between
    (answer,) = recommend_group(store, [Request(policy="home", session="s1", user="u2", context={"who": 1})])
    assert (answer["user"], answer["visit"], len(deleted)) == ("u2", 1, 1)
    assert run("doctor").exit_code == 0


READ_THE_LOG = [
    "policy freeze greedy",
    "policy rebuild greedy",
    "policy create new --kind thompson --from-log policy=ts",
    "policy create new --kind thompson --prior-from policy=ts",
    "policy create new --kind gradient --from-policy greedy",
    "experiment create new --variant a=greedy --variant b=ucb",
    "route set front --to greedy --share 50%",
    "train-pg pg --epochs 1",
]


def created(db: str) -> list[int]:
    """How many rows there are of all that these commands store."""
    tables = ("policy", "version", "belief", "experiment", "variant", "route", "route_change")
    return [sql(db, f"SELECT count(*) FROM {table}")[0][0] for table in tables]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("db", "line"),
    [*(("sqlite", line) for line in READ_THE_LOG), ("postgres", "policy rebuild greedy")],
    indirect=["db"],
)
def test_what_read_a_user_who_was_forgotten_meanwhile_stores_nothing(
    healthy: str, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    run, users, read = runner(healthy), ["u0", "u1", "u2"], Store.read
    at(run, "policy", "create", "pg", "--kind", "gradient")
    at(run, "route", "create", "front", "--to", "uniform")
    before = created(healthy)

    @contextmanager
    def forget_behind(store: Store) -> Iterator[Unit]:
        with read(store) as unit:
            yield unit
        if users:
            with closing(Store(healthy)) as other:
                other.write(lambda unit: db_removals.delete_user(unit, users.pop()), references_hold=True)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", forget_behind)
        refused = run("--now", LATE, *line.split())
    assert (refused.exit_code, "were deleted meanwhile" in refused.stderr) == (4, True), refused.stderr
    assert created(healthy) == before
    assert run("--now", LATE, *line.split()).exit_code == 0
    assert created(healthy) != before
