"""Latent values of other structure: missing covariates, a map of areas, and posteriors on file."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import deterministic, plate

from benchmarks.problems.reference_posteriors import POSTERIORS
from benchmarks.problems.structured.base import Structured, forms
from benchmarks.problems.verdicts.answers import Answer

KIND = "missing values and maps"
ON_FILE = "reference posteriors"
SIDE = 6  # of the map, in areas

sample: Callable = numpyro.sample


def _imputed(age, missing, group, y):
    """Survival by age and group, where some ages are missing, as in NumPyro's example."""
    mu = sample("mu", dist.Normal(0, 1))
    sigma = sample("sigma", dist.HalfNormal(1))
    with plate("absent", len(missing)):
        imputed = sample("imputed", dist.Normal(mu, sigma))
    known = np.setdiff1d(np.arange(len(age)), missing)
    sample("age", dist.Normal(mu, sigma).expand([len(known)]), obs=age[known])
    full = jnp.asarray(age).at[missing].set(imputed)
    bias = sample("bias", dist.Normal(0, 2))
    slope = sample("slope", dist.Normal(0, 2))
    effect = sample("effect", dist.Normal(0, 2).expand([3]).to_event(1))
    sample("y", dist.Bernoulli(logits=bias + slope * full + effect[group]), obs=y)


def _imputed_data():
    rng = np.random.default_rng(7100)
    age, group = rng.normal(0.1, 0.8, 340), rng.integers(0, 3, 340)
    logits = 0.4 - 0.8 * age + np.array([1.0, 0.2, -0.7])[group]
    y = rng.binomial(1, 1 / (1 + np.exp(-logits)))
    missing = np.sort(rng.choice(340, 68, replace=False))
    age[missing] = 0.0
    return age.astype(np.float32), missing, group, y


def _grid_neighbours() -> np.ndarray:
    path = np.eye(SIDE, k=1) + np.eye(SIDE, k=-1)
    return (np.kron(path, np.eye(SIDE)) + np.kron(np.eye(SIDE), path)).astype(np.float32)


def _areas(centred: bool):
    """Counts of areas whose log rates are a conditional autoregression on their neighbours."""

    def model(expected, y):
        mu = sample("mu", dist.Normal(0, 2))
        sigma = sample("sigma", dist.HalfNormal(1))
        # At one the level of all areas would have no variance that is finite.
        correlation = sample("correlation", dist.Beta(2, 2))
        neighbours = _grid_neighbours()
        if centred:
            log_rate = sample("log_rate", dist.CAR(mu, correlation, sigma**-2, neighbours))
        else:
            unit = sample("unit", dist.CAR(0.0, correlation, 1.0, neighbours))
            log_rate = deterministic("log_rate", mu + sigma * unit)
        sample("y", dist.Poisson(expected * jnp.exp(log_rate)), obs=y)

    return model


def _areas_data():
    rng = np.random.default_rng(7200)
    neighbours = _grid_neighbours().astype(np.float64)
    precision = np.diag(neighbours.sum(1)) - 0.9 * neighbours
    phi = 0.8 * np.linalg.solve(np.linalg.cholesky(precision).T, rng.standard_normal(SIDE**2))
    expected = rng.uniform(2, 10, SIDE**2)
    return expected.astype(np.float32), rng.poisson(expected * np.exp(0.2 + phi))


def _on_file(name: str, sites: tuple[str, ...], latents: tuple[str, ...]) -> Structured:
    """A reference posterior, whose moments come from its file."""
    posterior = POSTERIORS[name]

    def answer() -> Answer:
        mean, sd, size = posterior.reference()
        kurtosis = np.full(len(mean), 3.0)
        return Answer(mean, sd, kurtosis, posterior.log_evidence, size)

    return Structured(name, ON_FILE, name, posterior.model, posterior.args, sites, latents, answer)


def others() -> list[Structured]:
    """All of this file."""
    sites = ("mu", "sigma+", "bias", "slope", "effect", "imputed")
    found = forms("imputation_68", KIND, {"centred": _imputed}, _imputed_data, sites, ("imputed",))
    models = {"centred": _areas(True), "noncentred": _areas(False)}
    sites = ("mu", "sigma+", "correlation%", "log_rate")
    found += forms("areas_36", KIND, models, _areas_data, sites, ("log_rate",))
    path = tuple(f"x{t:02d}" for t in range(30))
    found += [
        _on_file("seeds", ("a_0", "a_1", "a_12", "a_2", "b", "tau+"), ("b",)),
        _on_file("eight_schools", ("theta", "mu", "tau"), ("theta",)),
        _on_file("eight_schools_centered", ("theta", "mu", "tau"), ("theta",)),
        _on_file("brownian", ("inn+", "obsn+", *path), path),
        _on_file("gauss_mix", ("mu", "sigma", "theta"), ()),
    ]
    return found
