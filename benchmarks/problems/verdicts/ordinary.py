"""Posteriors that any sampler should get right: near Gaussian, in 1 to 31 dimensions."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats
from scipy.special import digamma, expit, gammaln, polygamma

from benchmarks.problems.verdicts.answers import (
    Answer,
    around_mode,
    collect,
    columns,
    grid,
    known,
    line,
    linear_gaussian,
    normal_answer,
    stacked,
    summed,
)

KIND = "ordinary"


def _normal_inverse_gamma(design, y, shape: float, rate: float) -> Answer:
    """Coefficients N(0, sigma^2), sigma^2 ~ InverseGamma: moments of them and of log sigma^2."""
    n, d = design.shape
    precision = design.T @ design + np.eye(d)
    mean = np.linalg.solve(precision, design.T @ y)
    new_shape, new_rate = shape + n / 2, rate + 0.5 * (y @ y - mean @ precision @ mean)
    log_z = (
        -0.5 * n * np.log(2 * np.pi)
        - 0.5 * np.linalg.slogdet(precision)[1]
        + shape * np.log(rate)
        - new_shape * np.log(new_rate)
        + gammaln(new_shape)
        - gammaln(shape)
    )
    covariance = np.linalg.inv(precision) * new_rate / (new_shape - 1)
    scale = np.log(new_rate) - digamma(new_shape), np.sqrt(polygamma(1, new_shape))
    return normal_answer(
        np.append(mean, scale[0]), np.append(np.sqrt(np.diag(covariance)), scale[1]), log_z
    )


def _conjugate_regression(X, y):
    sigma2 = numpyro.sample("sigma2", dist.InverseGamma(3.0, 2.0))
    prior = dist.Normal(0, jnp.sqrt(sigma2)).expand([X.shape[1]]).to_event(1)
    beta = numpyro.sample("beta", prior)
    numpyro.sample("y", dist.Normal(X @ beta, jnp.sqrt(sigma2)), obs=y)


def _known_noise(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([X.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ beta, 1.0), obs=y)


def _known_noise_answer(X, y, noise, prior_sd):
    mean, covariance, log_z = linear_gaussian(X, y, noise, prior_sd)
    return normal_answer(mean, np.sqrt(np.diag(covariance)), log_z)


def _autoregression(y):
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    numpyro.sample("y", dist.Normal(phi * y[:-1], sigma), obs=y[1:])


def _autoregression_answer(y):
    (v, u), volume = grid(line(-3, 8, 500), line(-2, 1.5, 300))
    phi, sigma = 2 * expit(v) - 1, np.exp(u)
    residuals = np.sum(y[1:] ** 2) - 2 * phi * np.sum(y[1:] * y[:-1]) + phi**2 * np.sum(y[:-1] ** 2)
    n = len(y) - 1
    log_mass = -0.5 * residuals / sigma**2 - n * u - 0.5 * n * np.log(2 * np.pi)
    log_mass += stats.halfnorm.logpdf(sigma) + u + np.log(expit(v) * expit(-v))
    return summed(log_mass + volume, stacked(phi, u))


def _random_walk(y):
    steps = numpyro.sample("steps", dist.Normal(0, 0.5).expand([len(y)]).to_event(1))
    x = numpyro.deterministic("x", jnp.cumsum(steps))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def _random_walk_path(y):
    x = numpyro.sample("x", dist.GaussianRandomWalk(0.5, num_steps=len(y)))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def _random_walk_answer(y):
    summing = np.tril(np.ones((len(y), len(y))))
    mean, covariance, log_z = linear_gaussian(summing, y, 1.0, 0.5)
    sd = np.sqrt(np.diag(summing @ covariance @ summing.T))
    return normal_answer(summing @ mean, sd, log_z)


def _ordered_pair(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,)))
    numpyro.factor("prior", dist.Normal(0, 3).log_prob(mu).sum())
    numpyro.sample("y", dist.Normal(mu, 0.5), obs=y)


def _ordered_pair_answer(y):
    # The coordinates are the lower one and the logarithm of its distance from the other.
    (low, u), volume = grid(line(-8, 9, 500), line(-25, 3, 700))
    mu = np.stack([low, low + np.exp(u)], axis=-1)
    log_mass = (stats.norm.logpdf(mu, 0, 3) + stats.norm.logpdf(y, mu, 0.5)).sum(-1)
    return summed(log_mass + u + volume, mu)


def _logistic(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([X.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def _logistic_answer(X, y):
    def log_density(beta):
        eta = beta @ X.T
        prior = stats.norm.logpdf(beta, 0, 2).sum(-1)
        return prior + (y * eta - np.logaddexp(0, eta)).sum(-1)

    points, log_mass = around_mode(log_density, np.zeros(X.shape[1]), reach=10, step=0.5)
    return summed(log_mass, points)


def _rate(y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.sample("y", dist.Exponential(rate), obs=y)


def _rate_answer(y):
    shape, rate = 2.0 + len(y), 1.0 + y.sum()
    log_z = gammaln(shape) - gammaln(2.0) - shape * np.log(rate)
    return normal_answer(digamma(shape) - np.log(rate), np.sqrt(polygamma(1, shape)), log_z)


def _correlated(covariance, y):
    x = numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(len(y)), covariance))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def _correlated_answer(covariance, y):
    total = covariance + np.eye(len(y))
    gain = covariance @ np.linalg.inv(total)
    log_z = stats.multivariate_normal.logpdf(y, np.zeros(len(y)), total)
    return normal_answer(gain @ y, np.sqrt(np.diag(covariance - gain @ covariance)), log_z)


def _student_regression(x, y):
    slope = numpyro.sample("slope", dist.Normal(0, 2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    numpyro.sample("y", dist.StudentT(4.0, slope * x, sigma), obs=y)


def _student_regression_answer(x, y):
    (slope, u), volume = grid(line(-1, 4, 300), line(-4, 2, 300))
    sigma = np.exp(u)
    log_mass = stats.norm.logpdf(slope, 0, 2) + stats.halfnorm.logpdf(sigma) + u + volume
    for x_i, y_i in zip(x, y, strict=True):
        log_mass += stats.t.logpdf((y_i - slope * x_i) / sigma, 4.0) - u
    return summed(log_mass, stacked(slope, u))


def _models():
    def generator(seed):
        return np.random.default_rng(3000 + seed)

    def made(name, model, args, quantities, answer):
        return known(name, KIND, model, args, quantities, lambda: answer(*args))

    def regression(seed, n, d):
        rng = generator(seed)
        X = rng.standard_normal((n, d))
        return X, X @ rng.standard_normal(d) + rng.standard_normal(n)

    rng = generator(0)
    y = [0.0]
    for _ in range(60):
        y.append(0.7 * y[-1] + 0.5 * rng.standard_normal())
    x_logistic = np.stack([np.ones(40), rng.standard_normal(40)], axis=-1)
    y_logistic = (rng.uniform(size=40) < expit(x_logistic @ [0.5, 1.5])).astype(int)
    turned = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    covariance = turned @ np.diag(np.geomspace(1e-3, 10.0, 8)) @ turned.T
    walk = np.cumsum(0.5 * rng.standard_normal(30)) + rng.standard_normal(30)
    x_line = rng.standard_normal(25)
    y_line = 1.5 * x_line + 0.7 * rng.standard_t(4, 25)
    small, middle, large = regression(1, 20, 1), regression(2, 40, 10), regression(3, 60, 30)
    beta, scale = columns("beta"), columns("beta", "sigma2+")
    return [
        made(
            "conjugate_1",
            _conjugate_regression,
            small,
            scale,
            lambda X, y: _normal_inverse_gamma(X, y, 3.0, 2.0),
        ),
        made(
            "conjugate_30",
            _conjugate_regression,
            large,
            scale,
            lambda X, y: _normal_inverse_gamma(X, y, 3.0, 2.0),
        ),
        made(
            "known_noise_10",
            _known_noise,
            middle,
            beta,
            lambda X, y: _known_noise_answer(X, y, 1.0, 2.0),
        ),
        made(
            "autoregression",
            _autoregression,
            (np.array(y),),
            columns("phi", "sigma+"),
            _autoregression_answer,
        ),
        made("random_walk_steps", _random_walk, (walk,), columns("x"), _random_walk_answer),
        made("random_walk_path", _random_walk_path, (walk,), columns("x"), _random_walk_answer),
        made(
            "ordered_pair",
            _ordered_pair,
            (np.array([0.3, 0.6]),),
            columns("mu"),
            _ordered_pair_answer,
        ),
        made("logistic_40", _logistic, (x_logistic, y_logistic), beta, _logistic_answer),
        made(
            "exponential_rate", _rate, (rng.exponential(0.5, 12),), columns("rate+"), _rate_answer
        ),
        made(
            "condition_1e4",
            _correlated,
            (covariance, 2 * rng.standard_normal(8)),
            columns("x"),
            _correlated_answer,
        ),
        made(
            "student_regression",
            _student_regression,
            (x_line, y_line),
            columns("slope", "sigma+"),
            _student_regression_answer,
        ),
    ]


ORDINARY = collect(*_models())
