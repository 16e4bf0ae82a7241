"""Posteriors whose evidence is known exactly, for a method that starts from draws of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats

from benchmarks.problems.reference_posteriors import POSTERIORS
from benchmarks.problems.structured import STRUCTURED


@dataclass(frozen=True)
class Drawn:
    """A model, and the exact log evidence of its data (nats).

    Attributes:
        name: of the problem.
        model: a NumPyro model.
        args: its positional arguments.
        log_evidence: a function that returns it.
        starts: where the four chains of NUTS begin, unconstrained, {site: (4, ...)}; None for
            NUTS's own choice.
        settings: of `OneStep`.
    """

    name: str
    model: Callable
    args: Callable[[], tuple]
    log_evidence: Callable[[], float]
    starts: Callable[[], Any] | None = None
    settings: tuple[tuple[str, Any], ...] = ()


def gaussian(loc, factor):
    """A Gaussian of ten dimensions, whose density is multiplied by e^3."""
    numpyro.sample("x", dist.MultivariateNormal(loc, scale_tril=factor))
    numpyro.factor("constant", 3.0)


def _gaussian_args() -> tuple:
    rng = np.random.default_rng(3)
    factor = np.tril(rng.standard_normal((10, 10)), -1) + np.diag(np.logspace(-1, 1, 10))
    return 5 * rng.standard_normal(10).astype(np.float32), factor.astype(np.float32)


def banana():
    """A bent density: y follows the square of x."""
    x = numpyro.sample("x", dist.Normal(0, 2))
    numpyro.sample("y", dist.Normal(0.5 * x**2, 0.5))


def modes(centres, shares):
    """Two Gaussians of six dimensions, nine standard deviations apart, of unequal weight."""
    mixture = dist.MixtureSameFamily(
        dist.Categorical(shares), dist.MultivariateNormal(centres, jnp.eye(centres.shape[1]))
    )
    numpyro.sample("x", mixture)


def _modes_args() -> tuple:
    centres = np.zeros((2, 6), np.float32)
    centres[1, :3] = 5.2
    return centres, np.array([0.7, 0.3], np.float32)


def _starts(which: list[int]):
    return {"x": jnp.asarray(_modes_args()[0][which])}


def conjugate(y):
    """Thirty means with a common mean: all of it is normal."""
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, 1))
        numpyro.sample("y", dist.Normal(theta, 0.5), obs=y)


def _conjugate_args() -> tuple:
    rng = np.random.default_rng(4)
    return ((1 + 1.1 * rng.standard_normal(30)).astype(np.float32),)


def _conjugate_log_evidence() -> float:
    (y,) = _conjugate_args()
    covariance = 9.0 * np.ones((len(y), len(y))) + 1.25 * np.eye(len(y))
    return float(stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y))


def _stored(name: str) -> Drawn:
    posterior = POSTERIORS[name]
    return Drawn(name, posterior.model, posterior.args, lambda: posterior.log_evidence)


def _structured(name: str) -> Drawn:
    problem = STRUCTURED[name]
    return Drawn(name, problem.model, problem.args, lambda: problem.reference().log_evidence)


@cache
def problems() -> dict[str, Drawn]:
    """All of them, by name."""
    one, both = partial(_starts, [0, 0, 0, 0]), partial(_starts, [0, 0, 0, 1])
    multimodal = (("multimodal", True),)
    found = [
        _stored("eight_schools"),
        _stored("seeds"),
        Drawn("gaussian_10d", gaussian, _gaussian_args, lambda: 3.0),
        Drawn("banana", banana, tuple, lambda: 0.0),
        _stored("funnel"),
        Drawn("two_modes", modes, _modes_args, lambda: 0.0, both),
        Drawn("one_of_two_modes", modes, _modes_args, lambda: 0.0, one),
        Drawn("one_of_two_modes, multimodal", modes, _modes_args, lambda: 0.0, one, multimodal),
        Drawn("conjugate_30_groups", conjugate, _conjugate_args, _conjugate_log_evidence),
        _structured("intercepts_60_noncentred"),
    ]
    return {problem.name: problem for problem in found}
