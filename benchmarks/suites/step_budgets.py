"""The exact-volume ELBO at every step budget, after the distillation stage alone.

    python -m benchmarks step_budgets [--posteriors seeds ...] [--iterations 2000]

Training has the path loss and both consistencies, but no evidence stage. The one network is then
evaluated with 1, 2, 4, 8 and 16 steps, each by the exact volume of its map.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import jax

from benchmarks.methods.onestep import fit_posterior
from benchmarks.problems.reference_posteriors import POSTERIORS
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.tables import table

BUDGETS = (1, 2, 4, 8, 16)
COLUMNS = {
    "posterior": ("posterior", None),
    "seed": ("seed", None),
    **{f"k = {k}": (f"gap_{k}", 3) for k in BUDGETS},
    "spread": ("spread", 3),
    "seconds": ("seconds", 1),
}


def measure(name: str, seed: int, iterations: int) -> Row:
    """One run, and the gap at every budget."""
    posterior = POSTERIORS[name]
    sampler, _ = fit_posterior(
        posterior,
        jax.random.key(seed),
        num_distillation_steps=iterations,
        elbo_weight=0,
        num_samples=1000,
    )
    gaps = {}
    for k in BUDGETS:
        evidence = sampler.evaluate(jax.random.key(100 + seed), k)
        log_z = posterior.log_evidence
        log_z = evidence.log_evidence if log_z is None else log_z
        gaps[f"gap_{k}"] = log_z - evidence.elbo
    return {
        "posterior": name,
        "seed": seed,
        "iterations": iterations,
        **gaps,
        "spread": max(gaps.values()) - min(gaps.values()),
        "seconds": sum(sampler.seconds.values()),
    }


class StepBudgets(Suite):
    """One distilled network with several numbers of steps."""

    name = "step_budgets"
    page = "step_budgets.md"
    summary = "the same evidence at any step budget, after distillation alone"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which posteriors, and how long to train."""
        add_names(parser, "--posteriors", POSTERIORS, ("seeds",))
        parser.add_argument("--iterations", type=int, default=2000)

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """One run for each posterior and seed."""
        for name, seed in product(options.posteriors, options.seeds):
            if not store.holds(posterior=name, seed=seed, iterations=options.iterations):
                yield measure(name, seed, options.iterations)

    def report(self, rows: list[Row], docs: Path) -> None:
        """A table with a line for each run."""
        rows = sorted(rows, key=lambda row: (row["posterior"], row["seed"]))
        iterations = " or ".join(dict.fromkeys(str(row["iterations"]) for row in rows))
        (docs / self.page).write_text(
            f"# The same evidence at any step budget\n\nWritten by `{self.command}` "
            f"on {machines(rows)}. Path loss and both consistencies alone, {iterations} "
            "iterations, no evidence stage: log Z - ELBO in nats by the exact volume of the k-step "
            f"map of one network.\n\n{table(rows, COLUMNS)}\n"
        )
