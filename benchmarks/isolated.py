"""Measuring in a process of its own.

A process of its own starts with nothing compiled and no memory taken, and can be ended when a
library blocks for ever.
"""

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks.store import ROOT, Row


def rows_of(function: Callable[..., Row], jobs: list[dict], limit: float) -> list[Row]:
    """The rows that a function returns, called once for each job, one job after the other.

    Args:
        function: of a module that can be imported. Its row must be valid JSON.
        jobs: the keyword arguments of each call, which must be valid JSON too.
        limit: seconds after which the process is ended.

    Returns:
        All rows; or, if the process failed or was ended, those it had finished by then. What it
        said of its failure is printed.
    """
    rows, trouble = _run(function, jobs, limit)
    if trouble:
        print(trouble, file=sys.stderr)
    return rows


def row_of(function: Callable[..., Row], job: dict, limit: float) -> Row:
    """The row of one call, or one whose figure `error` says how the process ended."""
    rows, trouble = _run(function, [job], limit)
    return rows[0] if rows else {"error": trouble}


def _run(function: Callable[..., Row], jobs: list[dict], limit: float) -> tuple[list[Row], str]:
    """The rows, and how the process ended where it did not end well."""
    command = [sys.executable, "-m", "benchmarks.isolated", function.__module__]
    command += [function.__qualname__, json.dumps(jobs)]
    trouble = ""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        try:
            subprocess.run(
                command, cwd=ROOT, stdout=output, stderr=errors, timeout=limit, check=True
            )
        except subprocess.TimeoutExpired:
            trouble = f"ended after {limit:.0f} s"
        except subprocess.CalledProcessError as error:
            errors.seek(0)
            trouble = f"ended with {error.returncode}\n{errors.read()[-2000:]}".strip()
        output.seek(0)
        return [json.loads(line) for line in output if line.startswith("{")], trouble


def main() -> None:
    """Call the function for each job, and print its rows."""
    module, name, jobs = sys.argv[1:]
    function = getattr(importlib.import_module(module), name)
    for job in json.loads(jobs):
        print(json.dumps(function(**job)), flush=True)


if __name__ == "__main__":
    main()
