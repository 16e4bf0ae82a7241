"""Corrections where one step is not enough, beside plain NUTS: R-hat, divergences, errors.

    python -m benchmarks corrections [--posteriors funnel ...] [--methods NUTS nuts ...]

On Neal's funnel, a horseshoe regression and the centred eight schools, where plain NUTS (4 chains
of 1000 + 1000 at its default target acceptance) meets divergences.
"""

import itertools
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.random as jr
import numpy as np

from benchmarks.methods.nuts import mixing, plain_nuts
from benchmarks.methods.onestep import fit_posterior
from benchmarks.problems.posterior import Posterior
from benchmarks.problems.reference_posteriors import POSTERIORS
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.tables import in_order, table

NAMES = ("funnel", "horseshoe", "eight_schools_centered")
COLUMNS = {
    "posterior": ("posterior", None),
    "method": ("method", None),
    "seed": ("seed", None),
    "R-hat": ("r_hat", 4),
    "smallest ESS": ("min_ess", 0),
    "divergences": ("divergences", 0),
    "mean error (sd)": ("mean_error", 3),
    "log sd error": ("log_sd_error", 3),
    "warned": ("warned", None),
    "seconds": ("seconds", 1),
}


def _nuts(posterior: Posterior, key) -> Row:
    """NumPyro's NUTS on the model itself."""
    mcmc = plain_nuts(posterior.model)
    mcmc.run(key, *posterior.args(), extra_fields=("diverging",))
    latent = mcmc.get_samples(group_by_chain=True)
    flat = [np.asarray(values).reshape(4, 1000, -1) for values in latent.values()]
    r_hat, min_ess = mixing(np.concatenate(flat, axis=-1))
    return {
        "draws": mcmc.get_samples(),
        "r_hat": r_hat,
        "min_ess": min_ess,
        "divergences": int(mcmc.get_extra_fields()["diverging"].sum()),
    }


def _corrected(posterior: Posterior, key, correction: str | None) -> Row:
    """OneStep with a correction."""
    sampler, _ = fit_posterior(posterior, key, correction=correction)
    corrected = sampler.result.corrected
    return {
        "draws": sampler.get_samples(),
        "r_hat": corrected.r_hat,
        "min_ess": corrected.min_ess,
        "divergences": corrected.divergences,
        "warned": "yes" if sampler.messages else "no",
    }


METHODS = {
    "NUTS": _nuts,
    "nuts": lambda *args: _corrected(*args, "nuts"),
    "pgibbs": lambda *args: _corrected(*args, "pgibbs"),
    "imh": lambda *args: _corrected(*args, "imh"),
    "psis": lambda *args: _corrected(*args, "psis"),
    "None": lambda *args: _corrected(*args, None),
}


def _label(method: str) -> str:
    """What a method is called in rows and on the page."""
    return method if method == "NUTS" else f"OneStep, correction={method}"


def measure(name: str, method: str, seed: int) -> Row:
    """One run, and its errors against the reference."""
    posterior = POSTERIORS[name]
    jax.clear_caches()
    clock = time.perf_counter()
    figures = METHODS[method](posterior, jr.key(seed))
    errors = posterior.errors(figures.pop("draws"))
    seconds = time.perf_counter() - clock
    identity = {"posterior": name, "method": _label(method), "seed": seed}
    return {**identity, **figures, **errors, "seconds": seconds}


class Corrections(Suite):
    """Every correction on posteriors with a neck."""

    name = "corrections"
    page = "corrections.md"
    summary = "corrections where one step is not enough, beside NUTS: R-hat, divergences, errors"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which posteriors, and which corrections."""
        add_names(parser, "--posteriors", POSTERIORS, NAMES)
        add_names(parser, "--methods", METHODS)

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """One run for each posterior, method and seed."""
        wanted = itertools.product(options.posteriors, options.methods, options.seeds)
        for name, method, seed in wanted:
            if not store.holds(posterior=name, method=_label(method), seed=seed):
                yield measure(name, method, seed)

    def report(self, rows: list[Row], docs: Path) -> None:
        """A table with a line for each run."""
        rows = in_order(rows, posterior=POSTERIORS)
        (docs / self.page).write_text(
            f"# Corrections\n\nWritten by `{self.command}` on "
            f"{machines(rows)}. NUTS: 4 chains of 1000 + 1000 on the model, target acceptance "
            "0.8. Errors are the largest over parameters, against the stored reference. Seconds "
            f"include compilation and training.\n\n{table(rows, COLUMNS)}\n"
        )
