"""The line that says what a run is doing: its stages, and that nothing of it stays."""

import io
import re
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax.random as jr
import numpy as np
import pytest

from numpyro_onestep import OneStep, inference
from numpyro_onestep._util import progress
from tests.conftest import EFFECT, QUICK, STD_ERROR, eight_schools

pytestmark = pytest.mark.filterwarnings("ignore::numpyro_onestep.OneStepWarning")
SHOWN = QUICK | {"progress_bar": True}


class Terminal(io.StringIO):
    """A terminal, which keeps all that is written."""

    def isatty(self):
        return True

    def lines(self):
        """The texts of the line, one after the other, without their times."""
        texts = [text.strip() for text in self.getvalue().split("\r")]
        return [re.sub(r" \[\d\d:\d\d, \d\d:\d\d in all\]$", "", text) for text in texts if text]

    def is_clear(self):
        """Whether spaces stand over the line at the end, with the cursor at its beginning."""
        _, spaces, after = self.getvalue().rsplit("\r", 2)
        return after == "" and len(spaces) > 10 and not spaces.strip()


@pytest.fixture
def show_on(monkeypatch):
    """A function that makes something the standard error, which pytest would replace again."""

    def show(stream):
        monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream, modules={}))
        return stream

    return show


@pytest.fixture
def terminal(show_on):
    return show_on(Terminal())


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "progress"]


def stages(lines):
    """The first two words of each line, where they differ from those before."""
    found = [" ".join(text.replace(",", "").split()[:2]) for text in lines]
    return [text for text, before in zip(found, [None, *found], strict=False) if text != before]


def run(sampler):
    sampler.run(jr.key(0), STD_ERROR, y=EFFECT)
    return sampler


def test_stages_are_named_in_order_and_nothing_is_left(terminal):
    sampler = OneStep(eight_schools, **SHOWN)
    for _ in range(2):  # the second run compiles nothing
        terminal.seek(0)
        terminal.truncate()
        run(sampler)
        found = iter(stages(terminal.lines()))
        expected = ["starting", "reading the", "finding the", "fitting the", "training"]
        expected += ["weighing", "checking the"]
        for name in expected:
            assert any(text.startswith(name) for text in found), (name, terminal.lines())
        assert terminal.is_clear()
        assert threads() == []
    assert np.isfinite(sampler.elbo)


def test_without_a_progress_bar_or_a_terminal_nothing_is_written(capfd, show_on):
    run(OneStep(eight_schools, **SHOWN))  # pytest's standard error is a file
    assert capfd.readouterr() == ("", "")
    silent = show_on(Terminal())
    run(OneStep(eight_schools, **QUICK))
    assert silent.getvalue() == ""
    show_on(None)  # as under pythonw
    run(OneStep(eight_schools, **SHOWN))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_exception(error, terminal, monkeypatch):
    def failing(*args, **kwargs):
        assert len(threads()) == 1
        raise error

    monkeypatch.setattr(inference.pools, "draw_pool", failing)
    with pytest.raises(error):
        run(OneStep(eight_schools, **SHOWN))
    assert threads() == []
    assert terminal.is_clear()
    with progress.line(True):  # the next one is at the beginning again
        assert len(threads()) == 1
    assert threads() == []


def test_the_seconds_move_while_nothing_is_said(terminal, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN", 0.02)
    with progress.line(True), progress.stage("waiting"):
        for _ in range(100):
            time.sleep(0.05)
            if "waiting [00:01, 00:01 in all]" in terminal.getvalue():
                break
    assert "waiting [00:00, 00:00 in all]" in terminal.getvalue()
    assert "waiting [00:01, 00:01 in all]" in terminal.getvalue()


def test_what_is_said_within_a_stage_ends_with_it(terminal):
    with progress.line(True):
        shown = progress._current.get()
        with progress.stage("outer"):
            progress.detail("1 of 2")
            assert shown.text.startswith("outer 1 of 2 [")
            with progress.stage("inner"), progress.program():
                with progress.program():
                    progress.compiling()
                    assert shown.text.startswith("inner, compiling [")
                assert shown.is_compiling  # the outer program still is
            assert shown.text.startswith("outer 1 of 2 [")
        with progress.line(True):  # a run within a run
            assert progress._current.get() is shown
    progress.detail("nothing is shown")
    assert progress._current.get() is None


def test_a_stream_that_fails_does_not_end_the_run(show_on):
    class Closed(Terminal):
        def write(self, text):
            if self.tell() > 40:
                raise BrokenPipeError
            return super().write(text)

    show_on(Closed())
    assert np.isfinite(run(OneStep(eight_schools, **SHOWN)).elbo)
    assert threads() == []


def test_other_threads_have_lines_of_their_own(terminal):
    found = []
    with progress.line(True):
        other = threading.Thread(target=lambda: found.append(progress._current.get()))
        other.start()
        other.join()
    assert found == [None]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_child_of_a_run_has_no_line_to_wait_for():
    code = (
        "import os, sys, warnings\n"
        "from numpyro_onestep._util import progress\n"
        "warnings.simplefilter('ignore')\n"
        "progress.stream = lambda: sys.stderr\n"
        "with progress.line(True):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    child = os.fork()\n"
        "if not child:\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
