"""Roles with the rights that `db roles` grants: each can do its work on a real server, and no more."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Run, _create, runner

pytestmark = pytest.mark.slow
AsRole = Callable[[str], Run]
AsLogin = Callable[[str], str]
ROLES = ("server", "trainer", "reader")
SCHEMA_PAGE = Path(__file__).parents[4] / "rlrec" / "help" / "schema.md"


@contextmanager
def new_logins(server: str, template: str) -> Iterator[AsLogin]:
    """The URL of one store for a login with each role, after the script, which may run twice."""
    prefix = f"r{time.time_ns()}"
    db = _create(server, prefix, template)
    names = [f"{prefix}_{role}" for role in ROLES]
    with psycopg.connect(db, autocommit=True) as owner:
        for _ in range(2):
            owner.execute(runner(db)("db", "roles", "--prefix", prefix).stdout)
        for name in names:
            owner.execute(f"CREATE ROLE {name}_login LOGIN")
            owner.execute(f"GRANT {name} TO {name}_login")
        owner.execute("REVOKE CONNECT ON DATABASE " + prefix + " FROM PUBLIC")
        yield lambda role: db.replace("//postgres:", f"//{prefix}_{role}_login:")
        for name in names:
            owner.execute(f"DROP OWNED BY {name}; DROP ROLE {name}_login; DROP ROLE {name}")


@pytest.fixture
def roles(postgres_server: str, postgres_template: str) -> Iterator[AsRole]:
    """A runner for each role on one store."""
    with new_logins(postgres_server, postgres_template) as logins:
        yield lambda role: runner(logins(role))


@pytest.fixture(scope="module")
def logins(postgres_server: str, postgres_template: str) -> Iterator[AsLogin]:
    """The URL for a login with each role of a store with one decision, which tests leave as it is."""
    with new_logins(postgres_server, postgres_template) as logins:
        done(runner(logins("trainer")), "arm add a", "policy create home --kind thompson")
        done(runner(logins("server")), "recommend --policy home --session s1 --user u1")
        yield logins


def done(run: Run, *lines: str, stdin: str | None = None) -> None:
    for line in lines:
        result = run(*line.split(), stdin=stdin)
        assert result.exit_code == 0, (line, result.stderr)


def set_up(roles: AsRole) -> None:
    done(
        roles("trainer"),
        "arm add a", "arm add b", "arm add c", "arm retire c", "arm restore c",
        "reward define slow click=1 --learn settled --window 0s", "reward define back return=1,click=1 --clip 0,1",
        "policy create home --kind thompson --param floor=0.1",
        "policy create late --kind epsilon-greedy --reward slow",
        "policy create two --kind uniform", "policy create pg --kind gradient",
        "experiment create ab --variant a=home --variant b=two --unit user",
        "route create main --to home",
    )  # fmt: skip


def serve(roles: AsRole) -> None:
    ask = '{"op": "recommend", "policy": "pg", "session": "p%d", "k": 2, "context": {"x": 1}, "request_id": "q%d"}\n'
    tell = '{"op": "feedback", "request_id": "q%d", "position": 1, "events": {"click": 1}}\n'
    done(
        roles("server"),
        "recommend --policy home --session s1 --user u1 -k 2 --request-id r1", "recommend --policy late --session s1",
        "recommend --experiment ab --session s2 --user u2", "recommend --policy main --session s3 --user u1",
        "feedback 1 click --position 1 --key k1", "feedback 1 --position 2 --censor", "feedback 2 click seen=3",
        "settle", "session end s1", "recommend --policy home --session s1 --user u1",
    )  # fmt: skip
    done(roles("server"), "pipe", stdin="".join((ask + tell) % (n, n, n) for n in range(20)))


def test_each_role_can_do_its_work(roles: AsRole, tmp_path: Path) -> None:
    set_up(roles)
    serve(roles)
    done(roles("trainer"), "log exclude staff --where user=u1")
    requests = [f"recommend --policy {name} --session s1 --user u1" for name in ("home", "late")]
    done(roles("server"), *requests, "settle")  # and note that these teach nothing
    done(
        roles("trainer"),
        "policy freeze home", "policy promote home@2", "policy rollback home", "policy rebuild home --reward back",
        "--now +2h train-pg pg --epochs 1 --log policy=pg --promote always",
        "experiment stop ab", "route set main --to two", "policy shadow main home",
        "route rollback main", "arm add d", "user merge anon --into u0", "user merge u1 --into u2",
        "log include staff",
    )  # fmt: skip
    export = tmp_path / "log.jsonl"
    done(
        roles("reader"),
        "status", "--now +2h evaluate uniform --log policy=pg", "policy list", "policy show home", "session show s1",
        "experiment show ab", "exposure", "outcomes", "decision show 1", f"report {tmp_path}/page.html", "doctor",
        f"export-log {export}",
    )  # fmt: skip
    row = '{"session": "x", "at": "2026-01-31T09:00:0%dZ", "eligible": ["a"], "slate": [{"arm": "a"}]}\n'
    done(roles("trainer"), "policy create old --kind logged")
    done(roles("trainer"), "import-log - --layout jsonl --policy old", stdin=row % 1 + row % 2)  # a visit


@pytest.mark.parametrize(
    ("role", "line"),
    [
        ("reader", "recommend --policy home --session s9"),
        ("reader", "feedback 1 click"),
        ("server", "policy create more --kind uniform"),
        ("server", "policy freeze home"),
        ("server", "arm retire a"),
        ("server", "user merge anon --into u1"),
        ("trainer", "db prune --before 2100-01-01 --yes"),
        ("server", "db forget --user u1 --yes"),
        ("reader", "arm add z"),
        ("reader", "serve --listen 127.0.0.1:0"),
    ],
)
def test_what_a_role_may_not_do_is_refused_in_one_line(logins: AsLogin, role: str, line: str) -> None:
    result = runner(logins(role))(*line.split())
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert any(words in result.stderr for words in ("permission denied", "must be owner"))
    assert "rlrec db roles" in result.stderr


def test_each_role_reads_each_documented_view(logins: AsLogin) -> None:
    views = re.findall(r"^\| `(v_\w+)` \|", SCHEMA_PAGE.read_text(), re.MULTILINE)
    assert len(views) == 3
    for role in ROLES:
        with psycopg.connect(logins(role)) as connection:
            for view in views:
                assert connection.execute(f"SELECT count(*) FROM {view}").fetchone() == (1,), (role, view)


def test_no_role_has_a_right_that_its_documentation_does_not_name(logins: AsLogin) -> None:
    log = ("decision", "event", "slot", "context", "eligible_set", "session", "visit", "users")
    rights: dict[str, set[tuple[str, str]]] = {}
    for role in ROLES:
        with psycopg.connect(logins(role)) as connection:
            query = "SELECT table_name, privilege_type, is_grantable FROM information_schema.role_table_grants"
            rows = connection.execute(f"{query} WHERE grantee <> 'PUBLIC'").fetchall()
            rights[role] = {(table, right) for table, right, _ in rows}
            assert {grantable for *_, grantable in rows} == {"NO"}
            for create in ("has_schema_privilege(current_schema(), 'CREATE')", "pg_has_role('postgres', 'MEMBER')"):
                assert connection.execute(f"SELECT {create}").fetchone() == (False,), (role, create)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("UPDATE slot SET propensity = 1")
    changing = {role: {(table, right) for table, right in rights[role] if right != "SELECT"} for role in ROLES}
    assert changing["reader"] == set()
    assert {right for _, right in changing["server"]} == {"INSERT"}
    assert {table for table, _ in changing["server"]}.isdisjoint({"arm", "policy", "reward", "version", "route"})
    assert {pair for pair in changing["trainer"] if pair[1] != "INSERT"} == {
        (table, "DELETE") for table in ("lease", "exclusion", "exclusion_unit", "group_member")
    }
    assert all((table, "SELECT") in rights["reader"] for table in log)
