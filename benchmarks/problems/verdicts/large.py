"""Large numbers: large counts, many rows, data far from zero; all known to double precision."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats
from scipy.special import betaln, digamma, expit, gammaln, polygamma

from benchmarks.problems.verdicts.answers import (
    Answer,
    around_mode,
    collect,
    columns,
    known,
    linear_gaussian,
    normal_answer,
    summed,
)
from benchmarks.problems.verdicts.counts import log_choose

COUNTS, ROWS, OFFSET = "large counts", "many rows", "far from zero"


def _binomial(n, y):
    p = numpyro.sample("p", dist.Beta(2, 2))
    numpyro.sample("y", dist.Binomial(n, p), obs=y)


def _binomial_answer(n, y) -> Answer:
    a, b = 2.0 + y.sum(), 2.0 + n * len(y) - y.sum()
    log_z = log_choose(n, y).sum() + betaln(a, b) - betaln(2, 2)
    sd = np.sqrt(polygamma(1, a) + polygamma(1, b))
    return normal_answer(digamma(a) - digamma(b), sd, log_z)


def _poisson(y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 0.001))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def _poisson_answer(y) -> Answer:
    shape, rate = 2.0 + y.sum(), 0.001 + len(y)
    log_z = 2 * np.log(0.001) - shape * np.log(rate) + gammaln(shape) - gammaln(2.0)
    log_z -= gammaln(y + 1).sum()
    return normal_answer(digamma(shape) - np.log(rate), np.sqrt(polygamma(1, shape)), log_z)


def _multinomial(y):
    p = numpyro.sample("p", dist.Dirichlet(jnp.ones(len(y))))
    numpyro.sample("y", dist.Multinomial(y.sum(), p), obs=y)


def _multinomial_answer(y) -> Answer:
    a, total = 1.0 + y, y.sum()
    log_z = gammaln(total + 1) - gammaln(y + 1).sum()
    log_z += gammaln(len(y)) - gammaln(a.sum()) + gammaln(a).sum()
    mean = digamma(a) - digamma(a.sum())
    return normal_answer(mean, np.sqrt(polygamma(1, a) - polygamma(1, a.sum())), log_z)


def _poisson_regression(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 5).expand([X.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Poisson(jnp.exp(X @ beta)), obs=y)


def _poisson_regression_answer(X, y) -> Answer:
    def log_density(beta):
        eta = beta @ X.T
        prior = stats.norm.logpdf(beta, 0, 5).sum(-1)
        return prior + (y * eta - np.exp(eta) - gammaln(y + 1)).sum(-1)

    start = np.linalg.lstsq(X, np.log(np.maximum(y, 0.5)), rcond=None)[0]
    points, log_mass = around_mode(log_density, start, step=0.75)
    return summed(log_mass, points)


def _binomial_regression(n, X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([X.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Binomial(n, logits=X @ beta), obs=y)


def _logistic(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([X.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def _binomial_regression_answer(n, X, y) -> Answer:
    choose = log_choose(n, y).sum()

    def log_density(beta):
        eta = beta @ X.T
        prior = stats.norm.logpdf(beta, 0, 2).sum(-1)
        return prior + choose + y @ eta.T - (n * np.logaddexp(0, eta)).sum(-1)

    points, log_mass = around_mode(log_density, [-0.5, 0.5], step=0.8, reach=7.2)
    return summed(log_mass, points)


def _location_scale(prior_sd, scale_sd):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, prior_sd))
        sigma = numpyro.sample("sigma", dist.HalfNormal(scale_sd))
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)

    return model


def _location_scale_answer(y, prior_sd, scale_sd) -> Answer:
    """Of mu and log sigma."""
    n, centre = len(y), y.mean()
    squares = ((y - centre) ** 2).sum()

    def log_density(x):
        mu, u = x[:, 0] + centre, x[:, 1]
        log_likelihood = -0.5 * (squares + n * (mu - centre) ** 2) * np.exp(-2 * u) - n * u
        prior = stats.norm.logpdf(mu, 0, prior_sd) + stats.halfnorm.logpdf(np.exp(u), 0, scale_sd)
        return log_likelihood - 0.5 * n * np.log(2 * np.pi) + prior + u

    points, log_mass = around_mode(log_density, [0.0, np.log(y.std())], reach=10)
    return summed(log_mass, points + np.array([centre, 0.0]))


def _known_mean(y):
    mu = numpyro.sample("mu", dist.Normal(1e6, 100))
    numpyro.sample("y", dist.Normal(mu, 3.0), obs=y)


def _known_mean_answer(y) -> Answer:
    mean, covariance, log_z = linear_gaussian(np.ones((len(y), 1)), y - 1e6, 3.0, 100.0)
    return normal_answer(1e6 + mean, np.sqrt(covariance[0]), log_z)


def _years(year, y):
    a = numpyro.sample("a", dist.Normal(0, 1000))
    b = numpyro.sample("b", dist.Normal(0, 10))
    numpyro.sample("y", dist.Normal(a + b * year, 2.0), obs=y)


def _years_answer(year, y) -> Answer:
    design = np.stack([np.ones_like(year), year], axis=-1)
    mean, covariance, log_z = linear_gaussian(design, y, 2.0, [1000.0, 10.0])
    return normal_answer(mean, np.sqrt(np.diag(covariance)), log_z)


def _design(x):
    return np.stack([np.ones_like(x), x], axis=-1)


def _rounded(y):
    return y.astype(np.float32).astype(np.float64)


def _models():
    rng = np.random.default_rng(3300)
    x = _design(rng.uniform(-1, 1, 100))
    counts = rng.poisson(np.exp(x @ [9.0, 0.5]))
    few = _design(rng.uniform(-1, 1, 30))
    huge = rng.poisson(np.exp(few @ [13.0, 1.0]))
    trials = _design(rng.standard_normal(60))
    successes = rng.binomial(50_000, expit(trials @ [-0.4, 0.3]))
    twenty, more = (_design(rng.standard_normal(n)) for n in (20_000, 200_000))
    answers = [
        (rng.uniform(size=len(X)) < expit(X @ [-0.5, 0.8])).astype(int) for X in (twenty, more)
    ]
    year = np.arange(1950.0, 2021.0)
    temperatures = -30 + 0.02 * year + 2 * rng.standard_normal(len(year))
    # The data are rounded to single precision first, since the arithmetic is to be judged and not
    # their rounding.
    offset = _rounded(1e6 + 20 * rng.standard_normal(50))
    thousand = _rounded(offset / 1000)
    many = 3.0 + 2.0 * rng.standard_normal(100_000)
    as_given = np.random.default_rng(2).binomial(100_000, 0.3, 200)
    beta, scaled = columns("beta"), columns("mu", "sigma+")

    def made(name, kind, model, args, quantities, answer):
        return known(name, kind, model, args, quantities, lambda: answer(*args))

    return [
        made(
            "binomial_100000",
            COUNTS,
            _binomial,
            (100_000, as_given),
            columns("p%"),
            _binomial_answer,
        ),
        made(
            "binomial_30",
            COUNTS,
            _binomial,
            (30, as_given[:1] // 3000),
            columns("p%"),
            _binomial_answer,
        ),
        made(
            "poisson_1700",
            COUNTS,
            _poisson,
            (rng.poisson(1700, 1000),),
            columns("rate+"),
            _poisson_answer,
        ),
        made(
            "multinomial_1e6",
            COUNTS,
            _multinomial,
            (rng.multinomial(1_000_000, [0.4, 0.3, 0.15, 0.1, 0.04, 0.01]),),
            columns("p+"),
            _multinomial_answer,
        ),
        made(
            "poisson_regression_1e4",
            COUNTS,
            _poisson_regression,
            (x, counts),
            beta,
            _poisson_regression_answer,
        ),
        made(
            "poisson_regression_4e5",
            COUNTS,
            _poisson_regression,
            (few, huge),
            beta,
            _poisson_regression_answer,
        ),
        made(
            "binomial_regression_50000",
            COUNTS,
            _binomial_regression,
            (50_000, trials, successes),
            beta,
            _binomial_regression_answer,
        ),
        made(
            "logistic_20000_rows",
            ROWS,
            _logistic,
            (twenty, answers[0]),
            beta,
            lambda X, y: _binomial_regression_answer(1, X, y),
        ),
        made(
            "logistic_60000_rows",
            ROWS,
            _logistic,
            (more[:60_000], answers[1][:60_000]),
            beta,
            lambda X, y: _binomial_regression_answer(1, X, y),
        ),
        made(
            "normal_100000_rows",
            ROWS,
            _location_scale(10.0, 5.0),
            (many,),
            scaled,
            lambda y: _location_scale_answer(y, 10.0, 5.0),
        ),
        made(
            "normal_1000_rows",
            ROWS,
            _location_scale(10.0, 5.0),
            (many[:1000],),
            scaled,
            lambda y: _location_scale_answer(y, 10.0, 5.0),
        ),
        made(
            "normal_at_1e6", OFFSET, _known_mean, (offset[:30],), columns("mu"), _known_mean_answer
        ),
        made(
            "normal_at_1e6_vague",
            OFFSET,
            _location_scale(1e7, 100.0),
            (offset,),
            scaled,
            lambda y: _location_scale_answer(y, 1e7, 100.0),
        ),
        made(
            "normal_at_1000",
            OFFSET,
            _location_scale(1e4, 100.0),
            (thousand,),
            scaled,
            lambda y: _location_scale_answer(y, 1e4, 100.0),
        ),
        made("years", OFFSET, _years, (year, temperatures), columns("a", "b"), _years_answer),
    ]


LARGE = collect(*_models())
