"""Rows that the benchmarks measured: one JSON file a benchmark, tracked like the pages made of it.

Every row names the machine and the versions it was measured with, so that a page can be extended
on another day and still say where each figure is from.
"""

import fcntl
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PACKAGES = ("numpyro_onestep", "numpyro", "jax", "jaxlib", "equinox", "optax", "arviz", "blackjax")


def machine() -> str:
    """The kind of machine, and versions."""
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    device = jax.devices()[0].device_kind
    cores = len(os.sched_getaffinity(0))
    return ", ".join(
        [f"{cores} core{'s' * (cores > 1)} of {processor}"]
        + [device] * (device != "cpu")
        + [f"{package} {number}" for package, number in versions.items()]
    )


def machines(rows: list[dict]) -> str:
    """All that measured these rows, each once."""
    return "; ".join(dict.fromkeys(row["machine"] for row in rows))


class Results:
    """The rows of one benchmark, on disk after each, so that an interrupt loses none.

    With `resume` those already there are kept, and other processes may add to the same file
    meanwhile.
    """

    def __init__(self, name: str, resume: bool):
        self.path = ROOT / "benchmarks" / "results" / f"{name}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            self.path.unlink(missing_ok=True)

    @property
    def rows(self) -> list[dict]:
        """What the file holds."""
        return json.loads(self.path.read_text()) if self.path.exists() else []

    def holds(self, **identity) -> bool:
        """Whether there is such a row."""
        return any(all(row[k] == v for k, v in identity.items()) for row in self.rows)

    def add(self, row: dict) -> None:
        """Keep a row, with what measured it."""
        with self.path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            rows = [*json.loads(file.read() or "[]"), {**row, "machine": machine()}]
            file.truncate(0)
            # A row a line, so that a change of one shows as such.
            lines = ",\n".join(json.dumps(row, default=float) for row in rows)
            file.write(f"[\n{lines}\n]\n")


def table(rows: list[dict], columns: dict[str, tuple[str, int | None]]) -> str:
    """A line a row, in Markdown; columns by heading: which figure, and its digits if a number."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [_cell(row.get(figure), digits) for figure, digits in columns.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value, digits: int | None) -> str:
    if value is None:
        return ""
    return str(value) if digits is None else f"{value:.{digits}f}"


def table_over_seeds(
    rows: list[dict],
    by: dict[str, str],
    columns: dict[str, tuple[str, int]],
    counts: dict[str, str],
) -> str:
    """A line for all rows that agree in the figures `by`: medians and ranges, and how many have."""
    heading = {column: (column, None) for column in (*by, "seeds", *columns, *counts)}
    lines = []
    for key in dict.fromkeys(tuple(row[figure] for figure in by.values()) for row in rows):
        some = [row for row in rows if tuple(row[figure] for figure in by.values()) == key]
        line = dict(zip(by, key, strict=True)) | {"seeds": len(some)}
        line |= {column: spread(some, *what) for column, what in columns.items()}
        for column, figure in counts.items():
            line[column] = f"{sum(bool(row[figure]) for row in some)} of {len(some)}"
        lines.append(line)
    return table(lines, heading)


def spread(rows: list[dict], figure: str, digits: int) -> str:
    """Median, and the range where there is one."""
    values = [row[figure] for row in rows if figure in row]
    if not values:
        return ""
    median, low, high = (f"{v:.{digits}f}" for v in (np.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low} to {high})"
