"""Hierarchies of normals: intercepts, slopes, groups of unequal size, and a tree of three levels.

Given the standard deviations everything is linear and normal, so that their answers are exact.
"""

from collections.abc import Callable

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import plate

from benchmarks.problems.structured.base import Structured, forms, normal_effect
from benchmarks.problems.structured.exact import Marginal, MixedModel, log_half_normal

KIND = "normal hierarchies"
ROWS = 5  # observations of each group of random intercepts

sample: Callable = numpyro.sample


def _intercepts(centred: bool):
    def model(y):
        mu = sample("mu", dist.Normal(0, 5))
        tau = sample("tau", dist.HalfNormal(2))
        sigma = sample("sigma", dist.HalfNormal(2))
        with plate("group", len(y), dim=-2):
            theta = normal_effect("theta", mu, tau, centred)
            with plate("row", y.shape[1], dim=-1):
                sample("y", dist.Normal(theta, sigma), obs=y)

    return model


def _intercepts_data(groups: int):
    def make():
        rng = np.random.default_rng(6100 + groups)
        theta = 1.5 + 0.8 * rng.standard_normal((groups, 1))
        return ((theta + rng.standard_normal((groups, ROWS))).astype(np.float32),)

    return make


def _intercepts_marginal(y) -> Marginal:
    groups, rows = y.shape
    one = np.ones((y.size, 1))
    model = MixedModel(one, one, y.ravel(), np.repeat(np.arange(groups), rows), np.array([5.0]))

    def log_density(points):
        log_z = [model.log_likelihood(s[:1], s[1]) for s in np.exp(points)]
        return np.array(log_z) + log_half_normal(points, 2).sum(1)

    def conditional(point):
        tau, sigma = np.exp(point)
        mean, variance = model.conditional(np.array([tau]), sigma, np.ones((1, 1)), np.ones((1, 1)))
        return np.insert(mean, 1, point), np.insert(variance, 1, [0.0, 0.0])

    return Marginal(("tau+", "sigma+"), log_density, conditional, [0.0, 0.0])


def _slopes(centred: bool):
    def model(time, y):
        mu = sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
        tau = sample("tau", dist.HalfNormal(2).expand([2]).to_event(1))
        sigma = sample("sigma", dist.HalfNormal(2))
        with plate("patient", len(y)):
            a = normal_effect("a", mu[0], tau[0], centred, z="z_a")
            b = normal_effect("b", mu[1], tau[1], centred, z="z_b")
        sample("y", dist.Normal(a[:, None] + b[:, None] * time, sigma).to_event(2), obs=y)

    return model


def _slopes_data():
    rng, time = np.random.default_rng(6200), np.arange(4, dtype=np.float32)
    a, b = 2 + 1.2 * rng.standard_normal((176, 1)), -0.5 + 0.5 * rng.standard_normal((176, 1))
    return time, (a + b * time + 0.8 * rng.standard_normal((176, 4))).astype(np.float32)


def _slopes_marginal(time, y) -> Marginal:
    patients, visits = y.shape
    design = np.column_stack([np.ones(y.size), np.tile(time, patients)])
    group = np.repeat(np.arange(patients), visits)
    model = MixedModel(design, design, y.ravel(), group, np.array([5.0, 5.0]))

    def log_density(points):
        log_z = [model.log_likelihood(s[:2], s[2]) for s in np.exp(points)]
        return np.array(log_z) + log_half_normal(points, 2).sum(1)

    def conditional(point):
        scales = np.exp(point)
        mean, variance = model.conditional(scales[:2], scales[2], np.eye(2), np.eye(2))
        return tuple(
            np.concatenate([of[:2], globals_, of[2::2], of[3::2]])
            for of, globals_ in ((mean, point), (variance, np.zeros(3)))
        )

    return Marginal(
        ("tau+", "sigma+"), log_density, conditional, [0.0, -0.5, 0.0], reach=7, step=0.7
    )


def _counties(centred: bool):
    """As the radon data are modelled: groups of unequal size, with a covariate of their own."""

    def model(floor, county, uranium, y):
        mu = sample("mu", dist.Normal(0, 5))
        gamma = sample("gamma", dist.Normal(0, 5))
        beta = sample("beta", dist.Normal(0, 5))
        tau = sample("tau", dist.HalfNormal(2))
        sigma = sample("sigma", dist.HalfNormal(2))
        mean = mu + gamma * uranium
        with plate("county", len(uranium)):
            alpha = normal_effect("alpha", mean, tau, centred)
        with plate("home", len(y)):
            sample("y", dist.Normal(alpha[county] + beta * floor, sigma), obs=y)

    return model


def _counties_data():
    rng = np.random.default_rng(6300)
    # Between one and more than a hundred homes, as in Minnesota: 85 counties and 919 homes.
    shares = rng.dirichlet(np.full(85, 0.7))
    county = np.sort(np.r_[np.arange(85), rng.choice(85, 834, p=shares)])
    floor = rng.binomial(1, 0.17, 919).astype(np.float32)
    uranium = (0.4 * rng.standard_normal(85)).astype(np.float32)
    alpha = 1.4 + 0.7 * uranium + 0.3 * rng.standard_normal(85)
    y = alpha[county] - 0.6 * floor + 0.75 * rng.standard_normal(919)
    return floor, county, uranium, y.astype(np.float32)


def _counties_marginal(floor, county, uranium, y) -> Marginal:
    one = np.ones(len(y))
    design = np.column_stack([one, uranium[county], floor])
    model = MixedModel(one[:, None], design, y, county, np.full(3, 5.0))
    of_b = np.column_stack([np.ones(85), uranium, np.zeros(85)])[:, None]

    def log_density(points):
        log_z = [model.log_likelihood(s[:1], s[1]) for s in np.exp(points)]
        return np.array(log_z) + log_half_normal(points, 2).sum(1)

    def conditional(point):
        tau, sigma = np.exp(point)
        mean, variance = model.conditional(np.array([tau]), sigma, of_b, np.ones((1, 1)))
        return np.insert(mean, 3, point), np.insert(variance, 3, [0.0, 0.0])

    return Marginal(("tau+", "sigma+"), log_density, conditional, [-1.0, 0.0])


def _tree(centred: bool):
    def model(y):
        schools, classes, _ = y.shape
        mu = sample("mu", dist.Normal(0, 5))
        tau = sample("tau", dist.HalfNormal(2))  # of schools
        omega = sample("omega", dist.HalfNormal(2))  # of classes in a school
        sigma = sample("sigma", dist.HalfNormal(2))
        with plate("school", schools, dim=-2):
            school = normal_effect("school_mean", mu, tau, centred, z="z_school")
            with plate("class", classes, dim=-1):
                mean = normal_effect("class_mean", school, omega, centred, z="z_class")
        sample("y", dist.Normal(mean[..., None], sigma).to_event(3), obs=y)

    return model


def _tree_data():
    rng = np.random.default_rng(6400)
    mean = 0.5 + 0.6 * rng.standard_normal((50, 1, 1)) + 0.5 * rng.standard_normal((50, 6, 1))
    return ((mean + rng.standard_normal((50, 6, 8))).astype(np.float32),)


def _tree_marginal(y) -> Marginal:
    schools, classes, pupils = y.shape
    within = np.kron(np.eye(classes), np.ones((pupils, 1)))
    effects = np.tile(np.column_stack([np.ones(classes * pupils), within]), (schools, 1))
    group = np.repeat(np.arange(schools), classes * pupils)
    one = np.ones((y.size, 1))
    model = MixedModel(effects, one, y.ravel(), group, np.array([5.0]))
    # A school's mean, then those of its classes, in terms of mu and of the effects.
    of_u = np.eye(1 + classes)
    of_u[1:, 0] = 1.0
    of_b = np.ones((1 + classes, 1))

    def scales_of(scales):
        return np.r_[scales[0], np.full(classes, scales[1])], scales[2]

    def log_density(points):
        log_z = [model.log_likelihood(*scales_of(s)) for s in np.exp(points)]
        return np.array(log_z) + log_half_normal(points, 2).sum(1)

    def conditional(point):
        mean, variance = model.conditional(*scales_of(np.exp(point)), of_b, of_u)

        def ordered(of, globals_):
            means = of[1:].reshape(schools, -1)
            return np.concatenate([of[:1], globals_, means[:, 0], means[:, 1:].ravel()])

        return ordered(mean, point), ordered(variance, np.zeros(3))

    return Marginal(
        ("tau+", "omega+", "sigma+"), log_density, conditional, [-0.5, -0.5, 0.0], reach=7, step=0.7
    )


def _both(name: str, model, data, sites: tuple, latents: tuple, marginal) -> list[Structured]:
    models = {"centred": model(True), "noncentred": model(False)}
    return forms(name, KIND, models, data, (*sites, *latents), latents, marginal)


def hierarchies() -> list[Structured]:
    """All of this file."""
    found = []
    for groups in (60, 600, 6000, 60_000):
        found += _both(
            f"intercepts_{groups}",
            _intercepts,
            _intercepts_data(groups),
            ("mu", "tau+", "sigma+"),
            ("theta",),
            _intercepts_marginal,
        )
    mus = ("mu", "tau+", "sigma+")
    found += _both("slopes_176", _slopes, _slopes_data, mus, ("a", "b"), _slopes_marginal)
    found += _both(
        "counties_85",
        _counties,
        _counties_data,
        ("mu", "gamma", "beta", "tau+", "sigma+"),
        ("alpha",),
        _counties_marginal,
    )
    found += _both(
        "tree_50x6",
        _tree,
        _tree_data,
        ("mu", "tau+", "omega+", "sigma+"),
        ("school_mean", "class_mean"),
        _tree_marginal,
    )
    return found
