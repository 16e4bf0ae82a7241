"""One line that says what a run is doing, and for how long; tqdm writes it.

Code that works says so by `stage`, `detail` and `program`, which set attributes of the line and do
nothing where none is shown.  A thread writes the line anew twice a second, so that its seconds
move while a program is compiled or runs.  It ends with the line.

The line goes to a terminal or, as one output that is updated and is empty at the end, to a
notebook.  A file gets nothing.
"""

import re
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from importlib import import_module
from typing import Any

_SECONDS_BETWEEN = 0.5
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\r\n]")  # by which a terminal finds the line


class _Stage:
    """A thing that the run does."""

    def __init__(self, name: str):
        self.name, self.detail, self.began = name, "", time.monotonic()


class _Line:
    """The line of one run, on a stream."""

    def __init__(self, stream: Any):
        from tqdm import tqdm  # imported where a line is shown

        class Bar(tqdm):
            monitor_interval = 0  # tqdm's own thread would stay after the run

        self.format_seconds = tqdm.format_interval
        self.stages = [_Stage("starting")]
        self.num_programs, self.is_compiling = 0, False
        self._ended = threading.Event()
        self._bar = Bar(bar_format="{desc}", file=stream, leave=False, dynamic_ncols=True)
        self.write()
        # In a copy of the context, by which a kernel knows the cell that the output belongs to.
        arguments = _keep_writing, weakref.ref(self), self._ended
        self._thread = threading.Thread(
            target=copy_context().run, args=arguments, name="progress", daemon=True
        )
        self._thread.start()

    @property
    def text(self) -> str:
        """What is done now, for how long, and for how long the run has gone on."""
        first, last, now = self.stages[0], self.stages[-1], time.monotonic()
        seconds, in_all = (self.format_seconds(now - one.began) for one in (last, first))
        what = f"{last.name} {last.detail}".rstrip()
        if self.is_compiling:
            what += ", compiling"
        return f"{what} [{seconds}, {in_all} in all]"

    def write(self) -> None:
        """Write the line anew; a stream that fails, since it was closed say, gets no more."""
        if self._ended.is_set():
            return
        try:
            columns = self._bar.format_dict["ncols"]
            self._bar.set_description_str(self.text[: columns - 1 if columns else None])
        except Exception:
            self._ended.set()  # a line that cannot be shown must not end the run

    def close(self) -> None:
        """End the thread, and clear the line."""
        self._ended.set()
        try:
            self._thread.join()
        finally:
            with suppress(Exception):
                self._bar.close()


def _keep_writing(line: weakref.ref, ended: threading.Event) -> None:
    """Write the line until it has ended, or nobody has it any more."""
    while not ended.wait(_SECONDS_BETWEEN):
        shown = line()
        if shown is None:
            return
        shown.write()
        del shown


class _Notebook:
    """An output of the cell that runs, whose text is replaced by what is written."""

    def __init__(self):
        display = import_module("IPython.display").display
        self._text = ""
        self._output: Any = display(self._shown(""), raw=True, display_id=True)

    def write(self, text: str) -> None:
        """Show this text instead."""
        text = _CONTROL.sub("", text).rstrip()
        if text != self._text:
            self._text = text
            self._output.update(self._shown(text), raw=True)

    def flush(self) -> None:
        """Do nothing: what is written is shown at once."""

    @staticmethod
    def _shown(text: str) -> dict[str, str]:
        # An empty text alone would leave an empty line, where HTML leaves nothing.
        return {"text/plain": text} if text else {"text/plain": "", "text/html": ""}


_current: ContextVar[_Line | None] = ContextVar("line", default=None)


def stream() -> Any:
    """Where a line can be shown: a terminal or a notebook; None where there is neither."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = None if ipython is None else ipython.get_ipython()
    if hasattr(shell, "kernel"):
        return _Notebook()
    is_terminal = getattr(sys.stderr, "isatty", None)
    return sys.stderr if is_terminal is not None and is_terminal() else None


@contextmanager
def line(is_wanted: bool) -> Iterator[None]:
    """Show the line while a `with` block runs, where it is wanted and can be shown."""
    to = stream() if is_wanted and _current.get() is None else None
    if to is None:
        yield
        return
    shown = _Line(to)
    token = _current.set(shown)
    try:
        yield
    finally:
        _current.reset(token)
        shown.close()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Say what is done while a `with` block, or the function that this decorates, runs."""
    shown = _current.get()
    if shown is None:
        yield
        return
    shown.stages.append(_Stage(name))
    shown.write()
    try:
        yield
    finally:
        shown.stages.pop()


def detail(text: str) -> None:
    """Say how far the stage is; the next writing of the line shows it."""
    shown = _current.get()
    if shown is not None:
        shown.stages[-1].detail = text


@contextmanager
def program() -> Iterator[None]:
    """A call of a compiled program, at whose end nothing is compiled any more."""
    shown = _current.get()
    if shown is None:
        yield
        return
    shown.num_programs += 1
    try:
        yield
    finally:
        shown.num_programs -= 1
        if not shown.num_programs:
            shown.is_compiling = False


def compiling() -> None:
    """Say that the program that is called has to be compiled first."""
    shown = _current.get()
    if shown is not None:
        shown.is_compiling = True
