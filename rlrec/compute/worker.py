"""This program runs as a process that works on partitions. It is sent the path of the modules, then the runner (the
function that does the work), and then any number of messages that have a task and a partition each. The program answers
each of these messages with a packed result. A message is a pickle with its length in front."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from typing import Any, BinaryIO

LENGTH_BYTES = 8  # bytes


def write_message(stream: BinaryIO, message: bytes) -> None:
    stream.write(len(message).to_bytes(LENGTH_BYTES, "little"))
    stream.write(message)
    stream.flush()


def read_message(stream: BinaryIO) -> bytes | None:
    """Return the next message of a stream. Return None at the end of the stream, or if the sender ended within a
    message."""
    length_bytes = stream.read(LENGTH_BYTES)
    message = stream.read(int.from_bytes(length_bytes, "little")) if len(length_bytes) == LENGTH_BYTES else b""
    return message if message else None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # printed text must not mix with answers
    questions = sys.stdin.buffer
    sys.path[:] = pickle.loads(read_message(questions) or b"")

    from rlrec.compute import pack
    from rlrec.errors import RlrecError

    runner = pickle.loads(read_message(questions) or b"")
    while (message := read_message(questions)) is not None:
        task, partition = pickle.loads(message)
        answer: Any
        try:
            answer = runner(task, partition)
        except RlrecError as error:
            answer = error
        except Exception as error:
            answer = RlrecError(f"a worker failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        write_message(answers, pack(answer))


if __name__ == "__main__":
    main()
