"""rlrec train-pg: what it prints, how it ends, and what it says of wrong questions."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlrec.store import Store
from tests.app.shop import MINUTE, START, dump
from tests.app.visitors import LATER, opened, serve
from tests.cli.program.test_bad_input import refuses
from tests.conftest import CommandResult, Run, click, filled, runner

NOW = "2027-01-16T08:00:00Z"  # LATER
QUICK = ("--seed", 1, "--epochs", 2)
BETTER = ("visits", "--seed", 1, "--epochs", 4, "--lr", 0.01, "--promote", "if-better", "--json")
KEYS = {"policy", "version", "parent", "sessions", "estimate", "lower", "promoted"}


def opening(path: Path) -> Store:
    return Store(str(path), now=LATER, notice=lambda _: None)


def logged(db: str) -> None:
    with closing(opening(Path(db))) as store:
        serve(opened(store), liked=lambda key, step, before: key == "tea", visits=600)


@pytest.fixture
def path(sqlite_db: str) -> Path:
    filled(sqlite_db, logged)
    return Path(sqlite_db)


@pytest.fixture
def train(path: Path) -> Run:
    """`rlrec train-pg` on a log of 600 visits; further words come first."""
    run = runner(str(path))

    def command(*words: object, before: tuple[object, ...] = (), **options: Any) -> CommandResult:
        return run("--now", NOW, *before, "train-pg", *words, **options)

    return command


@pytest.fixture
def rows(path: Path) -> Callable[[], dict[str, list[Any]]]:
    def read() -> dict[str, list[Any]]:
        with closing(opening(path)) as store:
            return dump(store)

    return read


@pytest.mark.slow
def test_the_result_alone_goes_to_stdout(train: Run) -> None:
    result = train("visits", *QUICK, "--json").done()
    assert set(result.json) >= KEYS
    assert (result.json["policy"], result.json["version"], result.json["parent"], result.json["sessions"]) == (
        "visits", 2, 1, 600
    )  # fmt: skip
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["epoch 1 of 2", "epoch 2 of 2"]


@pytest.mark.slow
def test_every_tenth_epoch_is_reported_and_too_little_news_in_a_line(train: Run) -> None:
    result = train("visits", "--epochs", "12", "--patience", "12", "--seed", "1")
    reported = [line.split(" of")[0] for line in result.stderr.splitlines() if line.startswith("epoch")]
    assert reported == ["epoch 1", "epoch 10", "epoch 12"]
    again = train("visits", "--min-new", "1", before=("-q",))
    assert again.stdout.splitlines()[2].split() == [NOW.replace("Z", ".000000Z"), "visits", "no", "0"]


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_the_formats_of_programs_have_it(train: Run, form: str) -> None:
    result = train("visits", *QUICK, "--format", form, before=("-q",))
    assert (result.exit_code, result.stderr) == (0, "")
    assert "visits" in result.stdout
    assert "nan" not in result.stdout.lower()


def test_a_dry_run_answers_the_same_and_stores_nothing(train: Run, path: Path) -> None:
    words = (*BETTER, "--cluster", "session")
    before = path.read_bytes()
    dry = train(*words, "--dry-run")
    assert path.read_bytes() == before
    assert "dry run: nothing was stored" in dry.stderr
    assert (dry.exit_code, dry.json) == (0, train(*words).json)


def test_its_plot_is_that_of_the_new_version(train: Run, path: Path, tmp_path: Path) -> None:
    item, other = tmp_path / "one.svg", tmp_path / "other.svg"
    assert train("visits", *QUICK, "--plot", item).exit_code == 0
    assert runner(str(path))("--now", NOW, "policy", "show", "visits@2", "--plot", other).exit_code == 0
    assert item.read_text() == other.read_text()


def test_a_better_one_is_promoted_with_exit_0(train: Run, path: Path) -> None:
    result = train(*BETTER, "--cluster", "session")
    assert (result.exit_code, result.json["promoted"]) == (0, True)
    assert (result.json["against"], result.json["candidate"]) == (1, 1)
    assert result.json["lower"] > 0
    (live,) = (row for row in runner(str(path))("--now", NOW, "status", "--json").json["policies"] if row["live"] == 2)
    assert re.match(r"visits@2 is better than version 1: \+[\d.]+ % \[", live["answer"])
    back = runner(str(path))("--now", NOW, "policy", "rollback", "visits", "--json")
    assert (back.exit_code, back.json["version"], back.json["previous"]) == (0, 1, 2)


def test_what_evaluate_cannot_tell_the_gate_does_not_let_pass(train: Run) -> None:
    """Sessions without a user may be of people who come back; the same candidate as above."""
    result = train(*BETTER, before=("-q",))
    assert (result.exit_code, result.json["answer"], result.json["passed"]) == (3, "unknown", False)
    assert result.json["lower"] > 0
    assert result.error["error"].endswith(
        "this log cannot tell whether it is better or worse than version 1, per visit (log: no-users); "
        "--cluster session says that every session is another person"
    )


def test_loggers_count_where_none_of_them_supports_the_policy(run_sqlite: Run, tmp_path: Path) -> None:
    arms, prior = "abcdefghij", tmp_path / "prior.csv"
    chances = dict.fromkeys(arms, (1, 999)) | {"a": (900, 100), "b": (500, 500)}
    prior.write_text("arm,alpha,beta\n" + "".join(f"{arm},{won},{lost}\n" for arm, (won, lost) in chances.items()))
    run_sqlite("init")
    run_sqlite("arm", "import", "-", stdin="\n".join(f'{{"arm": "{arm}"}}' for arm in arms))
    for policy in ("sure", "certain"):
        run_sqlite("policy", "create", policy, "--kind", "thompson", "--prior", prior)
    words = ("--input", "-", "--now", "2026-02-01")
    requests = [{"policy": ("sure", "certain")[n % 2], "session": f"s{n}", "user": f"u{n}", "k": 2} for n in range(300)]
    pages = run_sqlite("recommend", *words, "--seed", 1, stdin=requests).lines
    clicks = [{"decision_id": page["decision_id"], "position": 1, "events": {"click": 1}} for page in pages]
    assert run_sqlite("feedback", *words, stdin=clicks).exit_code == 0
    run_sqlite("policy", "create", "pg", "--kind", "gradient", "--now", "2026-02-15")
    result = run_sqlite("--now", "2026-02-15", "train-pg", "pg", *QUICK, "--json")
    assert (result.exit_code, "nan" in result.stderr) == (0, False)
    assert "gain 0" in result.stderr


def test_another_policy_that_earned_more_is_named_with_the_experiment_that_compares(
    run_sqlite: Run, sqlite_db: str
) -> None:
    with closing(opening(Path(sqlite_db))) as store:
        shop = opened(store)
        serve(shop, name="visits", liked=lambda key, *_: key == "tea", visits=600, users=600, prefix="visits")
        serve(shop, liked=lambda *_: True, visits=600, users=600, prefix="base", start=START + MINUTE)
    result = run_sqlite("--now", NOW, "train-pg", "visits", *QUICK, "--json")
    earned = {row["logger"]: (row["users"], row["value"]) for row in result.json["loggers"]}
    with closing(sqlite3.connect(sqlite_db)) as connection:
        tuned = "FROM session s WHERE s.split = 1 AND s.key LIKE ?"
        clicks = "(SELECT count(*) FROM event e JOIN decision d ON d.id = decision_id WHERE session_id = s.id)"
        for name in ("base", "visits"):
            users, value = connection.execute(f"SELECT count(*), avg({clicks}) {tuned}", [f"{name}%"]).fetchone()
            assert earned[f"{name}@1"] == (users, pytest.approx(value, rel=1e-12))
    assert list(earned) == ["base@1", "visits@1"]
    printed = run_sqlite("--now", NOW, "train-pg", "visits", *QUICK).stderr
    command = "rlrec experiment create base-visits --variant base=base --variant visits=visits@3"
    assert "in this log, base@1 earned 3 a visit, and visits@3 is estimated to earn " in printed
    assert f"`{command}` is the fair comparison" in printed
    discounted = run_sqlite("--now", NOW, "train-pg", "visits", *QUICK, "--gamma", 0.5)
    assert "base@1 earned 1.75 a visit (the reward of step t counts 0.5^t), and visits@4 " in discounted.stderr
    assert re.search(r"value .* of version 1 \(the reward of step t counts 0.5\^t\)", discounted.stdout)
    rehearsed = run_sqlite("--now", NOW, "train-pg", "visits", *QUICK, "--dry-run").stderr
    alone = run_sqlite("--now", NOW, "train-pg", "visits", *QUICK, "--log", "policy=visits").stderr
    assert run_sqlite("--now", NOW, *command.split()[1:]).exit_code == 0
    compared = run_sqlite("--now", NOW, "train-pg", "visits", *QUICK).stderr
    assert run_sqlite("experiment", "stop", "base-visits").exit_code == 0
    with closing(sqlite3.connect(sqlite_db)) as connection, connection:
        connection.execute("UPDATE policy SET kind = 'external' WHERE name = 'base'")
    imported = run_sqlite("--now", NOW, "train-pg", "visits", *QUICK).stderr
    assert ["in this log" in printed for printed in (rehearsed, alone, compared, imported)] == 4 * [False]


def test_a_policy_of_another_surface_is_no_rival(run_sqlite: Run, sqlite_db: str) -> None:
    """The same users see pages of both policies within the same minute."""
    with closing(opening(Path(sqlite_db))) as store:
        shop = opened(store)
        for step, (name, liked) in enumerate(2 * (("visits", lambda *_: False), ("base", lambda *_: True))):
            start = START + step * MINUTE
            serve(shop, name=name, liked=liked, visits=600, users=600, prefix=f"{name}{step}-", start=start)
        serve(shop, name="visits", visits=60, users=60, prefix="late", start=START + 5 * MINUTE)
    result = run_sqlite("--now", NOW, "train-pg", "visits", *QUICK, "--json")
    assert [row["logger"] for row in result.json["loggers"]] == ["visits@1"]
    assert "in this log" not in run_sqlite("--now", NOW, "train-pg", "visits", *QUICK).stderr


@pytest.mark.parametrize("lr", [5.0, 50.0])
def test_one_that_is_not_better_exits_3_with_the_numbers(train: Run, lr: float) -> None:
    """The document on stdout, the error on stderr; the version is kept."""
    result = train("visits", *QUICK, "--lr", lr, "--promote", "if-better", "--json", before=("-q",))
    assert result.exit_code == 3
    assert set(result.json) >= KEYS
    assert not result.json["promoted"]
    assert result.error["code"] == 3
    assert "version 2 of visits was not promoted" in result.error["error"]


def test_in_a_table_the_error_is_one_line(train: Run) -> None:
    result = train("visits", *QUICK, "--lr", 5.0, "--promote", "if-better", before=("-q",))
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert result.stderr.startswith("Error: version 2 of visits was not promoted: ")
    date = NOW.replace("Z", ".000000Z")
    assert result.stdout.startswith(f"{date}: policy visits, version 2 from version 1, kept, not live: trained on ")


def test_the_line_of_a_night_says_who_does_not_get_what_is_live(train: Run, path: Path) -> None:
    always = ("visits", "--seed", 1, "--epochs", 1, "--promote", "always")
    assert ", live now: trained on" in train(*always, before=("-q",)).stdout
    runner(str(path))("--now", NOW, "route", "create", "front", "--to", "visits@2")
    third = train(*always, before=("-q",)).stdout
    assert ", live, but not for all callers: trained on" in third
    assert "route front serves visits@2, whichever version is live: `rlrec route set front --to visits`" in third
    assert train(*always, "--json").json["passed_by"]


def test_too_few_sessions_say_how_few(run_sqlite: Run, sqlite_db: str) -> None:
    with closing(opening(Path(sqlite_db))) as store:
        serve(opened(store), visits=100)
    result = run_sqlite("--now", NOW, "-q", "train-pg", "visits", *QUICK, "--promote", "if-better", "--json")
    assert (result.exit_code, result.json["estimate"]) == (3, None)
    assert 0 < result.json["tune_ess"] < 100
    assert result.json["tune_lower"] <= result.json["tune_estimate"]
    assert "the log supports no step" in result.error["error"]
    assert f"where {result.json['ess_wanted']:.0f} are wanted" in result.error["error"]


def test_nothing_new_exits_0(train: Run, rows: Callable[[], Any]) -> None:
    before = rows()
    result = train("visits", "--min-new", 601, "--promote", "if-better", "--json")
    assert (result.exit_code, result.json["promoted"], result.json["trained"]) == (0, False, False)
    assert (result.json["sessions"], result.json["version"]) == (600, 1)
    assert set(result.json) >= KEYS
    assert result.stderr.startswith("nothing new: 600 sessions")
    assert result.json["why"] + "\n" == result.stderr
    assert rows() == before


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--min-new", 601), "nothing new: 600 sessions since the last training, and --min-new is 601"),
        (("--epochs", 1, "--lr", 50), "the log supports no step: "),
    ],
)
def test_a_quiet_run_that_changes_nothing_says_why(train: Run, options: tuple[object, ...], why: str) -> None:
    result = train("visits", "--seed", 1, *options, before=("-q",))
    assert (result.exit_code, result.stderr) == (0, "")
    assert why in result.stdout.splitlines()[-1]
    assert train("visits", "--seed", 1, *options, "--json", before=("-q",)).json["why"].startswith(why)


def test_too_little_news_says_how_many_sessions_wait_and_until_when(run_sqlite: Run, sqlite_db: str) -> None:
    """50 visits at 8:00 and 50 at 8:05, of 20 seconds; the session timeout and the window are 30 minutes."""
    with closing(opening(Path(sqlite_db))) as store:
        serve(opened(store), visits=50)
        serve(store, visits=50, start=START + 5 * MINUTE, prefix="n")
    words = ("-q", "train-pg", "visits", "--seed", 1, "--epochs", 1, "--min-new")
    for now, n_new, n_more, first in (("08:10", 0, 100, "08:31Z, in 21 min"), ("08:31", 50, 50, "08:36Z, in 5 min")):
        result = run_sqlite("--now", f"2027-01-15T{now}:00Z", *words, 60, "--json")
        assert result.json["why"].startswith(
            f"nothing new: {n_new} sessions since the last training, and --min-new is 60; {n_more} more count once "
            f"they have ended and their reward windows are over, the first at {first}; to look now, add `--now"
        )
    clock = result.json["why"].split("`")[1].split()
    assert run_sqlite(*clock, *words, 100, "--json").json["trained"]


def test_the_start_that_is_named_for_an_imported_log_works(run_sqlite: Run) -> None:
    """A label of a log cannot be copied: a bandit that learned from it can. One of ten arms earns."""
    arms = [f"a{number}" for number in range(10)]
    lines = [
        json.dumps(
            {
                "session": f"s{number}", "eligible": arms, "state": {"step": 0}, "reward": number % 10 // 9,
                "slate": [{"position": 1, "arm": arms[number % 10], "propensity": 0.1}],
            }
        )
        for number in range(600)
    ]  # fmt: skip
    run_sqlite("import-log", "-", "--layout", "jsonl", "--policy", "old", stdin="\n".join(lines))
    run_sqlite("policy", "create", "visits", "--kind", "gradient")
    why = run_sqlite("-q", "train-pg", "visits", *QUICK, "--lr", 50, "--json").json["why"]
    learn, copy = (command.split()[1:] for command in re.findall(r"`([^`]+)`", why))
    refused = run_sqlite("policy", "create", "NAME", "--kind", "gradient", "--from-policy", "old", "--json").error
    assert refused["hint"].replace("NAME", "BANDIT").split("`")[1].split()[1:] == learn
    for command in (learn, copy):
        assert run_sqlite(*command, "--json").json["created"]


def test_always_goes_live(train: Run, path: Path) -> None:
    assert train("visits", *QUICK, "--promote", "always", "--json").json["promoted"]
    shown = runner(str(path))("--now", NOW, "policy", "show", "visits", "--json").json
    assert shown["version"] == 2
    assert [point["epoch"] for point in shown["training"]["curve"]] == [1, 2]
    assert shown["arms"][0]["weights"].keys() >= {"bias", "session:reward", "own:faded"}


def test_options_come_from_the_environment_too(train: Run) -> None:
    result = train("visits", env={"RLREC_TRAIN_PG_EPOCHS": "1", "RLREC_TRAIN_PG_SEED": "7"}).done()
    assert "seed 7\n" in result.stdout
    assert "epoch 1 of 1" in result.stderr


@pytest.mark.slow
def test_clipping_can_be_none(train: Run, path: Path) -> None:
    for clip in ("none", "1e3"):
        assert train("visits", "--seed", 1, "--epochs", 1, "--clip-weight", clip).exit_code == 0
    with closing(opening(path)) as store, store.read() as unit:
        retained = [json.loads(text) for (text,) in unit.ask("SELECT learned_from FROM version WHERE number > 1")]
    assert [item["options"]["clip_weight"] for item in retained] == [None, 1000.0]


# -- wrong questions --

WRONG: list[tuple[list[Any], str]] = [
    (["visits", "--gamma", "1.01"], "gamma is 1.01"),
    (["visits", "--gamma", "-0.1"], "gamma is -0.1"),
    (["visits", "--gamma", "nan"], "nan"),
    (["visits", "--gamma", "inf"], "inf"),
    (["visits", "--lr", "0"], "lr is 0"),
    (["visits", "--lr", "x"], "'x' is not a number"),
    (["visits", "--entropy", "-1"], "entropy is -1"),
    (["visits", "--clip-weight", "0"], "clip-weight is 0"),
    (["visits", "--clip-weight", "non"], "non"),
    (["visits", "--kl-stop", "-1"], "kl-stop is -1"),
    (["visits", "--epochs", "0"], "epochs"),
    (["visits", "--batch", "0"], "batch"),
    (["visits", "--patience", "0"], "patience"),
    (["visits", "--top-k", "-1"], "top-k"),
    (["visits", "--seed", "-1"], "seed"),
    (["visits", "--seed", str(2**63)], "seed"),
    (["visits", "--min-new", "-1"], "min-new"),
    (["visits", "--baseline", "valu"], "did you mean value?"),
    (["visits", "--promote", "if-beter"], "did you mean if-better?"),
    (["visits", "--since", "yesterday"], "yesterday"),
    (["visits", "--since", "2027-01-16"], "empty log to train on"),
    (["visits", "--log", "polcy=base"], "did you mean policy?"),
    (["visits", "--log", "policy=bas"], "did you mean base?"),
    (["visits", "--log", "policy=visits"], "empty log to train on"),
    (["visits", "--log", "version=9"], "empty log to train on"),
    (["visits", "--from-version", "9"], "no version 9"),
    (["visits", "--from-version", "0"], "from-version"),
    (["visits", "--shaping", "session:rewrd=1"], "did you mean session:reward"),
    (["visits", "--shaping", "session:reward"], "session:reward"),
    (["visits", "--shaping", "session:reward=x"], "'x' is not a number"),
    (["visits", "--shaping", "session:reward=nan"], "nan"),
    (["visits", "--shaping", "session:reward=1", "--shaping", "session:reward=2"], "twice"),
    (["visits", "--log", "split=gate"], "sessions, none is in the split that teaches"),
    (["visit"], "did you mean visits"),
    (["visits@1"], "--from-version"),
    (["visits@9"], "--from-version"),
    (["base"], "kind uniform"),
    ([], "NAME"),
]


@pytest.mark.slow
def test_a_wrong_question_is_answered_in_one_line_and_stores_nothing(train: Run, rows: Callable[[], Any]) -> None:
    before = rows()
    for words, piece in WRONG:
        refuses(train(*words), 2, piece)
    assert rows() == before


def test_an_error_names_what_was_typed(train: Run) -> None:
    refuses(train("visit"), 2, "NAME: unknown policy 'visit'")


def test_a_log_without_propensities_teaches_nothing(run_sqlite: Run) -> None:
    """Of the Open Bandit Dataset it knows one slot of a page, never the page."""
    for words in (
        ["import-log", "sample_data/random_all.csv.gz", "--layout", "obd", "--policy", "random"],
        ["policy", "create", "visits", "--kind", "gradient"],
    ):
        assert run_sqlite(*words).exit_code == 0
    result = run_sqlite("-q", "train-pg", "visits")
    refuses(result, 2, "has propensities for whole slates")


def test_sessions_without_rewards_teach_nothing(run_sqlite: Run, sqlite_db: str) -> None:
    with closing(opening(Path(sqlite_db))) as store:
        serve(opened(store), visits=50, liked=lambda key, step, before: False)
    result = run_sqlite("--now", NOW, "-q", "train-pg", "visits")
    refuses(result, 2, "no session has an event that reward default weighs")


def test_an_empty_log_teaches_nothing(run_sqlite: Run, sqlite_db: str) -> None:
    with closing(opening(Path(sqlite_db))) as store:
        opened(store)
    refuses(run_sqlite("--now", NOW, "train-pg", "visits"), 2, "empty log to train on")
    result = run_sqlite("--now", NOW, "train-pg", "visits", "--min-new", 1, "--json")
    assert (result.exit_code, result.json["trained"]) == (0, False)


def test_a_log_that_is_too_young_says_what_it_waits_for(run_sqlite: Run, sqlite_db: str) -> None:
    with closing(opening(Path(sqlite_db))) as store:
        serve(opened(store), visits=50)
    result = run_sqlite("--now", "2027-01-15T08:10:00Z", "-q", "train-pg", "visits")
    refuses(result, 2, "empty log to train on", "50 not over, or still within their reward windows")


def test_a_log_of_pages_with_rules_alone_says_what_to_serve(run_sqlite: Run, sqlite_db: str) -> None:
    with closing(opening(Path(sqlite_db))) as store:
        opened(store)
    lines = [{"policy": "visits", "session": f"s{n}", "page": {"pin": {"1": "tea"}}} for n in range(9)]
    run_sqlite("--now", "2027-01-15T08:00:00Z", "--allow-future", "recommend", "--input", "-", stdin=lines).done()
    result = run_sqlite("--now", NOW, "-q", "train-pg", "visits")
    refuses(result, 2, "every page has rules of its request", "serve some without")


def test_a_policy_with_least_shares_is_refused(run_sqlite: Run) -> None:
    run_sqlite("arm", "add", "tea", "mate").done()
    run_sqlite("policy", "create", "visits", "--kind", "gradient", "--param", "least=tea=0.3").done()
    refuses(run_sqlite("train-pg", "visits"), 2, "keeps least shares (tea=0.3)", "create it without `least`")


def test_what_a_page_with_rules_earns_teaches_the_page_before(run_sqlite: Run, sqlite_db: str) -> None:
    """A pinned page is clicked where the page before it, without rules, showed tea."""
    with closing(opening(Path(sqlite_db))) as store:
        opened(store)
    clock, lines = ("--now", "2027-01-15T08:00:00Z", "--allow-future"), [{"session": f"s{n}"} for n in range(400)]
    answers = []
    for page in ({}, {"pin": {"1": "tea"}}):
        served = [{**line, "policy": "visits", "page": page} for line in lines]
        answers.append(run_sqlite(*clock, "recommend", "--input", "-", "--seed", 1, "--json", stdin=served).lines)
    first = [answer["slate"][0]["arm"] for answer in answers[0]]
    liked = [answer["decision_id"] for answer, arm in zip(answers[1], first, strict=True) if arm == "tea"]
    click(run_sqlite, liked, *clock)
    result = run_sqlite(
        "--now", NOW, "train-pg", "visits", "--seed", 1, "--epochs", 12, "--lr", 0.1, "--promote", "always", "--json"
    )
    assert result.json["sessions"] == 400
    assert "400 of 800 pages had caps, least shares or pins alone" in result.stderr
    shown = run_sqlite("--now", NOW, "policy", "show", "visits", "--json").json["arms"]
    assert max(shown, key=lambda row: row["probability"])["arm"] == "tea"
    assert max(row["probability"] for row in shown) > first.count("tea") / 400 + 0.1


def test_a_store_without_arms_says_so_in_one_line(run_sqlite: Run) -> None:
    assert run_sqlite("policy", "create", "visits", "--kind", "gradient").exit_code == 0
    refuses(run_sqlite("train-pg", "visits"), 2, "empty log to train on")


def test_a_clock_that_is_behind_is_told_of_once(path: Path) -> None:
    result = runner(str(path))("train-pg", "visits", *QUICK)
    assert result.stderr.count("lies ahead of the clock") <= 1
