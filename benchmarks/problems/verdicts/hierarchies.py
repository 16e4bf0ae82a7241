"""Hierarchies of normals: groups integrated by hand, scales by quadrature."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import LocScaleReparam
from scipy import stats

from benchmarks.problems.verdicts.answers import (
    Answer,
    collect,
    columns,
    grid,
    known,
    line,
    stacked,
    summed,
)

KIND = "hierarchy of normals"


def _centred(y, noise):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(3))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, noise), obs=y)


def _noncentred(y, noise):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(3))
    with numpyro.plate("group", len(y)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, noise), obs=y)


_half_centred = numpyro.handlers.reparam(_centred, config={"theta": LocScaleReparam(centered=0.5)})


def _centred_cauchy(y, noise):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(1))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, noise), obs=y)


def groups_answer(y, noise, log_prior_tau=None, log_tau=None) -> Answer:
    """Of theta, mu and log tau; mu ~ N(0, 5), and the others are normal given tau."""
    log_prior_tau = log_prior_tau or (lambda tau: stats.halfnorm.logpdf(tau, scale=3))
    u, volume = log_tau or line(-25, 5, 3000)
    tau = np.exp(u)
    total = tau[:, None] ** 2 + noise**2
    precision = 1 / 25 + (1 / total).sum(-1)
    mu = (y / total).sum(-1) / precision
    log_mass = (
        stats.norm.logpdf(y, mu[:, None], np.sqrt(total)).sum(-1)
        + stats.norm.logpdf(mu, 0, 5)
        + 0.5 * np.log(2 * np.pi / precision)
        + log_prior_tau(tau)
        + u
        + volume
    )
    shrunk = noise**2 / total
    theta = y * (1 - shrunk) + mu[:, None] * shrunk
    theta_sd = np.sqrt(tau[:, None] ** 2 * shrunk + shrunk**2 / precision[:, None])
    sds = stacked(theta_sd, 1 / np.sqrt(precision), np.zeros_like(u))
    return summed(log_mass, stacked(theta, mu, u), sds)


def _replicates(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(3))
    sigma = numpyro.sample("sigma", dist.HalfNormal(3))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Normal(theta[:, None], sigma), obs=y)


def _replicates_noncentred(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(3))
    sigma = numpyro.sample("sigma", dist.HalfNormal(3))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    theta = numpyro.deterministic("theta", mu + tau * z)
    numpyro.sample("y", dist.Normal(theta[:, None], sigma), obs=y)


def _replicates_answer(y) -> Answer:
    """As `groups_answer`, the noise unknown too: of theta, mu, log tau and log sigma."""
    groups, n = y.shape
    mean, squares = y.mean(1), ((y - y.mean(1, keepdims=True)) ** 2).sum()
    (u, v), volume = grid(line(-20, 4.5, 600), line(-3, 3, 200))
    tau, sigma = np.exp(u), np.exp(v)
    within = (sigma**2 / n)[:, None]
    total = tau[:, None] ** 2 + within
    precision = 1 / 25 + groups / total[:, 0]
    mu = (mean / total).sum(-1) / precision
    log_mass = (
        stats.norm.logpdf(mean, mu[:, None], np.sqrt(total)).sum(-1)
        + stats.norm.logpdf(mu, 0, 5)
        + 0.5 * np.log(2 * np.pi / precision)
        - 0.5 * groups * (n - 1) * np.log(2 * np.pi * sigma**2)
        - 0.5 * groups * np.log(n)
        - 0.5 * squares / sigma**2
        + stats.halfnorm.logpdf(tau, scale=3)
        + stats.halfnorm.logpdf(sigma, scale=3)
        + u
        + v
        + volume
    )
    shrunk = within / total
    theta = mean * (1 - shrunk) + mu[:, None] * shrunk
    theta_sd = np.sqrt(tau[:, None] ** 2 * shrunk + shrunk**2 / precision[:, None])
    theta_sd, nothing = np.broadcast_to(theta_sd, theta.shape), np.zeros_like(u)
    sds = stacked(theta_sd, 1 / np.sqrt(precision), nothing, nothing)
    return summed(log_mass, stacked(theta, mu, u, v), sds)


def _local_level(y):
    """A random walk whose step is unknown, from its standardised steps."""
    step = numpyro.sample("step", dist.HalfNormal(1))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    x = numpyro.deterministic("x", step * jnp.cumsum(z))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def _local_level_centred(y):
    step = numpyro.sample("step", dist.HalfNormal(1))
    x = numpyro.sample("x", dist.GaussianRandomWalk(step, num_steps=len(y)))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def _local_level_answer(y) -> Answer:
    """Of x and of the step's logarithm: x is normal given the step."""
    u, volume = line(-22, 2.5, 1500)
    summing = np.tril(np.ones((len(y), len(y))))
    eigenvalues, vectors = np.linalg.eigh(summing @ summing.T)
    prior = np.exp(2 * u)[:, None] * eigenvalues
    turned = vectors.T @ y
    log_mass = stats.norm.logpdf(turned, 0, np.sqrt(prior + 1)).sum(-1)
    log_mass += stats.halfnorm.logpdf(np.exp(u)) + u + volume
    gain = prior / (prior + 1)
    means, variances = (gain * turned) @ vectors.T, gain @ (vectors.T**2)
    sds = stacked(np.sqrt(variances), np.zeros_like(u))
    return summed(log_mass, stacked(means, u), sds)


def _models():
    def simulated(seed, groups, tau, low, high):
        rng = np.random.default_rng(3100 + seed)
        noise = rng.uniform(low, high, groups)
        return 1.0 + tau * rng.standard_normal(groups) + noise * rng.standard_normal(groups), noise

    def half_cauchy(tau):
        return stats.halfcauchy.logpdf(tau)

    few, many = simulated(0, 10, 2.0, 0.5, 1.5), simulated(1, 400, 1.0, 0.5, 1.0)
    weak, sharp = simulated(2, 40, 0.3, 1.0, 3.0), simulated(3, 100, 2.0, 0.1, 0.2)
    # These groups differ by no more than their noise, so that the scale's posterior reaches zero.
    none = simulated(4, 12, 0.0, 1.0, 2.0)
    rng = np.random.default_rng(3110)
    replicates = rng.normal(0, 1.5, (8, 1)) + rng.standard_normal((8, 5))
    walk = np.cumsum(0.3 * rng.standard_normal(30)) + rng.standard_normal(30)
    sites, scaled = columns("theta", "mu", "tau+"), columns("theta", "mu", "tau+", "sigma+")

    def made(name, model, args, quantities=sites, answer=groups_answer):
        return known(name, KIND, model, args, quantities, lambda: answer(*args))

    def made_cauchy(name, model, args):
        return made(name, model, args, answer=lambda *a: groups_answer(*a, half_cauchy))

    return [
        made("normals_10_centred", _centred, few),
        made("normals_10_noncentred", _noncentred, few),
        made("normals_10_half_centred", _half_centred, few),
        made("normals_12_no_spread_centred", _centred, none),
        made("normals_12_no_spread_noncentred", _noncentred, none),
        made("normals_12_no_spread_half_centred", _half_centred, none),
        made_cauchy("normals_10_half_cauchy", _centred_cauchy, few),
        made("normals_40_weak_centred", _centred, weak),
        made("normals_40_weak_noncentred", _noncentred, weak),
        made("normals_100_sharp_noncentred", _noncentred, sharp),
        made("normals_400_centred", _centred, many),
        made("replicates_8_centred", _replicates, (replicates,), scaled, _replicates_answer),
        made(
            "replicates_8_noncentred",
            _replicates_noncentred,
            (replicates,),
            scaled,
            _replicates_answer,
        ),
        made(
            "local_level_noncentred",
            _local_level,
            (walk,),
            columns("x", "step+"),
            _local_level_answer,
        ),
        made(
            "local_level_centred",
            _local_level_centred,
            (walk,),
            columns("x", "step+"),
            _local_level_answer,
        ),
    ]


HIERARCHIES = collect(*_models())
