"""How a run of OneStep compares with a target of which everything is known; two suites use it."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from benchmarks.internals import weights_by_traces
from benchmarks.methods.onestep import fit, weight_figures
from benchmarks.problems.target import Target, nearest_component, right_share
from benchmarks.store import Row
from benchmarks.tables import in_order, table_over_seeds
from numpyro_onestep import OneStep

# Exact draws, corrected draws and draws of the flow are compared in such a number.
NUM = 4000
# Beyond so many dimensions, inverting the map takes too long for the upper bound.
LARGEST_INVERTED = 128
# The upper bound is infinite unless the inverse is found for such a share of the exact draws. One
# in a thousand may be lost to rounding; more is mass that the map gives no density.
FEWEST_INVERTED = 0.999


def measure(target: Target, num_steps: int, seed: int) -> Row:
    """One run with so many flow steps, and everything that is known to compare it with."""
    jax.clear_caches()
    settings: dict[str, Any] = {"num_flow_steps": num_steps, "multimodal": target.multimodal}
    if target.model is not None:
        settings |= {"model": target.model, "args": target.args}
    else:
        start = jnp.full(target.dim, 0.1)
        settings |= {"potential_fn": target.potential, "init_params": start}
    sampler, seconds = fit(jr.key(seed), **settings)
    row = {
        "target": target.name,
        "dim": target.dim,
        "k": num_steps,
        "seed": seed,
        "seconds": seconds,
        "seconds_by_part": sampler.seconds,
        "log_z": target.log_z,
        **weight_figures(sampler),
        "log_evidence_std_error": sampler.log_evidence_std_error,
        "published_excess": published_elbo(sampler) - sampler.elbo,
        "warnings": sampler.messages,
    }
    if target.dim <= LARGEST_INVERTED:
        interval = sampler.evidence_interval(jr.key(seed + 1))
        row |= {"upper": interval.upper, "upper_std_error": interval.upper_std_error}
    if target.sample is not None:
        row |= exact_figures(target, sampler, seed)
    if target.posterior is not None:
        row |= target.posterior.errors(sampler.get_samples())
    return row


def published_elbo(sampler: OneStep) -> float:
    """What the paper's method would report as the ELBO of the same map (nats)."""
    return float(np.mean(weights_by_traces(sampler, NUM, jr.key(0))))


def upper_bound(target: Target, sampler: OneStep, exact: np.ndarray) -> float:
    """The mean log weight of exact draws (nats), by the inverse of the map."""
    assert target.potential is not None
    x = jnp.asarray(exact, jnp.float32)
    # Where the inverse is not found, the log density is minus infinity or not a number.
    log_q = np.asarray(sampler.get_posterior().log_prob(x), np.float64)
    energy = np.asarray(jax.lax.map(target.potential, x, batch_size=500), np.float64)
    log_weight = -energy - log_q
    found = np.isfinite(log_weight)
    return float(log_weight[found].mean()) if found.mean() >= FEWEST_INVERTED else float("inf")


def exact_figures(target: Target, sampler: OneStep, seed: int) -> Row:
    """Upper bound, distances and modes, by exact draws of the target."""
    assert target.sample is not None
    rng = np.random.default_rng(seed)
    exact, again = target.sample(rng, NUM), target.sample(rng, NUM)
    draws = np.asarray(sampler.get_samples(), np.float64)
    own = np.asarray(sampler.sample(jr.key(seed + 2), NUM), np.float64)
    figures: Row = {
        "eubo": upper_bound(target, sampler, exact),
        "distance": sliced_wasserstein(rng, draws, exact),
        "distance_own": sliced_wasserstein(rng, own, exact),
        "distance_exact": sliced_wasserstein(rng, again, exact),
    }
    if target.means is not None:
        for name, points in (("", draws), ("_own", own)):
            nearest = nearest_component(target, points)
            shares = np.bincount(nearest, minlength=len(target.means)) / len(points)
            figures[f"modes{name}"] = int(np.sum(shares > 0))
            figures[f"tv{name}"] = float(0.5 * np.abs(shares - target.weights).sum())
    if target.wells:
        right = (draws[:, : target.wells] > 0).mean(0)
        weights = np.exp(np.asarray(sampler.result.smoothed_log_weights))
        pooled = weights @ (np.asarray(sampler.get_pool().x)[:, : target.wells] > 0)
        true = right_share()
        # The errors of both sides' probabilities, as shares of these.
        for name, share in (("", right), ("_pool", pooled)):
            relative = np.abs(share - true)[:, None] / np.array([true, 1 - true])
            figures[f"well_error{name}"] = float(relative.max())
            figures[f"well_error_mean{name}"] = float(relative.mean())
    if target.dim == 2:
        figures["points"] = own[:1000].round(3).tolist()
    return figures


def sliced_wasserstein(rng, a: np.ndarray, b: np.ndarray, num: int = 200) -> float:
    """Root mean square over random directions of the 2-Wasserstein distance of projections."""
    directions = rng.standard_normal((a.shape[1], num))
    directions /= np.linalg.norm(directions, axis=0)
    gaps = np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)
    return float(np.sqrt(np.mean(gaps**2)))


def with_errors(rows: list[Row], order: Iterable[str]) -> list[Row]:
    """The rows by target, steps and seed, with the errors that follow from a known log Z (nats)."""
    found = []
    for row in in_order(sorted(rows, key=lambda row: (row["k"], row["seed"])), target=order):
        errors = {}
        if row["log_z"] is not None:
            errors["gap"] = row["log_z"] - row["elbo"]
            errors["error"] = row["log_evidence"] - row["log_z"]
            upper = row.get("eubo", row.get("upper"))
            if upper is not None:
                errors["above"] = upper - row["log_z"]
        found.append(row | errors)
    return found


def table_by_target(rows: list[Row], columns: dict[str, tuple[str, int]]) -> str:
    """A table with one line for each target and number of steps."""
    by = {"target": "target", "d": "dim", "steps": "k"}
    return table_over_seeds(rows, by, columns, {"warned": "warnings"})
