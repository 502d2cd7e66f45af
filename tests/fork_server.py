"""Processes of `rlrec` that begin where the program has been loaded: most of a short command is its imports.

The server, run by the Python of an environment, forks a process for each program `CLIENT`, with the streams, folder,
variables and signals of that; where its one argument is `worker`, a process that works on partitions. The commands of
`demo`, which starts `python -m rlrec`, are forked, too. It imports the package alone, so the environment needs no
tests."""

from __future__ import annotations

import atexit
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

if sys.argv[1:3] == ["-m", "rlrec"]:
    del sys.argv[1:3]
with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    socket.send_fds(server, [b"x"], [0, 1, 2])
    ignored = [int(number) for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN]
    server.sendall(json.dumps([sys.argv, dict(os.environ), os.getcwd(), ignored]).encode() + b"\\n")
    answers = server.makefile()
    child = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(child, number))
    code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextmanager
def serving(python: Path, program: Path) -> Iterator[None]:
    """Until it ends, the program is `rlrec` of this Python."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory(prefix="rlrec-") as folder:  # the path of a socket has about a hundred characters
        path = f"{folder}/socket"
        program.write_text(CLIENT.format(python=python, path=path))
        program.chmod(0o755)
        command = [python, "-P", __file__, path]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=variables) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == b"ready\n"
                yield
            finally:
                server.kill()


def _load() -> None:
    """Import what commands import; what the environment lacks stays away."""
    import rlrec

    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # no threads, before a fork
    for module in pkgutil.walk_packages(rlrec.__path__, "rlrec."):
        with suppress(ImportError):
            import_module(module.name)
    for name in (
        "adbc_driver_sqlite.dbapi", "alembic.command", "duckdb", "email.parser", "pyarrow.parquet", "scipy.linalg",
        "scipy.special", "sqlite3", "tabulate", "zoneinfo",
    ):  # fmt: skip
        with suppress(ImportError):
            import_module(name)


def _wait_for_command(path: str) -> None:
    """Return in the process of a command, which has become what its client is."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    _become(connection)
                    return
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _become(connection: socket.socket) -> None:
    """Return in a child of this process, which only waits to tell the client how the child ended."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    argv, variables, folder, ignored = json.loads(connection.makefile().readline())
    if child := os.fork():
        for stream in streams:
            os.close(stream)
        connection.sendall(b"%d\n" % child)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(OSError):  # the client was killed
            connection.sendall(b"%d\n" % code)
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    for number in ignored:
        with suppress(OSError):
            signal.signal(number, signal.SIG_IGN)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    time.tzset()
    sys.argv = argv
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8")
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")


def _command() -> int:
    """The exit code of the command that this process has become."""
    from rlrec.app.inputs import seeds
    from rlrec.cli import main
    from rlrec.compute import worker

    if sys.argv[1:] == ["worker"]:
        worker.main()
        return 0
    if sys.argv[1:2] == ["demo"]:
        sys.executable = sys.argv[0]  # the client
    # Splits of users depend on a random word of the store. Here it is the same each time, so that figures are.
    seeds.random_salt = lambda: "salt"
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


if __name__ == "__main__":
    _load()
    _wait_for_command(sys.argv[1])
    code = _command()
    atexit._run_exitfuncs()
    os._exit(code)  # to take apart what the server loaded would copy all of it
