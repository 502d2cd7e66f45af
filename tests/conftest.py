"""Stores to test on: an empty one for each test, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import gc
import json
import os
import random
import re
import signal
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the program does, before numpy is imported

from rlrec.app.inputs import seeds
from rlrec.app.setup.init import init
from rlrec.compute import local
from rlrec.store import Store
from tests import PATIENCE_S as PATIENCE_S
from tests import fork_server


@dataclass(frozen=True)
class CommandResult:
    """What a command said."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The document; if it is an object, without the version of its keys, which every object has."""
        assert self.stdout, self.stderr
        document = json.loads(self.stdout)
        if isinstance(document, dict):
            assert document.pop("schema_version") == 1
        return document

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def error(self) -> Any:
        return json.loads(self.stderr)

    def done(self) -> CommandResult:
        """Itself, of a command that did not fail."""
        assert self.exit_code == 0, self.stderr
        return self

    def failed(self, code: int) -> str:
        """What a command that failed with this code says."""
        assert self.exit_code == code, f"{self.exit_code}: {self.stdout}{self.stderr}"
        return self.stderr


Run = Callable[..., CommandResult]


_draws = seeds.source = random.Random()
"""Every seed and salt that a test leaves to chance, in this process."""


@contextmanager
def draws_of(name: str) -> Iterator[None]:
    """Inside, what is left to chance follows from the name alone; afterwards it goes on as before."""
    before = _draws.getstate()
    _draws.seed(name)
    try:
        yield
    finally:
        _draws.setstate(before)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test draws the same in every run, whatever ran before."""
    _draws.seed(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[None]:
    """So does what tests share, whichever of them comes first."""
    if fixturedef.scope == "function":
        return (yield)
    with draws_of(f"{fixturedef.baseid}::{fixturedef.argname}[{getattr(request, 'param_index', 0)}]"):
        return (yield)


def initialise(db: str) -> None:
    """An empty store whose splits are the same in every run: no test rests on the chance of a salt."""
    with closing(Store(db)) as store:
        init(store)
        store.write(lambda unit: unit.tell("UPDATE settings SET salt = 'salt'"))


MEMORY, ROOM = Path("/dev/shm"), 1 << 32  # a file system in memory, and the bytes that must be free there


def pytest_configure() -> None:
    """Files of tests and of their server lie in memory, where the machine has room and programs may be there, too: each
    of many thousand commands would wait for the disk when it closes its store."""
    if MEMORY.is_dir() and "PYTEST_DEBUG_TEMPROOT" not in os.environ:
        system = os.statvfs(MEMORY)
        if system.f_bavail * system.f_frsize > ROOM and not system.f_flag & (os.ST_NOEXEC | os.ST_RDONLY):
            os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Each of several workers begins with a stretch of files, whose fixtures it shares, and in the end takes from the
    others: none is idle."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


def pytest_collection() -> None:
    """The garbage collector finds nothing in what is collected, and looks through it ever longer."""
    gc.disable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The quick selection runs on SQLite alone: whatever needs the server is slow. Simulations run where somebody asks
    for them, by `-m` or by name."""
    if "simulation" not in config.option.markexpr and not any("::" in argument for argument in config.args):
        simulations = [item for item in items if item.get_closest_marker("simulation")]
        config.hook.pytest_deselected(items=simulations)
        items[:] = [item for item in items if not item.get_closest_marker("simulation")]
    for item in items:
        parameters = getattr(item, "callspec", None)
        if "postgres_server" in getattr(item, "fixturenames", ()) or (
            parameters and "postgres" in parameters.params.values()
        ):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """What was collected stays: the garbage collector need not look through it again, and tests make little garbage."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whoever runs the tests may have a store and a clock of their own. Where no bytecode is to be written beside the
    source, the processes that tests start share a folder for it: they need not compile the program each time. Signals
    that a shell has its jobs in the background ignore, or `nohup` has, reach these processes."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    for name in [name for name in os.environ if name.startswith("RLREC_")]:
        del os.environ[name]
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    if sys.dont_write_bytecode:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(tmp_path_factory.mktemp("bytecode"))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "empty.db"
    initialise(str(path))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


SERVER = ("full_page_writes=off", "autovacuum=off", "max_wal_size=4GB", "shared_buffers=64MB")
"""Nothing of a server outlives its tests, which make hundreds of databases: what a crash would need is not written, and
nobody looks through them all for dead rows."""


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A real server of this test process: URL with {} in the place of the database's name."""
    from tests.store.servers import NEWEST, new_server  # where the wheel is missing, SQLite can be tested

    folder = os.environ.get("PYTEST_DEBUG_TEMPROOT")
    with new_server(*SERVER, programs=NEWEST, inside=Path(folder) if folder else None) as server:
        yield server.url("{}")


_unused_databases: list[str] = []
"""Those of tests that are over, until the next one is made."""


def _create(server: str, name: str, template: str = "template1") -> str:
    import psycopg

    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        for unused in (name, *_unused_databases):
            connection.execute(f'DROP DATABASE IF EXISTS "{unused}" WITH (FORCE)')
        _unused_databases.clear()
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')  # the cheapest here
    return server.format(name)


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    url = _create(postgres_server, "empty")
    initialise(url)
    return "empty"


STORE = Path(__file__).parent / "store"
ON_BOTH = pytest.mark.both_databases
"""A test outside of `tests/store` of what may differ by the database."""


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of the store and those marked `ON_BOTH` have a `db` on either database, all others on SQLite."""
    chosen = any("db" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "db" in metafunc.fixturenames and not chosen:
        in_store = STORE in metafunc.definition.path.parents
        both = in_store or metafunc.definition.get_closest_marker(ON_BOTH.name)
        metafunc.parametrize("db", ["sqlite", "postgres"] if both else ["sqlite"], indirect=True)


@pytest.fixture
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An initialised, empty store: a path, or a URL."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield str(request.getfixturevalue("sqlite_db"))
        return
    server, name = request.getfixturevalue("postgres_server"), f"t{uuid.uuid4().hex}"
    yield _create(server, name, request.getfixturevalue("postgres_template"))
    _unused_databases.append(name)


@pytest.fixture
def sqlite_db(tmp_path: Path, sqlite_template: Path) -> str:
    path = tmp_path / "rlrec.db"
    path.write_bytes(sqlite_template.read_bytes())
    return str(path)


_filled_files: dict[tuple[object, ...], bytes] = {}
_filled_databases: dict[tuple[object, ...], str] = {}


def filled(db: str, fill: Callable[..., object], *words: object) -> Run:
    """A runner on an empty store after `fill(db, *words)`. It runs once: later stores are copies of the file, or of the
    database."""
    key, url = (fill, *words), re.fullmatch(r"(.*/)(\w+)(\?.*)", db) if "://" in db else None
    if url and key in _filled_databases:
        _create(f"{url[1]}{{}}{url[3]}", url[2], _filled_databases[key])
    elif not url and key in _filled_files:
        Path(db).write_bytes(_filled_files[key])
    else:
        with draws_of(f"{fill.__module__}.{fill.__qualname__}{words}"):
            fill(db, *words)
        if url:
            _filled_databases[key] = f"filled{len(_filled_databases)}"
            _create(f"{url[1]}{{}}{url[3]}", _filled_databases[key], url[2])
        else:
            _filled_files[key] = Path(db).read_bytes()
    return runner(db)


def empty_store(path: Path) -> Run:
    """A runner on one more empty store, at this path."""
    return filled(str(path), initialise)


def store_after(fill: Callable[[str], object]) -> Any:
    """A fixture: a runner on a store that `fill` has filled."""

    @pytest.fixture
    def shop(db: str) -> Run:
        return filled(db, fill)

    return shop


@pytest.fixture
def empty_db(postgres_server: str) -> str:
    """A PostgreSQL database without a store."""
    return _create(postgres_server, f"e{uuid.uuid4().hex}")


@pytest.fixture
def store(db: str) -> Iterator[Store]:
    with closing(Store(db)) as opened:
        yield opened


@pytest.fixture(scope="session")
def forked_rlrec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A program `rlrec` whose processes begin with what it loads, where a test is not about that."""
    program = tmp_path_factory.mktemp("forked") / "rlrec"
    with fork_server.serving(Path(sys.executable), program):
        yield program


@pytest.fixture
def forked_workers(forked_rlrec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So do the processes of `--jobs`."""
    monkeypatch.setattr(local, "WORKER_COMMAND", [str(forked_rlrec), "worker"])


@pytest.fixture
def forked_nannies() -> Iterator[None]:
    """Workers of a Dask cluster are forked from one process that has loaded Dask, where a test is not about their
    start, and kills some. They have what the environment says of the runners in `tests/compute/store_runners.py`."""
    import dask
    import distributed  # noqa: F401  its own settings are there from now on

    names = {"distributed.nanny.environ": {"MEETING": "", "MORTAL": ""}}
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver", **names}):
        yield


def jsonl(rows: Iterable[Any]) -> str:
    """One JSON object a line."""
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


def click_events(answers: Iterable[Any], is_clicked: Callable[[Any], bool]) -> list[dict[str, Any]]:
    """A line of feedback for each slot of the answers that is clicked."""
    slots = [(answer, slot) for answer in answers for slot in answer["slate"] if is_clicked(slot)]
    ids = [(answer["decision_id"], slot["position"]) for answer, slot in slots]
    return [{"decision_id": decision_id, "position": position, "events": {"click": 1}} for decision_id, position in ids]


def click(run: Run, decision_ids: Iterable[int], *clock: object) -> None:
    """Reports a click on each of some decisions."""
    lines = [{"decision_id": number, "events": {"click": 1}} for number in decision_ids]
    run(*clock, "feedback", "--input", "-", stdin=lines).done()


def runner(db: str) -> Run:
    """Runs commands on a store; what is no text on their stdin is written as `jsonl`."""
    from rlrec.cli import program

    def run(*args: object, stdin: Any = None, env: dict[str, str] | None = None) -> CommandResult:
        stdin = stdin if stdin is None or isinstance(stdin, str | bytes) else jsonl(stdin)
        result = CliRunner().invoke(program, ["--db", db, *map(str, args)], input=stdin, env=env, prog_name="rlrec")
        return CommandResult(result.exit_code, result.stdout, result.stderr)

    return run


def begin(run: Run, arms: Iterable[str], policy: str, kind: str, *words: object) -> None:
    """A catalogue, and the first policy over it."""
    run("arm", "import", "-", stdin=[{"arm": arm} for arm in arms]).done()
    run("policy", "create", policy, "--kind", kind, *words).done()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is a test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(db: str) -> Run:
    """Run a command on the store of this test, in this process."""
    return runner(db)


@pytest.fixture
def run_sqlite(sqlite_db: str) -> Run:
    """The same on SQLite alone, for what does not depend on the database."""
    return runner(sqlite_db)
