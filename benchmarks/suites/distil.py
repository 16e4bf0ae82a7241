"""Evidence from draws of NUTS: `distil`, its parts alone, `run` without draws, and harmonic.

    python -m benchmarks distil [--problems banana ...] [--harmonic VENV/bin/python]

The package `harmonic` is no dependency. `--harmonic` names a Python that has it installed; without
it the page has the rows of harmonic that are stored, or says that there are none.
"""

import json
import subprocess
import tempfile
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import jax
import jax.random as jr
import numpy as np
from numpyro.infer import MCMC, NUTS

from benchmarks.internals import unconstrained_draws
from benchmarks.methods.onestep import weight_figures
from benchmarks.problems.with_draws import Drawn, problems
from benchmarks.store import ROOT, Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.tables import in_order, table_over_seeds
from numpyro_onestep import OneStep

CHAINS, DRAWS = 4, 1000
HARMONIC = "harmonic"
LIMIT = 600  # seconds that harmonic may take
# What differs between the methods: settings of OneStep, and arguments of `distil`; None for `run`.
METHODS = {
    "distil": ({}, {}),
    "with denoising": ({}, {"num_denoising_steps": 400}),
    "denoising alone": ({"elbo_weight": 0.0}, {"num_denoising_steps": 400}),
    "density alone": ({}, {"num_denoising_steps": 0}),
    "run": ({}, None),
    HARMONIC: ({}, None),
}
COLUMNS = {
    "error of log Z": ("error", 3),
    "ELBO gap": ("gap", 3),
    "upper - log Z": ("above", 3),
    "k": ("pareto_k", 2),
    "ESS": ("ess", 2),
    "seconds": ("seconds", 1),
}
TEXT = """
Each line is one problem and method: the median over seeds, and the range. Draws are 4 x 1000 of
NUTS at its defaults, the same for all methods of a seed; the last table has their time, which is
not counted. Of the seconds the most are those of the first seed, which compiles; the others do not
(harmonic is a process of its own each time).

- **distil** is `OneStep(model).distil(key, draws, *args)` at its defaults.
- **with denoising** has denoising regression with state consistency before the density in any case
  (`num_denoising_steps=400`), not only where a Gaussian is a poor start.
- **denoising alone** leaves the model's density out of training (`elbo_weight=0`). The weights are
  exact all the same.
- **density alone** never has denoising (`num_denoising_steps=0`): the draws give the start alone.
- **run** has no draws.
- **harmonic** is the learned harmonic mean of the package `harmonic`: real NVP, trained on half of
  the chains for thirty epochs, at a temperature of 0.8.

The error is the estimate less the exact log evidence (nats), the gap the exact log evidence less
the ELBO. "Upper" is the mean log weight of given draws that nothing was fitted to. "Warned" counts
the runs with a warning. Those on draws of one of two modes should warn: 30% of the mass is missing,
an error of -0.357, unless `multimodal=True` finds the rest. (All chains begin in the first mode. In
the draws of seed 0 one of them has found the second by itself, in its warmup.) The machine was
shared with other work, so that seconds are rough, those of first seeds above all.
Not all methods were measured on all problems.
The stored answer of seeds, -73.432, is itself known to some hundredths only.
"""


def nuts(problem: Drawn, seed: int) -> tuple[dict, float]:
    """Draws `{site: (4000, ...)}` of latent sites and others, and the seconds that they took."""
    mcmc = MCMC(
        NUTS(problem.model),
        num_warmup=1000,
        num_samples=DRAWS,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    clock = time.perf_counter()
    start = None if problem.starts is None else problem.starts()
    mcmc.run(jr.key(1000 + seed), *problem.args(), init_params=start)
    draws = {name: np.asarray(value) for name, value in mcmc.get_samples().items()}
    return draws, time.perf_counter() - clock


def onestep(problem: Drawn, draws: dict, method: str, seed: int) -> Row:
    """The figures of one run of OneStep."""
    settings, more = METHODS[method]
    sampler = OneStep(problem.model, progress_bar=False, **dict(problem.settings), **settings)
    clock = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if more is None:
            sampler.run(jr.key(seed), *problem.args())
        else:
            sampler.distil(jr.key(seed), draws, *problem.args(), **more)
    row = weight_figures(sampler) | {"seconds": time.perf_counter() - clock}
    agreement = sampler.result.agreement
    if agreement is not None:
        row["upper"] = agreement.upper if np.isfinite(agreement.upper) else None
        row["new"], row["lost"] = agreement.new_fraction, agreement.lost_fraction
    return row | {"messages": sampler.messages}


def harmonic(problem: Drawn, draws: dict, seed: int, python: str) -> Row:
    """The figures of harmonic, or the figure `failed`."""
    x, log_density = unconstrained_draws(problem.model, problem.args(), draws, jr.key(seed))
    worker = ROOT / "benchmarks" / "methods" / "harmonic_worker.py"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "draws.npz"
        shape = CHAINS, len(x) // CHAINS
        np.savez(path, x=x.reshape(*shape, -1), log_density=log_density.reshape(shape))
        command = [python, str(worker), str(path), str(seed)]
        try:
            out = subprocess.run(
                command, capture_output=True, text=True, timeout=LIMIT, check=True
            ).stdout
        except subprocess.TimeoutExpired:
            return {"failed": f"ended after {LIMIT} s", "messages": []}
        except subprocess.CalledProcessError as error:
            return {"failed": error.stderr[-300:], "messages": []}
    row = json.loads(out.splitlines()[-1]) | {"messages": []}
    if np.isfinite(row["log_evidence"]):
        return row
    return {"failed": "its estimate is not finite", "seconds": row["seconds"], "messages": []}


class Distil(Suite):
    """Evidence from given draws."""

    name = "distil"
    page = "distil.md"
    summary = "evidence from draws of NUTS: distil and its parts, run, and the package harmonic"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which problems and methods, and the Python of harmonic."""
        add_names(parser, "--problems", problems())
        add_names(parser, "--methods", METHODS)
        parser.add_argument("--harmonic", help="a Python that has the package harmonic")

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """One run of NUTS for each problem and seed, and one of each method on its draws."""
        methods = [m for m in options.methods if m != HARMONIC or options.harmonic]
        for name in options.problems:
            problem, made = problems()[name], {}
            for method, seed in product(methods, options.seeds):
                identity = {"problem": name, "method": method, "seed": seed}
                if store.holds(**identity):
                    continue
                if seed not in made:
                    made[seed] = nuts(problem, seed)
                if seed == options.seeds[0]:
                    jax.clear_caches()
                draws, seconds = made[seed]
                if method == HARMONIC:
                    row = harmonic(problem, draws, seed, options.harmonic)
                else:
                    row = onestep(problem, draws, method, seed)
                yield {
                    **identity,
                    "exact": problem.log_evidence(),
                    "seconds_nuts": seconds,
                    "first": seed == options.seeds[0],
                    **row,
                }

    def report(self, rows: list[Row], docs: Path) -> None:
        """A table with a line for each problem and method."""
        rows = in_order(rows, problem=problems(), method=METHODS)
        rows = [row | _differences(row) for row in rows]
        by = {"problem": "problem", "method": "method"}
        lines = table_over_seeds(rows, by, COLUMNS, {"warned": "messages"})
        of_nuts = list({(row["problem"], row["seed"]): row for row in rows}.values())
        times = table_over_seeds(of_nuts, {"problem": "problem"}, {"NUTS": ("seconds_nuts", 1)}, {})
        failed = [row for row in rows if row.get("failed")]
        notes = ""
        if not any(row["method"] == HARMONIC for row in rows):
            notes += "\nThe package harmonic was not installed, so it has no lines here.\n"
        for row in failed:
            notes += f"\n{row['problem']}, {row['method']}, seed {row['seed']}: {row['failed']}.\n"
        (docs / self.page).write_text(
            f"# Evidence from given draws\n\nWritten by `{self.command}` on {machines(rows)}. "
            "[The method](method.md#given-draws) says what `distil` does.\n"
            f"{TEXT}\n{lines}\n{notes}\nSeconds that NUTS took:\n\n{times}\n"
        )


def _differences(row: Row) -> Row:
    exact, found = row["exact"], {}
    if "log_evidence" in row:
        found["error"] = row["log_evidence"] - exact
    if "elbo" in row:
        found["gap"] = exact - row["elbo"]
    if row.get("upper") is not None:
        found["above"] = row["upper"] - exact
    return found
