"""What the stages and losses contribute: the gap with and without each of them.

    python -m benchmarks ablation [--posteriors eight_schools_centered seeds]

For each variant there are log Z - ELBO in nats, Pareto k, and the wall time of a whole run,
compilation included.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import jax

from benchmarks.methods.onestep import fit_posterior
from benchmarks.problems.reference_posteriors import POSTERIORS
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.tables import in_order, table_over_seeds

DISTILLATION = {"num_distillation_steps": 1000}
# The settings of each variant. Spaces in front of a name make it a variant of the one above.
VARIANTS: dict[str, dict[str, Any]] = {
    "evidence stage (default)": {},
    "  without Langevin chains": {"langevin_fraction": 0.0},
    "  width 64": {"width": 64},
    "  two flow steps": {"num_flow_steps": 2},
    "distillation, then evidence": DISTILLATION,
    "distillation alone": {**DISTILLATION, "elbo_weight": 0},
    "  without volume consistency": {**DISTILLATION, "elbo_weight": 0, "volume_weight": 0},
    "  without state consistency": {**DISTILLATION, "elbo_weight": 0, "state_weight": 0},
    "  without both": {
        **DISTILLATION,
        "elbo_weight": 0,
        "state_weight": 0,
        "volume_weight": 0,
    },
    "base alone": {"elbo_weight": 0},
}
COLUMNS = {"gap (nats)": ("gap", 3), "Pareto k": ("pareto_k", 2), "seconds": ("seconds", 1)}
KNOWN = [name for name, posterior in POSTERIORS.items() if posterior.log_evidence is not None]


def measure(name: str, variant: str, seed: int) -> Row:
    """One run with a variant's settings."""
    posterior = POSTERIORS[name]
    assert posterior.log_evidence is not None
    jax.clear_caches()
    settings = {"num_flow_steps": 1, "num_samples": 1000, **VARIANTS[variant]}
    sampler, _ = fit_posterior(posterior, jax.random.key(seed), **settings)
    return {
        "posterior": name,
        "variant": variant,
        "seed": seed,
        "gap": posterior.log_evidence - sampler.elbo,
        "pareto_k": sampler.pareto_k,
        "seconds": sum(sampler.seconds.values()),
    }


class Ablation(Suite):
    """All variants on posteriors whose log Z is known."""

    name = "ablation"
    page = "ablation.md"
    summary = "what the stages and losses of training contribute"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which posteriors."""
        add_names(parser, "--posteriors", KNOWN, ("eight_schools_centered", "seeds"))

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """One run for each posterior, variant and seed."""
        for name, variant, seed in product(options.posteriors, VARIANTS, options.seeds):
            if not store.holds(posterior=name, variant=variant, seed=seed):
                yield measure(name, variant, seed)

    def report(self, rows: list[Row], docs: Path) -> None:
        """A table with a line for each posterior and variant."""
        rows = sorted(rows, key=lambda row: row["seed"])
        rows = in_order(rows, posterior=sorted(KNOWN), variant=VARIANTS)
        by = {"posterior": "posterior", "variant": "variant"}
        (docs / self.page).write_text(
            f"# Ablation\n\nWritten by `{self.command}` on "
            f"{machines(rows)}. Gap of the one-step map (where not said otherwise) and wall time "
            "of a whole run, compilation included; 1000 iterations of distillation where there are "
            f"any; medians, and ranges over seeds.\n\n{table_over_seeds(rows, by, COLUMNS, {})}\n"
        )
