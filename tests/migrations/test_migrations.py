"""The migrations make what `tables.py` describes, and a store of every past revision comes up and works."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import sqlite3
import tomllib
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from rlrec.app.setup.init import init
from rlrec.store import Store
from rlrec.store.database import schema
from rlrec.store.database.schema import HEAD, VERSION_TABLE
from rlrec.store.database.tables import VIEWS, metadata
from tests.conftest import runner
from tests.migrations import story

ROOT = Path(__file__).resolve().parents[2]


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(schema.migrations()))
    return ScriptDirectory.from_config(config)


def test_the_head_is_the_newest_migration() -> None:
    assert scripts().get_heads() == [HEAD]


def test_a_migration_knows_nothing_of_the_program() -> None:
    for path in schema.migrations().glob("**/*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        named = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        named += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        assert [name for name in named if name.startswith("rlrec")] == []


def test_the_head_has_the_columns_keys_and_references_of_the_tables(store: Store) -> None:
    with store.engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True, "version_table": VERSION_TABLE}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        assert [row for row in differences if row[0] not in ("remove_constraint", "remove_index")] == []
        inspector = sa.inspect(connection)
        for name, table in metadata.tables.items():
            key = inspector.get_pk_constraint(name)["constrained_columns"]
            assert key == [column.name for column in table.primary_key], name


def test_the_head_has_the_views_that_roles_may_read(store: Store) -> None:
    assert sorted(sa.inspect(store.engine).get_view_names()) == sorted(VIEWS)


def ddl(path: Path) -> dict[str, list[str]]:
    """Per table or index its definition: the parts between its commas, in any order.

    A column that was added stands in the text where ALTER TABLE puts it, on a line with the one before."""
    with closing(sqlite3.connect(path)) as connection:
        result = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND type <> 'view'")
        return {name: sorted(parts(text)) for name, text in result}


def parts(text: str) -> list[str]:
    """What stands before, between and behind the commas of the outermost brackets, blanks made alike."""
    depth, result = 0, [""]
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if depth == 1 and sign in "(,":
            result.append("")
        elif depth == 0 and sign == ")":
            result.append(sign)
        else:
            result[-1] += sign
    return [" ".join(row.split()) for row in result]


def test_postgres_has_the_constraints_of_sqlite(postgres_server: str, postgres_template: str, sqlite_db: str) -> None:
    with psycopg.connect(postgres_server.format(postgres_template)) as connection:
        names = connection.execute(
            "SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'"
            " UNION SELECT indexname FROM pg_indexes WHERE schemaname = 'public'"
        )
        constraints = {row[0] for row in names}
    text = " ".join(chain.from_iterable(ddl(Path(sqlite_db)).values()))
    assert constraints == {*re.findall(r"\b(?:ck|fk|pk|uq|ix)_\w+", text), f"{VERSION_TABLE}_pkc"}


# -- where they are --


def test_migrations_are_found_in_a_checkout_and_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert schema.migrations() == ROOT / "migrations"
    package = tmp_path / "site-packages" / "rlrec"
    (package / "migrations" / "versions").mkdir(parents=True)
    monkeypatch.setattr(schema, "__file__", str(package / "store" / "database" / "schema.py"))
    assert schema.migrations() == package / "migrations"


def test_the_wheel_takes_the_migrations_along() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["force-include"]["migrations"] == "rlrec/migrations"
    assert "migrations" in build["targets"]["sdist"]["include"]


# -- stores of past revisions --


def test_a_store_of_every_revision_is_kept() -> None:
    assert {*story.REVISIONS} == {script.revision for script in scripts().walk_revisions()}


@pytest.fixture(params=story.REVISIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(story.read_sql(request.param))
    return path


def test_an_old_store_upgrades_and_keeps_its_data(old: Path) -> None:
    run, before = runner(str(old)), rows(old)
    assert run("init", "--json").json["revision"] == HEAD
    assert run("init", "--check", "--json").json == {"revision": HEAD, "created": False, "migrated": False}
    assert {name: len(result) for name, result in rows(old).items() if name in before} == {
        name: len(outcome) for name, outcome in before.items()
    }
    assert [line["arm"] for line in run("arm", "list", "--format", "ndjson").lines] == ["a1", "a2", "a3"]


def test_a_dry_run_of_an_upgrade_tries_it_and_leaves_the_store(old: Path) -> None:
    before, run = rows(old), runner(str(old))
    dry = run("init", "--dry-run", "--json")
    assert (dry.exit_code, rows(old)) == (0, before)
    assert dry.json == run("init", "--json").json


LATER = f"{int(HEAD) + 1:04}"
NEXT = f"""
from alembic import op

revision, down_revision = "{LATER}", "{HEAD}"


def upgrade() -> None:
    op.execute("CREATE TABLE later (id INTEGER)")
"""


@pytest.fixture
def next_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of a later release, which has one more migration."""
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    (tmp_path / "migrations" / "versions" / f"{LATER}_later.py").write_text(NEXT)
    monkeypatch.setattr(schema, "migrations", lambda: tmp_path / "migrations")
    monkeypatch.setattr(schema, "HEAD", LATER)


@pytest.mark.usefixtures("next_revision")
def test_a_migration_names_a_backup_that_works_before_it_begins(old: Path) -> None:
    notices: list[tuple[str, dict[str, list[Any]]]] = []
    before = rows(old)
    with closing(Store(str(old), notice=lambda text: notices.append((text, rows(old))))) as store:
        init(store, dry_run=True)
        init(store)
    assert notices[0] == notices[1] == (notices[1][0], before)
    assert rows(old)["rlrec_version"] == [(LATER,)]
    command = shlex.split(notices[0][0].split("`")[1])
    assert command[:3] == ["rlrec", "--db", str(old)]


@pytest.mark.usefixtures("next_revision")
def test_a_store_at_the_revision_before_is_told_to_upgrade(old: Path) -> None:
    done = runner(str(old))("arm", "list")
    assert (done.exit_code, done.stderr.count("\n")) == (3, 1)
    assert f"rlrec --db {old} init" in done.stderr


@pytest.mark.parametrize("words", [["init"], ["init", "--check"], ["arm", "list"], ["db", "backup", "copy.db"]])
def test_a_store_of_an_older_release_is_named_the_one_that_leads_on(
    old: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("UPDATE rlrec_version SET version_num = '0009'")
        connection.commit()
    before = rows(old)
    done = runner(str(old))(*words)
    if words[0] == "db":
        assert done.exit_code == 0
    else:
        assert (done.exit_code, done.stderr.count("\n")) == (3, 1)
        assert all(word in done.stderr for word in ("0009", "0010", "rlrec 0.1.0"))
    assert rows(old) == before


def test_a_store_of_any_revision_can_be_backed_up(old: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    dry = runner(str(old))("db", "backup", copy, "--dry-run", "--json").json
    assert runner(str(old))("db", "backup", copy, "--json").json == dry
    assert rows(copy) == rows(old)


def test_another_database_is_not_backed_up_as_a_store(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE cats (name TEXT)")
    refused = runner(str(tmp_path / "other.db"))("db", "backup", tmp_path / "copy.db")
    assert (refused.exit_code, refused.stderr.count("\n"), (tmp_path / "copy.db").exists()) == (3, 1, False)


def rows(path: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(path)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f'SELECT * FROM "{name}"').fetchall() for name in names}


@pytest.mark.slow
def test_an_old_store_works(old: Path) -> None:
    run = runner(str(old))
    run("init")
    again = run("recommend", "--policy", "home", "--session", "s1", "--user", "u1", "--context", '{"hour": 9}', "-k", 2,
                "--request-id", "r1", "--json").json  # fmt: skip
    assert (again["decision_id"], again["duplicate"]) == (1, True)
    late = run("feedback", 1, "click", "dwell_s=3.5", "--position", 1, "--key", "k1", "--json").json
    assert (late["duplicates"], late["reward"]) == (2, 1)
    assert run("feedback", 3, "--uncensor", "--json").exit_code == 0
    assert run("settle", "--json").json == {"settled": 1, "open": 0}
    assert run("policy", "rollback", "home", "--json").json["version"] == 1
    assert pulls(run, "home") == {"a1": 1, "a2": 0, "a3": 2}
    assert pulls(run, "slow") == {"a1": 1, "a2": 1, "a3": 0}
    answer = run("decision", "show", 4, "--json").json
    new = run("recommend", "--experiment", "ab", "--session", "s5", "--user", "u2", "--json").json
    assert (new["variant"], new["policy"], new["decision_id"]) == (answer["variant"], answer["policy"], 6)


def test_what_an_old_store_did_not_remember_stays_unknown(old: Path) -> None:
    """Its decisions have what they had; a visit that goes on is remembered whole."""
    before, run = rows(old)["decision"], runner(str(old))
    run("init")
    assert [row[: len(selected)] for row, selected in zip(rows(old)["decision"], before, strict=True)] == before
    new = run("--now", "2026-01-01T14:05:30Z", "recommend", "--policy", "slow", "--session", "s3", "--json").json
    state = run("decision", "show", new["decision_id"], "--json").json["state"]
    assert (new["visit"], new["step"], state["shown"], len(state["history"])) == (1, 1, 1, 1)
    assert state["history"][0]["arm"] == state["recent"][0]


def pulls(run: Any, policy: str) -> dict[str, float]:
    return {row["arm"]: row["pulls"] for row in run("policy", "show", policy, "--json").json["arms"]}


@pytest.mark.slow
def test_the_story_makes_the_kept_store_of_today(tmp_path: Path) -> None:
    retained = tmp_path / "kept.db"
    with closing(sqlite3.connect(retained)) as connection:
        connection.executescript(story.read_sql(HEAD))
    answers = story.build_store(tmp_path)
    assert ddl(retained) == ddl(answers)
    assert {name: len(result) for name, result in rows(retained).items()} == {
        name: len(item) for name, item in rows(answers).items()
    }
