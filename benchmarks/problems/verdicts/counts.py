"""Hierarchies of counts: probabilities and rates integrated by conjugacy or a line of points."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats
from scipy.special import betaln, digamma, expit, gammaln, log_expit, logsumexp, polygamma

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

KIND = "hierarchy of counts"


def log_choose(n, k):
    """Log of the binomial coefficient."""
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _binomials_beta(n, y):
    m = numpyro.sample("m", dist.Beta(2, 2))
    k = numpyro.sample("k", dist.LogNormal(2, 1))
    with numpyro.plate("group", len(y)):
        p = numpyro.sample("p", dist.Beta(m * k, (1 - m) * k))
        numpyro.sample("y", dist.Binomial(n, p), obs=y)


def _binomials_beta_answer(n, y) -> Answer:
    """Of logit p, logit m and log k: p is integrated by conjugacy."""
    (v, u), volume = grid(line(-7, 7, 300), line(-5, 9, 300))
    m, k = expit(v), np.exp(u)
    log_mass = stats.beta.logpdf(m, 2, 2) + np.log(m * (1 - m)) + stats.norm.logpdf(u, 2, 1)
    log_mass += volume
    means, sds = [], []
    for n_i, y_i in zip(n, y, strict=True):
        a, b = m * k + y_i, (1 - m) * k + n_i - y_i
        log_mass = log_mass + log_choose(n_i, y_i) + betaln(a, b) - betaln(m * k, (1 - m) * k)
        means.append(digamma(a) - digamma(b))
        sds.append(np.sqrt(polygamma(1, a) + polygamma(1, b)))
    nothing = np.zeros_like(u)
    return summed(log_mass, stacked(*means, v, u), stacked(*sds, nothing, nothing))


def _binomials_logit_centred(n, y):
    mu = numpyro.sample("mu", dist.Normal(0, 1.5))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Binomial(n, logits=theta), obs=y)


def _binomials_logit_noncentred(n, y):
    mu = numpyro.sample("mu", dist.Normal(0, 1.5))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    with numpyro.plate("group", len(y)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Binomial(n, logits=theta), obs=y)


def _normal_effects_answer(log_likelihood, mu_sd: float, mu_range, y) -> Answer:
    """Of theta, mu and log tau: each theta = mu + tau z by a line of z."""
    (mu, u), volume = grid(line(*mu_range, 60), line(-14, 1.8, 110))
    z, log_weight = line(-7.5, 7.5, 151)
    tau = np.exp(u)
    theta = mu[:, None] + tau[:, None] * z
    log_prior = stats.norm.logpdf(z) + log_weight
    log_mass = stats.norm.logpdf(mu, 0, mu_sd) + stats.halfnorm.logpdf(tau) + u + volume
    means, sds = [], []
    for index in range(len(y)):
        log_joint = log_likelihood(theta, index) + log_prior
        log_one = logsumexp(log_joint, axis=1)
        weights = np.exp(log_joint - log_one[:, None])
        mean = (weights * theta).sum(1)
        means.append(mean)
        sds.append(np.sqrt((weights * (theta - mean[:, None]) ** 2).sum(1)))
        log_mass = log_mass + log_one
    nothing = np.zeros_like(u)
    return summed(log_mass, stacked(*means, mu, u), stacked(*sds, nothing, nothing))


def _binomials_logit_answer(n, y) -> Answer:
    def log_likelihood(theta, i):
        success, failure = y[i] * log_expit(theta), (n[i] - y[i]) * log_expit(-theta)
        return log_choose(n[i], y[i]) + success + failure

    return _normal_effects_answer(log_likelihood, 1.5, (-4, 3), y)


def _poisson_gamma(t, y):
    a = numpyro.sample("a", dist.Gamma(2.0, 0.5))
    b = numpyro.sample("b", dist.Gamma(2.0, 1.0))
    with numpyro.plate("unit", len(y)):
        rate = numpyro.sample("rate", dist.Gamma(a, b))
        numpyro.sample("y", dist.Poisson(rate * t), obs=y)


def _poisson_gamma_answer(t, y) -> Answer:
    """Of log rate, log a and log b: rates are integrated by conjugacy."""
    (u, v), volume = grid(line(-4, 4.5, 250), line(-6, 4, 250))
    a, b = np.exp(u), np.exp(v)
    log_mass = stats.gamma.logpdf(a, 2.0, scale=2.0) + u + stats.gamma.logpdf(b, 2.0) + v + volume
    means, sds = [], []
    for t_i, y_i in zip(t, y, strict=True):
        shape, rate = a + y_i, b + t_i
        log_mass = log_mass + y_i * np.log(t_i) - gammaln(y_i + 1)
        log_mass += a * v - gammaln(a) + gammaln(shape) - shape * np.log(rate)
        means.append(digamma(shape) - np.log(rate))
        sds.append(np.sqrt(polygamma(1, shape)))
    nothing = np.zeros_like(u)
    return summed(log_mass, stacked(*means, u, v), stacked(*sds, nothing, nothing))


def _poisson_effects(y):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Poisson(jnp.exp(theta)), obs=y)


def _poisson_effects_answer(y) -> Answer:
    def log_likelihood(theta, i):
        return y[i] * theta - np.exp(theta) - gammaln(y[i] + 1)

    return _normal_effects_answer(log_likelihood, 2.0, (-3, 5), y)


def _negative_binomial(y):
    mean = numpyro.sample("mean", dist.LogNormal(1, 1))
    concentration = numpyro.sample("concentration", dist.Gamma(2.0, 0.5))
    numpyro.sample("y", dist.NegativeBinomial2(mean, concentration), obs=y)


def _negative_binomial_answer(y) -> Answer:
    (u, v), volume = grid(line(-1, 4, 300), line(-5, 4.5, 300))
    mean, shape = np.exp(u), np.exp(v)
    log_mass = stats.norm.logpdf(u, 1, 1) + stats.gamma.logpdf(shape, 2.0, scale=2.0) + v + volume
    for y_i in y:
        log_mass += gammaln(y_i + shape) - gammaln(shape) - gammaln(y_i + 1)
        log_mass += shape * np.log(shape / (shape + mean)) + y_i * np.log(mean / (shape + mean))
    return summed(log_mass, stacked(u, v))


def _models():
    rng = np.random.default_rng(3200)
    n, few_n = rng.integers(15, 40, 12), np.full(60, 3)
    y = rng.binomial(n, rng.beta(2, 4, 12))
    few_y = rng.binomial(few_n, rng.beta(3, 3, 60))
    effects = rng.binomial(n, expit(-0.5 + 0.7 * rng.standard_normal(12)))
    t, many_t = rng.uniform(1, 10, 15), rng.uniform(1, 10, 100)
    counts = rng.poisson(t * rng.gamma(2.0, 0.5, 15))
    many_counts = rng.poisson(many_t * rng.gamma(2.0, 0.5, 100))
    small = rng.poisson(np.exp(1 + 0.6 * rng.standard_normal(20)))
    overdispersed = rng.poisson(rng.gamma(1.5, 4.0, 60))
    theta, rates = columns("theta", "mu", "tau+"), columns("rate+", "a+", "b+")

    def made(name, model, args, quantities, answer):
        return known(name, KIND, model, args, quantities, lambda: answer(*args))

    beta = columns("p%", "m%", "k+")
    return [
        made("binomials_12_beta", _binomials_beta, (n, y), beta, _binomials_beta_answer),
        made("binomials_60_beta", _binomials_beta, (few_n, few_y), beta, _binomials_beta_answer),
        made(
            "binomials_12_centred",
            _binomials_logit_centred,
            (n, effects),
            theta,
            _binomials_logit_answer,
        ),
        made(
            "binomials_12_noncentred",
            _binomials_logit_noncentred,
            (n, effects),
            theta,
            _binomials_logit_answer,
        ),
        made("poisson_gamma_15", _poisson_gamma, (t, counts), rates, _poisson_gamma_answer),
        made(
            "poisson_gamma_100",
            _poisson_gamma,
            (many_t, many_counts),
            rates,
            _poisson_gamma_answer,
        ),
        made("poisson_effects_20", _poisson_effects, (small,), theta, _poisson_effects_answer),
        made(
            "negative_binomial_60",
            _negative_binomial,
            (overdispersed,),
            columns("mean+", "concentration+"),
            _negative_binomial_answer,
        ),
    ]


COUNTS = collect(*_models())
