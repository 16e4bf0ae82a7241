"""The steps of a run that are done, in a file, so that the run can go on from there.

A run is a function of its identity (`identity.py`), so it makes the same steps each time.  A run
that begins again takes the values of the steps that were recorded from the file, computes what lies
between them anew, and goes on with the step at which it was ended.  A training records where it
is, too (`training/progress.py`).

The file is that of `storage/file.py`, of the kind "checkpoint".  Its header holds `identity` and
`state`: the steps by name with their values, and the place in an unfinished training; or, of a run
that has ended, the result.
"""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from jaxtyping import PRNGKeyArray, PyTree

from numpyro_onestep._util.numerics import numerics
from numpyro_onestep.checkpoint import finished
from numpyro_onestep.checkpoint.files import Files
from numpyro_onestep.checkpoint.identity import difference, identity_of
from numpyro_onestep.diagnostics import report
from numpyro_onestep.diagnostics.codes import coded
from numpyro_onestep.problem import Problem
from numpyro_onestep.result import Result, Trained
from numpyro_onestep.settings import Settings
from numpyro_onestep.storage import file
from numpyro_onestep.storage.tree import decoded, encoded
from numpyro_onestep.training.loop import TrainingResult
from numpyro_onestep.training.progress import Place, Recorder

SECONDS_BETWEEN_WRITES = 60.0  # within a training; the end of a step is always written
_KIND = "checkpoint"
_REMEDY = "Delete the file to begin from the start, or give another path as checkpoint=."

T = TypeVar("T")


class Journal:
    """The record of one run; without files it records nothing.

    Args:
        files: where the checkpoints of the sampler's runs are, or None.
    """

    def __init__(self, files: Files | None = None):
        self._files = files
        self._identity: dict[str, Any] | None = None
        self._first: Problem | None = None  # as it was traced at the beginning
        self._is_recording = self._is_broken_off = False
        self._steps: list[tuple[str, Any]] = []
        self._num_made = 0  # steps that this run has made, or taken from the record
        self._place: Place | None = None
        self._written_place: Place | None = None  # that of the file
        self._kept: dict[str, Any] | None = None  # the result of a run that has ended
        self._last_write = time.monotonic()

    @property
    def is_ended(self) -> bool:
        """Whether the record is that of a run that has ended."""
        return self._kept is not None

    @property
    def has_steps(self) -> bool:
        """Whether there are steps that need not be made."""
        return self._num_made < len(self._steps)

    def begin(
        self,
        problem: Problem,
        rng_key: PRNGKeyArray,
        settings: Settings,
        earlier: Trained | None,
    ) -> None:
        """Read the record of the run, where there is one; nothing the second time.

        Args:
            problem: the target, as it was traced.
            rng_key: the key of the run.
            settings: all settings of the sampler.
            earlier: the run that a warm start begins from, or None.

        Raises:
            ValueError: the file is that of another run, or cannot be read.
            OSError: the file cannot be written.
        """
        if self._files is None or self._identity is not None:
            return
        identity = identity_of(problem, rng_key, settings, earlier)
        self._path = self._files.of(identity)
        self._files.require_writable()
        if self._path.exists():
            self._read(identity)
        self._identity, self._first, self._is_recording = identity, problem, True

    def step(
        self, name: str, make: Callable[[], T], is_whole: Callable[[T], bool] = lambda value: True
    ) -> T:
        """The value of the next step: that of the record, or else the one that is made, recorded.

        Args:
            name: of the step.
            make: computes the value.
            is_whole: whether the step was not broken off. After one that was, nothing is recorded,
                so that the run can go on from where it was before.

        Raises:
            ValueError: the record has another step here.
        """
        if self.has_steps:
            recorded, value = self._steps[self._num_made]
            if recorded != name:
                raise ValueError(
                    f"The checkpoint {self._path} does not fit the run: its step {self._num_made} "
                    f"is {recorded!r}, where this run makes {name!r}. Something that the run "
                    f"depends on has changed and cannot be seen, as a Python function that the "
                    f"model calls back. {_REMEDY}"
                )
            self._num_made += 1
            return value
        value = make()
        self._place = None  # of a training that has now ended
        if not is_whole(value):
            self._is_recording, self._is_broken_off = False, True
        if self._is_recording:
            self._steps.append((name, value))
            self._num_made = len(self._steps)
            self._write()
        return value

    def training(self, train: Callable[[Recorder], TrainingResult]) -> TrainingResult:
        """A training, as a step that records how far it is."""
        return self.step("training", lambda: train(self), lambda result: not result.interrupted)

    def last_place(self) -> Place | None:
        """The place in the training that was under way."""
        return self._place

    def reached(self, place: Place, now: bool = False) -> None:
        """Record the place, `now` or a minute after the last record."""
        if not self._is_recording or place is self._written_place:
            return
        self._place = place
        if now or time.monotonic() - self._last_write >= SECONDS_BETWEEN_WRITES:
            self._write()

    def end(self, result: Result) -> None:
        """Record the result in place of the steps; not that of a training that was interrupted."""
        if self._files is None or self._identity is None or self._is_broken_off:
            return
        if self._first is not None and not self.is_ended:
            self._steps, self._place = [], None
            self._kept = finished.described(result, self._first)
            self._write()
        self._files.end(self._identity)

    def result(self, trace_elsewhere: Callable[[PyTree], Problem]) -> Result:
        """The result of a run that has ended.

        Args:
            trace_elsewhere: traces the problem again, from another start.
        """
        assert self._kept is not None
        assert self._first is not None
        return finished.restored(self._kept, self._first, trace_elsewhere)

    def _read(self, identity: dict[str, Any]) -> None:
        try:
            header, arrays = file.read(self._path, _KIND)
        except ValueError as error:
            raise ValueError(f"{error} {_REMEDY}") from error
        differ = difference(header.get("identity", {}), identity)
        if differ:
            raise ValueError(
                f"The checkpoint {self._path} is of another run. What differs: {differ}. {_REMEDY}"
            )
        try:
            with numerics(double=True):  # arrays in single precision keep their type too
                state = decoded(header["state"], arrays)
            self._steps, self._place, self._kept = (
                state[name] for name in ("steps", "place", "result")
            )
            self._written_place = self._place
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self._path} cannot be read: {error}. {_REMEDY}") from error

    def _write(self) -> None:
        if not self._is_recording:
            return
        arrays: list[Any] = []
        state = {"steps": self._steps, "place": self._place, "result": self._kept}
        header = {"identity": self._identity, "state": encoded(state, arrays)}
        try:
            file.write(self._path, header, arrays, _KIND)
        except OSError as error:
            # The run itself is fine, and may have taken hours.
            self._is_recording = False
            message = (
                f"The checkpoint {self._path} could not be written ({error.strerror}): the run "
                "goes on without further ones, and its result is not affected. Make room on the "
                "disk, or give another path as checkpoint=, before the next run."
            )
            report.warn((coded(message, "checkpoint"),), stacklevel=2)
        self._written_place, self._last_write = self._place, time.monotonic()


def recorded(name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """For a method of an object with a `journal`: its calls are steps of this name."""

    def of(method: Callable[..., T]) -> Callable[..., T]:
        @wraps(method)
        def step(self: Any, *args: Any) -> T:
            return self.journal.step(name, lambda: method(self, *args))

        return step

    return of
