"""What a terminal is shown: tables of its width, colours, and a line of progress.

Where a stream is no terminal (a pipe, a file) tables are as wide as they need to be, there are no
colours and no progress. NO_COLOR (https://no-color.org) and TERM=dumb turn colours off.
"""

import atexit
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from onnxdrp.tables import fitting

__all__ = ["Line", "Show", "StderrHandler", "coloured", "pace", "painted", "shown"]

Show = Callable[[int, "int | None"], None]
"""Told of progress: how much is done, of how much or None."""


def coloured(stream: TextIO) -> bool:
    """Whether escape sequences may be written there."""
    dumb = os.environ.get("TERM") == "dumb"
    return stream.isatty() and not dumb and not os.environ.get("NO_COLOR")


@contextmanager
def shown() -> Iterator[None]:
    """Tables made meanwhile are for standard output: as wide as it is, if it is a terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    with fitting(width, bold=coloured(sys.stdout)):
        yield


def painted(text: str) -> str:
    """The text as standard output shows it: what begins a warning is yellow there."""
    if not coloured(sys.stdout):
        return text
    lines = text.split("\n")
    return "\n".join(
        f"\x1b[33mwarning:\x1b[0m{line.removeprefix('warning:')}"
        if line.startswith("warning:")
        else line
        for line in lines
    )


class StderrHandler(logging.StreamHandler[TextIO]):
    """Logs to what standard error is at the time: above a line of progress, where there is one.

    Attributes:
        said: the messages.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, and know that it was said."""
        self.said.add(record.getMessage())
        super().emit(record)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard error."""
        return sys.stderr


class Line:
    """A line on standard error that says what runs, how far it is, its rate and the time left.

    It is not there where standard error is no terminal, and vanishes with `close`, at the latest
    with the process.

    Args:
        what: names the work.
    """

    def __init__(self, what: str) -> None:
        self._bar: Any = None  # rich.progress.Progress, imported where it is shown
        if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (
            *(TextColumn("{task.description}", markup=False), BarColumn(20)),
            *(MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[pace]}")),
        )
        self._done, self._since = 0, (time.monotonic(), 0)
        bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = bar.add_task(what, total=None, pace="")
        self._bar = bar
        atexit.register(bar.stop)  # an interrupt may not come by `close`, and the cursor is hidden
        bar.start()

    @property
    def show(self) -> Show | None:
        """What is to be told of progress; None where there is no line."""
        return None if self._bar is None else self._update

    def _update(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if done < self._done:  # other work has begun
            self._since = now, done
        self._done, (began, first) = done, self._since
        speed = (done - first) / (now - began) if done > first and now > began else None
        left = None if speed is None or total is None else (total - done) / speed
        self._bar.update(self._task, completed=done, total=total, pace=pace(speed, left))

    def close(self) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.stop()
            atexit.unregister(self._bar.stop)
            self._bar = None


def pace(speed: float | None, left: float | None) -> str:
    """Steps per second, and the time that is left as h:mm:ss, as far as they are known."""
    if not speed:
        return ""
    rate = f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s"
    if left is None:
        return rate
    minutes, seconds = divmod(int(left), 60)
    return f"{rate}, {minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
