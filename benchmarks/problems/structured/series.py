"""Series: local levels, a panel of them, dynamic regression, stochastic volatility.

All but stochastic volatility are linear and normal given their standard deviations, so that the
Kalman filter integrates the paths exactly.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro import deterministic, plate
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy import stats

from benchmarks.problems.structured.base import Structured, forms
from benchmarks.problems.structured.exact import Marginal, Walks, log_half_normal

KIND = "series"

sample: Callable = numpyro.sample


def _level_scales():
    return sample("step", dist.HalfNormal(1)), sample("noise", dist.HalfNormal(1))


def _level_centred(y):
    step, noise = _level_scales()
    level = sample("level", dist.GaussianRandomWalk(step, num_steps=len(y)))
    sample("y", dist.Normal(level, noise), obs=y)


def _level_scan(y):
    step, noise = _level_scales()

    def advance(level, y_t):
        level = sample("level", dist.Normal(level, step))
        sample("y", dist.Normal(level, noise), obs=y_t)
        return level, None

    scan(advance, 0.0, y)


def _level_noncentred(y):
    step, noise = _level_scales()
    z = sample("z", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    level = deterministic("level", step * jnp.cumsum(z))
    sample("y", dist.Normal(level, noise), obs=y)


def _level_data(times: int):
    def make():
        rng = np.random.default_rng(6500 + times)
        level = np.cumsum(0.3 * rng.standard_normal(times))
        return ((level + 0.5 * rng.standard_normal(times)).astype(np.float32),)

    return make


def _level_marginal(y) -> Marginal:
    walks = Walks(y[None], np.ones((len(y), 1)))

    def start_of(scales):
        """The state before the first step is zero."""
        step, noise = scales[:, :1], scales[:, 1]
        return np.zeros_like(step), step, step, noise

    def log_density(points):
        return walks.filter(*start_of(np.exp(points))) + log_half_normal(points, 1).sum(1)

    def conditional(point):
        mean, variance = walks.smooth(*(each[0] for each in start_of(np.exp(point[None]))))
        return np.r_[point, mean.ravel()], np.r_[0.0, 0.0, variance.ravel()]

    return Marginal(("step+", "noise+"), log_density, conditional, [-1.0, -0.5])


def _panel(centred: bool):
    def model(y):
        units, times = y.shape
        mu = sample("mu", dist.Normal(0, 5))
        tau = sample("tau", dist.HalfNormal(2))
        step, noise = _level_scales()
        with plate("unit", units):
            if centred:
                start = sample("start", dist.Normal(mu, tau))
                walk = sample("walk", dist.GaussianRandomWalk(step, num_steps=times))
            else:
                start = mu + tau * sample("z_start", dist.Normal(0, 1))
                z = sample("z", dist.Normal(0, 1).expand([times]).to_event(1))
                walk = step * jnp.cumsum(z, axis=-1)
            level = deterministic("level", start[:, None] + walk)
            sample("y", dist.Normal(level, noise).to_event(1), obs=y)

    return model


def _panel_data():
    rng = np.random.default_rng(6600)
    level = 1 + rng.standard_normal((40, 1)) + np.cumsum(0.3 * rng.standard_normal((40, 25)), 1)
    return ((level + 0.5 * rng.standard_normal((40, 25))).astype(np.float32),)


def _panel_marginal(y) -> Marginal:
    walks = Walks(y, np.ones((y.shape[1], 1)))

    def start_of(points):
        tau, step, noise = np.exp(points[:, 1:2]), np.exp(points[:, 2:3]), np.exp(points[:, 3])
        return points[:, :1], np.hypot(tau, step), step, noise

    def log_density(points):
        log_prior = stats.norm.logpdf(points[:, 0], 0, 5) + log_half_normal(points[:, 1], 2)
        log_prior += log_half_normal(points[:, 2:], 1).sum(1)
        return walks.filter(*start_of(points)) + log_prior

    def conditional(point):
        mean, variance = walks.smooth(*(each[0] for each in start_of(point[None])))
        variances = np.tile(variance.ravel(), len(y))
        return np.r_[point, mean.ravel()], np.r_[np.zeros(4), variances]

    return Marginal(
        ("mu", "tau+", "step+", "noise+"),
        log_density,
        conditional,
        [1.0, 0.0, -1.0, -0.5],
        reach=6,
        step=0.8,
    )


def _dynamic(centred: bool):
    def model(x, y):
        step = sample("step", dist.HalfNormal(1).expand([2]).to_event(1))
        noise = sample("noise", dist.HalfNormal(1))
        if centred:
            beta = sample("beta", dist.GaussianRandomWalk(step, num_steps=len(y)).to_event(1))
        else:
            z = sample("z", dist.Normal(0, 1).expand([2, len(y)]).to_event(2))
            beta = deterministic("beta", step[:, None] * jnp.cumsum(z, axis=1))
        sample("y", dist.Normal(beta[0] + beta[1] * x, noise), obs=y)

    return model


def _dynamic_data():
    rng = np.random.default_rng(6700)
    x = rng.standard_normal(200)
    beta = np.cumsum(np.array([[0.2], [0.15]]) * rng.standard_normal((2, 200)), 1)
    y = beta[0] + beta[1] * x + 0.5 * rng.standard_normal(200)
    return x.astype(np.float32), y.astype(np.float32)


def _dynamic_marginal(x, y) -> Marginal:
    walks = Walks(y[None], np.column_stack([np.ones(len(x)), x]))

    def start_of(scales):
        steps, noise = scales[:, :2], scales[:, 2]
        return np.zeros_like(steps), steps, steps, noise

    def log_density(points):
        return walks.filter(*start_of(np.exp(points))) + log_half_normal(points, 1).sum(1)

    def conditional(point):
        mean, variance = walks.smooth(*(each[0] for each in start_of(np.exp(point[None]))))
        return np.r_[point, mean[0].T.ravel()], np.r_[np.zeros(3), variance.T.ravel()]

    return Marginal(
        ("step+", "noise+"), log_density, conditional, [-1.5, -2.0, -0.5], reach=7, step=0.7
    )


def _volatility_globals():
    mu = sample("mu", dist.Normal(0, 2))
    half = sample("half", dist.Beta(20, 1.5))  # (1 + phi) / 2
    sigma = sample("sigma", dist.HalfNormal(0.5))
    first_sd = sigma / jnp.sqrt(4 * half * (1 - half))  # 1 - phi**2 without cancellation
    return mu, 2 * half - 1, sigma, first_sd


def _volatility_centred(y):
    mu, phi, sigma, first_sd = _volatility_globals()
    h = sample("h", dist.ImproperUniform(constraints.real_vector, (), (len(y),)))
    log_prior = dist.Normal(mu, first_sd).log_prob(h[0])
    log_prior += dist.Normal(mu + phi * (h[:-1] - mu), sigma).log_prob(h[1:]).sum()
    numpyro.factor("h_prior", log_prior)
    sample("y", dist.Normal(0, jnp.exp(h / 2)), obs=y)


def _volatility_scan(y):
    mu, phi, sigma, first_sd = _volatility_globals()
    first = sample("h_first", dist.Normal(mu, first_sd))
    sample("y_first", dist.Normal(0, jnp.exp(first / 2)), obs=y[0])

    def advance(h, y_t):
        h = sample("h_rest", dist.Normal(mu + phi * (h - mu), sigma))
        sample("y", dist.Normal(0, jnp.exp(h / 2)), obs=y_t)
        return h, h

    _, rest = scan(advance, first, y[1:])
    deterministic("h", jnp.concatenate([first[None], rest]))


def _volatility_noncentred(y):
    mu, phi, sigma, first_sd = _volatility_globals()
    z = sample("z", dist.Normal(0, 1).expand([len(y)]).to_event(1))

    def advance(apart, innovation):
        apart = phi * apart + sigma * innovation
        return apart, apart

    first = first_sd * z[0]
    _, rest = lax.scan(advance, first, z[1:])
    h = deterministic("h", mu + jnp.concatenate([first[None], rest]))
    sample("y", dist.Normal(0, jnp.exp(h / 2)), obs=y)


def _volatility_data(days: int):
    def make():
        rng = np.random.default_rng(6800 + days)
        h = [rng.normal(0, 0.2 / np.sqrt(1 - 0.97**2))]
        for _ in range(days - 1):
            h.append(0.97 * h[-1] + 0.2 * rng.standard_normal())
        y = np.exp((np.array(h) - 0.5) / 2) * rng.standard_normal(days)
        return (y.astype(np.float32),)

    return make


def series() -> list[Structured]:
    """All of this file."""
    found = []
    level = {"centred": _level_centred, "noncentred": _level_noncentred, "scan": _level_scan}
    sites = ("step+", "noise+", "level")
    for times in (100, 500):
        data = _level_data(times)
        found += forms(f"level_{times}", KIND, level, data, sites, ("level",), _level_marginal)
    panel = {"centred": _panel(True), "noncentred": _panel(False)}
    sites = ("mu", "tau+", "step+", "noise+", "level")
    found += forms("panel_40x25", KIND, panel, _panel_data, sites, ("level",), _panel_marginal)
    dynamic = {"centred": _dynamic(True), "noncentred": _dynamic(False)}
    sites = ("step+", "noise+", "beta")
    found += forms("dynamic_200", KIND, dynamic, _dynamic_data, sites, ("beta",), _dynamic_marginal)
    volatility = {"centred": _volatility_centred, "noncentred": _volatility_noncentred}
    scanned = {"scan": _volatility_scan}
    sites = ("mu", "half%", "sigma+", "h")
    for days, models in ((300, volatility | scanned), (2427, volatility)):
        found += forms(f"volatility_{days}", KIND, models, _volatility_data(days), sites, ("h",))
    return found
