"""Posteriors of several modes: unknown frequency, sign, labels, spikes beside slabs."""

from itertools import product

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import CircularReparam
from scipy import stats
from scipy.special import i0e

from benchmarks.problems.verdicts.answers import (
    Answer,
    collect,
    columns,
    grid,
    known,
    legendre,
    line,
    linear_gaussian,
    stacked,
    summed,
)

MODES, SPIKES = "other modes", "spike and slab"


def shares(answer: Answer, first: int) -> Answer:
    """The answer where quantities from `first` on are 0 or 1: their exact kurtosis."""
    p = answer.mean[first:]
    kurtosis = np.append(answer.kurtosis[:first], 1 / (p * (1 - p)) - 3)
    return Answer(answer.mean, answer.sd, kurtosis, answer.log_evidence)


def _frequency(t, y):
    w = numpyro.sample("w", dist.Uniform(0.5, 5.0))
    numpyro.sample("y", dist.Normal(jnp.sin(w * t), 1.5), obs=y)


def _frequency_answer(t, y) -> Answer:
    w, volume = legendre(0.5, 5.0, 1500)
    log_mass = stats.norm.logpdf(y, np.sin(w[:, None] * t), 1.5).sum(-1) - np.log(4.5)
    return summed(log_mass + volume, stacked(w))


def _sinusoid(t, y):
    w = numpyro.sample("w", dist.Uniform(0.5, 5.0))
    a = numpyro.sample("a", dist.Normal(0, 1))
    b = numpyro.sample("b", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(a * jnp.cos(w * t) + b * jnp.sin(w * t), 0.7), obs=y)


def _sinusoid_answer(t, y) -> Answer:
    """Of w, a and b: the amplitudes are normal given the frequency."""
    w, volume = legendre(0.5, 5.0, 1500)
    log_mass, means, sds = [], [], []
    for one in w:
        design = np.stack([np.cos(one * t), np.sin(one * t)], axis=-1)
        mean, covariance, log_z = linear_gaussian(design, y, 0.7, 1.0)
        log_mass.append(log_z - np.log(4.5))
        means.append([one, *mean])
        sds.append([0.0, *np.sqrt(np.diag(covariance))])
    return summed(np.array(log_mass) + volume, means, sds)


def _product(y):
    a = numpyro.sample("a", dist.Normal(0, 2))
    b = numpyro.sample("b", dist.Normal(0, 2))
    numpyro.sample("y", dist.Normal(a * b, 1.0), obs=y)


def _product_quantities(draws) -> np.ndarray:
    a, b = (np.asarray(draws[name], np.float64) for name in ("a", "b"))
    return stacked(a * b, np.log(np.abs(a)), a > 0)


def _product_answer(y) -> Answer:
    # In u = log |a| and the product p = a b the volume da db is du dp. Both signs of a are alike.
    (u, p, sign), volume = grid(line(-6, 3, 500), line(-3, 6, 500), ([0.0, 1.0], np.zeros(2)))
    log_mass = stats.norm.logpdf(np.exp(u), 0, 2) + stats.norm.logpdf(p * np.exp(-u), 0, 2)
    log_mass += -0.5 * ((y**2).sum() - 2 * p * y.sum() + len(y) * p**2)
    log_mass += volume - 0.5 * len(y) * np.log(2 * np.pi)
    return shares(summed(log_mass, stacked(p, u, sign)), 2)


def _signs(y):
    b = numpyro.sample("b", dist.Normal(0, 2).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Normal(b**2, 0.5), obs=y)


def _signs_quantities(draws) -> np.ndarray:
    b = np.asarray(draws["b"], np.float64)
    return stacked(np.abs(b), b > 0)


def _signs_answer(y) -> Answer:
    b, volume = line(1e-9, 8, 40_001)  # one half of an even density, so that the error is small
    volume = volume.copy()
    volume[0] -= np.log(2)
    log_z, means, sds, kurtosis = 0.0, [], [], []
    for y_i in y:
        log_mass = np.log(2) + stats.norm.logpdf(b, 0, 2) + stats.norm.logpdf(y_i, b**2, 0.5)
        one = summed(log_mass + volume, b[:, None])
        log_z += one.log_evidence
        means.append(one.mean[0])
        sds.append(one.sd[0])
        kurtosis.append(one.kurtosis[0])
    half = np.full(len(y), 0.5)
    figures = (means, half), (sds, half), (kurtosis, np.ones(len(y)))
    return Answer(*(np.concatenate(figure) for figure in figures), log_z)


def _labels(weights):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
        mixture = dist.MixtureSameFamily(dist.Categorical(jnp.array(weights)), dist.Normal(mu, 1.0))
        numpyro.sample("y", mixture, obs=y)

    return model


def _label_quantities(draws) -> np.ndarray:
    mu = np.sort(np.asarray(draws["mu"], np.float64), axis=-1)
    return stacked(mu, np.asarray(draws["mu"])[:, 0] < np.asarray(draws["mu"])[:, 1])


def _labels_answer(weights):
    def answer(y) -> Answer:
        (first, second), volume = grid(line(-9, 9, 361), line(-9, 9, 361))
        log_mass = stats.norm.logpdf(first, 0, 3) + stats.norm.logpdf(second, 0, 3) + volume
        for y_i in y:
            log_mass += np.logaddexp(
                np.log(weights[0]) + stats.norm.logpdf(y_i, first),
                np.log(weights[1]) + stats.norm.logpdf(y_i, second),
            )
        # A point on the diagonal belongs to either side by one half.
        ordered = np.where(first == second, 0.5, first < second)
        low, high = np.minimum(first, second), np.maximum(first, second)
        return shares(summed(log_mass, stacked(low, high, ordered)), 2)

    return answer


def _cauchy(scale, prior_sd):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, prior_sd))
        numpyro.sample("y", dist.Cauchy(mu, scale), obs=y)

    return model


def _cauchy_answer(scale, prior_sd):
    def answer(y) -> Answer:
        mu, volume = line(-9 * prior_sd, 9 * prior_sd, 40_001)
        log_mass = stats.norm.logpdf(mu, 0, prior_sd) + volume
        log_mass += stats.cauchy.logpdf(y[:, None], mu, scale).sum(0)
        return summed(log_mass, stacked(mu))

    return answer


def _two_normals(weights, centres, sd):
    def model(y=None):
        which = dist.Categorical(jnp.array(weights))
        normals = dist.Normal(jnp.array(centres), sd)
        x = numpyro.sample("x", dist.MixtureSameFamily(which, normals))
        if y is not None:
            numpyro.sample("y", dist.Normal(x, 4.0), obs=y)

    return model


def _two_normals_answer(weights, centres, sd):
    def answer(y=None) -> Answer:
        centre, log_mass = np.array(centres), np.log(weights)
        if y is not None:
            log_mass = log_mass + stats.norm.logpdf(y, centre, np.hypot(sd, 4.0))
            gain = sd**2 / (sd**2 + 16.0)
            return summed(log_mass, (centre + gain * (y - centre))[:, None], 4.0 * np.sqrt(gain))
        return summed(log_mass, centre[:, None], sd)

    return answer


def _corners():
    which = dist.Categorical(jnp.array([0.3, 0.7]))
    mixture = dist.MixtureSameFamily(which, dist.Normal(jnp.array([-3.0, 3.0]), 0.5))
    with numpyro.plate("coordinate", 3):
        numpyro.sample("x", mixture)


def _corners_answer() -> Answer:
    one = summed(np.log([0.3, 0.7]), np.array([[-3.0], [3.0]]), 0.5)
    return Answer(*(np.tile(f, 3) for f in (one.mean, one.sd, one.kurtosis)), 0.0)


def _angle(y):
    angle = numpyro.sample("angle", dist.VonMises(0.0, 0.5))
    numpyro.sample("y", dist.VonMises(angle, 2.0), obs=y)


def _angle_quantities(draws) -> np.ndarray:
    angle = np.asarray(draws["angle"], np.float64)
    return stacked(np.cos(angle), np.sin(angle))


def _angle_answer(proper: bool):
    def answer(y) -> Answer:
        angle, volume = legendre(-np.pi, np.pi, 400)
        log_mass = 0.5 * (np.cos(angle) - 1) - np.log(2 * np.pi * i0e(0.5)) + volume
        log_mass += (2.0 * (np.cos(y[:, None] - angle) - 1)).sum(0)
        log_mass -= len(y) * np.log(2 * np.pi * i0e(2.0))
        return summed(log_mass, stacked(np.cos(angle), np.sin(angle)), proper=proper)

    return answer


def _ring(y):
    v = numpyro.sample("v", dist.Normal(0, 2).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(jnp.sqrt(jnp.sum(v**2)), 0.3), obs=y)


def _ring_quantities(draws) -> np.ndarray:
    v = np.asarray(draws["v"], np.float64)
    return stacked(v, np.hypot(*v.T))


def _ring_answer(y) -> Answer:
    (r, phi), volume = grid(line(1e-9, 8, 2001), line(0, 2 * np.pi * 63 / 64, 64))
    log_mass = stats.norm.logpdf(r, 0, 2) + stats.norm.logpdf(0, 0, 2) + np.log(r)
    log_mass += stats.norm.logpdf(y, r, 0.3) + volume
    return summed(log_mass, stacked(r * np.cos(phi), r * np.sin(phi), r))


def _spikes(noise, weight):
    def model(X, y):
        which = dist.Categorical(jnp.array([weight, 1 - weight]))
        prior = dist.MixtureSameFamily(which, dist.Normal(0.0, jnp.array([0.05, 1.0])))
        with numpyro.plate("coefficient", X.shape[1]):
            b = numpyro.sample("b", prior)
        numpyro.sample("y", dist.Normal(X @ b, noise), obs=y)

    return model


def _spike_quantities(draws) -> np.ndarray:
    b = np.asarray(draws["b"], np.float64)
    return stacked(b, np.abs(b) < 0.15)


def _spikes_answer(noise, weight):
    """Of the coefficients and of which are near zero: each choice of spikes is Gaussian."""

    def answer(X, y) -> Answer:
        log_mass, means, sds = [], [], []
        for slab in product([False, True], repeat=X.shape[1]):
            prior_sd = np.where(slab, 1.0, 0.05)
            mean, covariance, log_z = linear_gaussian(X, y, noise, prior_sd)
            log_mass.append(log_z + np.log(np.where(slab, 1 - weight, weight)).sum())
            sd = np.sqrt(np.diag(covariance))
            near = stats.norm.cdf(0.15, mean, sd) - stats.norm.cdf(-0.15, mean, sd)
            means.append(np.append(mean, near))
            sds.append(np.append(sd, np.sqrt(near * (1 - near))))
        return shares(summed(log_mass, means, sds), X.shape[1])

    return answer


def _models():
    rng = np.random.default_rng(3500)
    t, longer = np.linspace(0, 6, 15), np.linspace(0, 8, 25)
    noisy = np.sin(1.7 * t) + 1.5 * rng.standard_normal(15)
    wave = 0.6 * np.cos(2.2 * longer) + 0.5 * np.sin(2.2 * longer)
    wave += 0.7 * rng.standard_normal(25)
    near = np.where(rng.uniform(size=30) < 0.5, -1.3, 1.3) + rng.standard_normal(30)
    far = np.where(rng.uniform(size=40) < 0.5, -3.0, 3.0) + rng.standard_normal(40)
    uneven = np.where(rng.uniform(size=15) < 0.4, -1.5, 1.5) + rng.standard_normal(15)
    angles = np.array([3.0, -2.9, 2.6])
    half, third, rare = (0.5, 0.5), (0.4, 0.6), (0.9, 0.1)
    circular = numpyro.handlers.reparam(_angle, config={"angle": CircularReparam()})
    x, mu = columns("x"), columns("mu")

    def made(name, model, args, quantities, answer, kind=MODES):
        return known(name, kind, model, args, quantities, lambda: answer(*args))

    def labels(name, weights, y):
        return made(name, _labels(weights), (y,), _label_quantities, _labels_answer(weights))

    def cauchy(name, y, *scales):
        return made(name, _cauchy(*scales), (y,), mu, _cauchy_answer(*scales))

    def two(name, weights, centres, sd, *args):
        about = weights, centres, sd
        return made(name, _two_normals(*about), args, x, _two_normals_answer(*about))

    def spikes(name, X, b, noise, weight):
        y = X @ b
        about = noise, weight
        model, answer = _spikes(*about), _spikes_answer(*about)
        return made(name, model, (X, y), _spike_quantities, answer, SPIKES)

    # The columns have unit length, so that a coefficient's own noise is that of y.
    three, six = (rng.standard_normal((n, d)) for n, d in ((9, 3), (20, 6)))
    three, six = three / np.linalg.norm(three, axis=0), six / np.linalg.norm(six, axis=0)
    one, ones = np.ones((1, 1)), np.eye(3)
    return [
        made("frequency", _frequency, (t, noisy), columns("w"), _frequency_answer),
        made("sinusoid", _sinusoid, (longer, wave), columns("w", "a", "b"), _sinusoid_answer),
        made(
            "product_of_two",
            _product,
            (3 + rng.standard_normal(10),),
            _product_quantities,
            _product_answer,
        ),
        made(
            "signs_4", _signs, (np.array([4.0, 2.0, 1.0, 6.0]),), _signs_quantities, _signs_answer
        ),
        labels("labels_near", half, near),
        labels("labels_far", half, far),
        labels("labels_uneven", third, uneven),
        cauchy("cauchy_four", np.array([-4.0, -3.5, 4.0, 4.2]), 0.5, 10.0),
        cauchy("cauchy_two_far", np.array([-15.0, 16.0]), 1.0, 20.0),
        cauchy("cauchy_two_near", np.array([-1.5, 2.0]), 1.0, 5.0),
        two("two_normals_near", half, (-1.5, 1.5), 0.5),
        two("two_normals_far", third, (-10.0, 10.0), 1.0),
        two("two_normals_rare", rare, (-6.0, 6.0), 1.0),
        two("two_normals_observed", half, (-4.0, 4.0), 0.7, np.array(1.0)),
        made("corners_3", _corners, (), x, _corners_answer),
        made("angle", _angle, (angles,), _angle_quantities, _angle_answer(True)),
        made("angle_unwrapped", circular, (angles,), _angle_quantities, _angle_answer(False)),
        made("ring", _ring, (np.array(3.0),), _ring_quantities, _ring_answer),
        spikes("spike_1_at_3", one, np.array([0.3]), 0.1, 0.5),
        spikes("spike_1_at_8", one, np.array([0.4]), 0.05, 0.9),
        spikes("spikes_3", ones, np.array([0.3, 0.4, 0.5]), 0.1, 0.7),
        spikes("spikes_3_regression", three, np.array([0.35, -0.4, 0.0]), 0.1, 0.5),
        spikes("spikes_6", six, np.array([0.3, -0.35, 0.4, 0.8, 0.0, 0.0]), 0.1, 0.5),
        spikes("spikes_6_sparse", six, np.array([0.35, -0.4, 0.5, 0.0, 0.0, 0.0]), 0.1, 0.9),
    ]


MODAL = collect(*_models())
