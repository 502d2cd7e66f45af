"""The package rlrec provides exploration and reinforcement learning for recommenders, on a SQL store."""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` takes longer to load than the rest of this module

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from os import PathLike

    from rlrec.api import Recommender

__version__ = "0.2.0"


def open(  # noqa: A001 (rlrec.open)
    db: str | PathLike[str] = "rlrec.db", *, now: str | datetime | None = None,
    notice: Callable[[str], None] | None = None,
) -> Recommender:  # fmt: skip
    """Open the store at a path or URL, for notebooks and programs. The store must exist (`rlrec init`).

    now: a time such as +1h, in place of the clock of the database; notice: a function that takes messages for a
    person [default: messages go to stderr]."""
    from rlrec.api import Recommender

    return Recommender(str(db), now=None if now is None else str(now), notice=notice)
