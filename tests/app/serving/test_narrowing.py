"""What takes arms from a request: groups, blocks, times, and what its person did. What is left is exact, and logged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from rlrec.app.policies import policy
from rlrec.app.requests import recommend as recommend_module
from rlrec.app.requests import user
from rlrec.app.requests.pipe import Line, Pipe, Request
from rlrec.app.serving import cache, draws, planned_requests
from rlrec.app.serving.requests import PlannedRequest
from rlrec.app.setup import arm
from rlrec.app.upkeep import doctor
from rlrec.app.upkeep.export_log import export_log
from rlrec.errors import Conflict, InputError, RlrecError
from rlrec.store import Store
from rlrec.store.log import contents, reader
from rlrec.store.policies import arms
from tests.app.shop import MINUTE, START, ask, clock, stocked, tell
from tests.conftest import ON_BOTH, Run, click, click_events, runner

DAY = 24 * 60 * MINUTE


@pytest.fixture
def shop(store: Store) -> Iterator[Store]:
    """Five arms, of which a, b and c are in group home, and two policies; every test ends with an audit."""
    clock(store, START)
    stocked(store, home="thompson", even="epsilon-greedy")
    arm.put(store, lambda: [[(key, None, ["home"], {}) for key in "abc"]])
    yield store
    report = doctor.doctor(store, doctor.Request())
    assert [row for row in report.findings if row.severity == "error"] == []


def shown(answer: Any) -> list[str]:
    return [slot["arm"] for slot in answer["slate"]]


def eligible(store: Store, answer: Any) -> str:
    """The arms that the decision is logged with."""
    with store.read() as unit:
        query = "SELECT eligible_id FROM decision WHERE id = ?"
        set_id = unit.ask_value(query, answer["decision_id"])
        members = contents.eligible_arms(unit, [set_id])[set_id]
        return "".join(arms.keys(unit, members)[number] for number in members)


def second(store: Store) -> Store:
    """The same store, as another process has it."""
    return clock(Store(store.url.render_as_string(hide_password=False)), START)


def refused(store: Store, **request: Any) -> str:
    with pytest.raises(InputError) as error:
        ask(store, **request)
    return f"{error.value.message}: {error.value.hint}"


def test_a_set_that_lacks_arms_of_another_one_is_stored_as_the_arms_that_it_has(store: Store) -> None:
    many = tuple(range(9, 120))
    for lacking in ([9], [119], [9, 10, 11, 60, 118, 119], [*range(10, 120)]):
        few = contents.NarrowedSet(many, tuple(lacking))
        plain = tuple(arm for arm in many if arm not in lacking)
        assert len(few) == len(plain)
        assert cache.arm_array(few).tolist() == [*plain]
        set_id = store.write(lambda unit, few=few: contents.eligible_sets(unit, {few})[few])
        with store.read() as unit:
            assert contents.find(unit, (), [plain, few]) == ({}, {plain: set_id, few: set_id})
            assert contents.eligible_arms(unit, [set_id]) == {set_id: plain}


@ON_BOTH
def test_a_block_of_a_person_is_stored_as_what_it_takes(shop: Store) -> None:
    """Of 2,000 arms each person lacks another one: no decision stores the list of the others."""
    arm.put(shop, lambda: [[(f"many{n}",) for n in range(2_000)]])
    answers = [ask(shop, session=f"s{n}", block=[f"many{n}"]) for n in range(5)]
    with shop.read() as unit:
        ids = [unit.ask_value("SELECT eligible_id FROM decision WHERE id = ?", row["decision_id"]) for row in answers]
        rows = unit.ask("SELECT size, length(arms) FROM eligible_set WHERE id IN (?*)", ids)
        sets = contents.eligible_arms(unit, ids)
        taken = arms.ids(unit, {f"many{n}" for n in range(5)})
    assert [size for size, _ in rows] == [2_004] * 5
    assert max(length for _, length in rows) < 10
    assert [taken[f"many{n}"] in sets[key] for n, key in enumerate(ids)] == [False] * 5


def test_requests_with_very_many_arms_are_drawn_a_few_at_a_time(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block leaves four arms: six requests fit, and the others wait until these are stored."""
    portions, plan = list[int](), planned_requests.plan_group

    def counted(*args: Any, **options: Any) -> Any:
        plans = plan(*args, **options)
        portions.append(sum(isinstance(item, PlannedRequest) for item in plans))
        return plans

    monkeypatch.setattr(contents, "MAX_ARMS", 24)
    monkeypatch.setattr(recommend_module, "plan_group", counted)
    requests = [
        Request(policy="home", session=f"s{n % 3}", block=["abcde"[n % 5]], size=1 + n // 5 % 3, request_id=f"r{n}")
        for n in range(15)
    ]
    answers: list[Any] = Pipe(shop, seed=1).group([*requests, requests[14], requests[0]])
    assert [answer["request_id"] for answer in answers] == [f"r{n}" for n in (*range(15), 14, 0)]
    assert [answer["decision_id"] for answer in answers] == [*range(1, 16), 15, 1]
    assert [answer["step"] for answer in answers[:15]] == [n // 3 for n in range(15)]
    assert ["abcde"[n % 5] in shown(answer) for n, answer in enumerate(answers[:15])] == [False] * 15
    assert set(portions) == {6, 3}


def test_what_is_stored_of_a_group_is_answered_whatever_ends_the_rest(
    shop: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six requests fit; then the disk is full."""
    portions, answer = iter([True, False]), recommend_module.RequestGroup._answer

    def until_full(group: Any) -> Any:
        if next(portions):
            return answer(group)
        raise RlrecError("the disk is full", hint="nothing was stored; make room, and repeat")

    monkeypatch.setattr(contents, "MAX_ARMS", 24)
    monkeypatch.setattr(recommend_module.RequestGroup, "_answer", until_full)
    requests = [Request(policy="home", session=f"s{n}", block=["abcde"[n % 5]], size=1 + n // 5) for n in range(9)]
    answers: list[Any] = Pipe(shop, seed=1).group(requests)
    assert [item["decision_id"] for item in answers[:6]] == [1, 2, 3, 4, 5, 6]
    assert [(type(item), item.message) for item in answers[6:]] == [(InputError, "the disk is full")] * 3


def test_an_audit_that_holds_one_set_at_a_time_finds_the_same(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [ask(shop, session=f"s{n // 2}", block=["abcde"[n % 5]]) for n in range(10)]
    change = "UPDATE slot SET propensity = ? WHERE decision_id = ?"
    bent = answers[3]["decision_id"], answers[6]["decision_id"]
    for number in bent:
        shop.write(lambda unit, number=number: unit.tell(change, 0.9, number))
    report, exported = doctor.doctor(shop, doctor.Request()), list(export_log(shop))
    monkeypatch.setattr(contents, "MAX_ARMS", 1)
    monkeypatch.setattr(reader, "MAX_CELLS", 1)
    assert doctor.doctor(shop, doctor.Request()).findings == report.findings
    assert list(export_log(shop)) == exported
    assert len(exported) == 10
    assert {row.subject for row in report.findings if row.check == "propensities"} == {f"decision {n}" for n in bent}
    for number, answer in ((bent[0], answers[3]), (bent[1], answers[6])):
        shop.write(lambda unit, n=number, p=answer["slate"][0]["propensity"]: unit.tell(change, p, n))


# -- propensities --


def test_propensities_are_those_of_all_pages_of_the_arms_left(shop: Store) -> None:
    """Thompson over what is left of five arms: the chance of each to be the best by an integral over its Beta."""
    for key, clicks in (("a", 1), ("b", 3), ("c", 0), ("d", 2)):
        for n in range(4):
            answer = ask(shop, arms=[key], session=f"{key}{n}")
            tell(shop, answer, click=float(n < clicks))
    tell(shop, ask(shop, arms=["e"], session="e", user="u"), purchase=1.0)
    alpha_beta = {"b": (4, 2), "c": (1, 5), "d": (3, 3)}

    def best(key: str, others: str) -> float:
        def density(x: float) -> float:
            return float(stats.beta.pdf(x, *alpha_beta[key])) * float(
                np.prod([stats.beta.cdf(x, *alpha_beta[other]) for other in others])
            )

        return float(integrate.quad(density, 0, 1, epsabs=1e-12, epsrel=1e-12)[0])

    first = {key: best(key, "bcd".replace(key, "")) for key in "bcd"}
    assert sum(first.values()) == pytest.approx(1, abs=1e-9)
    request = Request(policy="home", session="s", size=2, user="u", block=["a"], not_after=["purchase"])
    pages = set[str]()
    for n in range(12):
        answer = recommend_module.recommend(shop, request, seed=n, dry_run=True)
        top, second = shown(answer)
        last = "bcd".replace(top, "").replace(second, "")
        # given the top one: P(top > second > last) over P(top is the best)
        assert answer["slate"][0]["propensity"] == pytest.approx(first[top], abs=1e-9)
        two = best(second, last) - best(second, last + top)  # second beats last, and top beats second
        assert answer["slate"][1]["propensity"] == pytest.approx(two / first[top], abs=1e-8)
        pages.add(top + second)
    assert len(pages) > 1
    assert eligible(shop, recommend_module.recommend(shop, request)) == "bcd"


def test_groups_blocks_and_times_act_together_and_all_are_logged(shop: Store) -> None:
    arm.put(shop, lambda: [[("b", None, None, {"eligible_until": START + MINUTE})]])
    arm.put(shop, lambda: [[("f", {}, ["home"], {"eligible_from": START + MINUTE})]])
    assert eligible(shop, ask(shop, arms=["@home"])) == "abc"
    assert eligible(shop, ask(shop, arms=["@home", "d"], block=["c"])) == "abd"
    assert eligible(shop, ask(shop, block=["@home"])) == "de"
    clock(shop, START + MINUTE)
    assert eligible(shop, ask(shop, arms=["@home"])) == "acf"
    assert eligible(shop, ask(shop)) == "acdef"


# -- the person --


@ON_BOTH
def test_a_purchase_is_the_persons_in_every_session_and_under_every_key(shop: Store) -> None:
    tell(shop, ask(shop, arms=["a"], session="s1", user="u"), purchase=1.0)
    tell(shop, ask(shop, arms=["b"], session="s2"), purchase=1.0)  # nobody known: the session
    tell(shop, ask(shop, arms=["c"], session="s3", user="v"), purchase=0.0)  # said not to be one
    rule = {"not_after": ["purchase"]}
    assert eligible(shop, ask(shop, session="s4", user="u", **rule)) == "bcde"
    assert eligible(shop, ask(shop, session="s2", **rule)) == "acde"
    assert eligible(shop, ask(shop, session="s2", user="v", **rule)) == "acde"  # from now on the session is theirs
    assert eligible(shop, ask(shop, session="s5", user="v", **rule)) == "acde"
    user.merge(shop, "u", into="v")
    for key in "uv":
        assert eligible(shop, ask(shop, session=f"{key}1", user=key, **rule)) == "cde"
    assert eligible(shop, ask(shop, session="w", user="w", **rule)) == "abcde"


@ON_BOTH
def test_windows_end_and_showings_count_over_sessions(shop: Store) -> None:
    for n in range(2):
        tell(shop, ask(shop, arms=["a"], session=f"s{n}", user="u"), purchase=1.0)
    ask(shop, arms=["b"], session="s9", user="u")
    clock(shop, START + DAY)
    assert eligible(shop, ask(shop, session="n", user="u", not_shown=2, arms=["a", "b", "c"])) == "bc"
    assert eligible(shop, ask(shop, session="n", user="u", not_shown="1/1h", arms=["@home"])).count("a") == 1
    assert eligible(shop, ask(shop, session="m", user="u", not_after=["purchase/2d"], block=["d", "e"])) == "bc"
    assert eligible(shop, ask(shop, session="m", user="u", not_after=["purchase/23h"], block=["d", "e"])) == "abc"


def test_showings_of_a_group_are_counted_together(shop: Store) -> None:
    """At most three of a, b and c in seven days, whichever: then all three are left out, until one of them is older."""
    rules = {"not_shown": "@home=3/7d, 6/1d"}
    policy.create(shop, policy.Request(name="push", kind="uniform", parameters={"not_shown": "@home=3/7d"}))
    showings, full = list[int](), 0
    for n in range(40):
        now = clock(shop, START + n * DAY // 2).now or 0
        is_full = sum(at > now - 7 * DAY for at in showings) >= 3
        name, request = ("push", {}) if n % 2 else ("home", rules)
        answer = ask(shop, name, session=f"s{n}", user="u", seed=n, **request)
        assert eligible(shop, answer) == ("de" if is_full else "abcde")
        assert name == "home" or answer["slate"][0]["propensity"] == (1 / 2 if is_full else 1 / 5)
        showings += [now] if shown(answer)[0] in "abc" else []
        full += is_full
    assert full > 10
    assert eligible(shop, ask(shop, "push", session="v", user="v")) == "abcde"
    assert "not_shown @home=1 takes 3" in refused(shop, session="t", user="u", arms=["@home"], not_shown="@home=1")
    assert refused(shop, session="t", not_shown="@hom=1").startswith("unknown group '@hom': did you mean @home?")
    for text in ("@home", "@home=", "@home=x", "@home=0/7d"):
        assert "@GROUP= before it counts its arms together" in refused(shop, session="t", not_shown=text)
    with pytest.raises(InputError, match="unknown group '@hom'"):
        policy.create(shop, policy.Request(name="p", kind="thompson", parameters={"not_shown": "@hom=3"}))


def test_a_group_goes_once_the_person_bought_one_of_it(shop: Store) -> None:
    tell(shop, ask(shop, arms=["a"], session="s1", user="u"), purchase=1.0)
    assert eligible(shop, ask(shop, session="s2", user="u", not_after=["@home=purchase/7d"])) == "de"
    assert eligible(shop, ask(shop, session="s3", user="v", not_after=["@home=purchase/7d"])) == "abcde"
    clock(shop, START + 7 * DAY)
    assert eligible(shop, ask(shop, session="s4", user="u", not_after=["@home=purchase/7d"])) == "abcde"


def test_a_group_of_lines_counts_the_showings_of_an_arm_group_one_after_another(shop: Store) -> None:
    lines: list[Any] = [Request(policy="home", session=f"s{n}", user="u", not_shown="@home=2") for n in range(9)]
    lines[3:3] = [Request(policy="home", session=f"w{n}", arms=["@home", "d"], not_shown="@home=1") for n in range(2)]
    answers = [answer for answer in Pipe(shop, seed=5).group(lines) if answer["user"] == "u"]
    messages = [shown(answer)[0] in "abc" for answer in answers]
    assert sum(messages) == 2
    assert [eligible(shop, answer) for answer in answers] == [
        "de" if sum(messages[:n]) == 2 else "abcde" for n in range(9)
    ]


def test_a_retry_after_a_purchase_is_the_same_request(shop: Store) -> None:
    request = {"session": "s", "user": "u", "request_id": "r", "not_after": ["purchase"], "arms": ["@home", "d"]}
    answer = ask(shop, **request)
    tell(shop, answer, purchase=1.0)
    arm.put(shop, lambda: [[("a", None, [], {}), ("g", {}, ["home"], {})]])
    again = ask(shop, **request)
    assert (again["duplicate"], again["decision_id"]) == (True, answer["decision_id"])
    for other in ({"not_after": ["click"]}, {"not_after": None}, {"arms": ["@home"]}, {"block": ["e"]}):
        with pytest.raises(Conflict):
            ask(shop, **request | other)


# -- together --


def test_requests_of_one_person_in_a_group_see_those_before_them(shop: Store) -> None:
    with closing(second(shop)) as other:
        pipe = Pipe(other, seed=3)
        lines: list[Any] = [Request(policy="home", session=f"s{n}", user="u", not_shown=1) for n in range(5)]
        lines.insert(2, Request(policy="home", session="x", request_id="r", not_shown=1))
        lines.append(Request(policy="home", session="x", request_id="r", not_shown=1))
        answers = pipe.group(lines)
    assert sorted(shown(answer)[0] for index, answer in enumerate(answers[:6]) if index != 2) == list("abcde")
    assert (answers[-1]["duplicate"], answers[-1]["decision_id"]) == (True, answers[2]["decision_id"])
    with pytest.raises(InputError, match="no arm is eligible"):
        ask(shop, session="s6", user="u", not_shown=1)


def test_a_session_may_get_its_user_behind_a_rule_in_one_group(shop: Store) -> None:
    """The rule is read for the session alone, and the request that names the user waits for it."""
    ask(shop, arms=["a"], session="t", user="u")
    ask(shop, arms=["b"], session="s")
    lines: list[Any] = [Request(policy="home", session=key, not_shown=1) for key in ("s", "new")]
    lines += [Request(policy="home", session=key, user="u") for key in ("s", "new")]
    lines.append(Request(policy="home", session="s", not_shown=1))
    answers = Pipe(shop, seed=3).group(lines)
    assert [eligible(shop, answer) for answer in answers[:4]] == ["acde", "abcde", "abcde", "abcde"]
    assert not {"a", "b"} & {*eligible(shop, answers[4])}


def test_a_set_and_one_that_lacks_some_of_it_may_be_new_in_one_group(shop: Store) -> None:
    tell(shop, ask(shop, arms=["a"], session="s", user="u"), purchase=1.0)
    rules: dict[str, Any] = {"arms": ["@home", "d"], "not_after": ["purchase"]}
    answers = Pipe(shop).group([Request(policy="home", session=key, user=key, **rules) for key in "uv"])
    assert [eligible(shop, answer) for answer in answers] == ["bcd", "abcd"]


def test_feedback_of_a_group_counts_for_its_requests(shop: Store) -> None:
    answer = ask(shop, arms=["a"], session="s", user="u")
    pipe = Pipe(shop)
    line = Line(decision_id=answer["decision_id"], events={"purchase": 1.0})
    _, narrowed = pipe.group([line, Request(policy="home", session="t", user="u", not_after=["purchase"])])
    assert eligible(shop, narrowed) == "bcde"


@ON_BOTH
def test_a_purchase_that_another_process_stores_meanwhile_counts(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    bought = ask(shop, arms=["a"], session="s", user="u")
    prepare, pending = draws.prepare, [bought]

    def prepare_late(distributions: Any) -> None:
        if pending:  # between the plan and the transaction
            with closing(second(shop)) as other:
                tell(other, pending.pop(), purchase=1.0)
        prepare(distributions)

    monkeypatch.setattr(recommend_module, "prepare", prepare_late)
    monkeypatch.setattr(recommend_module, "MAX_QUICK_CELLS", 0)  # else no transaction comes between
    answer = ask(shop, session="t", user="u", not_after=["purchase"])
    assert (pending, eligible(shop, answer)) == ([], "bcde")


def test_a_long_process_sees_arms_begin_and_end(shop: Store) -> None:
    arm.put(shop, lambda: [[("f", {}, None, {"eligible_from": START + MINUTE, "eligible_until": START + 2 * MINUTE})]])
    pipe, sets = Pipe(shop), []
    for minute in (0, 1, 2):
        clock(shop, START + minute * MINUTE)
        requests = (Request(policy="home", session="s", block=block) for block in (None, ["a"]))
        sets += [eligible(shop, pipe.group([request])[0]) for request in requests]
    assert sets == ["abcde", "bcde", "abcdef", "bcdef", "abcde", "bcde"]


# -- what is refused --


def test_an_empty_set_names_the_rules_that_took_the_arms(shop: Store) -> None:
    tell(shop, ask(shop, arms=["b"], session="s", user="u"), purchase=1.0)
    rules = {"arms": ["@home"], "block": ["a", "d"], "not_after": ["purchase"], "not_shown": 1}
    ask(shop, arms=["c"], session="s", user="u")
    assert refused(shop, session="t", user="u", **rules) == (
        "no arm is eligible: of 5 arms, arms takes 2, block takes 1, not_after purchase takes 1, not_shown 1 takes 1"
    )
    assert refused(shop, arms=["@home"], size=4) == "k is 4, with only 3 arms eligible: of 5 arms, arms takes 2"
    arm.retire(shop, ["d"], is_retired=True)
    arm.put(shop, lambda: [[("e", None, None, {"eligible_until": START})]])
    assert refused(shop, block=["d"], size=9) == "k is 9, with only 3 arms eligible: None"
    assert refused(shop, arms=["d", "e"]) == (
        "no arm is eligible: ended: e; retired: d; `rlrec arm restore` brings them back"
    )


def test_unknown_names_are_named_and_counted(shop: Store) -> None:
    assert refused(shop, arms=["x1", "x2", "x3"]).startswith("unknown arm 'x1' and 2 more: ")
    assert refused(shop, arms=["@hone"]) == "unknown group '@hone': did you mean @home?"
    assert refused(shop, block=["x"]).startswith("unknown arm 'x': ")
    many = [f"x{n}" for n in range(100_000)]
    assert refused(shop, arms=many).startswith("unknown arm 'x0' and 99999 more: ")


@pytest.mark.parametrize(
    "rule", [{"not_shown": 0}, {"not_shown": "many"}, {"not_shown": "3/x"}, {"not_after": ["purchase/soon"]}]
)
def test_a_rule_that_cannot_be_read_stores_nothing(shop: Store, rule: dict[str, Any]) -> None:
    assert "write" in refused(shop, **rule)
    with shop.read() as unit:
        assert unit.ask_value("SELECT count(*) FROM decision") == 0


def test_a_group_has_a_name_of_its_own(shop: Store) -> None:
    times = {"eligible_from": 2, "eligible_until": 2}
    lines: list[tuple[Any, ...]] = [("@home", {}), ("z", {}, ["no name"], {}), ("a", None, None, times)]
    for line in lines:
        with pytest.raises(InputError):
            arm.put(shop, lambda line=line: [[line]])
    arm.put(shop, lambda: [[("@sale", {})]])
    with pytest.raises(InputError, match="an arm has the key '@sale'"):
        arm.put(shop, lambda: [[("a", None, ["sale"], {})]])
    assert eligible(shop, ask(shop, arms=["@sale", "a"])) == "a@sale"


# -- the store --


@ON_BOTH
def test_sets_without_a_few_arms_are_stored_as_these(shop: Store) -> None:
    for key in "ab":
        tell(shop, ask(shop, arms=[key], session="s", user="u"), purchase=1.0)
    answer = ask(shop, session="s", user="u", not_after=["purchase"])
    with shop.read() as unit:
        query = "SELECT e.arms, e.size FROM decision d JOIN eligible_set e ON e.id = d.eligible_id WHERE d.id = ?"
        assert unit.ask(query, answer["decision_id"]) == [("[1,2]", 3)]
    assert eligible(shop, answer) == "cde"
    shop.write(lambda unit: unit.tell("UPDATE eligible_set SET arms = '[1]' WHERE arms = '[1,2]'"))
    findings = doctor.doctor(shop, doctor.Request()).findings
    assert any("its digest names" in row.detail for row in findings)
    shop.write(lambda unit: unit.tell("UPDATE eligible_set SET arms = '[1,2]' WHERE size = 3 AND arms = '[1]'"))


# -- rules of a policy --


def test_rules_of_a_policy_hold_for_routes_variants_and_copies(run: Run) -> None:
    for key in "abcd":
        run("arm", "add", key, "--group", "home" if key in "abc" else "shop")
    rules = ("--param", "arms=@home", "--param", "block=b", "--param", "not_after=buy/30d", "--param", "not_shown=9")
    create = ("policy", "create", "p", "--kind", "thompson", *rules, "--json")
    assert run(*create).json["params"]["not_after"] == "buy/30d"
    assert run(*create).json["created"] is False
    assert run("policy", "create", "p", "--kind", "thompson").exit_code == 6
    run("policy", "create", "q", "--kind", "uniform")
    run("route", "create", "front", "--to", "p")
    run("experiment", "create", "ab", "--variant", "y=p", "--variant", "x=p", "--unit", "session")

    def served(*words: str) -> Any:
        answer = run("recommend", "--session", "s1", "--user", "u", *words, "--json").json
        return run("decision", "show", answer["decision_id"], "--json").json

    for words in (["--policy", "p"], ["--policy", "front"], ["--experiment", "ab"], ["--policy", "p@1"]):
        assert sorted(row["arm"] for row in served(*words)["arms"]) == ["a", "c"]
    run("feedback", 1, "buy")
    decision = served("--policy", "p", "--arms", "a,c,d", "--request-id", "r")
    assert {row["arm"]: row["reason"] for row in decision["left_out"]} == dict.fromkeys(
        sorted({"a", "b", "c", "d"} - {row["arm"] for row in decision["arms"]}), "narrowed"
    )
    assert decision["narrowed_by"] == [
        "arms=a,c,d of the request", "arms=@home of the policy", "block=b of the policy",
        "not_after=buy/30d of the policy", "not_shown=9 of the policy",
    ]  # fmt: skip
    probabilities = {row["arm"]: row["probability"] for row in run("policy", "show", "p", "--json").json["arms"]}
    assert (probabilities["b"], probabilities["d"]) == (0, 0)
    assert probabilities["a"] + probabilities["c"] == pytest.approx(1)
    for wrong in ("block=nobody", "not_shown=x", "arms=@none", "not_after=buy/x"):
        assert run("policy", "create", "w", "--kind", "thompson", "--param", wrong).exit_code == 2
    assert run("doctor", "--json").json["ok"]


def test_a_kind_that_nobody_records_is_named_once(run: Run) -> None:
    run("arm", "add", "a")
    run("arm", "add", "b")
    run("reward", "define", "sales", "purchase=1")
    text = "not_after {}: no reward definition weighs {!r}, and none of the 10,000 newest events is one: {}"
    created = run("policy", "create", "p", "--kind", "thompson", "--param", "not_after=purchse/30d")
    assert created.stderr.splitlines()[0] == text.format("purchse", "purchse", "did you mean purchase?")
    assert "not_after" not in run("policy", "create", "q", "--kind", "thompson", "--param", "not_after=purchase").stderr
    run("feedback", run("recommend", "--policy", "q", "--session", "s", "--json").json["decision_id"], "seen")
    lines = [
        {"policy": "q", "session": f"s{number}", "not_after": [kind]}
        for number, kind in enumerate(["seen", "sen", "sen/7d", "purchase", "wish", "sen"])
    ]
    for _ in range(2):  # in each process
        result = run("recommend", "--input", "-", stdin=lines)
        assert result.stderr.splitlines() == [
            text.format("sen", "sen", "did you mean seen?"), text.format("wish", "wish", "it takes arms once one comes")
        ]  # fmt: skip


def test_lists_hold_in_decisions_of_other_policies_and_the_past_does_not(run: Run) -> None:
    """`p` blocks an arm that nobody clicks, a third of what `q` shows: the log of `q` says that `p` earns half as much
    again. What persons did there it does not say of another policy, whose answer is none."""
    run("arm", "import", "-", stdin=[{"arm": key} for key in "abc"])
    run("policy", "create", "q", "--kind", "uniform")
    run("policy", "create", "p", "--kind", "uniform", "--param", "block=a")
    run("policy", "create", "past", "--kind", "uniform", "--param", "not_shown=1")
    for name in ("q", "p"):
        lines = [{"policy": name, "session": f"{name}{n}", "user": f"{name}{n}"} for n in range(300)]
        answers = run("--now", "2026-01-01", "recommend", "--input", "-", "--seed", 1, "--json", stdin=lines).lines
        shown = {answer["decision_id"]: answer["slate"][0]["arm"] for answer in answers}
        assert {*shown.values()} == ({"a", "b", "c"} if name == "q" else {"b", "c"})
        click(run, [number for number, arm in shown.items() if arm == "b"], "--now", "2026-01-01")
        if name == "q":
            wanted = sum(1.5 for arm in shown.values() if arm == "b") / 300
    for target, log, is_unnarrowed, answer in (
        ("p", "policy=q", False, "better"), ("p", "policy=p", False, "same"), ("past", "policy=q", True, "unknown"),
    ):  # fmt: skip
        (row,) = run("--now", "2026-01-02", "evaluate", target, "--log", log, "--estimator", "ips", "--json").json
        assert (("unnarrowed" in row["reasons"]), row["answer"]) == (is_unnarrowed, answer)
        assert (target, log) != ("p", "policy=q") or row["value"] == pytest.approx(wanted, rel=1e-12)


def test_a_target_that_blocks_is_judged_as_one_that_never_shows(run_sqlite: Run, tmp_path: Any) -> None:
    """Pages of two of four arms: uniform without `a`, and given probabilities that `a` has none of. Kinds that draw by
    the state do the same, and pages that the target cannot fill are left out."""
    run, never = run_sqlite, tmp_path / "never.csv"
    never.write_text("arm,probability\na,0.2\nb,0.4\nc,0.2\nd,0.2\n")
    skewed = tmp_path / "skewed.csv"
    skewed.write_text("arm,probability\nb,0.5\nc,0.25\nd,0.25\n")
    even = tmp_path / "even.csv"
    even.write_text("arm,probability\nb,0.333333333333\nc,0.333333333333\nd,0.333333333334\n")
    run(
        "arm",
        "import",
        "-",
        stdin=[{"arm": key, "groups": ["x"] * (key < "c")} for key in "abcd"],
    )
    for name, kind, *params in (
        ("q", "uniform"), ("p", "fixed", f"probabilities={never}", "arms=b,c,d"),
        ("o", "fixed", f"probabilities={skewed}"), ("f", "fixed", f"probabilities={even}"), ("u", "uniform", "block=a"),
        ("g", "gradient", "block=a"), ("w", "thompson", "block=@x,c"),
    ):  # fmt: skip
        words = [word for param in params for word in ("--param", param)]
        assert run("policy", "create", name, "--kind", kind, *words).exit_code == 0
    lines = [{"policy": "q", "session": f"s{n // 2}", "k": 2} for n in range(60)]
    answers = run("--now", "2026-01-01", "recommend", "--input", "-", "--seed", 1, "--json", stdin=lines).lines
    clicks = click_events(answers, lambda slot: slot["arm"] in "bd")
    run("--now", "2026-01-01", "feedback", "--input", "-", stdin=clicks)
    judged = ("--log", "policy=q", "--estimator", "ips,snips,dr,iips,rips,pi,pdis,wdr", "--json")
    values = {name: {row["estimator"]: row["value"] for row in run("evaluate", name, *judged).json} for name in "ugfpo"}
    assert values["p"] == pytest.approx(values["o"], rel=1e-9)
    assert values["u"] == pytest.approx(values["f"], rel=1e-9)
    by_slate = ["rips", "pdis", "wdr"]  # a softmax has no marginals below position 1, and slates alone tell
    assert [values["g"][name] for name in by_slate] == pytest.approx([values["f"][name] for name in by_slate], rel=1e-9)
    (row,) = run("evaluate", "w", "--log", "policy=q", "--estimator", "ips", "--json").json
    assert (row["n"], row["left_out"], row["value"], "page-rules" in row["reasons"]) == (0, 120, None, True)


@ON_BOTH
def test_a_narrowed_log_leaves_and_comes_back(run: Run, tmp_path: Any) -> None:
    """Export and import, estimates, copies, pruning and forgetting keep eligible sets, and what the requests said."""
    for key in "abc":
        run("arm", "add", key, "--group", "home")
    run("arm", "add", "d")
    run("policy", "create", "p", "--kind", "thompson", "--param", "not_after=buy")
    for n in range(16):
        words = ["--arms", "@home", "--block", "c"] if n % 2 else []
        run("--now", f"2026-01-{1 + n // 2:02}", "recommend", "--policy", "p", "--session", f"s{n}", "--user",
            f"u{n % 4}", *words, "--seed", n)  # fmt: skip
        run("--now", f"2026-01-{1 + n // 2:02}", "feedback", n + 1, "buy" if n % 8 == 0 else "click")
    judged = run("evaluate", "p", "uniform", "--log", "policy=p", "--json")
    assert all("unnarrowed" not in row["reasons"] for row in judged.json)
    first = judged.json
    log, copy = tmp_path / "log.jsonl", tmp_path / "copy.db"
    run("export-log", log, "--log", "policy=p")
    contexts = [json.loads(line)["context"] for line in log.read_text().splitlines()]
    assert {"@eligible": {"arms": ["@home"], "block": ["c"]}} in contexts
    assert run("db", "copy", "--to", copy).exit_code == 0
    copied = runner(str(copy))
    assert copied("evaluate", "p", "uniform", "--log", "policy=p", "--json").json == first
    imported = runner(str(tmp_path / "new.db"))
    imported("init")
    assert imported("import-log", log, "--layout", "jsonl").exit_code == 0
    again = imported("evaluate", "uniform", "--log", "policy=p", "--json").json
    by_target = [row for row in first if row["target"] == "uniform"]
    assert [row["value"] for row in again] == pytest.approx([row["value"] for row in by_target])
    for words in (["db", "forget", "--user", "u1", "--yes"], ["db", "prune", "--before", "2026-01-05", "--yes"]):
        assert copied(*words).exit_code == 0, copied(*words).stderr
        assert copied("doctor", "--json").json["ok"]


@ON_BOTH
def test_prune_names_rules_that_look_further_back(run: Run) -> None:
    """Of kinds that a rule names, feedback does not say that they count for nothing."""
    run("arm", "add", "a")
    for name, rule in (("ever", "not_after=buy"), ("month", "not_shown=1/30d"), ("day", "not_after=buy/1d")):
        run("policy", "create", name, "--kind", "uniform", "--param", rule)
    served = ("--now", "2026-01-01T00:00:00Z")
    run(*served, "recommend", "--policy", "ever", "--session", "s", "--user", "u")
    assert "counts for nothing" not in run(*served, "feedback", 1, "buy").stderr
    assert "counts for nothing" in run(*served, "feedback", 1, "look").stderr
    for option in ("--dry-run", "--yes"):
        pruned = run("--now", "2026-01-21T00:00:00Z", "db", "prune", "--before", "2026-01-11", option).done()
        text = "not_after=buy of ever and 1 more: what persons did or saw in pruned visits takes no arm any more\n"
        assert text in pruned.stderr
    again = run("--now", "2026-01-21T00:00:00Z", "db", "prune", "--before", "2026-01-11", "--yes")
    assert "pruned visits" not in again.stderr
