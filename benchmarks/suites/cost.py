"""What a run costs beside NUTS: of dense posteriors, of many rows, and of a whole script.

    python -m benchmarks cost [--posteriors sonar ...] [--seeds 0 1 2]

Every run has a process of its own, on one core.  Its processor time is taken, which other
work on the machine changes little.  The warm run is a second one in the same process, on rows of
the data drawn with replacement.  NUTS is 4 chains of 1000 + 1000, vectorised.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.isolated import row_of
from benchmarks.methods.nuts import plain_nuts
from benchmarks.methods.onestep import fit, weight_figures
from benchmarks.problems.many_rows import ManyRows
from benchmarks.problems.reference_posteriors import POSTERIORS
from benchmarks.store import ROOT, Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.tables import spread, table

LIMIT = 900  # seconds that a process may take
KNOWN: dict[str, Any] = {**POSTERIORS, "many_rows": ManyRows()}
DEFAULT = "eight_schools", "ionosphere", "sonar", "horseshoe", "many_rows"
METHODS = "onestep", "nuts"
CACHES = "none", "first run", "second run"
PARTS = "initialisation", "structure", "preconditioner", "precision", "training", "draws"
_SCRIPT = """
import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
def model(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("J", 8):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
{lines}
sampler.run(jax.random.key({seed}), sigma, y=y)
sampler.print_summary()
"""
_LINES = {
    "onestep": "from numpyro_onestep import OneStep\nsampler = OneStep(model, progress_bar=False)",
    "nuts": "from numpyro.infer import MCMC, NUTS\nsampler = MCMC(NUTS(model), num_warmup=1000, "
    "num_samples=1000, num_chains=4, chain_method='vectorized', progress_bar=False)",
}


def measure(posterior: str, method: str, seed: int) -> Row:
    """A first run, its errors and its parts, and the time of a second run on other data."""
    known = KNOWN[posterior]
    row = {"posterior": posterior, "method": method, "seed": seed}
    args, keys = known.args(), jax.random.split(jax.random.key(seed))
    other = _resampled(args, seed)
    if method == "onestep":
        clock = time.process_time()
        sampler, _ = fit(keys[0], args, model=known.model)
        row["cold"] = time.process_time() - clock
        row |= known.errors(sampler.get_samples()) | weight_figures(sampler)
        if known.log_evidence is not None:
            row["elbo_gap"] = known.log_evidence - sampler.elbo
        row |= sampler.seconds | {"iterations": len(sampler.losses), "warned": sampler.messages}
        clock = time.process_time()
        fit(keys[1], other, model=known.model)
    else:
        mcmc, clock = plain_nuts(known.model), time.process_time()
        mcmc.run(keys[0], *args)
        draws = jax.block_until_ready(mcmc.get_samples())
        row |= {"cold": time.process_time() - clock, **known.errors(draws)}
        # NumPyro 0.22 raises an error where the same MCMC runs on other data.
        mcmc, clock = plain_nuts(known.model), time.process_time()
        mcmc.run(keys[1], *other)
        jax.block_until_ready(mcmc.get_samples())
    return {**row, "warm": time.process_time() - clock}


def script(method: str, cache: str, seed: int, folder: str) -> Row:
    """Processor time of a whole Python process that runs eight schools and prints the summary."""
    environment = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    if cache != "none":
        environment["JAX_COMPILATION_CACHE_DIR"] = folder
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", _SCRIPT.format(lines=_LINES[method], seed=seed)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"posterior": "script", "method": method, "cache": cache, "seed": seed, "cold": seconds}


def _bind() -> None:
    """Bind this process, and those that it starts, to one of the cores it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _resampled(args: tuple, seed: int) -> tuple:
    """Other data of the same shapes: rows drawn with replacement."""
    num = {len(part) for part in args}
    if len(num) != 1:
        return args
    rows = np.random.default_rng(seed).integers(0, min(num), min(num))
    return tuple(part[rows] for part in args)


class Cost(Suite):
    """Processor time, cold and warm, and of a script."""

    name = "cost"
    page = "cost.md"
    summary = "processor time of dense posteriors, many rows and a whole script, beside NUTS"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which posteriors, and whether the script is measured."""
        add_names(parser, "--posteriors", KNOWN, DEFAULT)
        parser.add_argument("--no-script", action="store_true", help="leave the script out")

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """Seed by seed, both methods after each other: a machine's speed drifts over an hour."""
        _bind()
        for seed in options.seeds:
            for name in options.posteriors:
                for method in METHODS:
                    job = {"posterior": name, "method": method, "seed": seed}
                    if not store.holds(**job):
                        yield {**job, **row_of(measure, job, LIMIT)}
            if options.no_script:
                continue
            for method in METHODS:
                if store.holds(posterior="script", method=method, seed=seed):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    yield from [script(method, cache, seed, folder) for cache in CACHES]

    def report(self, rows: list[Row], docs: Path) -> None:
        """A table beside NUTS, a table of the parts, and one of the script."""
        runs = [r for r in rows if r["posterior"] != "script" and "error" not in r]
        names = [name for name in KNOWN if any(r["posterior"] == name for r in runs)]
        (docs / self.page).write_text(
            f"""# What a run costs

Written by `{self.command}` on {machines(rows)}.

Processor seconds of a process on one core; medians, and ranges over seeds. Cold: the first run
in a process, compilation included. Warm: a second run, on rows of the data drawn with replacement.
NUTS: 4 chains of 1000 + 1000, vectorised. Gap: log Z - ELBO, where log Z is known. ESS: share of
the pool. Errors: largest of any parameter's mean, in standard deviations, and of any log sd.

{_beside_nuts(runs, names)}

## Where the time goes

Seconds of the cold run by the clock, which other work on the machine makes longer, and the
iterations of training that the last map took.

{_by_part(runs, names)}

## A script

Eight schools from `python script.py` to the printed summary, imports included: without JAX's
persistent compilation cache, and with it in a first and a second process.

{_of_script([r for r in rows if r["posterior"] == "script"])}
"""
        )


def _some(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _beside_nuts(rows: list[Row], names: list[str]) -> str:
    lines = []
    for name in names:
        ours, nuts = (_some(rows, posterior=name, method=method) for method in METHODS)
        line = {"posterior": name, "seeds": len(ours)}
        for time_of in ("cold", "warm"):
            line |= {
                f"{time_of}": spread(ours, time_of, 1),
                f"NUTS {time_of}": spread(nuts, time_of, 1),
            }
            both = [np.median([r[time_of] for r in some]) for some in (ours, nuts) if some]
            ratio = f"{both[0] / both[1]:.2f}" if len(both) == 2 else ""
            line[f"{time_of} / NUTS"] = ratio
        line |= {"gap": spread(ours, "elbo_gap", 3), "Pareto k": spread(ours, "pareto_k", 2)}
        line |= {"ESS": spread(ours, "ess", 2), "mean": spread(ours, "mean_error", 3)}
        line["log sd"] = spread(ours, "log_sd_error", 3)
        line["warned"] = f"{sum(bool(r['warned']) for r in ours)} of {len(ours)}"
        lines.append(line)
    return table(lines, {heading: (heading, None) for heading in lines[0]}) if lines else ""


def _by_part(rows: list[Row], names: list[str]) -> str:
    lines = []
    for name in names:
        ours = _some(rows, posterior=name, method="onestep")
        parts = {part: spread(ours, part, 1) for part in PARTS}
        lines.append({"posterior": name, **parts, "iterations": spread(ours, "iterations", 0)})
    return table(lines, {heading: (heading, None) for heading in lines[0]}) if lines else ""


def _of_script(rows: list[Row]) -> str:
    lines = []
    for cache in CACHES:
        line = {"cache": cache}
        for method in METHODS:
            line[method] = spread(_some(rows, method=method, cache=cache), "cold", 1)
        lines.append(line)
    return table(lines, {heading: (heading, None) for heading in lines[0]})
