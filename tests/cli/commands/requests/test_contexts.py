"""Contexts, features files and parameters of the kinds that read them: what is taken, and how a mistake is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Rows
from tests.cli.program.test_bad_input import refuses
from tests.conftest import CommandResult, Run, runner, store_after

NOW = ["--now", "2027-01-15T08:00:00Z"]  # START
READ = {
    "context": {
        "fields": {
            "hour": {"type": "number", "mean": 12, "scale": 6},
            "device": ["ios", "web"],
            "new": "flag",
            "tags": {"list": ["tea"], "hash": 8},
            "taste": {"vector": 2},
        }
    },
    "arm": {"fields": {"price": "number", "hot": "flag"}},
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """A features file: its text, or what it holds."""

    def file(content: Any) -> Path:
        path = tmp_path / "features.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return file


def stocked(db: str) -> None:
    run, features = runner(db), Path(db).with_name("read.json")
    features.write_text(json.dumps(READ))
    kind = ["--kind", "lin-thompson", "--features", features]
    for words in (
        ["arm", "add", "a", "--features", '{"price": 2, "hot": true}'], ["arm", "add", "b"],
        ["policy", "create", "own", *kind], ["policy", "create", "all", *kind, "--param", "model=shared"],
        ["recommend", "--policy", "own", "--session", "s1", "--context", '{"hour": 9, "new": true}'],
        ["recommend", "--policy", "all", "--session", "s1"],
    ):  # fmt: skip
        assert run(*NOW, *words).exit_code == 0, words


# Two arms, `own` with a model per arm, `all` with a shared one, and one decision of each.
shop = store_after(stocked)


# -- contexts --

UNFIT = [
    ('{"hour": "9"}', "hour", '"hour" is "9"'),
    ('{"hour": true}', "hour", "a finite number"),
    ('{"hour": [9]}', "hour", "a finite number"),
    ('{"hour": NaN}', "hour", "NaN"),
    ('{"device": ["ios"]}', "device", "a text"),
    ('{"device": 1.5}', "device", "a text"),
    ('{"new": 1}', "new", "true or false"),
    ('{"new": "yes"}', "new", "true or false"),
    ('{"tags": "tea"}', "tags", "a list of texts"),
    ('{"tags": [1]}', "tags", "a list of texts"),
    ('{"taste": [1]}', "taste", "a list of 2 numbers"),
    ('{"taste": [1, 2, 3]}', "taste", "a list of 2 numbers"),
    ('{"taste": [1, "x"]}', "taste", "a list of 2 numbers"),
    ('{"taste": [1, Infinity]}', "taste", "Infinity"),
    ('{"taste": [1, 1e300]}', "taste", "a list of 2 numbers"),
    ('{"taste": 1}', "taste", "a list of 2 numbers"),
]
HARMLESS = [
    '{"hour": null}',
    '{"device": "beos", "tags": ["new"]}',
    '{"hour": 1e308}',
    '{"other": {"deep": [1]}}',
    "{}",
]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["own", "all"])
def test_a_context_that_does_not_fit_is_refused_and_stores_nothing(shop: Run, rows: Rows, policy: str) -> None:
    before = rows()
    for context, field, piece in UNFIT:
        result = shop(*NOW, "recommend", "--policy", policy, "--session", "s1", "--context", context)
        refuses(result, 2, "--context", field, piece)
        refuses(shop(*NOW, "policy", "show", policy, "--context", context), 2, "--context", field, piece)
    assert rows() == before


@pytest.mark.parametrize("command", ["recommend", "pipe"])
def test_a_stream_refuses_such_a_context_in_its_place(shop: Run, rows: Rows, command: str) -> None:
    before = rows()
    line = '{"op": "recommend", ' if command == "pipe" else "{"
    lines = "".join(f'{line}"policy": "own", "session": "s1", "context": {context}}}\n' for context, *_ in UNFIT)
    result = shop(*NOW, command, "--input", "-", stdin=lines)
    assert result.exit_code == 5
    assert [answer["line"] for answer in result.lines] == list(range(1, len(UNFIT) + 1))
    for answer, (_, field, piece) in zip(result.lines, UNFIT, strict=True):
        assert answer["field"].startswith(f"context.{field}")
        assert piece in answer["error"]
    assert rows() == before


def test_missing_and_unknown_values_of_a_context_are_fine(shop: Run) -> None:
    for policy in ("own", "all"):
        for context in HARMLESS:
            result = shop(*NOW, "recommend", "--policy", policy, "--session", "s1", "--context", context, "--dry-run")
            assert (result.exit_code, result.stderr) == (0, ""), context


def test_an_arm_that_a_model_cannot_read_is_one_without_these_features(shop: Run) -> None:
    shop(*NOW, "arm", "add", "odd", "--features", '{"price": "cheap", "hot": [1]}')
    result = {slot["arm"]: slot for slot in shop("policy", "show", "all", "--json").json["arms"]}
    assert [result["odd"][name] for name in ("mean", "lower", "upper")] == [
        pytest.approx(result["b"][name]) for name in ("mean", "lower", "upper")
    ]


# -- features files --

FIELD = '{"context": {"fields": {"a": %s}}}'
MISTAKES = [
    ("", "got nothing"),
    ("{", "not JSON"),
    ("[]", "no JSON object"),
    ("null", "no JSON object"),
    ("{}", "no features are declared"),
    ("[" * 100_000, "deep"),
    ('{"contxt": {}}', "no features are declared"),
    ('{"context": {}, "arms": {}}', "no features are declared"),
    ('{"context": 1}', "context: features are 1"),
    ('{"arm": {"field": {}}}', 'arm: features have an unknown "field"'),
    ('{"context": {"fields": []}}', "fields are []"),
    ('{"context": {"fields": {"a": "flag", "a": "flag"}}}', "context.fields.a: is given twice"),
    ('{"context": {"fields": {"": "flag"}}}', "is named"),
    ('{"context": {"fields": {"1": "flag"}}}', "two columns"),
    ('{"context": {"intercept": 1}}', "intercept is 1"),
    ('{"context": {"intercept": false}}', "no columns"),
    ('{"context": {"hash": 5}}', "hash of the features is 5"),
    (FIELD % '"numbr"', 'field "a" is "numbr"'),
    (FIELD % "3", 'field "a" is 3'),
    (FIELD % "null", 'field "a" is null'),
    (FIELD % "[]", "list some"),
    (FIELD % "[null]", "a list of texts"),
    (FIELD % '["x", "x"]', "two columns"),
    (FIELD % '["\\u0000"]', "NUL"),
    (FIELD % '["\\ud800"]', "Unicode"),
    (FIELD % '"vector"', "length"),
    (FIELD % '{"vector": 0}', "length"),
    (FIELD % '{"vector": 129}', "length"),
    (FIELD % '{"vector": 128}', "129 columns"),
    (FIELD % '{"vector": "8"}', "length"),
    (FIELD % '{"list": "x"}', "a list of texts"),
    (FIELD % '{"list": ["x"], "hash": 3}', "hash"),
    (FIELD % '{"list": ["x"], "values": ["y"]}', "unknown"),
    (FIELD % '{"type": "number", "std": 1}', "std"),
    (FIELD % '{"type": "number", "mean": NaN}', "NaN"),
    (FIELD % '{"type": "number", "mean": "x"}', "mean"),
    (FIELD % '{"type": "number", "scale": 0}', "scale"),
    ('{"context": {"fields": {"a": {"vector": 60}}}, "arm": {"fields": {"v": {"vector": 8}}}}', "549 weights"),
]


@pytest.mark.slow
def test_a_mistake_in_a_features_file_is_told_and_stores_nothing(
    shop: Run, rows: Rows, write: Callable[[Any], Path]
) -> None:
    before = rows()
    for content, piece in MISTAKES:
        file = ["--features", write(content)]
        refuses(shop(*NOW, "policy", "create", "p", "--kind", "linucb", "--param", "model=shared", *file), 2, piece)
        refuses(shop(*NOW, "policy", "rebuild", "all", *file), 2, piece)
    assert rows() == before


def test_a_features_file_belongs_to_a_kind_that_reads_contexts(
    shop: Run, rows: Rows, write: Callable[[Any], Path], tmp_path: Path
) -> None:
    before = rows()
    named = ["--features", write(READ)]
    refuses(shop(*NOW, "policy", "create", "p", "--kind", "thompson", *named), 2, "reads no context")
    refuses(shop(*NOW, "policy", "create", "p", "--kind", "linucb", "--features", tmp_path / "no"), 2, "cannot read")
    refuses(shop(*NOW, "policy", "create", "p", "--kind", "linucb", "--features", tmp_path), 2, "cannot read")
    assert rows() == before


def test_the_features_that_are_shown_can_be_given_again(shop: Run, write: Callable[[Any], Path]) -> None:
    features = shop("policy", "show", "own", "--json").json["features"]
    assert features["context"]["fields"]["taste"] == {"type": "vector", "length": 2}
    again = ["policy", "create", "own", "--kind", "lin-thompson", "--features", write(features), "--json"]
    assert shop(*NOW, *again).json["created"] is False


def test_a_rebuild_keeps_the_features_that_it_is_not_given(shop: Run, write: Callable[[Any], Path]) -> None:
    shop(*NOW, "policy", "rebuild", "all", "--features", write({"context": {"fields": {"hour": "number"}}})).done()
    features = shop("policy", "show", "all@2", "--json").json["features"]
    assert list(features["context"]["fields"]) == ["hour"]
    assert sorted(features["arm"]["fields"]) == ["hot", "price"]


@pytest.mark.slow
def test_what_is_fitted_for_a_shared_model_fits_into_it(shop: Run) -> None:
    topics = "".join(f'{{"arm": "t{n}", "features": {{"topic": "t{n}", "price": {n}}}}}\n' for n in range(30))
    assert shop(*NOW, "arm", "import", "-", stdin=topics).exit_code == 0
    lines = "".join(
        f'{{"policy": "own", "session": "x{n}", "context": {{"city": "c{n}", "page": "p{n}", "hour": {n}}}}}\n'
        for n in range(30)
    )
    assert shop(*NOW, "recommend", "--input", "-", stdin=lines).exit_code == 0
    later = ["--now", "2027-01-15T09:00:00Z"]
    for name, more in (("fitted", ["--from-log", "policy=own"]), ("hashed", [])):
        answers = [*later, "policy", "create", name, "--kind", "softmax", "--param", "model=shared", *more]
        assert shop(*answers).exit_code == 0
        assert shop(*later, "recommend", "--policy", name, "--session", "y").exit_code == 0


def test_a_policy_that_reads_contexts_is_shown_in_one(shop: Run) -> None:
    shop(*NOW, "policy", "rebuild", "own")
    table = shop(*NOW, "policy", "show", "own", "--context", '{"hour": 9}').stdout.splitlines()
    assert table[0].startswith("own version 1 (learning; live: 1), kind lin-thompson")
    assert table[3] == 'reads device, hour, new, tags, taste; shown for the context {"hour": 9}'
    assert next(line for line in table if line.startswith("weights of")).endswith(": all 0")


# -- parameters --


@pytest.mark.parametrize(
    ("words", "piece"),
    [
        (["--kind", "lin-tompson"], "did you mean lin-thompson"),
        (["--kind", "linucb", "--param", "samples=3"], "no parameter 'samples'"),
        (["--kind", "linucb", "--param", "design=3"], "no parameter 'design'"),
        (["--kind", "squarecb", "--param", "gamma=1", "--param", "gamma=2"], "twice"),
        (["--kind", "softmax", "--param", "discount=0.9", "--param", "window=9"], "both given"),
        (["--kind", "lin-thompson", "--param", "model=shared", "--param", "floor=0"], "floor above 0"),
        (["--kind", "logistic-thompson", "--reward", "money"], "--clip 0,1"),
        (["--kind", "softmax", "--from-log", "policy=own"], "no mature decision"),
        (["--kind", "softmax", "--from-log", "policy=owl"], "unknown policy 'owl'"),
    ],
)
def test_a_policy_that_cannot_be_is_told(shop: Run, rows: Rows, words: list[str], piece: str) -> None:
    shop(*NOW, "reward", "define", "money", "purchase=1")
    before = rows()
    refuses(shop(*NOW, "policy", "create", "p", *words), 2, piece)
    assert rows() == before


# -- rebuild, retire, simulate --

COMMANDS: list[tuple[list[Any], str]] = [
    (["policy", "rebuild", "owl"], "unknown policy 'owl'"),
    (["policy", "rebuild", "own@9"], "no version 9"),
    (["policy", "rebuild", "own", "--reward", "none"], "unknown reward 'none'"),
    (["policy", "rebuild", "own", "--after-drift", "adwim"], "adwim"),
    (["policy", "retire", "own"], "names no version"),
    (["policy", "retire", "own@1"], "is live"),
    (["policy", "retire", "own@9"], "no version 9"),
    (["reward", "define", "r", "min(click,-1)=1"], "the cap of 'click'"),
    (["reward", "delays", "none"], "unknown reward 'none'"),
    (["reward", "delays", "--log", "policy=owl"], "unknown policy 'owl'"),
    (["experiment", "create", "e", "--variant", "a=own", "--holdout-uniform", "most"], "is not a share"),
    (["simulate", "bernoulli", "--policy", "owl", "--sessions", "1"], "unknown policy 'owl'"),
    (["simulate", "bernoulli", "--policy", "own"], "--sessions"),
    (["simulate", "bernoulli", "--kind", "ucb", "--sessions", "1"], "--ephemeral"),
    (["simulate", "bernoulli", "--ephemeral", "--kind", "ucb", "--env", "delay=3"], "delay"),
    (["simulate", "drift", "--ephemeral", "--kind", "ucb", "--env", "jumps=1"], "jump"),
    (["simulate", "contextual", "--ephemeral", "--kind", "ucb", "--env", "features=0"], "features"),
    (["simulate", "contextual", "--ephemeral", "--kind", "softmax", "--param", "temperature=0"], "temperature"),
]


def test_other_commands_tell_what_they_cannot_do(shop: Run, rows: Rows) -> None:
    before = rows()
    for words, piece in COMMANDS:
        result: CommandResult = shop(*NOW, *words)
        refuses(result, 2, piece)
    assert rows() == before


def test_a_text_that_would_count_as_one_value_is_said(run_sqlite: Run) -> None:
    contexts = [{"city": "Bad Aibling", "query": f"a tea for {number}"} for number in range(30)]
    lines = [{"session": f"s{n}", "eligible": ["a"], "slate": [{"arm": "a"}], "context": context, "reward": 1}
             for n, context in enumerate(contexts)]  # fmt: skip
    run_sqlite("import-log", "-", "--layout", "jsonl", stdin=lines)
    messages = run_sqlite("policy", "create", "p", "--kind", "softmax", "--from-log", "policy=imported").stderr
    assert [name for name in ("city", "query") if f"a text of {name} counts as one value" in messages] == ["query"]
