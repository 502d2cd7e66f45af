"""Processes of `rlrec` that begin where the program has been loaded: most of a short command is its imports.

The server, run by the Python of an environment, forks a process for each program `CLIENT`, with the streams, folder,
variables and signals of that, and kills it when the client is killed; where its one argument is `worker`, a process
that works on partitions. The commands of `demo`, which starts `python -m rlrec`, are forked, too. It imports the
package alone, so the environment needs no tests."""

from __future__ import annotations

import atexit
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

CLIENT = """#!{python} -IS
import _signal, _socket, posix, sys  # what wraps these takes longer to load than all the rest


def read_line():
    line = b""
    while not line.endswith(b"\\n"):
        line += server.recv(1) or sys.exit(1)
    return int(line)


if sys.argv[1:3] == ["-m", "rlrec"]:
    del sys.argv[1:3]
server = _socket.socket(_socket.AF_UNIX)
server.connect({path!r})
streams = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
server.sendmsg([b"x"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
ignored = [number for number in _signal.valid_signals() if _signal.getsignal(number) == _signal.SIG_IGN]
server.sendall(ascii((sys.argv, posix.environ, posix.getcwd(), ignored)).encode() + b"\\n")
child = read_line()
for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
    _signal.signal(number, lambda number, _: posix.kill(child, number))
code = read_line()
if code < 0:
    _signal.signal(-code, _signal.SIG_DFL)
    posix.kill(posix.getpid(), -code)
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
    clients: dict[int, socket.socket] = {}

    def report(*_: object) -> None:
        """Tell the clients of commands that ended how these ended."""
        with suppress(ChildProcessError):
            while (end := os.waitpid(-1, os.WNOHANG))[0]:
                if client := clients.pop(end[0], None):  # it was not killed
                    with client, suppress(OSError):
                        client.sendall(b"%d\n" % os.waitstatus_to_exitcode(end[1]))

    def wait_for_client() -> None:
        """Return once a client has come; until then, kill each command whose client was killed."""
        coming = False
        while not coming:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
            poll, children = select.poll(), {client.fileno(): child for child, client in clients.items()}
            poll.register(listener, select.POLLIN)
            for number in children:
                poll.register(number, 0)  # that is, for its end
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            ended = dict(poll.poll())
            coming = listener.fileno() in ended
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
            for child in [children[number] for number in ended if number in children]:
                if child in clients:
                    os.kill(child, signal.SIGKILL)
                    clients.pop(child).close()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])

    signal.signal(signal.SIGCHLD, report)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            wait_for_client()
            connection, _ = listener.accept()
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # until the child has its client
            if child := os.fork():
                clients[child] = connection
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            if not child:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                for other in clients.values():
                    other.close()
                _become(connection)
                return


def _become(connection: socket.socket) -> None:
    """Be what the client at the other end is, from its arguments to its streams."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    argv, variables, folder, ignored = literal_eval(connection.makefile().readline())
    connection.sendall(b"%d\n" % os.getpid())
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    for number in ignored:
        with suppress(OSError):
            signal.signal(number, signal.SIG_IGN)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update({os.fsdecode(name): os.fsdecode(value) for name, value in variables.items()})
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
