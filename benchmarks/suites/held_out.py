"""How the defaults fare on what users bring: ten posteriors that they were not chosen on.

    python -m benchmarks held_out [--names held_out_garch ...]

OneStep runs at default settings and is compared with the stored references, which
``benchmarks.problems.pack held_out`` makes.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import jax
import numpy as np

from benchmarks.methods.onestep import fit_posterior, weight_figures
from benchmarks.problems.held_out import HELD_OUT
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.tables import in_order, table_over_seeds

# Beyond this and Monte Carlo noise, in standard deviations of a mean or as an error of a log
# standard deviation, an error is one that a user should be warned of.
TOLERANCE = 0.05
COLUMNS = {
    "seconds": ("seconds", 1),
    "mean (sd)": ("mean_error", 3),
    "log sd": ("log_sd_error", 3),
    "Pareto k": ("pareto_k", 2),
    "ESS": ("ess", 2),
}


def measure(name: str, seed: int) -> Row:
    """One run at default settings, compilation included, and its errors."""
    posterior = HELD_OUT[name]
    jax.clear_caches()
    sampler, seconds = fit_posterior(posterior, jax.random.key(seed))
    mean, _, size = posterior.reference()
    # This is the noise of a mean. For a log standard deviation it leaves room for tails that are
    # heavier than a Gaussian's.
    noise = np.sqrt(1 / sampler.settings.draws.num_samples + 1 / size)
    errors = posterior.errors(sampler.get_samples())
    wrong = not max(errors.values()) < TOLERANCE + 3 * noise
    return {
        "posterior": name,
        "seed": seed,
        "dimension": len(mean),
        "seconds": seconds,
        **errors,
        **weight_figures(sampler),
        "iterations": len(sampler.losses),
        "warnings": sampler.messages,
        "wrong": wrong,
        "wrong_and_silent": wrong and not sampler.messages,
    }


class HeldOut(Suite):
    """OneStep at default settings on the held-out models."""

    name = "held_out"
    page = "held_out.md"
    summary = "ten models that the defaults were not chosen on"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which models."""
        add_names(parser, "--names", HELD_OUT)

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """One run for each model and seed."""
        for name, seed in product(options.names, options.seeds):
            if not store.holds(posterior=name, seed=seed):
                yield measure(name, seed)

    def line(self, row: Row) -> str:
        """Errors and figures, and below them the warnings."""
        first = (
            f"{row['posterior']:28s}seed {row['seed']}  d {row['dimension']:3d}  "
            f"{row['seconds']:6.1f} s  "
            f"mean {row['mean_error']:.3f}  log sd {row['log_sd_error']:.3f}  "
            f"ELBO {row['elbo']:.3f}  log Z {row['log_evidence']:.3f}  "
            f"k {row['pareto_k']:.2f}  ESS {row['ess']:.2f}  {row['iterations']} iterations"
            + ("  WRONG" if row["wrong"] else "")
            + (" AND SILENT" if row["wrong_and_silent"] else "")
        )
        return "\n    ".join([first, *row["warnings"]])

    def report(self, rows: list[Row], docs: Path) -> None:
        """A table with a line for each model."""
        rows = in_order(rows, posterior=HELD_OUT)
        counts = {"wrong": "wrong", "warned": "warnings", "wrong and silent": "wrong_and_silent"}
        lines = table_over_seeds(rows, {"model": "posterior", "d": "dimension"}, COLUMNS, counts)
        (docs / self.page).write_text(
            "# Ten models that the defaults were not chosen on\n\nWritten by "
            f"`{self.command}` on {machines(rows)}. OneStep at default settings, "
            "compilation included; medians, and ranges over seeds. Errors are the largest over "
            f"parameters, against long runs of NUTS; a run is wrong where one is above {TOLERANCE} "
            f"plus three Monte Carlo errors.\n\n{lines}\n"
        )
