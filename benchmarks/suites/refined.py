"""Refined draws of a distilled flow: parareal iterations, and what the one-step defect says.

    python -m benchmarks refined [--posteriors seeds ...] [--iterations 2000]

Training has the path loss and both consistencies alone, so that one network serves every step
budget. Its k steps are then made one after the other, and by parareal iterations.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import jax
import numpy as np
from scipy.stats import rankdata, spearmanr

from benchmarks.internals import refined_draws
from benchmarks.methods.onestep import fit_posterior
from benchmarks.problems.reference_posteriors import POSTERIORS
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.tables import table_over_seeds

NAMES = ("seeds", "eight_schools", "funnel", "sonar")
BUDGETS = (4, 8, 16)
TOLERANCES = (1e-2, 1e-3, 1e-4)
_NUM_DRAWS = 1000
_WORST = 0.01  # share of the pool whose weights are called bad

DRAWS = {
    "evaluations, mean draw": ("mean_evaluations", 1),
    "slowest draw": ("most_evaluations", 0),
    "largest difference": ("largest_difference", 6),
    "of the mean draw": ("mean_difference", 6),
}
DEFECTS = {
    "median defect": ("median_defect", 3),
    "rank correlation with the distance of log w from its median": ("rank_correlation", 2),
    "AUC, the worst 1%": ("auc", 2),
    "AUC of the length of z": ("auc_radius", 2),
    "gap, k = 1": ("gap", 3),
}


def _auc(score: np.ndarray, bad: np.ndarray) -> float:
    """The probability that a bad draw has a higher score than another one."""
    ranks, num = rankdata(score), bad.sum()
    return float((ranks[bad].sum() - num * (num + 1) / 2) / (num * (len(bad) - num)))


def measure(name: str, seed: int, iterations: int) -> Row:
    """One run; refined draws at all budgets and tolerances, and the defects of the pool."""
    posterior = POSTERIORS[name]
    sampler, _ = fit_posterior(
        posterior,
        jax.random.key(seed),
        num_distillation_steps=iterations,
        elbo_weight=0,
        num_samples=1000,
        structure=None,
    )
    pool, refined = sampler.get_pool(), []
    z = pool.z[pool.own][:_NUM_DRAWS]
    for k, tolerance in product(BUDGETS, TOLERANCES):
        evaluations, difference = refined_draws(sampler, z, k, tolerance)
        refined.append(
            {
                "k": k,
                "tolerance": tolerance,
                "mean_evaluations": evaluations.mean(),
                "most_evaluations": int(evaluations.max()),
                "largest_difference": difference.max(),
                "mean_difference": difference.mean(),
            }
        )
    log_weight = np.asarray(pool.log_density - pool.log_q, np.float64)
    fine = np.asarray(pool.own) & np.isfinite(log_weight)
    off = abs(log_weight[fine] - np.median(log_weight[fine]))
    defect = sampler.one_step_defect()[fine]
    bad = off >= np.quantile(off, 1 - _WORST)
    return {
        "posterior": name,
        "seed": seed,
        "iterations": iterations,
        "refined": refined,
        "median_defect": np.median(defect),
        "rank_correlation": spearmanr(defect, off)[0],
        "auc": _auc(defect, bad),
        "auc_radius": _auc(np.linalg.norm(np.asarray(pool.z)[fine], axis=1), bad),
        "gap": sampler.log_evidence - sampler.elbo,
    }


class Refined(Suite):
    """The steps of one distilled network in parallel, and its one-step defects."""

    name = "refined"
    page = "refined.md"
    summary = "refined draws: fewer evaluations after each other; what the one-step defect says"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which posteriors, and how long to train."""
        add_names(parser, "--posteriors", POSTERIORS, NAMES)
        parser.add_argument("--iterations", type=int, default=2000)

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """One run for each posterior and seed."""
        for name, seed in product(options.posteriors, options.seeds):
            if not store.holds(posterior=name, seed=seed, iterations=options.iterations):
                jax.clear_caches()
                yield measure(name, seed, options.iterations)

    def report(self, rows: list[Row], docs: Path) -> None:
        """A table of the evaluations and differences, and one of the defects."""
        rows = sorted(rows, key=lambda row: (row["posterior"], row["seed"]))
        each = [
            {"posterior": row["posterior"], "seed": row["seed"], **figures}
            for row in rows
            for figures in row["refined"]
        ]
        each.sort(key=lambda row: (row["posterior"], row["k"], -row["tolerance"], row["seed"]))
        by = {"posterior": "posterior", "k, serial evaluations": "k", "tolerance": "tolerance"}
        (docs / self.page).write_text(
            f"# Refined draws\n\nWritten by `{self.command}` on {machines(rows)}. Path loss and "
            f"both consistencies alone, {rows[0]['iterations']} iterations, no evidence stage, "
            "dense map. Medians over seeds, with the range.\n\n"
            f"## Parareal iterations\n\n{_NUM_DRAWS} base draws, sent through the k steps one "
            "after the other and by parareal iterations up to a tolerance. Evaluations are those "
            "of the network that follow each other; a batch takes as many as its slowest draw. "
            "Differences are the largest of all coordinates, in whitened units.\n\n"
            f"{table_over_seeds(each, by, DRAWS, {})}\n\n"
            "## The one-step defect\n\nThe distance between the ends of one step and of "
            "16 steps, for the pool's own draws, beside the log weight of the one-step draw. AUC: "
            "the probability that one of the 1% of draws whose log weight is farthest from the "
            "median has a larger defect than another draw (0.5: it says nothing); for comparison "
            "the same of the length of the base draw z.\n\n"
            f"{table_over_seeds(rows, {'posterior': 'posterior'}, DEFECTS, {})}\n"
        )
