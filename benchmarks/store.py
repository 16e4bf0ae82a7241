"""The rows that a suite has measured, in one JSON file that is tracked like the page made of it.

Every row names the machine and the versions it was measured with. A page can therefore be extended
on another day, and still says where each figure is from.
"""

import fcntl
import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("numpyro_onestep", "numpyro", "jax", "jaxlib", "equinox", "optax", "arviz", "blackjax")

Row = dict[str, Any]


def machine() -> str:
    """This kind of machine, and the versions of the packages that matter."""
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


def machines(rows: Iterable[Row]) -> str:
    """All the machines that measured these rows, each of them once."""
    return "; ".join(dict.fromkeys(row["machine"] for row in rows))


class Store:
    """The rows in one JSON file.

    A row is on disk as soon as it is added, so that an interrupted run loses none. Several
    processes may add to the same file at the same time.

    Args:
        path: where the file is, or will be once there is a row.
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def rows(self) -> list[Row]:
        """What the file holds, in the order in which it was measured."""
        return json.loads(self.path.read_text()) if self.path.exists() else []

    def clear(self) -> None:
        """Delete all rows."""
        self.path.unlink(missing_ok=True)

    def holds(self, **identity: Any) -> bool:
        """Whether some row has all of these values."""
        return any(all(row[key] == value for key, value in identity.items()) for row in self.rows)

    def add(self, row: Row) -> None:
        """Append a row, and to the row the machine that measured it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            rows = [*json.loads(file.read() or "[]"), {**row, "machine": machine()}]
            file.truncate(0)
            # One row is one line, so that `git diff` shows which rows have changed.
            lines = ",\n".join(json.dumps(row, default=float) for row in rows)
            file.write(f"[\n{lines}\n]\n")
