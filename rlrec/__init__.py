"""Exploration and reinforcement learning for recommenders, on a SQL store."""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` takes longer to load than the rest of this module

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlrec.api import Recommender

__version__ = "0.2.0"


def open(  # noqa: A001 (rlrec.open)
    db: str = "rlrec.db", *, now: str | None = None, notice: Callable[[str], None] | None = None
) -> Recommender:
    """The store at a path or URL, for notebooks and programs: it must exist (`rlrec init`).

    now: a clock in place of the database's. notice: takes lines that a person should know [default: to stderr]."""
    from rlrec.api import Recommender

    return Recommender(db, now=now, notice=notice)
