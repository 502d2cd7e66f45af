"""Feedback that names a user: which showings a rule credits, once for each key, as ordinary events."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

import rlrec
from rlrec.app.policies import rebuild
from rlrec.app.requests.feedback import feedback
from rlrec.app.requests.pipe import Pipe, Request
from rlrec.app.upkeep.doctor import Request as Audit
from rlrec.app.upkeep.doctor import doctor
from rlrec.errors import Conflict, InputError
from rlrec.records import Line
from rlrec.store import Store, Unit
from rlrec.store.log import events
from tests.app.shop import MINUTE, START, added_up, apart, ask, clock, dump, stocked, sums, tell
from tests.app.workers import together
from tests.conftest import ON_BOTH, Run, filled, runner

HOUR = 60 * MINUTE
WEEK = 7 * 24 * HOUR


def rule(user: str = "u", arm: str | None = None, window: int = WEEK, *, spread: bool = False) -> dict[str, Any]:
    return {"user": user, "arm": arm, "is_spread": spread, "window_us": window}


def credited(store: Store, credit: Mapping[str, Any], values: Mapping[str, float] | None = None, **options: Any) -> Any:
    return feedback(store, Line(events=values or {"click": 1.0}, **credit, **options))


def shares(answer: Any) -> list[tuple[int, int | None, float]]:
    return [(row["decision_id"], row["position"], row["share"]) for row in answer.credited]


def show_arms(db: str) -> None:
    with closing(Store(db)) as store:
        stocked(clock(store, START), arms="abc", home="thompson/counted")
        for number, (user, arms) in enumerate((("u", "ab"), ("u", "b"), ("u", "ac"), ("v", "a"))):
            ask(clock(store, START + number * HOUR), session=f"s{number}", user=user, size=len(arms), arms=list(arms))


@pytest.fixture
def shop(db: str) -> Iterator[Store]:
    """u saw decision 1 (a, b), 2 (b) and 3 (a, c) an hour apart, then somebody else decision 4; now it is 5 h later."""
    filled(db, show_arms)
    with closing(Store(db)) as store:
        yield clock(store, START + 5 * HOUR)


# -- which showings --


def test_the_page_seen_last_is_credited(shop: Store) -> None:
    answer = credited(shop, rule())
    assert (answer.user, answer.events, answer.duplicates) == ("u", 1, 0)
    assert answer.credited == [{"decision_id": 3, "position": None, "share": 1.0, "reward": 0.0}]  # late
    with shop.read() as unit:
        (event,) = events.by_decision(unit, [1, 2, 3, 4])[3]
    assert (event.position, event.kind, event.value, event.at) == (None, "click", 1.0, START + 5 * HOUR)


def test_an_event_of_earlier_credits_the_page_before_it(shop: Store) -> None:
    answer = credited(shop, rule(), at=START + HOUR + MINUTE)
    assert answer.credited == [{"decision_id": 2, "position": 1, "share": 1.0, "reward": 1.0}]
    assert shares(credited(shop, rule(), at=START)) == [(1, None, 1.0)]


@ON_BOTH
def test_an_arm_is_credited_where_it_was_shown_last(shop: Store) -> None:
    with shop.read() as unit:
        slates = events.slates(unit, [1, 2, 3])
    positions = {number: {arm: position for position, arm in slate.items()} for number, slate in slates.items()}
    assert shares(credited(shop, rule(arm="b"))) == [(2, 1, 1.0)]
    assert shares(credited(shop, rule(arm="a"))) == [(3, positions[3][1], 1.0)]
    assert shares(credited(shop, rule(arm="a", spread=True))) == [(3, positions[3][1], 0.5), (1, positions[1][1], 0.5)]


@ON_BOTH
def test_a_value_is_spread_over_the_showings_in_the_window(shop: Store) -> None:
    answer = credited(shop, rule(spread=True), {"click": 3.0, "purchase": 30.0})
    assert shares(answer) == [(3, None, 1 / 3), (2, 1, 1 / 3), (1, None, 1 / 3)]
    assert answer.events == 6
    with shop.read() as unit:
        stored = events.by_decision(unit, [1, 2, 3])
    assert [[(event.kind, event.value) for event in stored[number]] for number in (1, 2, 3)] == [
        [("click", 1.0), ("purchase", 10.0)]
    ] * 3
    assert shares(credited(shop, rule(spread=True, window=4 * HOUR))) == [(3, None, 0.5), (2, 1, 0.5)]


def test_pages_of_both_keys_of_a_person_are_credited(shop: Store, db: str) -> None:
    assert runner(db)("user", "merge", "v", "--into", "u").exit_code == 0
    assert shares(credited(shop, rule("v"))) == shares(credited(shop, rule("u"))) == [(4, 1, 1.0)]
    assert [number for number, *_ in shares(credited(shop, rule("v", spread=True)))] == [4, 3, 2, 1]


# -- ordinary events --


def test_beliefs_are_what_a_rebuild_and_an_audit_find(shop: Store) -> None:
    for number in range(4):
        at = START + HOUR * number + MINUTE
        credited(shop, rule(arm="ab"[number % 2], spread=number > 1), {"click": 0.5}, at=at, key=f"k{number}")
    assert sum(row[1] for row in sums(shop, "home").values()) > 1
    assert apart(sums(shop, "home"), added_up(shop, "home")) == 0
    before = sums(shop, "home")
    rebuild.rebuild(shop, rebuild.Request(reference="home@1"))
    assert apart(before, sums(shop, "home")) < 1e-12
    assert [finding for finding in doctor(shop, Audit()).findings if finding.severity == "error"] == []


def test_an_export_is_taken_in_again(shop: Store, run: Run, tmp_path: Any) -> None:
    credited(shop, rule(spread=True), {"click": 1.0}, at=START + 2 * HOUR + MINUTE, key="k")
    lines = tmp_path / "log.jsonl"
    assert run("--now", "2027-02-01", "export-log", lines).exit_code == 0
    other = runner(str(tmp_path / "other.db"))
    other("init")
    assert (
        other("--now", "2027-02-01", "import-log", lines, "--layout", "jsonl", "--policy", "old", "--json").json[
            "accepted"
        ]
        == 4
    )
    rows = other("--now", "2027-02-01", "export-log", "-").lines
    assert [[(event["key"], event["value"]) for event in row["events"]] for row in rows] == [
        [("k/3", 1 / 3)], [("k/2", 1 / 3)], [("k", 1 / 3)], [],
    ]  # fmt: skip


# -- once for each key --


@ON_BOTH
def test_a_retry_changes_nothing_though_the_user_has_seen_more(shop: Store) -> None:
    lines = [
        Line(events={"purchase": 29.0}, **rule(), key="last"),
        Line(events={"purchase": 29.0}, **rule(arm="a"), key="arm"),
        Line(events={"purchase": 29.0}, **rule(spread=True), key="all"),
        Line(events={"purchase": 29.0}, **rule(arm="b", spread=True), key="all-b", at=START + 4 * HOUR),
    ]
    first = [feedback(shop, line) for line in lines]
    ask(shop, session="later", user="u", size=2, arms=["a", "b"])
    before = dump(shop)
    again = [feedback(clock(shop, START + 6 * HOUR), line) for line in lines]
    assert list(map(shares, again)) == list(map(shares, first))
    assert [(answer.events, answer.duplicates) for answer in again] == [(0, 1), (0, 1), (0, 3), (0, 2)]
    assert dump(shop) == before


def test_a_key_names_one_line(shop: Store) -> None:
    credited(shop, rule(spread=True), key="k")
    credited(shop, rule(arm="b"), key="b")
    before = dump(shop)
    for credit, options in (
        (rule(), {}), (rule("v"), {}), (rule(arm="a", spread=True), {}), (rule(spread=True), {"at": START + 4 * HOUR}),
        (rule(spread=True), {"values": {"click": 2.0}}), (rule(spread=True), {"values": {"open": 1.0}}),
    ):  # fmt: skip
        with pytest.raises(Conflict, match="'k' is known with other content"):
            credited(shop, credit, key="k", **options)
    with pytest.raises(Conflict, match="'b' is known with other content"):
        credited(shop, rule("v"), key="b")
    assert credited(shop, rule(), key="b").duplicates == 1  # another rule, but what it credited
    with pytest.raises(Conflict, match="'k/2' is known with other content"):
        tell(shop, 1, click=2, key="k/2")
    assert dump(shop) == before
    tell(shop, 1, click=1, key="n/3")
    before = dump(shop)
    with pytest.raises(Conflict, match="'n/3' is known with other content"):
        credited(shop, rule(spread=True), key="n")
    with pytest.raises(InputError, match="too long to be numbered"):
        credited(shop, rule(spread=True), key="k" * 200)
    assert dump(shop) == before
    assert credited(shop, rule(), key="k" * 200).events == 1


def test_lines_of_one_group_know_each_other(shop: Store) -> None:
    spread, keyed = rule("w", spread=True), {"key": "k", "events": {"click": 1.0}}
    answers = Pipe(shop).group([
        Request(policy="home", session="w1", user="w"), Request(policy="home", session="w2", user="w"),
        Line(**spread, **keyed), Line(**spread, **keyed),
        Line(**rule("w"), **keyed),
        Line(decision_id=1, events={"click": 1.0}, key="n/2"), Line(**spread, events={"click": 1.0}, key="n"),
        Line(**rule("nobody"), events={"click": 1.0}), Line(decision_id=1, position=9, events={"click": 1.0}),
    ])  # fmt: skip
    ids = [answers[1]["decision_id"], answers[0]["decision_id"]]
    assert [shares(answer) for answer in answers[2:4]] == [[(number, 1, 0.5) for number in ids]] * 2
    assert [(answer.events, answer.duplicates) for answer in answers[2:4]] == [(2, 0), (0, 2)]
    assert [isinstance(answer, Conflict) for answer in answers[4:7]] == [True, False, True]
    assert [str(answer.message) for answer in answers[7:]] == [
        "unknown user 'nobody'", "position 9 of decision 1 was not shown",
    ]  # fmt: skip
    assert apart(sums(shop, "home"), added_up(shop, "home")) == 0


@pytest.mark.parametrize("db", ["postgres"], indirect=True)
def test_a_key_that_is_stored_while_a_decision_of_another_policy_is_credited_is_known(
    store: Store, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each locks the policy of the newest page that it saw: nobody waits for the other."""
    stocked(store, home="uniform", other="uniform")
    ask(store, "home", "s", user="u")
    read_targets = events.targets

    def store_meanwhile(unit: Unit, lines: Sequence[Line]) -> list[events.FeedbackTarget]:
        monkeypatch.setattr(events, "targets", read_targets)
        with closing(Store(db)) as others:
            feedback(clock(others, START), Line(decision_id=1, events={"click": 1.0}, key="k"))
        return read_targets(unit, lines)

    ask(store, "other", "s", user="u")
    monkeypatch.setattr(events, "targets", store_meanwhile)
    answer = credited(store, rule(), key="k")
    assert (answer.events, answer.duplicates, [row["decision_id"] for row in answer.credited]) == (0, 1, [1])


@pytest.mark.parametrize("when", [1, 2, 3])
@pytest.mark.parametrize("db", ["postgres"], indirect=True)
def test_a_key_that_is_stored_while_its_showings_are_read_is_known(
    store: Store, db: str, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    """Between the look for the key and that for the keys of the lines that replace it."""
    stocked(store, home="uniform", other="uniform")
    ask(store, "home", "s", user="u")
    read_keys, calls = events.keys_and_kinds, list[int]()

    def store_meanwhile(*args: Any) -> Any:
        answer = read_keys(*args)
        calls.append(1)
        if len(calls) == when:
            with closing(Store(db)) as others:
                monkeypatch.setattr(events, "keys_and_kinds", read_keys)
                feedback(clock(others, START), Line(decision_id=1, events={"click": 1.0}, key="k"))
        return answer

    ask(store, "other", "s", user="u")
    monkeypatch.setattr(events, "keys_and_kinds", store_meanwhile)
    answer = credited(store, rule(), key="k")
    assert (answer.events, answer.duplicates, [row["decision_id"] for row in answer.credited]) == (0, 1, [1])


def buys(store: Store, number: int) -> int:
    """Feedback of users under keys that all processes use, while these see further pages: how many lines were new."""
    chance, new = random.Random(number), 0
    for key in range(12):
        ask(store, chance.choice(["home", "other"]), f"{number}-{key}", user=f"u{key % 3}")
        credit = rule(f"u{key % 3}", spread=key % 2 == 0)
        new += bool(credited(store, credit, {"click": 1.0}, key=f"k{key}").events)
    return new


@ON_BOTH
@pytest.mark.slow
def test_many_processes_store_each_key_once(store: Store, db: str) -> None:
    stocked(store, home="thompson/counted", other="epsilon-greedy/counted")
    for number in range(3):
        ask(store, session=f"s{number}", user=f"u{number}")
    assert sum(together(buys, db, [0, 1, 2])) == 12
    with store.read() as unit:
        by_key = unit.ask("SELECT key, sum(value) FROM event GROUP BY key")
    totals = dict.fromkeys((f"k{key}" for key in range(12)), 0.0)
    for key, value in by_key:
        totals[key.partition("/")[0]] += value
    assert totals == pytest.approx(dict.fromkeys(totals, 1.0))
    for name in ("home", "other"):
        assert apart(sums(store, name), added_up(store, name)) < 1e-12
    assert [row for row in runner(db)("doctor", "--json").json["findings"] if row["severity"] == "error"] == []


# -- doors, and what is refused --


def test_every_door_takes_such_lines(shop: Store, run: Run, db: str) -> None:
    now = ["--now", "2027-01-15T13:00:00Z"]
    typed = run(*now, "feedback", "purchase=29", "--user", "u", "--json").json
    assert [row["decision_id"] for row in typed["credited"]] == [3]
    table = run(*now, "feedback", "--user", "u", "purchase=29", "click", "--credit", "spread", "--window", "4h30m")
    assert [line.split()[:3] for line in table.stdout.splitlines()[-2:]] == [["3", "-", "0.5"], ["2", "1", "0.5"]]
    lines = [{"user": "u", "events": {"click": 1}, "arm": "b", "key": "x"}, {"user": "u", "events": {"click": 1}}]
    assert run(*now, "feedback", "--input", "-", "--json", stdin=[*lines, lines[0]]).json == {
        "accepted": 2, "duplicates": 1, "rejected": 0,
    }  # fmt: skip
    piped = run(*now, "pipe", stdin=json.dumps({"op": "feedback", **lines[0]}) + "\n").lines
    assert piped[0]["credited"] == [{"decision_id": 2, "position": 1, "share": 1.0, "reward": 0.0}]
    with rlrec.open(db, now=now[1]) as store:
        answer = store.feedback(user="u", events={"click": 1}, window=timedelta(hours=6), credit="spread")
        assert [row["share"] for row in answer["credited"]] == [1 / 3] * 3
    assert run(*now, "feedback", "--user", "u", "click", "--dry-run", "--json").json["events"] == 1


REFUSED = [
    ("--user nobody click", "unknown user 'nobody'"),
    ("--user u click --window 1h", "user 'u' saw no page from 2027-01-15T12:00:00.000000Z to"),
    ("--user u click --window 1h", "13:00:00.000000Z. give a longer window"),
    ("--user u click --at 2026-12-01", "user 'u' saw no page before 2026-12-01T00:00:00.000000Z. there is nothing"),
    ("--user u click --arm b --window 2h", "user 'u' saw no arm 'b' from"),
    (
        "--user v click --arm b",
        "user 'v' saw no arm 'b' before 2027-01-15T13:00:00.000000Z. name another arm, or no arm",
    ),
    ("--user u click --arm zz", "unknown arm 'zz'"),
    ("--user u click --at 2027-01-16", "the event lies in the future"),
    ("3 click --user u", "decision_id and user are both given"),
    ("--user u click --position 1", "position and user are both given"),
    ("--user u --censor", "censor and user are both given"),
    ("--user u", "no event is given"),
    ("--user u click click=2", "event 'click' is given twice"),
    ("--user u click --window 0s", "the window is 0"),
    ("--user u click --window soon", "'soon' is not a duration"),
    ("--user u click --credit each", "each"),
    ("--user u cl/ck", "'cl/ck' is no kind of event"),
    ("--user u return", "the event 'return' belongs to a decision"),
    ("3 click --arm a", "arm is given without a user"),
    ("click", "'click' is not a decision id"),
]


def test_what_credits_nothing_is_refused_and_stores_nothing(shop: Store, run: Run) -> None:
    before = dump(shop)
    for words, message in REFUSED:
        refused = run("--now", "2027-01-15T13:00:00Z", "feedback", *words.split())
        assert (refused.exit_code, refused.stdout) == (2, ""), words
        assert message in refused.stderr
        assert refused.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert dump(shop) == before


NAMED: list[tuple[dict[str, Any], str]] = [
    ({"user": "u", "decision_id": 3}, "decision_id"),
    ({"user": "u", "request_id": "r"}, "request_id"),
    ({"user": "u", "censor": True}, "censor"),
    ({"user": "u", "credit": "both"}, "credit"),
    ({"user": "u", "window": "never"}, "window"),
    ({"decision_id": 3, "window": "7d"}, "window"),
    ({"user": ""}, "user"),
    ({"user": "u", "arm": 7}, "arm"),
]


def test_a_line_that_credits_nothing_names_its_field(shop: Store, run: Run) -> None:
    before = dump(shop)
    for line, field in NAMED:
        text = json.dumps({"events": {"click": 1}, **line}) + "\n"
        refused = run("--now", "2027-01-15T13:00:00Z", "feedback", "--input", "-", stdin=text)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), line
        assert f"line 1, field {field}: " in refused.stderr
    assert dump(shop) == before


def test_too_many_showings_are_not_spread_over(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlrec.app.requests.credit.MAX_SHOWINGS", 2)
    with pytest.raises(InputError, match="more than 2 showings"):
        credited(shop, rule(spread=True))
    assert credited(shop, rule(spread=True, window=4 * HOUR)).events == 2
