"""The paths of `serve` beside its lines: single requests, flags, who may ask, metrics, and the description."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPConnection
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from rlrec.cli.commands.setup import help as manual
from rlrec.cli.doors import openapi
from tests.cli.commands.requests.test_pipe import stocked
from tests.cli.doors.test_serve import ended, served
from tests.conftest import runner

TOKEN = "0123456789abcdef0123"


@pytest.fixture
def kiosk(sqlite_db: str) -> str:
    stocked(runner(sqlite_db))
    return sqlite_db


def fetch(
    address: str, path: str, body: Any = None, *, scheme: str = "http", context: Any = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:  # fmt: skip
    """The status and the answer to a request: JSON where it is."""
    data = None if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
    request = urllib.request.Request(f"{scheme}://{address}{path}", data, dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            status, kind, text = answer.status, answer.headers["content-type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, kind, text = error.code, error.headers["content-type"], error.read()
    return status, json.loads(text) if kind == "application/json" else text.decode()


@pytest.mark.slow
def test_one_request_and_its_feedback_are_json_with_a_status(kiosk: str) -> None:
    with served(kiosk) as (address, child):
        status, drawn = fetch(address, "/v1/recommend", {"policy": "home", "session": "s", "request_id": "r"})
        assert (status, drawn["session"], len(drawn["slate"])) == (200, "s", 1)
        spread = b'{\n "decision_id": %d,\r\n "events": {"click": 1}, "key": "k"\n}' % drawn["decision_id"]
        assert fetch(address, "/v1/feedback", spread) == (
            200, {"decision_id": drawn["decision_id"], "events": 1, "duplicates": 0, "reward": 1.0},
        )  # fmt: skip
        for path, body, status, field in (
            ("/v1/recommend", {"policy": "none", "session": "s"}, 400, "policy"),
            ("/v1/recommend", {"session": "s", "op": "feedback"}, 400, "op"),
            ("/v1/recommend", {}, 400, "session"),
            ("/v1/recommend", b"[]", 400, None),
            ("/v1/recommend", b'{"policy": "home", "session": "broken\nkey"}', 400, None),
            ("/v1/recommend", b"", 400, "session"),
            ("/v1/feedback", b" ", 400, "decision_id"),
            ("/v1/feedback", {"decision_id": drawn["decision_id"], "events": {"click": 2}, "key": "k"}, 409, None),
            ("/v1/recommend", {"policy": "home", "session": "t", "request_id": "r"}, 409, None),
        ):
            code, error = fetch(address, path, body)
            assert (code, "line" in error, error["error"] != "") == (status, False, True), (path, body, error)
            assert field is None or error["field"] == field, (path, body, error)
        assert ended(child) == (0, b"")


@pytest.mark.slow
def test_a_client_generated_from_the_description_recommends_and_gives_feedback(
    kiosk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a public generator, which leaves out `/v1/pipe` alone: it has no streams of lines."""
    pytest.importorskip("openapi_python_client")
    scored = ("--kind", "scored", "--param", "temperature=1")
    assert runner(kiosk)("policy", "create", "mine", *scored).exit_code == 0
    with served(kiosk) as (address, child):
        description, config = tmp_path / "openapi.json", tmp_path / "config.yml"
        description.write_text(json.dumps(fetch(address, "/openapi.json")[1]))
        config.write_text("post_hooks: []")
        words = ("--path", description, "--config", config, "--meta", "none", "--output-path", tmp_path / "shop_client")
        command = [sys.executable, "-m", "openapi_python_client", "generate", *map(str, words)]
        generated = subprocess.run(command, capture_output=True, text=True, check=True)
        assert re.findall("WARNING .*", generated.stdout + generated.stderr) == [
            "WARNING parsing POST /v1/pipe within default. Endpoint will not be generated."
        ]
        monkeypatch.syspath_prepend(tmp_path)
        shop, models = import_module("shop_client"), import_module("shop_client.models")
        recommend, feedback, health = (
            import_module(f"shop_client.api.default.{name}") for name in ("recommend", "feedback", "health")
        )
        with shop.Client(base_url=f"http://{address}") as client:
            request = models.Request(
                session="s", user="u", policy="home", k=2, context=models.RequestContext.from_dict({"hour": 3})
            )
            drawn = recommend.sync(client=client, body=request)
            assert (drawn.policy, {slot.arm for slot in drawn.slate}) == ("home", {"a1", "a2"})
            clicked = models.FeedbackEvents.from_dict({"click": 1})
            learned = feedback.sync(
                client=client, body=models.Feedback(decision_id=drawn.decision_id, position=2, events=clicked)
            )
            assert (learned.decision_id, learned.events, learned.reward) == (drawn.decision_id, 1, 1.0)
            bought = models.FeedbackEvents.from_dict({"buy": 1})
            personal = feedback.sync(client=client, body=models.Feedback(user="u", window="1d", events=bought))
            assert (personal.user, personal.credited[0].decision_id) == ("u", drawn.decision_id)
            candidates = [models.Candidate(arm="a1", score=0.0), models.Candidate(arm="a2", score=math.log(3))]
            ranked = recommend.sync(client=client, body=models.Request(session="s", policy="mine", arms=candidates))
            assert ranked.propensity == pytest.approx({"a1": 0.25, "a2": 0.75}[ranked.slate[0].arm])
            refused = recommend.sync_detailed(client=client, body=models.Request(session="s", policy="none"))
            assert (refused.status_code, refused.parsed.field) == (400, "policy")
            assert health.sync(client=client).additional_properties["lines"] == 5
        assert ended(child)[0] == 0


@pytest.mark.slow
def test_an_openfeature_client_draws_an_arm(kiosk: str) -> None:
    """With the official SDK and its provider of the remote protocol."""
    api = pytest.importorskip("openfeature.api")
    ofrep = pytest.importorskip("openfeature.contrib.provider.ofrep")
    from openfeature.evaluation_context import EvaluationContext

    with served(kiosk) as (address, _):
        api.set_provider(ofrep.OFREPProvider(f"http://{address}"))
        client = api.get_client()
        context = EvaluationContext(targeting_key="u1", attributes={"session": "s9"})
        details = client.get_string_details("home", "fallback", context)
        with_session = fetch(address, "/v1/pipe", b'{"op": "recommend", "policy": "home", "session": "s9"}')[1]
        assert (details.value, details.reason, details.variant) == (details.value, "SPLIT", details.value)
        assert details.value != "fallback"
        metadata = details.flag_metadata
        assert (metadata["policy"], metadata["session"]) == ("home", "s9")
        assert 0 < metadata["propensity"] <= 1
        assert json.loads(with_session)["user"] == "u1"
        status, learned = fetch(
            address, "/v1/feedback", {"decision_id": metadata["decision_id"], "events": {"click": 1}}
        )
        assert (status, learned["events"]) == (200, 1)
        unknown = client.get_string_details("none", "fallback", context)
        assert (unknown.value, unknown.error_code.value) == ("fallback", "FLAG_NOT_FOUND")
        assert client.get_string_value("home", "fallback", EvaluationContext()) == "fallback"
        page = client.get_object_details("home", [], EvaluationContext("u2", {"k": 2}))
        assert (len(page.value), page.variant) == (2, ",".join(page.value))
        for body, code in (
            (b"{", "PARSE_ERROR"),
            (b"[" * 100_000, "PARSE_ERROR"),
            (b"[]", "INVALID_CONTEXT"),
            (b'{"context": {"k": 1}}', "TARGETING_KEY"),
        ):
            status, error = fetch(address, "/ofrep/v1/evaluate/flags/home", body)
            assert (status, error["errorCode"].startswith(code)) == (400, True)
        body = b'{"context": {"targetingKey": 5}}'
        assert (
            fetch(address, "/ofrep/v1/evaluate/flags/home", body)[1]["errorDetails"] == "session: expected text, got 5"
        )


@pytest.mark.slow
def test_a_token_a_name_and_a_certificate_are_asked_for(kiosk: str, tmp_path: Path) -> None:
    token, pem = tmp_path / "token", tmp_path / "cert.pem"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", pem, "-out", tmp_path / "c"],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_text(pem.read_text() + (tmp_path / "c").read_text())
    tls = ssl.create_default_context(cafile=str(tmp_path / "c"))
    body, bearer = {"policy": "home", "session": "s"}, {"Authorization": f"Bearer {TOKEN}"}
    with served(kiosk, "127.0.0.1:0", "--token-file", str(token), "--tls-cert", str(pem)) as (address, child):

        def answer(headers: Mapping[str, str], path: str = "/v1/recommend") -> tuple[int, Any]:
            posted = body if path == "/v1/recommend" else None
            return fetch(address, path, posted, scheme="https", context=tls, headers=headers)

        def ask(headers: Mapping[str, str], path: str = "/v1/recommend") -> int:
            return answer(headers, path)[0]

        for headers, words in (({}, "a token is needed"), ({"Authorization": "Bearer x"}, "this is not the token")):
            status, error = answer(headers)
            assert (status, error["error"]) == (401, f"{words}: Authorization: Bearer TOKEN")
        assert ask(bearer) == 200
        assert [ask({}, path) for path in ("/healthz", "/metrics", "/openapi.json")] == [200, 401, 401]
        assert ask(bearer | {"Host": "evil.example"}) == 421
        assert answer(bearer | {"Host": ""})[1]["error"] == "a request needs the field Host"
        assert ask(bearer | {"Origin": "https://evil.example"}) == 403
        host, _, port = address.rpartition(":")
        with tls.wrap_socket(socket.create_connection((host, int(port))), server_hostname=host) as idle:
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle.recv(15) == b"HTTP/1.1 200 OK"
            start = time.monotonic()
            assert ended(child) == (0, b"")
            assert time.monotonic() - start < 15  # a client that idles holds up no end
    with served(kiosk, "127.0.0.1:0", "--host", "shop.example") as (address, _):
        assert fetch(address, "/v1/recommend", body, headers={"Host": "shop.example:80"})[0] == 200
        assert fetch(address, "/v1/recommend", body, headers={"Host": "Shop.Example.:80"})[0] == 200
        assert fetch(address, "/v1/recommend", body, headers={"Host": "other.example"})[0] == 421


@pytest.mark.slow
def test_half_a_million_unknown_names_get_an_answer_and_no_line(kiosk: str) -> None:
    """As many as a line holds are counted; whoever sends more hears so, though the body is longer than all limits."""
    with served(kiosk) as (address, child):
        for n, status, message in (
            (40_000, 400, "unknown arm 'nope0' and 39999 more"), (500_000, 413, "a body has at most 10,000,000 bytes"),
        ):  # fmt: skip
            arms = ", ".join(f'{{"arm": "nope{number}"}}' for number in range(n))
            body = f'{{"policy": "home", "session": "s", "arms": [{arms}]}}'.encode()
            code, error = fetch(address, "/v1/recommend", body)
            assert (code, error["error"][: len(message)]) == (status, message)
        assert fetch(address, "/v1/recommend", {"policy": "home", "session": "s"})[0] == 200
        assert ended(child) == (0, b"")


def test_who_may_ask_is_said_before_it_listens(kiosk: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    run = runner(kiosk)
    for text, mode, options, words in (
        (TOKEN, 0o600, ["--allow-remote"], "whoever reaches the address could write to the store"),
        ("short", 0o600, ["--token-file", str(token)], "has fewer than 16 characters"),
        (TOKEN, 0o644, ["--token-file", str(token)], "others can read"),
        (TOKEN, 0o600, ["--tls-key", str(token)], "--tls-key needs --tls-cert"),
        (TOKEN, 0o600, ["--tls-cert", str(token)], "is no certificate with its key"),
    ):
        token.write_text(text)
        token.chmod(mode)
        answer = run("serve", "--listen", "127.0.0.1:0", *options)
        assert (answer.exit_code, answer.stdout, words in answer.stderr) == (2, "", True), (options, answer.stderr)
        if text == "short":  # what the hint makes is taken as it is
            subprocess.run(answer.stderr.split("`")[1], shell=True, check=True)
            with served(kiosk, "127.0.0.1:0", *options) as (address, _):
                assert fetch(address, "/healthz")[0] == 200


@pytest.mark.slow
def test_the_root_and_an_unknown_path_list_the_addresses(kiosk: str) -> None:
    with served(kiosk) as (address, _):
        for path, status in (("/", 405), ("/none", 404)):
            answered, body = fetch(address, path)
            assert answered == status
            listed = {"/v1/recommend", "/v1/feedback", "/v1/pipe", "/healthz", "/metrics", "/openapi.json"}
            assert listed <= set(re.findall(r"/[\w/.]+\w", body["error"]))
        for method, path, allowed in (("GET", "/v1/pipe", "POST"), ("DELETE", "/healthz", "GET, HEAD")):
            with closing(HTTPConnection(address)) as connection:
                connection.request(method, path)
                answer = connection.getresponse()
                assert (answer.status, answer.headers["allow"]) == (405, allowed)


@pytest.mark.slow
def test_metrics_count_what_was_answered(kiosk: str) -> None:
    assert runner(kiosk)("route", "create", "front", "--to", "home").exit_code == 0
    with served(kiosk) as (address, _):
        for number in range(3):
            fetch(address, "/v1/recommend", {"policy": "home", "session": f"s{number}"})
        fetch(address, "/v1/recommend", {"policy": "front", "session": "s0"})
        fetch(address, "/v1/recommend", {"policy": "home", "session": "s0", "k": 100})
        fetch(address, "/v1/feedback", {"decision_id": 1, "events": {"click": 1}})
        for _ in range(2):  # a retry counts as an answer, and brings no event
            fetch(address, "/v1/feedback", {"decision_id": 1, "events": {"click": -0.25, "look": 1}, "key": "k"})
        fetch(address, "/v1/feedback", {"decision_id": 1, "position": 9, "events": {"click": 1}})
        status, text = fetch(address, "/metrics")
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert status == 200
        assert lines['rlrec_decisions_total{policy="home",route="",version="1"}'] == "3.0"
        assert lines['rlrec_decisions_total{policy="home",route="front",version="1"}'] == "1.0"
        assert (lines['rlrec_refused_total{code="2"}'], lines["rlrec_feedback_total"]) == ("2.0", "3.0")
        assert lines['rlrec_events_total{policy="home"}'] == "3.0"
        assert lines['rlrec_reward{policy="home"}'] == "0.75"
        assert (lines["rlrec_group_lines_count"], lines["rlrec_group_seconds_count"]) == ("9.0", "9.0")
        assert lines['rlrec_draw_surprise_nats_count{policy="home",version="1"}'] == "4.0"
        assert lines['rlrec_live_version{policy="home"}'] == "1.0"
        assert lines["rlrec_store_up"] == "1.0"
        assert "rlrec_doctor_errors" not in lines


@pytest.mark.slow
def test_metrics_have_what_is_spent_of_a_budget(kiosk: str) -> None:
    run = runner(kiosk)
    run("reward", "define", "savings", "cost=-1").done()
    run("policy", "create", "router", "--kind", "epsilon-greedy", "--param", "budget=cost:0.5/week").done()
    with served(kiosk) as (address, _):
        _, answer = fetch(address, "/v1/recommend", {"policy": "router", "session": "s"})
        fetch(address, "/v1/feedback", {"decision_id": answer["decision_id"], "events": {"cost": 0.2}})
        _, text = fetch(address, "/metrics")
    names = '{event="cost",period="week",policy="router"}'
    assert {f"rlrec_budget_spent{names} 0.2", f"rlrec_budget_amount{names} 0.5"} <= {*text.splitlines()}
    budgets = {
        row["policy"]: row["budget"] and row["budget"]["spent"] for row in run("status", "--json").json["policies"]
    }
    assert (budgets["router"], budgets["home"]) == (0.2, None)


@pytest.mark.slow
def test_metrics_of_a_store_that_is_gone_say_so(kiosk: str) -> None:
    with served(kiosk) as (address, child):
        for path in Path(kiosk).parent.glob(f"{Path(kiosk).name}*"):
            path.unlink()
        status, text = fetch(address, "/metrics")
        assert (status, "rlrec_store_up 0.0" in text, "rlrec_live_version" in text) == (200, True, False)
        assert ended(child) == (0, b"")


def test_the_description_is_valid_and_has_the_fields_of_requests() -> None:
    validate = pytest.importorskip("openapi_spec_validator").validate
    document = openapi.api_description()
    validate(document)
    fields = document["components"]["schemas"]["Request"]["properties"]
    assert {"session", "policy", "experiment", "user", "context", "k", "arms", "request_id"} <= set(fields)
    assert fields["user"]["description"] == "User key; a session keeps its first one."
    assert fields["k"].items() >= {"minimum": 1, "default": 1}.items()
    position, _ = document["components"]["schemas"]["Feedback"]["properties"]["position"]["anyOf"]
    assert position["minimum"] == 1
    unknown = document["paths"]["/ofrep/v1/evaluate/flags/{key}"]["post"]["responses"]["404"]
    assert {"$ref": "#/components/schemas/Flag"} in unknown["content"]["application/json"]["schema"]["anyOf"]
    assert json.loads(openapi.description_json()) == document


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "name", "command"),
    [("js", "client.mjs", "node"), ("go", "client.go", "go run"), ("ruby", "client.rb", "ruby"),
     ("php", "client.php", "php"), ("python", "flags.py", sys.executable)],
)  # fmt: skip
def test_the_clients_of_the_manual_get_an_answer(
    kiosk: str, tmp_path: Path, language: str, name: str, command: str
) -> None:
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"this machine has no {command}")
    page = next(page for page in manual.manual_pages() if page.topic == "back-end")
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", page.text, re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if name in block.splitlines()[0])
    runner(kiosk)("arm", "import", "-", stdin='{"arm": "a3"}\n')
    with served(kiosk) as (address, _):
        (tmp_path / name).write_text(block.replace("127.0.0.1:8080", address))
        done = subprocess.run([*command.split(), name], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (done.returncode, "1" in done.stdout.split()[:3] or '"decision_id":1' in done.stdout) == (0, True), done
