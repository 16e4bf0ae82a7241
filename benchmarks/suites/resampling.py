"""What balancing makes of the resampled draws' errors, beside systematic sampling alone.

    python -m benchmarks resampling [--dimensions 3 30 60]

Pools of 40,000 normal draws get weights of a known form, and 4000 draws are chosen. Errors are of
means over the chosen draws against the pool's weighted means, in standard deviations.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import jax.random as jr
import numpy as np

from benchmarks.internals import resample
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite
from benchmarks.tables import table

POOL, NUM = 40_000, 4000
STATISTICS = {
    "x": lambda x: x,
    "x^2": np.square,
    "exp x": np.exp,
    "x > 0": lambda x: x > 0.0,
    "x > 1": lambda x: x > 1.0,
    "abs x > 3": lambda x: np.abs(x) > 3.0,
}
COLUMNS = {
    "d": ("dimension", None),
    "mean of": ("statistic", None),
    "systematic": ("systematic", 4),
    "balanced": ("balanced", 4),
    "bias of the latter": ("bias", None),
    "seconds": ("seconds", 2),
}


def measure(dimension: int, seed: int) -> Row:
    """The errors of both choices from one pool.

    Those of a statistic are averaged over coordinates: `systematic` and `balanced` are mean
    squares, `bias` is the plain mean of the latter's. `seconds` is what the balanced choice takes.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((POOL, dimension))
    log_w = 0.3 * x[:, 0] - 0.05 * x[:, 0] ** 2 + 0.2 * np.sin(3 * x[:, -1])
    log_w += 0.2 * rng.standard_normal(POOL)
    log_w -= np.logaddexp.reduce(log_w)
    plain, _ = resample(jr.key(seed), log_w, NUM)
    clock = time.perf_counter()
    balanced, _ = resample(jr.key(seed), log_w, NUM, [x, x**2, np.sin(x)])
    row: Row = {"dimension": dimension, "seed": seed, "seconds": time.perf_counter() - clock}
    for name, statistic in STATISTICS.items():
        values = statistic(x).astype(float)
        mean = np.exp(log_w) @ values
        sd = np.sqrt(np.exp(log_w) @ (values - mean) ** 2)
        of_plain, of_balanced = ((values[at].mean(0) - mean) / sd for at in (plain, balanced))
        row[f"systematic {name}"] = float(np.mean(of_plain**2))
        row[f"balanced {name}"] = float(np.mean(of_balanced**2))
        row[f"bias {name}"] = float(np.mean(of_balanced))
    return row


class Resampling(Suite):
    """Balanced against systematic resampling, on pools that need no model."""

    name = "resampling"
    page = "resampling.md"
    summary = "balanced resampling beside systematic sampling, on pools of known weights"
    seeds = tuple(range(20))

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which dimensions."""
        parser.add_argument("--dimensions", nargs="+", type=int, default=[3, 30, 60])

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """Both choices for each dimension and seed."""
        for dimension, seed in product(options.dimensions, options.seeds):
            if not store.holds(dimension=dimension, seed=seed):
                yield measure(dimension, seed)

    def line(self, row: Row) -> str:
        """Which pool it was."""
        return f"d {row['dimension']}  seed {row['seed']}  {row['seconds']:.2f} s"

    def report(self, rows: list[Row], docs: Path) -> None:
        """A table with a line for each dimension and statistic."""
        lines = []
        for dimension, name in product(sorted({row["dimension"] for row in rows}), STATISTICS):
            some = [row for row in rows if row["dimension"] == dimension]
            bias = np.array([row[f"bias {name}"] for row in some])
            line = {"dimension": dimension, "statistic": name}
            line |= {
                kind: np.sqrt(np.mean([row[f"{kind} {name}"] for row in some]))
                for kind in ("systematic", "balanced")
            }
            line["bias"] = f"{bias.mean():.4f} +- {bias.std() / len(bias) ** 0.5:.4f}"
            line["seconds"] = np.mean([row["seconds"] for row in some])
            lines.append(line)
        num = len({row["seed"] for row in rows})
        (docs / self.page).write_text(
            f"# Resampling\n\nWritten by `{self.command}` on {machines(rows)}. {NUM} draws chosen "
            f"from pools of {POOL} normal ones with weights of a known form. Errors are of means "
            "over the chosen draws against the pool's weighted means, in standard deviations: root "
            f"mean squares over coordinates and {num} seeds, and for the bias the mean with its "
            f"standard error. Seconds are those of the balanced choice.\n\n{table(lines, COLUMNS)}"
            "\n"
        )
