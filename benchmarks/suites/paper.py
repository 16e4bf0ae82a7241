"""The paper's suite: evidence from both sides, modes and distances, at several step budgets.

    python -m benchmarks.paper [--targets forty_modes ...] [--budgets 1 2 4] [--seeds 0 1 2]
                               [--resume]

For each target, budget k and seed one run of OneStep(num_flow_steps=k), with many_modes=True where
the target has several.  Beside the exact weights stands what the paper would have reported: the
deterministic-flow weight by the trace of each step's Jacobian from one Hutchinson probe.  Writes
benchmarks/results/paper.json, docs/paper.md and docs/paper.png.
"""

import argparse
import json
import time
import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from benchmarks.paper_targets import Target, right_share, targets
from benchmarks.store import Results
from numpyro_onestep import OneStep
from numpyro_onestep.importance.interval import evidence_interval

NUM = 4000
# Best published log Z or ELBO of other samplers, and what the paper itself lists (docs/method.md).
PUBLISHED = {
    "seeds": ("-73.4", "-44.35"),
    "sonar": ("-108.4 to -108.8", "-50.58"),
    "ionosphere": ("-111.6", "-86.68"),
    "credit": ("-585.1", ""),
    "credit_without_prior": ("-504.5", "-501.7"),
    "cancer": ("-78", ""),
    "brownian": ("1.0 to 1.2", "-11.37"),
}


def measure(target: Target, num_steps: int, seed: int) -> dict:
    """One run, and everything that is known to compare it with."""
    jax.clear_caches()
    settings = {
        "num_flow_steps": num_steps,
        "many_modes": target.many_modes,
        "progress_bar": False,
    }
    if target.model is not None:
        sampler, start = OneStep(target.model, **settings), None
    else:
        sampler = OneStep(potential_fn=target.potential, **settings)
        start = jnp.full(target.dim, 0.1)
    clock = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are recorded below
        sampler.run(jr.key(seed), *target.args, init_params=start)
    row = {
        "target": target.name,
        "dim": target.dim,
        "k": num_steps,
        "seed": seed,
        "seconds": time.perf_counter() - clock,
        "seconds_by_part": sampler.seconds,
        "log_z": target.log_z,
        "elbo": sampler.elbo,
        "log_evidence": sampler.log_evidence,
        "log_evidence_std_error": sampler.log_evidence_std_error,
        "pareto_k": sampler.pareto_k,
        "ess": sampler.ess / sampler.settings.num_pool,
        "published_excess": published_weight(sampler) - sampler.elbo,
        "warnings": sampler.messages,
    }
    if target.dim <= 128:
        interval = sampler.evidence_interval(jr.key(seed + 1))
        row |= {"upper": interval.upper, "upper_std_error": interval.upper_std_error}
    if target.sample is not None:
        row |= exact_figures(target, sampler, seed)
    if target.posterior is not None:
        row |= target.posterior.errors(sampler.get_samples())
    return row


def published_weight(sampler: OneStep) -> float:
    """The mean log weight by h times a trace from one probe in place of each log-determinant."""
    run = sampler._last
    assert run is not None
    assert run.pool is not None
    flow, potential = run.training.flow, run.potential
    taus, sizes = flow.schedule(run.num_flow_steps)

    def one(z, key):
        def advance(y, inputs):
            tau, size, step_key = inputs
            probe = jr.rademacher(step_key, y.shape, y.dtype)
            new, along = jax.jvp(lambda at: flow.step(at, tau, size), (y,), (probe,))
            return new, jnp.vdot(probe, along - probe)

        y, traces = jax.lax.scan(advance, z, (taus, sizes, jr.split(key, len(taus))))
        return -potential(y) - potential.noise.log_density(z) + traces.sum()

    z = run.pool.z[:NUM]
    weights = jax.lax.map(lambda at: one(*at), (z, jr.split(jr.key(0), len(z))), batch_size=500)
    return float(np.mean(np.asarray(weights)))


def exact_figures(target: Target, sampler: OneStep, seed: int) -> dict:
    """Against exact draws: upper bound, distance, and modes."""
    run = sampler._last
    assert run is not None
    assert run.pool is not None
    assert run.evidence is not None
    assert target.sample is not None
    rng = np.random.default_rng(seed)
    exact, again = target.sample(rng, NUM), target.sample(rng, NUM)
    x = jnp.asarray(exact, jnp.float32)
    bounds = evidence_interval(
        run.evidence,
        run.pool,
        run.training.flow,
        run.potential,
        run.num_flow_steps,
        x,
        jr.key(0),
        0,
    )
    draws = np.asarray(sampler.get_samples(), np.float64)
    own = np.asarray(sampler.sample(jr.key(seed + 2), NUM), np.float64)
    figures = {
        "eubo": bounds.upper,
        "distance": sliced_wasserstein(rng, draws, exact),
        "distance_own": sliced_wasserstein(rng, own, exact),
        "distance_exact": sliced_wasserstein(rng, again, exact),
    }
    if target.means is not None:
        for name, points in (("", draws), ("_own", own)):
            apart = ((points[:, None] - target.means) ** 2).sum(-1) / target.widths**2
            nearest = (apart + 2 * target.dim * np.log(target.widths)).argmin(1)
            shares = np.bincount(nearest, minlength=len(target.means)) / len(points)
            figures[f"modes{name}"] = int(np.sum(shares > 0))
            figures[f"tv{name}"] = float(0.5 * np.abs(shares - target.weights).sum())
    if target.wells:
        right = (draws[:, : target.wells] > 0).mean(0)
        pooled = np.exp(run.smoothed) @ (run.pool.x[:, : target.wells] > 0)
        true = right_share()
        # The largest error of either side's weight, as a share of it.
        for name, share in (("", right), ("_pool", pooled)):
            relative = np.abs(share - true)[:, None] / np.array([true, 1 - true])
            figures[f"well_error{name}"] = float(relative.max())
            figures[f"well_error_mean{name}"] = float(relative.mean())
    if target.dim == 2:
        figures["points"] = own[:1000].round(3).tolist()
    return figures


def sliced_wasserstein(rng, a, b, num: int = 200) -> float:
    """Root mean square over directions of the 2-Wasserstein distance of projections."""
    directions = rng.standard_normal((a.shape[1], num))
    directions /= np.linalg.norm(directions, axis=0)
    gaps = np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)
    return float(np.sqrt(np.mean(gaps**2)))


def main(arguments: list[str] | None = None) -> None:
    """Run, keep every result, and write the page."""
    known = targets()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(known), choices=known)
    parser.add_argument("--budgets", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--resume", action="store_true", help="keep what is there")
    options = parser.parse_args(arguments)
    results = Results("paper", options.resume)
    for name in options.targets:
        for num_steps in options.budgets:
            for seed in options.seeds:
                if results.holds(target=name, k=num_steps, seed=seed):
                    continue
                row = measure(known[name], num_steps, seed)
                results.add(row)
                shown = {
                    key: round(value, 3) if isinstance(value, float) else value
                    for key, value in row.items()
                    if key not in ("points", "seconds_by_part")
                }
                print(json.dumps(shown), flush=True)
    from benchmarks.paper_report import write  # matplotlib is wanted only here

    write()


if __name__ == "__main__":
    main()
