"""This module shows the progress of a long command as one line on a terminal's stderr. The line is overwritten as it
changes, and removed at the end."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TextIO

from rlrec.cli.text.text import terminal_columns

PATIENCE_S = 1.0  # a shorter command shows no progress
PAUSE_S = 0.2


class ProgressLine:
    """A ProgressLine shows how many rows a command has read or written so far, how many rows per second, and the time
    left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._noun, self._rows = "", 0
        self._started_at = self._began_at = self._written_at = time.monotonic()
        self._is_visible = False

    def __call__(self, noun: str, rows: int, share: float | None) -> None:
        """Show how many rows are done. If there are fewer rows than before, or rows of another noun, the time is
        measured anew.

        `noun` says what the rows are. `share` is the part of all rows that is done, or None if that is unknown."""
        now = time.monotonic()
        if self._noun not in ("", noun) or rows < self._rows:
            self._began_at = now
        self._noun, self._rows = noun, rows
        seconds = now - self._began_at
        if now - self._started_at < PATIENCE_S or (self._is_visible and now - self._written_at < PAUSE_S):
            return
        is_long = seconds > PAUSE_S  # long enough to measure the speed
        pace = f", {rows / seconds:,.0f} a second" if is_long and rows > seconds else ""
        remainder = f", {_duration(seconds * (1 - share) / share)} left" if is_long and share else ""
        width = terminal_columns() - 1
        self._write(f"\r{f'{rows:,} {noun}{pace}{remainder}'[:width]:{width}}")
        self._written_at, self._is_visible = now, True

    def clear(self) -> None:
        """Remove the progress line from the terminal, so that other lines can follow."""
        if self._is_visible:
            self._write(f"\r{'':{terminal_columns() - 1}}\r")
            self._is_visible = False

    def _write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)
            self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    return f"{minutes} min {seconds_left} s" if minutes else f"{seconds_left} s"
