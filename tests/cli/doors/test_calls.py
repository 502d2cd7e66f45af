"""Commands called from Python: what they take, answer and refuse is what the program does."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas
import pytest

import rlrec
from rlrec.api import Recommender, Records, Result
from rlrec.errors import CheckFailed, InputError, LinesRefused
from tests.cli.commands.requests.test_pipe import ask, stocked
from tests.conftest import Run, initialise, runner

CLOCK = "2026-03-01T00:00:00Z"
Call = Callable[[Recommender], Any]


@pytest.fixture(scope="module")
def store_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("calls") / "shop.db")
    initialise(path)
    run = runner(path)
    stocked(run)
    requests = [
        {key: value for key, value in ask(session=f"s{n}", user=f"u{n}", k=2).items() if key != "op"} for n in range(20)
    ]
    at = ("--now", "2026-02-01T00:00:00Z")
    assert run(*at, "recommend", "--input", "-", stdin=requests).exit_code == 0
    events = [{"decision_id": n, "position": 1, "events": {"click": 1}} for n in range(1, 15)]
    assert run(*at, "feedback", "--input", "-", stdin=events).exit_code == 0
    for words in (["route", "create", "front", "--to", "home"], ["policy", "freeze", "home"]):
        assert run(*at, *words).exit_code == 0
    return path


@pytest.fixture
def shop(store_file: str) -> Run:
    return runner(store_file)


@pytest.fixture
def store(store_file: str) -> Iterator[Recommender]:
    with rlrec.open(store_file, now=CLOCK, notice=lambda _: None) as opened:
        yield opened


SAME: list[tuple[str, Call]] = [  # a command, and the call that answers the same
    ("status", lambda store: store.status()),
    ("arm list --exposure", lambda store: store.arm.list(exposure=True)),
    ("reward list", lambda store: store.reward.list()),
    ("reward delays default --log policy=home", lambda store: store.reward.delays("default", log="policy=home")),
    ("policy kinds", lambda store: store.policy.kinds()),
    ("policy list", lambda store: store.policy.list()),
    ("policy versions home", lambda store: store.policy.versions("home")),
    ("policy show home", lambda store: store.policy("home")),
    ("policy diff home home@2", lambda store: store.policy.diff("home", "home@2")),
    ("session list --limit 3", lambda store: store.session.list(limit=3)),
    ("session show s1 --gamma 0.5", lambda store: store.session("s1", gamma=0.5)),
    ("decision show 3", lambda store: store.decision(3)),
    ("exposure --by day", lambda store: store.exposure(by="day")),
    ("exploration --policy home", lambda store: store.exploration(policy="home")),
    ("outcomes --by day", lambda store: store.outcomes(by="day")),
    ("arm retire a1 a2 --dry-run", lambda store: store.arm.retire(["a1", "a2"], dry_run=True)),  # a list for its items
    ("route show front", lambda store: store.route("front")),
    (
        "route ramp front --to home@2 --steps 5%,50%,100% --dry-run",
        lambda store: store.route.ramp("front", to="home@2", steps=[0.05, "50%", 1.0], dry_run=True),
    ),
    ("experiment list", lambda store: store.experiment.list()),
    ("db roles --prefix shop", lambda store: store.db.roles(prefix="shop")),
    (
        "evaluate home uniform --estimator snips,dr --level 0.9",
        lambda store: store.evaluate("home", "uniform", estimators=["snips", "dr"], level=0.9),
    ),
    ('arm add new --features {"n":1} --dry-run', lambda store: store.arm.add("new", features={"n": 1}, dry_run=True)),
    (
        "policy create other --kind thompson --param floor=0.02 --dry-run",
        lambda store: store.policy.create("other", kind="thompson", params={"floor": 0.02}, dry_run=True),
    ),
    (
        "reward define long click=1 --window 1h30m --clip 0,2 --dry-run",
        lambda store: store.reward.define(
            "long", "click=1", window=timedelta(hours=1.5), clip=(0, 2), dry_run=True
        ),
    ),
    (
        "experiment create ab --variant a=home --variant b=home:0.5 --dry-run",
        lambda store: store.experiment.create("ab", variants={"a": "home", "b": "home:0.5"}, dry_run=True),
    ),
    (
        "db prune --before 2026-01-15 --dry-run",
        lambda store: store.db.prune(before=datetime(2026, 1, 15, tzinfo=UTC), dry_run=True),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "call"), SAME, ids=[words for words, _ in SAME])
def test_an_answer_is_that_of_the_command(shop: Run, store: Recommender, words: str, call: Call) -> None:
    answer = call(store)
    expected = shop("--now", CLOCK, *words.split(), "--json").json
    assert answer == expected
    assert json.loads(json.dumps(answer.to_json())) == expected
    assert isinstance(answer, Records if isinstance(expected, list) else Result)


def test_an_answer_reads_as_the_table_of_the_command(shop: Run, store: Recommender) -> None:
    for words, call in SAME[:8]:
        if words != "policy show home":  # whose table has the likeliest arm first
            assert repr(call(store)) == shop("--now", CLOCK, *words.split()).stdout


WRONG: list[tuple[Call, str, str]] = [
    (lambda store: store.policy.create("a b", kind="thompson"), "name", "is not a name"),
    (lambda store: store.arm.add(5), "keys", "expected str, got 5"),
    (lambda store: store.arm.add("a\0"), "keys", "NUL"),
    (lambda store: store.arm.add("x", features={"n": float("nan")}), "features.n", "no NaN"),
    (lambda store: store.recommend("home", session="s", context={"u": {"x": float("inf")}}), "context.u.x", "no NaN"),
    (lambda store: store.recommend("home", session="s", context={"x": object()}), "context.x", "cannot show a object"),
    (lambda store: store.recommend("home", session=5), "session", "expected text, got 5"),
    (lambda store: store.arm.add("x", features="{"), "features", "not JSON"),
    (lambda store: store.reward.define("x", "click=1", window="soon"), "window", "is not a duration"),
    (lambda store: store.reward.define("x", "click=1", learn="now"), "learn", "is not one of"),
    (lambda store: store.reward.define("x", "click=1", clip=(2, 1)), "clip", "is empty"),
    (lambda store: store.session("s1", visit=0), "visit", "not in the range"),
    (lambda store: store.session("s1", visit=True), "visit", "expected int, got True"),
    (lambda store: store.outcomes(level="high"), "level", "is not a number"),
    (lambda store: store.outcomes(level=float("nan")), "level", "is not a number"),
    (lambda store: store.outcomes(rewards=["a b"]), "rewards", "is not a name"),
    (lambda store: store.decision("x"), "decision_id", "is not a decision id"),
    (lambda store: store.db.prune(before="yesterday"), "before", "is not a time"),
    (lambda store: store.experiment.create("ab", variants=["a"]), "variants", "is not a variant"),
    (lambda store: store.arm.retire(), "keys", "is missing"),
    (lambda store: store.arm.list(exposure="yes"), "exposure", "expected bool, got 'yes'"),
    (lambda store: store.exposure(plot=3), "plot", "got 3"),
]


@pytest.mark.parametrize(("call", "field", "words"), WRONG)
def test_a_wrong_value_is_refused_by_the_name_of_its_parameter(
    store: Recommender, call: Call, field: str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        call(store)
    assert refused.value.field == field
    assert refused.value.__notes__[-1] == f"argument: {field}"  # a traceback names it, too


def test_a_wrong_line_of_a_file_is_named_in_a_traceback(store: Recommender, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("item,p\nx,0.5\nx,1.5\n")
    with pytest.raises(InputError, match="no probability") as refused:
        store.import_log(path, layout="csv", map={"arm": "item", "propensity": "p"})
    assert refused.value.__notes__[-1] == "line 3, field p"


def test_what_is_no_frame_is_refused(store: Recommender) -> None:
    with pytest.raises(InputError, match="cannot read frame x") as refused:
        store.evaluate(targets={"x": pandas.Series([1])})
    assert "give a frame of pandas" in (refused.value.hint or "")


def test_a_frame_in_place_of_a_file_is_refused_in_one_line(store: Recommender) -> None:
    with pytest.raises(InputError, match=r"got DataFrame\n") as refused:
        store.import_log(pandas.DataFrame({"arm": ["x"]}), layout="parquet")
    assert "to_parquet" in (refused.value.hint or "")


def test_a_frame_of_no_decisions_has_its_columns(store: Recommender) -> None:
    log = store.log("since=2099-01-01")
    assert "to_pandas()" in repr(log)
    assert {"decision_id", "reward", "slate"} <= {*log.to_pandas().columns}
    assert {"arm", "propensity"} <= {*log.slots().to_pandas().columns}


def test_what_the_command_refuses_is_refused(store: Recommender) -> None:
    with pytest.raises(InputError, match="give --yes"):
        store.db.forget(user="u1")
    with pytest.raises(InputError, match="give a challenger, or --stop"):
        store.policy.shadow("front")
    with pytest.raises(InputError, match="kind uniform cannot learn from a log"):
        store.sweep(kinds=["thompson", "uniform"])
    with pytest.raises(
        TypeError, match=r"define\(\) got an unexpected keyword argument 'windw'. did you mean window\?"
    ):
        store.reward.define("x", "click=1", windw="1d")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"outcomes\(\) .* 'reward'. did you mean rewards\?"):
        store.outcomes(reward="default")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing a required argument: 'kind'"):
        store.policy.create("x")  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="did you mean retire"):
        store.arm.retir  # type: ignore[attr-defined]  # noqa: B018


def test_an_error_after_an_answer_has_it(shop: Run, store: Recommender, tmp_path: Path) -> None:
    path = tmp_path / "arms"
    path.write_text('{"arm": "good"}\n{"arm": 5}\n', encoding="utf-8")
    with pytest.raises(LinesRefused) as refused:
        store.arm.import_(path, on_error="quarantine", rejects=tmp_path / "bad", dry_run=True)
    assert isinstance(refused.value.result, Result)
    assert (refused.value.result.added, refused.value.result.rejected) == (1, 1)


def test_a_rehearsal_leaves_nothing_and_says_so(store_file: str, shop: Run) -> None:
    notices: list[str] = []
    with rlrec.open(store_file, now=CLOCK, notice=notices.append) as store:
        assert store.arm.add("ghost", dry_run=True).added == 1
        assert store.feedback(16, {"click": 1}, position=1, dry_run=True).events == 1
        assert notices[0] == "dry run: nothing was stored"
        assert store.decision(16).events == []
    assert "ghost" not in [arm["arm"] for arm in shop("arm", "list", "--json").json]


def test_the_environment_and_its_file_change_no_call(
    store: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rlrec.toml").write_text("[session.list]\nlimit = 1\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLREC_SESSION_LIST_LIMIT", "2")
    runner("none.db")("session", "list")  # which names the variables
    assert len(store.session.list()) == 20


@pytest.mark.slow
def test_threads_call_commands_at_once(store_file: str, shop: Run) -> None:
    def work(name: str) -> tuple[int, list[str]]:
        rehearsed = [opened.arm.add(f"new-{name}{n}", dry_run=True).added for n in range(5)]
        limits = [len(opened.session.list(limit=n)) for n in (1, 2, 3)]
        opened.feedback(20, {"seen": 1}, position=1, key=name)
        return sum(rehearsed), [str(limits), opened.policy("home").policy]

    with rlrec.open(store_file, now=CLOCK, notice=lambda _: None) as opened, ThreadPoolExecutor(4) as pool:
        assert [*pool.map(work, "abcd")] == [(5, ["[1, 2, 3]", "home"])] * 4
        assert len(opened.decision(20).events) == 4
    assert len(shop("arm", "list", "--json").json) == 2


def test_a_group_is_called_as_its_command_show(store: Recommender) -> None:
    assert inspect.signature(store.policy) == inspect.signature(store.policy.show)
    assert "context" in inspect.signature(store.policy).parameters
    with pytest.raises(AttributeError, match=r"no command db\.show"):
        store.db()


def test_a_store_is_opened_by_a_path_at_a_time_of_the_library(store_file: str) -> None:
    for now in (CLOCK, datetime(2026, 3, 1), pandas.Timestamp("2026-03-01T01:00", tz="Europe/Berlin")):
        with rlrec.open(Path(store_file), now=now) as opened:
            assert opened.status().at == "2026-03-01T00:00:00.000000Z"
    with rlrec.open(store_file, now="+1h") as opened:
        assert datetime.fromisoformat(opened.status().at) > datetime.now(UTC) + timedelta(minutes=59)


def test_a_store_can_be_made(tmp_path: Path) -> None:
    with rlrec.open(str(tmp_path / "new.db")) as store:
        with pytest.raises(CheckFailed):
            store.arm.list()
        assert store.init(session_timeout=timedelta(minutes=45)).created
        assert store.arm.list() == []


def keys(value: Any) -> Iterator[str]:
    """Every key of an answer."""
    if isinstance(value, Mapping):
        yield from value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from keys(inner)


def test_no_key_of_an_answer_is_hidden_by_a_method(store: Recommender) -> None:
    answers = [call(store) for words, call in SAME if words != "policy kinds"]  # whose parameters are anybody's
    assert {key for answer in answers for key in keys(answer)} & {*dir(Result({}))} == set()
