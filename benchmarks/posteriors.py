"""Accuracy and time on the reference posteriors, beside what else a NumPyro user would pick.

    python -m benchmarks.posteriors [--posteriors seeds ...] [--methods onestep nuts mvn iaf bnaf]
                                    [--seeds 0 1 2] [--output benchmarks/results/posteriors.json]

Each posterior and method runs in a process of its own, seeds one after another with caches
cleared, so that every time includes compilation. Writes one JSON and docs/posteriors.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, autoguide
from numpyro.optim import Adam

from benchmarks.models import POSTERIORS, Posterior
from numpyro_onestep import OneStep

ROOT = Path(__file__).parent.parent
GUIDES = {
    "mvn": autoguide.AutoMultivariateNormal,
    "iaf": autoguide.AutoIAFNormal,
    "bnaf": autoguide.AutoBNAFNormal,
}
METHODS = ("onestep", "nuts", *GUIDES)
NUM_DRAWS = 4000


def run_onestep(posterior: Posterior, key) -> tuple[dict, dict]:
    """OneStep at default settings."""
    sampler = OneStep(posterior.model, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are recorded below
        sampler.run(key, *posterior.args())
    clock = time.perf_counter()
    jax.block_until_ready(sampler.sample(jax.random.key(1), 100_000))
    further = time.perf_counter() - clock
    figures = {
        "elbo": sampler.elbo,
        "log_evidence": sampler.log_evidence,
        "pareto_k": sampler.pareto_k,
        "ess": sampler.ess / sampler.settings.num_pool,
        "folded_share": sampler.folded_share,
        "iterations": len(sampler.losses),
        "warnings": sampler.messages,
        "seconds_by_part": sampler.seconds,
        "seconds_100k_further": further,
    }
    return sampler.get_samples(), figures


def run_nuts(posterior: Posterior, key) -> tuple[dict, dict]:
    """NUTS, 4 chains of 1000 + 1000, vectorised."""
    mcmc = MCMC(
        NUTS(posterior.model),
        num_warmup=1000,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(key, *posterior.args(), extra_fields=("diverging",))
    draws = jax.block_until_ready(mcmc.get_samples())
    return draws, {"divergences": int(mcmc.get_extra_fields()["diverging"].sum())}


def run_guide(name: str, posterior: Posterior, key) -> tuple[dict, dict]:
    """An autoguide by SVI: 5000 steps of 32 particles, Adam at 5e-3."""
    guide = GUIDES[name](posterior.model)
    svi = SVI(posterior.model, guide, Adam(5e-3), Trace_ELBO(num_particles=32))
    result = svi.run(key, 5000, *posterior.args(), progress_bar=False)
    loss = Trace_ELBO(num_particles=NUM_DRAWS).loss(
        jax.random.key(1), result.params, posterior.model, guide, *posterior.args()
    )
    draws = guide.sample_posterior(
        jax.random.key(2), result.params, *posterior.args(), sample_shape=(NUM_DRAWS,)
    )
    return jax.block_until_ready(draws), {"elbo": -float(loss)}


def measure(name: str, method: str, seed: int) -> dict:
    """One run, compilation included, and its errors against the reference."""
    posterior = POSTERIORS[name]
    jax.clear_caches()
    clock = time.perf_counter()
    key = jax.random.key(seed)
    if method == "onestep":
        draws, figures = run_onestep(posterior, key)
        seconds = sum(figures["seconds_by_part"].values())
    elif method == "nuts":
        draws, figures = run_nuts(posterior, key)
        seconds = time.perf_counter() - clock
    else:
        draws, figures = run_guide(method, posterior, key)
        seconds = time.perf_counter() - clock
    mean, sd, _ = posterior.reference()
    values = np.asarray(posterior.parameters(draws), np.float64)
    figures |= {
        "posterior": name,
        "method": method,
        "seed": seed,
        "seconds": seconds,
        "mean_error": float(np.abs((values.mean(0) - mean) / sd).max()),
        "log_sd_error": float(np.abs(np.log(values.std(0) / sd)).max()),
    }
    if posterior.log_evidence is not None:
        for figure in ("elbo", "log_evidence"):
            if figure in figures:
                figures[f"{figure}_gap"] = posterior.log_evidence - figures[figure]
    return figures


def table(results: list[dict]) -> str:
    """A Markdown table: medians over seeds, with the range where it matters."""
    lines = [
        "| posterior | method | seconds | gap (nats) | log Z error | mean (sd) | log sd | "
        "Pareto k | ESS | warned |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]

    def shown(rows, figure, digits):
        values = [row[figure] for row in rows if figure in row]
        if not values:
            return ""
        text = f"{np.median(values):.{digits}f}"
        if len(values) > 1:
            text += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
        return text

    for name in POSTERIORS:
        for method in METHODS:
            rows = [r for r in results if (r["posterior"], r["method"]) == (name, method)]
            if not rows:
                continue
            warned = sum(bool(row.get("warnings")) for row in rows)
            cells = [
                name,
                method,
                shown(rows, "seconds", 1),
                shown(rows, "elbo_gap", 3),
                shown(rows, "log_evidence_gap", 3),
                shown(rows, "mean_error", 3),
                shown(rows, "log_sd_error", 3),
                shown(rows, "pareto_k", 2),
                shown(rows, "ess", 2),
                f"{warned} of {len(rows)}" if method == "onestep" else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run everything asked for, or one posterior and method when called as a child."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--posteriors", nargs="+", default=list(POSTERIORS), choices=POSTERIORS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results" / "posteriors.json"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        for seed in options.seeds:
            print(json.dumps(measure(options.posteriors[0], options.methods[0], seed)), flush=True)
        return

    results = []
    for name in options.posteriors:
        for method in options.methods:
            command = [sys.executable, "-m", "benchmarks.posteriors", "--child"]
            command += ["--posteriors", name, "--methods", method, "--seeds"]
            command += [str(seed) for seed in options.seeds]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            if done.returncode:
                print(done.stderr[-2000:], file=sys.stderr)
            results += rows
            for row in rows:
                print(
                    f"{name:24s}{method:8s}seed {row['seed']}  {row['seconds']:6.1f} s  "
                    f"gap {row.get('elbo_gap', float('nan')):7.3f}  "
                    f"mean {row['mean_error']:.3f}  log sd {row['log_sd_error']:.3f}",
                    flush=True,
                )
    packages = ("numpyro_onestep", "numpyro", "jax", "optax", "arviz")
    about = {
        "versions": {package: version(package) for package in packages},
        "device": str(jax.devices()[0]),
        "cores": len(os.sched_getaffinity(0)),
        "seeds": options.seeds,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"about": about, "results": results}, indent=1))
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    (ROOT / "docs" / "posteriors.md").write_text(
        "# Reference posteriors\n\nMade by `python -m benchmarks.posteriors`; medians and ranges "
        f"over seeds {options.seeds}. Seconds include compilation, on {about['cores']} cores of "
        f"{about['device']}. {versions}.\n\ngap = log Z - ELBO; log Z error = log Z - estimate; "
        "mean and log sd: largest error of any parameter against the reference (a Monte Carlo "
        "error of about 0.04 is expected of 4000 draws); ESS: share of the pool.\n\n"
        + table(results)
        + "\n"
    )


if __name__ == "__main__":
    main()
