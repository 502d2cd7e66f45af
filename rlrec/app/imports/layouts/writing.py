"""The ground of layouts that are written: decisions of the log become lines, and what these cannot hold is counted."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

Record = dict[str, Any]  # of `export_log`


class LayoutWriter(ABC):
    """Writes one log. detailed: whether it reads the rewards of slots and the features of the catalogue; holds: which
    of OPTIONAL its lines hold; left_out: how many decisions had something else, by its name."""

    OPTIONAL: ClassVar[tuple[str, ...]] = ("candidates", "features", "slot_sets", "support")  # keys of some records
    detailed: ClassVar[bool] = True
    holds: ClassVar[frozenset[str]] = frozenset()
    header: ClassVar[bytes] = b""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()

    def lines(self, records: Iterable[Record]) -> Iterator[bytes]:
        """The lines of each decision that can be written."""
        header = self.header
        for record in records:
            if written := self.decision(record):
                self.left_out.update(name for name in self.OPTIONAL if name not in self.holds and record.get(name))
                yield header + written
                header = b""

    @abstractmethod
    def decision(self, record: Record) -> bytes:
        """The lines of a decision; none where they cannot hold it."""


class JsonLines(LayoutWriter):
    """All that there is, as one object a decision."""

    detailed, holds = False, frozenset(LayoutWriter.OPTIONAL)

    def decision(self, record: Record) -> bytes:
        return f"{json.dumps(record, ensure_ascii=False, allow_nan=False)}\n".encode()
