"""Streams: each line of an input is answered in order, after the commit of its group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rlrec.cli.output import Show
from rlrec.cli.shared import Store, refused, settings
from rlrec.errors import InputError


def answer(
    store: Store, show: Show, source: str, kind: Any, read: Callable[[Any], Any], *, seed: int | None,
    dry_run: bool = False,
) -> None:  # fmt: skip
    """Read lines of `kind`, and write the answer to each, or why it is refused. read: a decoded line, or the error in
    it, as the use case takes it. A group of lines ends when it is full, or at a line {"op": "flush"}; without a seed
    also where nothing more waits. Raises LinesRefused at the end if any line was."""
    from rlrec.app.opening import ready
    from rlrec.app.pipe import Pipe
    from rlrec.cli.lines import decode_group, groups

    settings().source = "<stdin>" if source == "-" else source
    ready(store)
    pipe, n_refused = Pipe(store, seed=seed, dry_run=dry_run), 0

    def answers() -> Iterator[list[Any]]:
        nonlocal n_refused
        for group in groups(source, eager=seed is None, flush=True):
            results = pipe.answer([read(line) for line in decode_group(group, kind)])
            n_refused += sum(isinstance(result, InputError) for result in results)
            yield [
                _refusal(result, number) if isinstance(result, InputError) else result
                for result, (number, _) in zip(results, group, strict=True)
            ]

    show.stream(answers())
    if n_refused:
        raise refused(n_refused)


def _refusal(error: InputError, number: int) -> dict[str, Any]:
    message = error.message if error.hint is None else f"{error.message}: {error.hint}"
    return {"line": number, "error": message, "field": error.field}
