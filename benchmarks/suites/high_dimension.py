"""Cost and accuracy at d = 100, 300, 1024 and 2304, beside the Gaussian autoguides.

    python -m benchmarks.high_dimension [--targets groups ...] [--seeds 0 1 2] [--resume]

OneStep at default settings, then AutoMultivariateNormal and AutoLowRankMultivariateNormal with as
many iterations of SVI (32 particles, Adam at 5e-3) as fit into the time that OneStep took, their
compilation left out in their favour.  Writes benchmarks/results/high_dimension.json and
docs/high_dimension.md.
"""

import argparse
import json
import resource
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO, autoguide
from numpyro.optim import Adam

from benchmarks.store import DOCS, Results, machines, table
from numpyro_onestep import OneStep

GUIDES = {
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": autoguide.AutoLowRankMultivariateNormal,
}

COLUMNS = {
    "target": ("target", None),
    "seed": ("seed", None),
    "seconds": ("seconds", 0),
    "ELBO": ("elbo", 2),
    "log Z": ("log_evidence", 2),
    "k": ("pareto_k", 2),
    "ESS": ("ess", 2),
    "AutoMultivariateNormal": ("AutoMultivariateNormal", 2),
    "low rank": ("AutoLowRankMultivariateNormal", 2),
    "GiB": ("gigabytes", 1),
}


def groups(y, num):
    """Poisson counts in many groups with normal effects, non-centred: d = number of groups + 2."""
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([num]).to_event(1))
    numpyro.sample("y", dist.Poisson(jnp.exp(mu + sigma * z)[:, None]), obs=y)


def classification(y, factor):
    """Binary labels of a latent Gaussian process on a line, by its Cholesky factor."""
    scale = numpyro.sample("scale", dist.LogNormal(0, 0.5))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=scale * (factor @ z)), obs=y)


def cox_process(y, factor, mean, area):
    """A log-Gaussian Cox process on a grid, by its Cholesky factor (Moller et al., 1998)."""
    z = numpyro.sample("z", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Poisson(area * jnp.exp(mean + factor @ z)), obs=y)


def targets() -> dict:
    """Simulated data, from fixed seeds."""
    rng = np.random.default_rng(0)
    rates = np.exp(0.5 + 0.7 * rng.normal(size=(98, 1)))
    line = np.linspace(0, 10, 299)
    kernel = 4 * np.exp(-0.5 * (line[:, None] - line) ** 2) + 1e-4 * np.eye(299)
    smooth = np.linalg.cholesky(kernel)
    labels = rng.uniform(size=299) < 1 / (1 + np.exp(-smooth @ rng.normal(size=299)))
    single = np.float32
    return {
        "groups": (groups, (rng.poisson(rates, (98, 4)), 98)),
        "classification": (classification, (labels.astype(int), smooth.astype(single))),
        "cox_process": (cox_process, cox_process_data(32)),
        "cox_process_fine": (cox_process, cox_process_data(48)),
    }


def cox_process_data(side: int) -> tuple:
    """Points simulated on a grid, with variance, scale and mean as in Moller et al. (1998)."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) / side
    distance = np.linalg.norm(grid[:, None] - grid, axis=-1)
    variance, mean = 1.91, np.log(126) - 1.91 / 2
    field = np.linalg.cholesky(variance * np.exp(-distance * 33) + 1e-5 * np.eye(side**2))
    points = rng.poisson(np.exp(mean + field @ rng.normal(size=side**2)) / side**2)
    return points, field.astype(np.float32), np.float32(mean), 1 / side**2


def run_onestep(model, args, key) -> dict:
    """Default settings."""
    jax.clear_caches()
    sampler = OneStep(model, progress_bar=False)
    clock = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are recorded below
        sampler.run(key, *args)
    return {
        "seconds": time.perf_counter() - clock,
        "seconds_by_part": sampler.seconds,
        "elbo": sampler.elbo,
        "log_evidence": sampler.log_evidence,
        "pareto_k": sampler.pareto_k,
        "ess": sampler.ess / sampler.settings.num_pool,
        "iterations": len(sampler.losses),
        "warnings": sampler.messages,
    }


def run_guide(guide_class, model, args, key, seconds) -> float:
    """ELBO after as many iterations as fit into `seconds`, as the first 100 go."""
    guide = guide_class(model)
    svi = SVI(model, guide, Adam(5e-3), Trace_ELBO(num_particles=32))
    svi.run(key, 100, *args, progress_bar=False)
    clock = time.perf_counter()
    svi.run(key, 100, *args, progress_bar=False)
    num = max(100, int(100 * seconds / (time.perf_counter() - clock)))
    params = svi.run(key, num, *args, progress_bar=False).params
    loss = Trace_ELBO(num_particles=1000).loss(jax.random.key(1), params, model, guide, *args)
    return -float(loss)


def main() -> None:
    """Run, print, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    known_targets = targets()
    parser.add_argument("--targets", nargs="+", default=list(known_targets), choices=known_targets)
    parser.add_argument("--resume", action="store_true", help="keep what is there")
    options = parser.parse_args()
    results = Results("high_dimension", options.resume)
    for name in options.targets:
        model, args = known_targets[name]
        for seed in options.seeds:
            if results.holds(target=name, seed=seed):
                continue
            key = jax.random.key(seed)
            row = {"target": name, "seed": seed, **run_onestep(model, args, key)}
            for guide, guide_class in GUIDES.items():
                row[guide] = run_guide(guide_class, model, args, key, row["seconds"])
            row["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(json.dumps(row), flush=True)
            results.add(row)
    order = list(known_targets)
    rows = sorted(results.rows, key=lambda row: (order.index(row["target"]), row["seed"]))
    (DOCS / "high_dimension.md").write_text(
        "# Higher dimension\n\nMade by `python -m benchmarks.high_dimension` on "
        f"{machines(rows)}. groups: d = 100, classification: 300, cox_process: 1024, "
        "cox_process_fine: 2304. The guides' ELBOs are after as much time as OneStep took, "
        "compilation of theirs not counted; GiB is the peak of the process so far.\n\n"
        f"{table(rows, COLUMNS)}\n"
    )


if __name__ == "__main__":
    main()
