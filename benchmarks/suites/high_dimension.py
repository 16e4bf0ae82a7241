"""Cost and accuracy at d = 100, 300, 1024 and 2304, beside the Gaussian autoguides.

    python -m benchmarks high_dimension [--targets groups ...]

OneStep runs at default settings. Then AutoMultivariateNormal and AutoLowRankMultivariateNormal get
as many iterations of stochastic variational inference (32 particles, Adam at 5e-3) as fit into the
time that OneStep took; their compilation is left out in their favour.
"""

import resource
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import jax
from numpyro.infer import autoguide

from benchmarks.methods.autoguides import elbo_within
from benchmarks.methods.onestep import fit, weight_figures
from benchmarks.problems.high_dimension import targets
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.tables import in_order, table

GUIDES = {
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": autoguide.AutoLowRankMultivariateNormal,
}
COLUMNS = {
    "target": ("target", None),
    "seed": ("seed", None),
    "seconds": ("seconds", 0),
    "ELBO": ("elbo", 2),
    "log Z": ("log_evidence", 2),
    "k": ("pareto_k", 2),
    "ESS": ("ess", 2),
    "AutoMultivariateNormal": ("AutoMultivariateNormal", 2),
    "low rank": ("AutoLowRankMultivariateNormal", 2),
    "GiB": ("gigabytes", 1),
}


def measure(name: str, seed: int) -> Row:
    """One run of OneStep, and the guides after as much time."""
    model, args = targets()[name]
    key = jax.random.key(seed)
    jax.clear_caches()
    sampler, seconds = fit(key, args, model=model)
    row = {
        "target": name,
        "seed": seed,
        "seconds": seconds,
        "seconds_by_part": sampler.seconds,
        **weight_figures(sampler),
        "iterations": len(sampler.losses),
        "warnings": sampler.messages,
    }
    for guide, guide_class in GUIDES.items():
        row[guide] = elbo_within(guide_class, model, args, key, seconds)
    row["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


class HighDimension(Suite):
    """OneStep and the Gaussian autoguides at equal time."""

    name = "high_dimension"
    page = "high_dimension.md"
    summary = "cost and accuracy at d = 100 to 2304, beside the Gaussian autoguides"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which models."""
        add_names(parser, "--targets", targets())

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """One run for each model and seed."""
        for name, seed in product(options.targets, options.seeds):
            if not store.holds(target=name, seed=seed):
                yield measure(name, seed)

    def report(self, rows: list[Row], docs: Path) -> None:
        """A table with a line for each run."""
        rows = in_order(sorted(rows, key=lambda row: row["seed"]), target=targets())
        (docs / self.page).write_text(
            f"# Higher dimension\n\nMade by `{self.command}` on "
            f"{machines(rows)}. groups: d = 100, classification: 300, cox_process: 1024, "
            "cox_process_fine: 2304. The guides' ELBOs are after as much time as OneStep took, "
            "compilation of theirs not counted; GiB is the peak of the process so far.\n\n"
            f"{table(rows, COLUMNS)}\n"
        )
