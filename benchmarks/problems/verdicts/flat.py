"""Posteriors at the limits of single precision, and posteriors with directions that are flat.

Where a flat direction makes the integral infinite, the other quantities are judged, and a run that
does not warn counts as wrong in silence. Values that a mask leaves out of the likelihood are not
judged.
"""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats
from scipy.special import gammainc, gammaln

from benchmarks.problems.verdicts.answers import (
    Answer,
    collect,
    columns,
    known,
    linear_gaussian,
    normal_answer,
)

PRECISION, FLAT = "precision", "flat directions"


def _zero_of_20():
    p = numpyro.sample("p", dist.Beta(0.1, 0.1))
    numpyro.sample("y", dist.Binomial(20, p), obs=0)


def _zero_of_20_answer() -> Answer:
    log_z = gammaln(20.1) - gammaln(20.2) - gammaln(0.1) + gammaln(0.2)
    p = stats.beta(0.1, 20.1)
    mean, variance, _, excess = p.stats("mvsk")
    return Answer(np.array([mean]), np.sqrt([variance]), np.array([excess + 3]), float(log_z))


def _zero_counts(y):
    rate = numpyro.sample("rate", dist.Gamma(0.1, 0.1))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def _zero_counts_cdf(draws) -> np.ndarray:
    return gammainc(0.1, 5.1 * np.asarray(draws["rate"], np.float64))[:, None]


def _zero_counts_answer(y) -> Answer:
    return Answer(np.array([0.5]), np.sqrt([1 / 12]), np.array([1.8]), 0.1 * np.log(0.1 / 5.1))


def _beta(a, b):
    def model():
        numpyro.sample("p", dist.Beta(a, b))

    return model


def _beta_answer(a, b):
    def answer() -> Answer:
        mean, variance, _, excess = stats.beta(a, b).stats("mvsk")
        return Answer(np.array([mean]), np.sqrt([variance]), np.array([excess + 3]), 0.0)

    return answer


def _sparse_shares():
    numpyro.sample("p", dist.Dirichlet(jnp.full(5, 0.1)))


def _sparse_shares_answer() -> Answer:
    one = _beta_answer(0.1, 0.4)()
    return Answer(*(np.tile(f, 5) for f in (one.mean, one.sd, one.kurtosis)), 0.0)


def _ridge(noise):
    def model(y):
        x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(x[0] + x[1], noise), obs=y)

    return model


def _ridge_answer(noise):
    def answer(y) -> Answer:
        mean, covariance, log_z = linear_gaussian(np.ones((1, 2)), y[None], noise, 1.0)
        return normal_answer(mean, np.sqrt(np.diag(covariance)), log_z)

    return answer


def _unused(constraint):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        numpyro.sample("unused", dist.ImproperUniform(constraint, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    return model


def _mean_answer(y, prior_sd=5.0) -> Answer:
    mean, covariance, _ = linear_gaussian(np.ones((len(y), 1)), y, 1.0, prior_sd)
    return normal_answer(mean, np.sqrt(covariance[0]), None)


def _difference(y):
    flat = dist.ImproperUniform(dist.constraints.real, (), ())
    a, b = numpyro.sample("a", flat), numpyro.sample("b", flat)
    numpyro.sample("y", dist.Normal(a - b, 1.0), obs=y)


def _difference_quantities(draws) -> np.ndarray:
    return np.asarray(draws["a"], np.float64)[:, None] - np.asarray(draws["b"])[:, None]


def _missing_mean(seen, y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)


def _missing_line(x, seen, y):
    a = numpyro.sample("a", dist.Normal(0, 3))
    b = numpyro.sample("b", dist.Normal(0, 3))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y, obs_mask=seen)


def _missing_line_answer(x, seen, y) -> Answer:
    design = np.stack([np.ones_like(x), x], axis=-1)[seen]
    mean, covariance, _ = linear_gaussian(design, y[seen], 1.0, 3.0)
    return normal_answer(mean, np.sqrt(np.diag(covariance)), None)


def _models():
    rng = np.random.default_rng(3650)
    x, few, sharp = rng.standard_normal(20), rng.normal(1, 1, 10), np.array(0.7)
    seen = rng.uniform(size=20) < 0.6
    values = np.where(seen, 1.0 + 0.5 * x + rng.standard_normal(20), 0.0)
    mu, p, both = columns("mu"), columns("p"), columns("x")
    real, positive = dist.constraints.real, dist.constraints.positive
    zeros, regression = np.zeros(5, int), columns("a", "b")

    def precise(name, model, args, quantities, answer):
        return known(name, PRECISION, model, args, quantities, lambda: answer(*args))

    def flat(name, model, args, quantities, answer):
        return known(name, FLAT, model, args, quantities, lambda: answer(*args))

    def only_seen(seen, y):
        return _mean_answer(y[seen])

    def improper(y):
        return replace(_mean_answer(y), is_proper=False)

    def without_prior(y):
        return replace(_mean_answer(y, np.inf), is_proper=False)

    missing = x, seen, values
    return [
        precise("zero_of_20", _zero_of_20, (), p, _zero_of_20_answer),
        precise("zero_counts", _zero_counts, (zeros,), _zero_counts_cdf, _zero_counts_answer),
        precise("beta_0.02_0.5", _beta(0.02, 0.5), (), p, _beta_answer(0.02, 0.5)),
        precise("beta_0.02_0.02", _beta(0.02, 0.02), (), p, _beta_answer(0.02, 0.02)),
        precise("dirichlet_0.1", _sparse_shares, (), p, _sparse_shares_answer),
        precise("ridge_1e-3", _ridge(1e-3), (sharp,), both, _ridge_answer(1e-3)),
        precise("ridge_1e-5", _ridge(1e-5), (sharp,), both, _ridge_answer(1e-5)),
        flat("unused_real", _unused(real), (few,), mu, improper),
        flat("unused_positive", _unused(positive), (few,), mu, improper),
        flat("difference_only", _difference, (few,), _difference_quantities, without_prior),
        flat("missing_mean", _missing_mean, (seen, values), mu, only_seen),
        flat("missing_line", _missing_line, missing, regression, _missing_line_answer),
    ]


FLAT_OR_PRECISE = collect(*_models())
