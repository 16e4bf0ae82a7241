"""Posteriors that end at an edge: likelihoods whose support moves with a parameter.

A density of NumPyro's is zero outside its support only if it validates its arguments, which is the
default unless Python runs with `-O`. Most models here ask for validation, or have the edge as a
factor of minus infinity. The two of the kind "moving support by default" rely on the default, as
users do.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
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

MOVING, DEFAULT = "moving support", "moving support by default"


def _inside(condition):
    numpyro.factor("inside", jnp.where(condition, 0.0, -jnp.inf))


def _above(edge: float, log_density) -> Answer:
    """Of log theta, for theta > edge > 0: by the logarithm of its distance from the edge."""
    u, volume = line(-40, 7, 3000)
    theta = edge + np.exp(u)
    return summed(log_density(theta) + u + volume, stacked(np.log(theta)))


def _uniform(prior, **checked):
    def model(y):
        theta = numpyro.sample("theta", prior)
        numpyro.sample("y", dist.Uniform(0.0, theta, **checked), obs=y)

    return model


def _uniform_answer(log_prior):
    return lambda y: _above(y.max(), lambda theta: log_prior(theta) - len(y) * np.log(theta))


def _uniform_both(y):
    low = numpyro.sample("low", dist.Normal(0, 3))
    width = numpyro.sample("width", dist.HalfNormal(5))
    numpyro.sample("y", dist.Uniform(low, low + width, validate_args=True), obs=y)


def _uniform_both_answer(y) -> Answer:
    # The grid is one of the logarithms of both ends' distances from the data.
    (u, v), volume = grid(line(-32, 4, 700), line(-32, 4, 700))
    low, high = y.min() - np.exp(u), y.max() + np.exp(v)
    log_mass = stats.norm.logpdf(low, 0, 3) + stats.halfnorm.logpdf(high - low, 0, 5)
    log_mass += u + v + volume - len(y) * np.log(high - low)
    return summed(log_mass, stacked(low, np.log(high - low)))


def _shifted_exponential(y):
    start = numpyro.sample("start", dist.Normal(0, 3))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    _inside(jnp.all(y > start))
    numpyro.sample("y", dist.Exponential(rate), obs=y - start)


def _shifted_exponential_default(y):
    start = numpyro.sample("start", dist.Normal(0, 3))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.factor("y", dist.Exponential(rate).log_prob(y - start).sum())


def _shifted_exponential_answer(y) -> Answer:
    (u, v), volume = grid(line(-35, 3, 800), line(-4, 4, 300))
    start, rate = y.min() - np.exp(u), np.exp(v)
    log_mass = stats.norm.logpdf(start, 0, 3) + u + stats.gamma.logpdf(rate, 2.0) + v + volume
    log_mass += len(y) * v - rate * (y.sum() - len(y) * start)
    return summed(log_mass, stacked(start, v))


def _pareto(y):
    scale = numpyro.sample("scale", dist.Gamma(2.0, 1.0))
    alpha = numpyro.sample("alpha", dist.Gamma(2.0, 1.0))
    numpyro.sample("y", dist.Pareto(scale, alpha, validate_args=True), obs=y)


def _pareto_answer(y) -> Answer:
    # The scale is a fraction of the smallest datum. The grid's first coordinate is the logarithm of
    # minus that fraction's logarithm.
    (u, v), volume = grid(line(-35, 3.5, 800), line(-4, 3, 300))
    log_scale, alpha = np.log(y.min()) - np.exp(u), np.exp(v)
    scale = np.exp(log_scale)
    log_mass = stats.gamma.logpdf(scale, 2.0) + log_scale + u
    log_mass += stats.gamma.logpdf(alpha, 2.0) + v + volume
    log_mass += len(y) * (v + alpha * log_scale) - (alpha + 1) * np.log(y).sum()
    return summed(log_mass, stacked(log_scale, v))


def _bound(y):
    bound = numpyro.sample("bound", dist.Gamma(3.0, 1.0))
    _inside(jnp.all(y < bound))
    numpyro.sample("y", dist.TruncatedNormal(0.0, 1.0, high=bound), obs=y)


def _bound_answer(y) -> Answer:
    def log_density(bound):
        log_likelihood = stats.norm.logpdf(y).sum() - len(y) * stats.norm.logcdf(bound)
        return stats.gamma.logpdf(bound, 3.0) + log_likelihood

    return _above(y.max(), log_density)


def _triangular(y):
    theta = numpyro.sample("theta", dist.Gamma(2.0, 0.5))
    _inside(jnp.all(y < theta))
    # The density of a datum falls linearly from 0 to theta, where its logarithm is minus infinity.
    numpyro.factor("y", jnp.sum(jnp.log(2 * jnp.maximum(theta - y, 0.0)) - 2 * jnp.log(theta)))


def _triangular_answer(y) -> Answer:
    edge = y.max()

    def log_density(theta):
        others = np.log(theta[:, None] - np.delete(y, y.argmax())).sum(-1)
        log_likelihood = len(y) * np.log(2) + others - 2 * len(y) * np.log(theta)
        return stats.gamma.logpdf(theta, 2.0, scale=2.0) + log_likelihood

    u, volume = line(-30, 7, 3000)
    theta = edge + np.exp(u)  # so that the largest datum's own factor is exp(u)
    return summed(log_density(theta) + 2 * u + volume, stacked(np.log(theta)))


def _models():
    rng = np.random.default_rng(3400)
    wide = rng.uniform(0, 3, 20)
    wide[0] = 3.0
    few = rng.uniform(0, 3, 5)
    both = rng.uniform(-1, 2, 10)
    late = 1.0 + rng.exponential(0.5, 25)
    heavy = 1.5 * np.exp(rng.exponential(0.5, 15))
    cut = stats.truncnorm.rvs(-np.inf, 1.0, size=20, random_state=rng)
    triangular = 4.0 * (1 - np.sqrt(rng.uniform(size=12)))
    half_normal, log_normal, gamma = (
        lambda t: stats.halfnorm.logpdf(t, 0, 5),
        lambda t: stats.norm.logpdf(np.log(t), 1, 1) - np.log(t),
        lambda t: stats.gamma.logpdf(t, 2.0, scale=2.0),
    )
    theta, located = columns("theta+"), columns("start", "rate+")
    checked = {"validate_args": True}
    at_half_normal = _uniform(dist.HalfNormal(5), **checked), (wide,), theta
    at_log_normal = _uniform(dist.LogNormal(1, 1), **checked), (few,), theta
    at_gamma = _uniform(dist.Gamma(2.0, 0.5), **checked), (wide[:2],), theta
    both_ends = _uniform_both, (both,), columns("low", "width+")
    exponential = _shifted_exponential, (late,), located
    pareto = _pareto, (heavy,), columns("scale+", "alpha+")
    bound = _bound, (cut,), columns("bound+")
    plain = _uniform(dist.HalfNormal(5)), (wide,), theta
    exponential_default = _shifted_exponential_default, (late,), located

    def made(name, kind, setting, answer):
        model, args, quantities = setting
        return known(name, kind, model, args, quantities, lambda: answer(*args))

    return [
        made("uniform_half_normal", MOVING, at_half_normal, _uniform_answer(half_normal)),
        made("uniform_log_normal", MOVING, at_log_normal, _uniform_answer(log_normal)),
        made("uniform_gamma", MOVING, at_gamma, _uniform_answer(gamma)),
        made("uniform_both_ends", MOVING, both_ends, _uniform_both_answer),
        made("shifted_exponential", MOVING, exponential, _shifted_exponential_answer),
        made("pareto_scale", MOVING, pareto, _pareto_answer),
        made("truncation_bound", MOVING, bound, _bound_answer),
        made("triangular", MOVING, (_triangular, (triangular,), theta), _triangular_answer),
        made("uniform_default", DEFAULT, plain, _uniform_answer(half_normal)),
        made("exponential_default", DEFAULT, exponential_default, _shifted_exponential_answer),
    ]


EDGES = collect(*_models())
