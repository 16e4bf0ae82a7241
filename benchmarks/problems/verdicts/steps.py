"""Posteriors with steps inside: change points, thresholds, floors. No gradient shows a step.

Between steps the likelihood is constant or conjugate, so that answers are finite sums.
"""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import gammaln as jax_gammaln
from scipy import stats
from scipy.special import gammaln

from benchmarks.problems.verdicts.answers import (
    Answer,
    collect,
    columns,
    known,
    legendre,
    linear_gaussian,
    stacked,
    summed,
)


def _change_point(y):
    tau = numpyro.sample("tau", dist.Uniform(0.0, float(len(y))))
    before = numpyro.sample("before", dist.Normal(0, 2))
    after = numpyro.sample("after", dist.Normal(0, 2))
    mean = jnp.where(jnp.arange(len(y)) + 0.5 < tau, before, after)
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def _change_point_answer(y) -> Answer:
    """Of tau, before and after: tau is uniform between two data, and the means are normal."""
    n, first = len(y), np.arange(len(y)) + 0.5
    edges = np.concatenate([[0.0], first, [float(n)]])
    log_mass, means, sds = [], [], []
    for low, high in pairwise(edges):
        earlier = first < (low + high) / 2
        design = np.stack([earlier, ~earlier], axis=-1).astype(float)
        mean, covariance, log_z = linear_gaussian(design, y, 1.0, 2.0)
        log_mass.append(log_z + np.log((high - low) / n))
        means.append([(low + high) / 2, *mean])
        sds.append([(high - low) / np.sqrt(12), *np.sqrt(np.diag(covariance))])
    return summed(log_mass, means, sds)


def _change_of_rate(y):
    tau = numpyro.sample("tau", dist.Uniform(0.0, float(len(y))))
    rates = numpyro.sample("rates", dist.Gamma(2.0, 0.5).expand([2]).to_event(1))
    rate = jnp.where(jnp.arange(len(y)) + 0.5 < tau, rates[0], rates[1])
    numpyro.sample("y", dist.Poisson(rate), obs=y)


def _change_of_rate_answer(y) -> Answer:
    n, first = len(y), np.arange(len(y)) + 0.5
    edges = np.concatenate([[0.0], first, [float(n)]])
    log_mass, means, sds = [], [], []
    for low, high in pairwise(edges):
        earlier = first < (low + high) / 2
        log_z = np.log((high - low) / n) - gammaln(y + 1).sum()
        shapes, exposures = [], []
        for some in (y[earlier], y[~earlier]):
            shape, exposure = 2.0 + some.sum(), 0.5 + len(some)
            log_z += 2 * np.log(0.5) - gammaln(2.0) + gammaln(shape) - shape * np.log(exposure)
            shapes.append(shape)
            exposures.append(exposure)
        log_mass.append(log_z)
        shape, exposure = np.array(shapes), np.array(exposures)
        means.append([(low + high) / 2, *(shape / exposure)])
        sds.append([(high - low) / np.sqrt(12), *(np.sqrt(shape) / exposure)])
    return summed(log_mass, means, sds)


def _threshold(x, y):
    cut = numpyro.sample("cut", dist.Uniform(0.0, 1.0))
    jump = numpyro.sample("jump", dist.Normal(0, 2))
    numpyro.sample("y", dist.Normal(jnp.where(x > cut, jump, 0.0), 0.5), obs=y)


def _threshold_answer(x, y) -> Answer:
    edges = np.concatenate([[0.0], np.sort(x), [1.0]])
    log_mass, means, sds = [], [], []
    for low, high in pairwise(edges):
        design = (x > (low + high) / 2).astype(float)[:, None]
        mean, covariance, log_z = linear_gaussian(design, y, 0.5, 2.0)
        log_mass.append(log_z + np.log(high - low))
        means.append([(low + high) / 2, mean[0]])
        sds.append([(high - low) / np.sqrt(12), np.sqrt(covariance[0, 0])])
    return summed(log_mass, means, sds)


def _floor(y):
    z = numpyro.sample("z", dist.Normal(0, 3))
    numpyro.sample("y", dist.Normal(jnp.floor(z), 1.0), obs=y)


def _round(y):
    z = numpyro.sample("z", dist.Normal(0, 3).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.round(z), 0.8), obs=y)


def _cells(y, edges, noise):
    """Of z: a normal cut into cells that start at `edges`, each of one likelihood."""
    log_mass, values = [], []
    for low in edges:
        points, volume = legendre(low, low + 1, 40)
        cell = np.ceil(low)  # the integer that stands for z in this cell
        likelihood = stats.norm.logpdf(y, cell, noise).sum()
        log_mass.append(stats.norm.logpdf(points, 0, 3) + volume + likelihood)
        values.append(points)
    return summed(np.concatenate(log_mass), stacked(np.concatenate(values)))


def _floor_answer(y) -> Answer:
    return _cells(y, np.arange(-20, 20), 1.0)


def _round_answer(y) -> Answer:
    ones = [_cells(y_i[None], np.arange(-20.5, 20), 0.8) for y_i in y]
    mean, sd, kurtosis = (
        np.concatenate([getattr(one, figure) for one in ones])
        for figure in ("mean", "sd", "kurtosis")
    )
    return Answer(mean, sd, kurtosis, float(sum(one.log_evidence for one in ones)))


def _capture(y):
    size = numpyro.sample("size", dist.Uniform(20.0, 200.0))
    number = jnp.floor(size)
    numpyro.factor(
        "y",
        jnp.sum(
            jax_gammaln(number + 1)
            - jax_gammaln(number - y + 1)
            - jax_gammaln(y + 1)
            + y * jnp.log(0.3)
            + (number - y) * jnp.log(0.7)
        ),
    )


def _capture_answer(y) -> Answer:
    number = np.arange(20, 200)
    log_mass = stats.binom.logpmf(y, number[:, None], 0.3).sum(-1) - np.log(180)
    return summed(log_mass, (number + 0.5)[:, None], np.sqrt(1 / 12))


def _models():
    rng = np.random.default_rng(3450)
    jump = np.where(np.arange(40) < 25, 0.0, 1.2) + rng.standard_normal(40)
    slight = np.where(np.arange(30) < 10, 0.0, 0.7) + rng.standard_normal(30)
    events = rng.poisson(np.where(np.arange(50) < 20, 3.0, 1.0))
    x = rng.uniform(size=30)
    thresholds = np.where(x > 0.6, 1.0, 0.0) + 0.5 * rng.standard_normal(30)
    change = columns("tau", "before", "after")

    def made(name, model, args, quantities, answer):
        return known(name, "steps", model, args, quantities, lambda: answer(*args))

    floors, rounded = np.array([1.6, 2.3]), np.array([-2.2, 0.4, 3.1])
    at_threshold, rates = columns("cut", "jump"), columns("tau", "rates")
    return [
        made("change_point", _change_point, (jump,), change, _change_point_answer),
        made("change_point_slight", _change_point, (slight,), change, _change_point_answer),
        made("change_of_rate", _change_of_rate, (events,), rates, _change_of_rate_answer),
        made("threshold", _threshold, (x, thresholds), at_threshold, _threshold_answer),
        made("floor", _floor, (floors,), columns("z"), _floor_answer),
        made("round_3", _round, (rounded,), columns("z"), _round_answer),
        made("capture", _capture, (np.array([21, 27, 18]),), columns("size"), _capture_answer),
    ]


STEPS = collect(*_models())
