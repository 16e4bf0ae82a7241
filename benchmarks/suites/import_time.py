"""How long `import numpyro_onestep` takes, beside `import numpyro`.

    python -m benchmarks import_time [--seeds 0 1 2]

Each is imported in a process of its own, one after the other, and its processor time is taken,
which other work on the machine changes little.  A first import, which also compiles the modules to
bytecode, is made before and not counted.
"""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite

MODULES = "numpyro", "numpyro_onestep"


def seconds(module: str) -> float:
    """Processor time of one import in a new process."""
    code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    command = [sys.executable, "-c", code]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


class ImportTime(Suite):
    """The import alone, which a user waits for before anything else."""

    name = "import_time"
    page = "import_time.md"
    summary = "processor time of the import, beside NumPyro's"
    seeds = tuple(range(10))

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """Both imports, once for each seed, which here only counts the repetitions."""
        for module in MODULES:
            seconds(module)
        for seed in options.seeds:
            if not store.holds(seed=seed):
                yield {"seed": seed, **{module: seconds(module) for module in MODULES}}

    def report(self, rows: list[Row], docs: Path) -> None:
        """Medians, and the ratio with its range."""
        numpyro, ours = (np.array([row[module] for row in rows]) for module in MODULES)
        ratio = ours / numpyro
        (docs / self.page).write_text(
            f"# Import time\n\nWritten by `{self.command}` on {machines(rows)}: processor time of "
            f"an import in a new process, medians of {len(rows)}.\n\n"
            "| `import numpyro` | `import numpyro_onestep` | ratio | lowest and highest |\n"
            "|---|---|---|---|\n"
            f"| {np.median(numpyro):.2f} s | {np.median(ours):.2f} s | {np.median(ratio):.2f} | "
            f"{ratio.min():.2f} to {ratio.max():.2f} |\n\n"
            "The second includes the first. ArviZ, optax, scikit-learn and parts of SciPy are "
            "imported where they are used.\n"
        )
