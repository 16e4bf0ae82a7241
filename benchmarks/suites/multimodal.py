"""Models of several modes as statisticians meet them: probabilities of modes, beside NUTS.

    python -m benchmarks multimodal [--models label_switching ...]

Beside OneStep with and without multimodal=True stand NUTS (4 chains of 1000 + 1000) and the
tempered particles alone, which are four times as many as OneStep explores with.
"""

import itertools
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.random as jr
import numpy as np

from benchmarks.internals import tempered_particles
from benchmarks.methods.nuts import plain_nuts
from benchmarks.methods.onestep import fit
from benchmarks.problems.multimodal import SymmetricModel, models
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.tables import in_order, table

NUM_PARTICLES = 16_000
COLUMNS = {
    "model": ("model", None),
    "method": ("method", None),
    "seed": ("seed", None),
    "modes": ("modes", None),
    "TV of their shares": ("tv", 3),
    "log evidence": ("log_evidence", 3),
    "warned": ("warned", None),
    "seconds": ("seconds", 1),
}


def _onestep(one: SymmetricModel, key, multimodal: bool):
    sampler, _ = fit(key, one.args, model=one.model, multimodal=multimodal)
    return sampler.get_samples(), sampler.log_evidence, "yes" if sampler.messages else "no"


def _nuts(one: SymmetricModel, key):
    mcmc = plain_nuts(one.model)
    mcmc.run(key, *one.args)
    return mcmc.get_samples(), None, ""


def _particles(one: SymmetricModel, key):
    draws, log_evidence = tempered_particles(one.model, one.args, key, NUM_PARTICLES)
    return draws, log_evidence, ""


# Each gives draws, a log evidence if it has one, and whether it warned.
METHODS = {
    "OneStep(multimodal=True)": lambda *args: _onestep(*args, True),
    "OneStep": lambda *args: _onestep(*args, False),
    "NUTS": _nuts,
    "tempered particles": _particles,
}


def measure(name: str, method: str, seed: int) -> Row:
    """One run, and in which of the modes its draws are."""
    one = models()[name]
    jax.clear_caches()
    clock = time.perf_counter()
    draws, log_evidence, warned = METHODS[method](one, jr.key(seed))
    draws = jax.tree.map(np.asarray, draws)
    seconds = time.perf_counter() - clock
    counts = np.bincount(one.mode_of(draws), minlength=one.num_modes)
    shares = counts / counts.sum()
    return {
        "model": name,
        "method": method,
        "seed": seed,
        "modes": f"{np.sum(shares > 0)} of {one.num_modes}",
        "tv": float(0.5 * np.abs(shares - 1 / one.num_modes).sum()),
        "log_evidence": log_evidence,
        "warned": warned,
        "seconds": seconds,
    }


class Multimodal(Suite):
    """Four methods on models whose modes all have the same probability."""

    name = "multimodal"
    page = "multimodal.md"
    summary = "models of several modes (exchangeable labels, unknown sign), beside NUTS"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which models."""
        add_names(parser, "--models", models())

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """One run for each model, method and seed."""
        for name, method, seed in itertools.product(options.models, METHODS, options.seeds):
            if not store.holds(model=name, method=method, seed=seed):
                yield measure(name, method, seed)

    def report(self, rows: list[Row], docs: Path) -> None:
        """A table with a line for each run."""
        rows = in_order(rows, model=models(), method=METHODS)
        (docs / self.page).write_text(
            f"# Models of several modes\n\nWritten by `{self.command}` on "
            f"{machines(rows)}. "
            "All modes of a model have the same mass, by symmetry; TV is the total variation "
            "between that and the shares of 4000 draws (16,000 particles). Seconds include "
            f"compilation.\n\n{table(rows, COLUMNS)}\n"
        )
