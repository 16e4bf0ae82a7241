"""Many groups with few counts or labels each, integrated by a line of points in every group."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import plate
from scipy import stats
from scipy.special import gammaln, log_expit, logsumexp

from benchmarks.problems.structured.base import Structured, forms, normal_effect
from benchmarks.problems.structured.exact import Marginal, log_half_normal
from benchmarks.problems.verdicts.answers import line

KIND = "counts and labels in groups"
GROUPS = 300

sample: Callable = numpyro.sample


def _groups(centred: bool, likelihood: Callable):
    def model(y):
        mu = sample("mu", dist.Normal(0, 2))
        tau = sample("tau", dist.HalfNormal(1))
        with plate("group", len(y), dim=-2):
            theta = normal_effect("theta", mu, tau, centred)
            with plate("row", y.shape[1], dim=-1):
                sample("y", likelihood(theta), obs=y)

    return model


def _marginal(sums, counts, log_likelihood: Callable, constant: float) -> Marginal:
    """Of mu, log tau and theta; groups with the same sum have the same posterior.

    Args:
        sums: of every group.
        counts: how often each sum occurs, and the place of a group's sum among them.
        log_likelihood: of theta and sums, but for the constant (nats).
        constant: what the log likelihood of all groups lacks.
    """
    number, place = counts
    # Points so close that a normal as narrow as one group's likelihood is integrated exactly.
    z, log_weight = line(-8.5, 8.5, 500)
    log_prior = stats.norm.logpdf(z) + log_weight

    def joint(point):
        theta = point[0] + np.exp(point[1]) * z
        return theta, log_likelihood(theta, sums[:, None]) + log_prior

    def log_density(points):
        log_z = [number @ logsumexp(joint(point)[1], axis=1) for point in points]
        log_globals = stats.norm.logpdf(points[:, 0], 0, 2) + log_half_normal(points[:, 1], 1)
        return np.array(log_z) + log_globals + constant

    def conditional(point):
        theta, log_joint = joint(point)
        weights = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))
        mean = weights @ theta
        variance = (weights * (theta - mean[:, None]) ** 2).sum(1)
        return np.r_[point, mean[place]], np.r_[0.0, 0.0, variance[place]]

    return Marginal(("mu", "tau+"), log_density, conditional, [0.0, -0.3])


def _sums(y):
    sums, place, number = np.unique(y.sum(1), return_inverse=True, return_counts=True)
    return sums, (number, place)


def _poisson_marginal(y) -> Marginal:
    def log_likelihood(theta, total):
        return total * theta - y.shape[1] * np.exp(theta)

    return _marginal(*_sums(y), log_likelihood, -gammaln(y + 1.0).sum())


def _bernoulli_marginal(y) -> Marginal:
    def log_likelihood(theta, total):
        return total * log_expit(theta) + (y.shape[1] - total) * log_expit(-theta)

    return _marginal(*_sums(y), log_likelihood, 0.0)


def _poisson(theta):
    return dist.Poisson(jnp.exp(theta))


def _bernoulli(theta):
    return dist.Bernoulli(logits=theta)


def _poisson_data():
    rng = np.random.default_rng(6900)
    theta = 0.5 + 0.7 * rng.standard_normal((GROUPS, 1))
    return (rng.poisson(np.exp(theta), (GROUPS, 3)),)


def _bernoulli_data():
    rng = np.random.default_rng(6901)
    theta = 0.3 + rng.standard_normal((GROUPS, 1))
    return (rng.binomial(1, 1 / (1 + np.exp(-theta)), (GROUPS, 4)),)


def counts() -> list[Structured]:
    """All of this file."""
    found = []
    for name, likelihood, data, marginal in (
        ("poisson_300", _poisson, _poisson_data, _poisson_marginal),
        ("bernoulli_300", _bernoulli, _bernoulli_data, _bernoulli_marginal),
    ):
        models = {
            "centred": _groups(True, likelihood),
            "noncentred": _groups(False, likelihood),
        }
        sites = ("mu", "tau+", "theta")
        found += forms(name, KIND, models, data, sites, ("theta",), marginal)
    return found
