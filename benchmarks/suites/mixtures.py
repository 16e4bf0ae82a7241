"""Mixtures that the paper does not have: other numbers of modes, spacings, weights and shapes.

    python -m benchmarks mixtures [--targets corners_6d ...]

There is one run of OneStep(multimodal=True) for each target and seed, measured as in the paper's
suite.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from benchmarks.problems.mixtures import targets
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.target_figures import measure, table_by_target, with_errors

EVIDENCE = {
    "ELBO gap": ("gap", 3),
    "log evidence error": ("error", 4),
    "EUBO - log Z": ("above", 3),
    "k": ("pareto_k", 2),
    "ESS": ("ess", 2),
}
MODES = {
    "modes": ("modes", 0),
    "TV of weights": ("tv", 3),
    "distance": ("distance", 3),
    "between exact sets": ("distance_exact", 3),
    "seconds": ("seconds", 0),
}


class Mixtures(Suite):
    """Sixteen mixtures, one step."""

    name = "mixtures"
    page = "mixtures.md"
    summary = "mixtures of other numbers, spacings, weights and shapes than the paper's"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which mixtures."""
        add_names(parser, "--targets", targets())

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """One run for each target and seed."""
        for name, seed in product(options.targets, options.seeds):
            if not store.holds(target=name, seed=seed):
                row = measure(targets()[name], 1, seed)
                row.pop("points", None)
                yield row

    def report(self, rows: list[Row], docs: Path) -> None:
        """Tables of the evidence and of the modes."""
        rows = with_errors(rows, targets())
        (docs / self.page).write_text(
            f"# Other mixtures\n\nWritten by `{self.command}` on "
            f"{machines(rows)}. `multimodal=True`, one step; columns as in "
            "[paper.md](paper.md); medians, and ranges over seeds. Names say how many modes and "
            "dimensions; shares of a mode are by the densest component, its weight left aside, and "
            "their total variation is that of 4000 draws' own noise and of overlap too."
            f"\n\n## Evidence\n\n{table_by_target(rows, EVIDENCE)}"
            f"\n\n## Modes and distances\n\n{table_by_target(rows, MODES)}\n"
        )
