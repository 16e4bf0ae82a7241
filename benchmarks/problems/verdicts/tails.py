"""Heavy, cut and censored tails: survival times, extremes, outliers."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats
from scipy.special import digamma, gammaln, polygamma

from benchmarks.problems.verdicts.answers import (
    Answer,
    around_mode,
    collect,
    columns,
    grid,
    known,
    line,
    normal_answer,
    stacked,
    summed,
)

KIND = "tails, cut and censored"


def _truncated_prior(y):
    mu = numpyro.sample("mu", dist.TruncatedNormal(0.0, 1.0, low=3.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def _above_three(draws) -> np.ndarray:
    return np.log(np.asarray(draws["mu"], np.float64) - 3)[:, None]


def _truncated_prior_answer(y) -> Answer:
    u, volume = line(-35, 2.5, 2000)
    mu = 3 + np.exp(u)
    log_mass = stats.norm.logpdf(mu) - stats.norm.logsf(3.0) + u + volume
    log_mass += stats.norm.logpdf(y[:, None], mu).sum(0)
    return summed(log_mass, stacked(u))


def _half_cauchy_scale(y):
    sigma = numpyro.sample("sigma", dist.HalfCauchy(1))
    numpyro.sample("y", dist.Normal(0, sigma), obs=y)


def _half_cauchy_scale_answer(y) -> Answer:
    u, volume = line(-8, 25, 3000)
    log_mass = stats.halfcauchy.logpdf(np.exp(u)) + u + volume
    log_mass += stats.norm.logpdf(y[:, None], 0, np.exp(u)).sum(0)
    return summed(log_mass, stacked(u))


def _truncated_data(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    numpyro.sample("y", dist.TruncatedNormal(mu, sigma, low=0.0), obs=y)


def _truncated_data_answer(y) -> Answer:
    (mu, u), volume = grid(line(-24, 6, 600), line(-2.5, 2.4, 400))
    sigma = np.exp(u)
    log_mass = stats.norm.logpdf(mu, 0, 3) + stats.halfnorm.logpdf(sigma, 0, 2) + u + volume
    log_mass -= len(y) * stats.norm.logsf(0, mu, sigma)
    for y_i in y:
        log_mass += stats.norm.logpdf(y_i, mu, sigma)
    return summed(log_mass, stacked(mu, u))


def _student(y):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    numpyro.sample("y", dist.StudentT(3.0, mu, 1.0), obs=y)


def _student_answer(y) -> Answer:
    mu, volume = line(-60, 60, 20_001)
    log_mass = stats.norm.logpdf(mu, 0, 10) + stats.t.logpdf(y[:, None] - mu, 3.0).sum(0)
    return summed(log_mass + volume, stacked(mu))


def _student_df(y):
    df = numpyro.sample("df", dist.Gamma(2.0, 0.1))
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    numpyro.sample("y", dist.StudentT(df, mu, sigma), obs=y)


def _student_df_answer(y) -> Answer:
    (w, mu, u), volume = grid(line(-5, 5.6, 90), line(-1.5, 2.5, 70), line(-2.5, 2, 70))
    df, sigma = np.exp(w), np.exp(u)
    log_mass = stats.gamma.logpdf(df, 2.0, scale=10.0) + w + stats.norm.logpdf(mu, 0, 5)
    log_mass += stats.halfnorm.logpdf(sigma, 0, 2) + u + volume
    constant = gammaln((df + 1) / 2) - gammaln(df / 2) - 0.5 * np.log(df * np.pi) - u
    for y_i in y:
        log_mass += constant - (df + 1) / 2 * np.log1p(((y_i - mu) / sigma) ** 2 / df)
    return summed(log_mass, stacked(w, mu, u))


def _weibull(seen, y):
    scale = numpyro.sample("scale", dist.LogNormal(1, 1))
    shape = numpyro.sample("shape", dist.LogNormal(0, 0.5))
    numpyro.factor("censored", -jnp.sum(jnp.where(seen, 0.0, (y / scale) ** shape)))
    with numpyro.handlers.mask(mask=seen):
        numpyro.sample("y", dist.Weibull(scale, shape), obs=y)


def _weibull_answer(seen, y) -> Answer:
    (u, v), volume = grid(line(-1, 4, 250), line(-2, 2, 250))
    shape, log_mass = np.exp(v), stats.norm.logpdf(u, 1, 1) + stats.norm.logpdf(v, 0, 0.5) + volume
    for seen_i, y_i in zip(seen, y, strict=True):
        ratio = np.log(y_i) - u
        log_mass -= np.exp(shape * ratio)
        if seen_i:
            log_mass += v - u + (shape - 1) * ratio
    return summed(log_mass, stacked(u, v))


def _censored_exponential(seen, y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    numpyro.factor("y", jnp.sum(jnp.where(seen, jnp.log(rate), 0.0) - rate * y))


def _censored_exponential_answer(seen, y) -> Answer:
    shape, rate = 2.0 + seen.sum(), 1.0 + y.sum()
    log_z = gammaln(shape) - gammaln(2.0) - shape * np.log(rate)
    return normal_answer(digamma(shape) - np.log(rate), np.sqrt(polygamma(1, shape)), log_z)


def _gumbel(y):
    loc = numpyro.sample("loc", dist.Normal(0, 5))
    scale = numpyro.sample("scale", dist.HalfNormal(3))
    numpyro.sample("y", dist.Gumbel(loc, scale), obs=y)


def _gumbel_answer(y) -> Answer:
    (loc, u), volume = grid(line(-6, 9, 400), line(-2.5, 3, 400))
    log_mass = stats.norm.logpdf(loc, 0, 5) + stats.halfnorm.logpdf(np.exp(u), 0, 3) + u + volume
    for y_i in y:
        standard = (y_i - loc) * np.exp(-u)
        log_mass -= standard + np.exp(-standard) + u
    return summed(log_mass, stacked(loc, u))


def _gamma(y):
    shape = numpyro.sample("shape", dist.HalfCauchy(2))
    rate = numpyro.sample("rate", dist.HalfCauchy(2))
    numpyro.sample("y", dist.Gamma(shape, rate), obs=y)


def _gamma_answer(y) -> Answer:
    # With the mean in place of the rate, the ridge of the posterior lies along an axis.
    (u, m), volume = grid(line(-4, 6, 500), line(-3, 5, 500))
    shape, rate = np.exp(u), np.exp(u - m)
    log_mass = stats.halfcauchy.logpdf(shape, 0, 2) + stats.halfcauchy.logpdf(rate, 0, 2)
    log_mass += u + (u - m) + volume
    log_mass += len(y) * (shape * (u - m) - gammaln(shape))
    log_mass += (shape - 1) * np.log(y).sum() - rate * y.sum()
    return summed(log_mass, stacked(u, u - m))


def _tobit(x, y):
    a = numpyro.sample("a", dist.Normal(0, 3))
    b = numpyro.sample("b", dist.Normal(0, 3))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    mean = a + b * x
    below = dist.Normal(mean, sigma).cdf(0.0)
    numpyro.factor("below", jnp.sum(jnp.where(y > 0, 0.0, jnp.log(jnp.maximum(below, 1e-30)))))
    with numpyro.handlers.mask(mask=y > 0):
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def _tobit_answer(x, y) -> Answer:
    def log_density(at):
        (a, b, u), sigma = at.T, np.exp(at[:, 2])
        mean = a[:, None] + b[:, None] * x
        seen = stats.norm.logpdf(y, mean, sigma[:, None])
        below = stats.norm.logcdf(0, mean, sigma[:, None])
        prior = stats.norm.logpdf(a, 0, 3) + stats.norm.logpdf(b, 0, 3)
        prior += stats.halfnorm.logpdf(sigma, 0, 2) + u
        return prior + np.where(y > 0, seen, below).sum(-1)

    points, log_mass = around_mode(log_density, [0.0, 1.0, 0.0], reach=9, step=0.5)
    return summed(log_mass, points)


def _models():
    rng = np.random.default_rng(3600)
    cut = rng.normal(-0.5, 1.5, 200)
    cut = cut[cut > 0][:30]
    outliers = np.append(rng.standard_normal(12), [8.0, 9.0, -12.0])
    times, waits = 3.0 * rng.weibull(1.5, 30), rng.exponential(1.0, 15)
    x = rng.standard_normal(40)
    censored = x, np.maximum(0.3 + 1.2 * x + rng.standard_normal(40), 0.0)
    heavy, gumbel, gamma = (
        rng.standard_t(4, 40) + 0.5,
        rng.gumbel(1.0, 1.5, 25),
        rng.gamma(3.0, 0.5, 20),
    )
    weibull = times < 3.5, np.minimum(times, 3.5)
    exponential = waits < 1.2, np.minimum(waits, 1.2)
    above, few = np.array([2.5, 3.2]), np.array([0.5, -1.2])
    mu, rate, normal = columns("mu"), columns("rate+"), columns("mu", "sigma+")
    three, line_and_scale = columns("df+", "mu", "sigma+"), columns("a", "b", "sigma+")
    located, scaled, shaped = (
        columns("loc", "scale+"),
        columns("scale+", "shape+"),
        columns("shape+", "rate+"),
    )

    def made(name, model, args, quantities, answer):
        return known(name, KIND, model, args, quantities, lambda: answer(*args))

    return [
        made("truncated_prior", _truncated_prior, (above,), _above_three, _truncated_prior_answer),
        made(
            "half_cauchy_scale",
            _half_cauchy_scale,
            (few,),
            columns("sigma+"),
            _half_cauchy_scale_answer,
        ),
        made("truncated_data", _truncated_data, (cut,), normal, _truncated_data_answer),
        made("student_location", _student, (outliers,), mu, _student_answer),
        made("student_df", _student_df, (heavy,), three, _student_df_answer),
        made("weibull_censored", _weibull, weibull, scaled, _weibull_answer),
        made(
            "exponential_censored",
            _censored_exponential,
            exponential,
            rate,
            _censored_exponential_answer,
        ),
        made("gumbel", _gumbel, (gumbel,), located, _gumbel_answer),
        made("gamma_shape_rate", _gamma, (gamma,), shaped, _gamma_answer),
        made("tobit", _tobit, censored, line_and_scale, _tobit_answer),
    ]


TAILED = collect(*_models())
