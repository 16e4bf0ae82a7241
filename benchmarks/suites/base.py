"""What a suite is, and how to add one."""

import json
from abc import ABC, abstractmethod
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from benchmarks.store import Row, Store


class Suite(ABC):
    r"""One question, the runs that answer it, and the page that gives the answer.

    The runner (``python -m benchmarks SUITE``) owns what all suites share: the options ``--seeds``,
    ``--resume``, ``--report``, ``--results`` and ``--docs``, and the file of the rows. A suite says
    what to measure and how to write it up:

    1. `run` yields one row after the other. A row is a dictionary of valid JSON with what
       identifies the run (problem, method, seed) and what was measured. The runner adds the machine
       that measured it, writes the row to the file and prints `line(row)` before it asks for the
       next one, so that an interrupt loses nothing.
    2. `report` writes the page, from rows alone: ``--report`` calls it without `run`. Rows may be
       from several days and machines, and some may be missing.

    To add a suite, write a file in ``benchmarks/suites``, import it in
    ``benchmarks/suites/__init__.py`` and add one line to `SUITES` there. An example::

        class Widths(Suite):
            '''How the bound depends on the width of the network.'''

            name = "widths"
            page = "widths.md"
            summary = "the bound at several widths of the network"

            def add_arguments(self, parser):
                parser.add_argument("--widths", nargs="+", type=int, default=[32, 64])

            def run(self, options, store):
                posterior = POSTERIORS["seeds"]
                for width, seed in itertools.product(options.widths, options.seeds):
                    identity = {"width": width, "seed": seed}
                    if store.holds(**identity):
                        continue
                    jax.clear_caches()
                    key = jax.random.key(seed)
                    sampler, seconds = fit_posterior(posterior, key, width=width)
                    yield {**identity, "elbo": sampler.elbo, "seconds": seconds}

            def report(self, rows, docs):
                columns = {"ELBO": ("elbo", 3), "seconds": ("seconds", 1)}
                lines = table_over_seeds(rows, {"width": "width"}, columns, {})
                text = f"Written by `{self.command}` on {machines(rows)}."
                (docs / self.page).write_text(f"# Widths\n\n{text}\n\n{lines}\n")

    Attributes:
        name: what is typed to run it, and the name of its file of rows.
        page: the name of its page in ``docs/``. Pictures go beside it, under the same name.
        summary: what it measures, in one line for ``--list`` and ``--help``.
        seeds: what ``--seeds`` is by default.
    """

    name: ClassVar[str]
    page: ClassVar[str]
    summary: ClassVar[str]
    seeds: ClassVar[tuple[int, ...]] = (0, 1, 2)

    @property
    def command(self) -> str:
        """What a user types to run it, for the page to say."""
        return f"python -m benchmarks {self.name}"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add options of its own, beside those that every suite has."""
        return

    @abstractmethod
    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """Measure what the options ask for and the store does not hold yet, one row at a time."""

    @abstractmethod
    def report(self, rows: list[Row], docs: Path) -> None:
        """Write the page, and its pictures if it has any, into the folder `docs`."""

    def line(self, row: Row) -> str:
        """What the terminal shows of a row that has just been measured."""
        return json.dumps(row, default=float)


def add_names(
    parser: ArgumentParser, option: str, known: Iterable[str], default: Iterable[str] | None = None
) -> None:
    """Add an option that takes one or several of the known names, by default all of them."""
    known = list(known)
    parser.add_argument(
        option,
        nargs="+",
        default=known if default is None else list(default),
        choices=known,
        metavar="NAME",
        help=f"of {', '.join(known)} (default: {'all' if default is None else ', '.join(default)})",
    )
