"""The runner of all suites.

    python -m benchmarks --list
    python -m benchmarks SUITE [--seeds 0 1 2] [--resume] [the suite's own options]
    python -m benchmarks SUITE --report

The second measures, keeps every row in ``benchmarks/results/SUITE.json`` and writes the suite's
page in ``docs/``. The third writes the page from the rows that are there. ``--results`` and
``--docs`` name other folders, so that a trial leaves the tracked files alone.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.store import DOCS, RESULTS, Store
from benchmarks.suites import SUITES
from benchmarks.suites.base import Suite


def main(arguments: list[str] | None = None) -> None:
    """Run the suite that the first argument names, or list all of them."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in SUITES:
        _run(SUITES[arguments[0]], arguments[1:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Runs a suite of benchmarks and writes its page.",
        epilog="`python -m benchmarks SUITE --help` shows the options of a suite.",
    )
    parser.add_argument("suite", nargs="?", choices=SUITES, metavar="SUITE", help="which to run")
    parser.add_argument("--list", action="store_true", help="list the suites and their pages")
    parser.parse_args(arguments)
    for suite in SUITES.values():
        print(f"{suite.name:16s}docs/{suite.page:22s}{suite.summary}")


def _run(suite: Suite, arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {suite.name}", description=suite.summary
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=list(suite.seeds), help="one run for each"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the rows that are there and measure what is missing; without it every row of "
        "the suite is deleted first",
    )
    parser.add_argument(
        "--report", action="store_true", help="write the page from the stored rows, run nothing"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="folder of the rows"
    )
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="DIR", help="folder of the page")
    suite.add_arguments(parser)
    options = parser.parse_args(arguments)
    store = Store(options.results / f"{suite.name}.json")
    if not options.report:
        if not options.resume:
            store.clear()
        for row in suite.run(options, store):
            store.add(row)
            print(suite.line(row), flush=True)
    rows = store.rows
    if not rows:
        raise SystemExit(f"{store.path} holds no rows: leave out --report to measure some.")
    options.docs.mkdir(parents=True, exist_ok=True)
    suite.report(rows, options.docs)
    print(f"Written: {options.docs / suite.page}")


if __name__ == "__main__":
    main()
