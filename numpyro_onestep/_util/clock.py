"""How long the parts of a run take, and what is said while they run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from numpyro_onestep._util import progress

# What the line says in each part of a run.
_SAID = {
    "initialisation": "reading the model",
    "structure": "finding the structure",
    "preconditioner": "fitting the Gaussian",
    "precision": "checking the precision",
    "exploration": "exploring",
    "draws": "correcting the draws",
}


class Stopwatch:
    """Seconds by the name of the part; the times of a part that is repeated are added up."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of a `with` block to a part."""
        begin = time.perf_counter()
        try:
            with progress.stage(_SAID.get(name, name)):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
