"""Models of several modes as statisticians meet them.

The labels of a mixture's components can be exchanged, and the factors of a product can change their
signs together. By this symmetry all modes of a model have the same probability.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist


@dataclass(frozen=True)
class SymmetricModel:
    """A model, and its modes, which all have the same probability.

    Attributes:
        model: a NumPyro model.
        args: its positional arguments.
        mode_of: draws -> the number of the mode that each draw is in, counted from 0.
        num_modes: how many modes there are.
    """

    model: Callable
    args: tuple
    mode_of: Callable[[dict], np.ndarray]
    num_modes: int


def label_switching(y):
    """Three normals of equal weight and unknown means, in no order: six modes."""
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([3]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.ones(3) / 3), dist.Normal(mu, sigma))
    numpyro.sample("y", mixture, obs=y)


def sign_ambiguity(x, y):
    """A product of two coefficients, which may change their signs together: two modes."""
    a = numpyro.sample("a", dist.Normal(0, 2))
    b = numpyro.sample("b", dist.Normal(0, 2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    numpyro.sample("y", dist.Normal(a * b * x, sigma), obs=y)


def _order_of_means(draws) -> np.ndarray:
    orders = list(itertools.permutations(range(3)))
    return np.array([orders.index(tuple(row)) for row in np.argsort(draws["mu"], axis=1)])


def _sign(draws) -> np.ndarray:
    return (np.asarray(draws["a"]) > 0).astype(int)


@cache
def models() -> dict[str, SymmetricModel]:
    """All of these models, by name. Their data are simulated from a fixed seed."""
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(loc, 1.0, 40) for loc in (-5.0, 0.0, 6.0)])
    x = np.linspace(-1, 1, 40)
    product = 3.0 * x + 0.5 * rng.standard_normal(40)
    return {
        "label_switching": SymmetricModel(label_switching, (y,), _order_of_means, 6),
        "sign_ambiguity": SymmetricModel(sign_ambiguity, (x, product), _sign, 2),
    }
