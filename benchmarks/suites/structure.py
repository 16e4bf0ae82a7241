"""Cost and accuracy where latent values repeat over groups or times, up to 60,000 of them.

    python -m benchmarks structure [--problems level_100_centred ...] [--methods onestep nuts ...]

Every run has a process of its own, so that time includes compilation and memory is that of the run
alone. A process is ended after ``--limit`` seconds, or where it asks for more memory than
``--gigabytes``, and the row says so. Forms of the same posterior stand next to each other on the
page: NUTS on the other form is the line of that form.
"""

import resource
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import jax
import numpy as np
import numpyro

from benchmarks.isolated import row_of
from benchmarks.methods import autoguides, nuts, onestep
from benchmarks.problems.structured import STRUCTURED
from benchmarks.problems.structured.base import Structured
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.tables import spread, table


def _onestep(problem, key, _) -> tuple[dict, dict]:
    """At default settings, with the structure that the sampler found, where it looks for one."""
    sampler, figures = onestep.run_once(problem, key)
    structure = getattr(sampler, "structure", None)
    figures |= {
        "log_evidence_std_error": sampler.log_evidence_std_error,
        "structure": None if structure is None else str(structure),
    }
    return sampler.get_samples(), figures


METHODS = {
    "onestep": _onestep,
    "nuts": nuts.run,
    "mvn": autoguides.multivariate_normal,
    "lowrank": autoguides.low_rank,
    "iaf": autoguides.inverse_autoregressive,
}
COLUMNS = {
    "seconds": ("seconds", 1),
    "GiB": ("gigabytes", 1),
    "gap (nats)": ("elbo_gap", 2),
    "log Z error": ("log_evidence_error", 3),
    "globals: mean (sd)": ("global_mean_error", 3),
    "globals: log sd": ("global_log_sd_error", 3),
    "latents: mean (sd)": ("latent_mean_error", 3),
    "latents: log sd": ("latent_log_sd_error", 3),
    "ESS": ("ess", 2),
    "k": ("pareto_k", 2),
}


def dimension(problem: Structured) -> int:
    """Number of unconstrained coordinates; no site here is constrained to fewer than it has."""
    model = numpyro.handlers.seed(problem.model, 0)
    # Sites that have no prior to draw from stand where a sampler would put them.
    model = numpyro.handlers.substitute(model, substitute_fn=numpyro.infer.init_to_uniform)
    trace = numpyro.handlers.trace(model).get_trace(*problem.args())
    latent = (s for s in trace.values() if s["type"] == "sample" and not s["is_observed"])
    return sum(int(np.size(site["value"])) for site in latent)


def errors(problem: Structured, draws: dict, figures: Row) -> Row:
    """What a run is off by, as far as a reference is there."""
    mean, sd, owners = problem.moments(draws)
    if not np.isfinite(mean).all():
        return {"error": "the draws are not finite"}
    reference = problem.reference()
    if reference is None:
        return {}
    of_mean = np.abs(mean - reference.mean) / reference.sd
    with np.errstate(divide="ignore"):
        of_sd = np.abs(np.log(sd / reference.sd))
    is_latent = np.isin(owners, problem.latents)
    row: Row = {
        "worst_mean": owners[int(np.argmax(of_mean))],
        "worst_sd": owners[int(np.argmax(of_sd))],
    }
    for part, chosen in (("global", ~is_latent), ("latent", is_latent)):
        if chosen.any():
            row[f"{part}_mean_error"] = float(of_mean[chosen].max())
            row[f"{part}_log_sd_error"] = float(of_sd[chosen].max())
    if reference.log_evidence is not None:
        if "elbo" in figures:
            row["elbo_gap"] = reference.log_evidence - figures["elbo"]
        if "log_evidence" in figures:
            row["log_evidence_error"] = figures["log_evidence"] - reference.log_evidence
    return row


def measure(problem: str, method: str, seed: int, gigabytes: float) -> Row:
    """One run, compilation included, its memory, and its errors."""
    most = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    known = STRUCTURED[problem]
    try:
        draws, figures = METHODS[method](known, jax.random.key(seed), None)
    except Exception as error:  # whatever a run ends with is a result of its own
        return {"error": f"{type(error).__name__}: {error}"}
    # Before anything is compared, which takes memory too.
    figures["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"dimension": dimension(known), **figures, **errors(known, draws, figures)}


class Structure(Suite):
    """All methods on all posteriors with structure."""

    name = "structure"
    page = "structure.md"
    summary = "hierarchies, series and crossed effects of up to 60,000 latent values"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which problems and methods, and how much of the machine a run may take."""
        add_names(parser, "--problems", STRUCTURED)
        add_names(parser, "--methods", METHODS)
        parser.add_argument(
            "--limit", type=float, default=900, metavar="SECONDS", help="of a run (default: 900)"
        )
        parser.add_argument(
            "--gigabytes", type=float, default=16, help="memory of a run (default: 16)"
        )

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """All methods on one problem, then on the next: a machine's speed drifts over an hour."""
        for name, method, seed in product(options.problems, options.methods, options.seeds):
            identity = {"problem": name, "method": method, "seed": seed}
            if not store.holds(**identity):
                job = identity | {"gigabytes": options.gigabytes}
                yield identity | row_of(measure, job, options.limit)

    def line(self, row: Row) -> str:
        """Time, memory and errors, or why there are none."""
        start = f"{row['problem']:28s}{row['method']:8s} seed {row['seed']}  "
        if "error" in row:
            return f"{start}{_reason(row)}"
        shown = {heading: spread([row], *what) for heading, what in COLUMNS.items()}
        figures = "  ".join(f"{heading} {text}" for heading, text in shown.items() if text)
        structure = [row["structure"]] if row.get("structure") else []
        return "\n    ".join([f"{start}{figures}", *structure, *row.get("warnings", [])])

    def report(self, rows: list[Row], docs: Path) -> None:
        """A table for each kind of problem."""
        tables = []
        for kind in dict.fromkeys(problem.kind for problem in STRUCTURED.values()):
            names = [name for name, problem in STRUCTURED.items() if problem.kind == kind]
            lines = [
                _line(name, method, some)
                for name, method in product(names, METHODS)
                if (some := [r for r in rows if (r["problem"], r["method"]) == (name, method)])
            ]
            if lines:
                headings = ("problem", "d", "method", "seeds", *COLUMNS, "warned")
                found = table(lines, {heading: (heading, None) for heading in headings})
                tables.append(f"## {kind.capitalize()}\n\n{found}\n")
        (docs / self.page).write_text("\n".join([self._preface(rows), *tables]))

    def _preface(self, rows: list[Row]) -> str:
        return f"""# Posteriors with structure

Written by `{self.command}` on {machines(rows)}.

Every run has a process of its own; seconds include compilation, and GiB is the peak of the process.
OneStep runs at default settings, NUTS with 4 chains of 1000 + 1000, vectorised, and the guides with
5000 steps of 32 particles, Adam at 5e-3. Each makes 4000 draws. Medians, and ranges over seeds.
The runs on one problem were made one after the other on one machine. Another problem may have been
measured on a machine twice as slow: seconds can be compared within a problem only.

gap = log Z - ELBO, log Z error = estimate - log Z, where log Z is known. Errors of means, in
standard deviations, and of log standard deviations are the largest over globals and over latent
values, against the exact answer or against long runs of NUTS. Of n such errors of 4000 exact draws
the largest is about sqrt(2 log(2n) / 4000) in the mean: 0.04 for n = 10, 0.06 for 1000, 0.08 for
60,000. ESS: share of the pool.
"""


def _reason(row: Row) -> str:
    """Why a run has no result, in one line."""
    return row["error"].splitlines()[0][:100]


def _line(name: str, method: str, rows: list[Row]) -> Row:
    """One line of a table: all seeds of a method on a problem."""
    good = [row for row in rows if "error" not in row]
    warned = [f"no result: {reason}" for reason in {_reason(r): 0 for r in rows if "error" in r}]
    if any("divergences" in row for row in good):
        warned.insert(0, f"{spread(good, 'divergences', 0)} divergences")
        warned.insert(1, f"smallest ESS {spread(good, 'min_ess', 0)}")
    elif any("warnings" in row for row in good):
        warned.insert(0, f"{sum(bool(row['warnings']) for row in good)} of {len(good)}")
    return {
        "problem": name,
        "d": spread(good, "dimension", 0),
        "method": method,
        "seeds": len(rows),
        **{heading: spread(good, *what) for heading, what in COLUMNS.items()},
        "warned": "; ".join(warned),
    }
