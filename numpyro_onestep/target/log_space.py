"""Densities of values that no float can hold, from their unconstrained values.

A Beta(0.02, 0.02) has half of its mass within 1e-16 of zero or one. There floats saturate, and many
unconstrained values give the same constrained one. So the density is computed from the
unconstrained value: the logarithm of a fraction is a log-sigmoid of it, and the logarithm of a
positive number is the unconstrained value itself. The Jacobian of the constraining transform is
included. The rest of the model sees the constrained value as usual.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.nn import log_sigmoid, softplus
from jax.scipy.special import gammaln
from jaxtyping import Array, Float
from numpyro.distributions.util import sum_rightmost
from numpyro.primitives import Messenger


def _beta(fn: Any, x: Float[Array, "..."]) -> Float[Array, "..."]:
    a, b = fn.concentration1, fn.concentration0
    return -a * softplus(-x) - b * softplus(x) + gammaln(a + b) - gammaln(a) - gammaln(b)


def _dirichlet(fn: Any, x: Float[Array, "... k"]) -> Float[Array, "..."]:
    # Stick breaking: each piece is the fraction sigmoid(x) of what the pieces before have left.
    x = x - jnp.log(x.shape[-1] - jnp.arange(x.shape[-1]))
    log_left = jnp.cumsum(log_sigmoid(-x), axis=-1)
    log_left = jnp.concatenate([jnp.zeros_like(x[..., :1]), log_left], axis=-1)
    log_share = jnp.concatenate([log_sigmoid(x), jnp.zeros_like(x[..., :1])], axis=-1)
    log_pieces = log_share + log_left
    log_det = jnp.sum(log_pieces[..., :-1] + log_sigmoid(-x), axis=-1)
    a = fn.concentration
    log_norm = jnp.sum(gammaln(a), axis=-1) - gammaln(jnp.sum(a, axis=-1))
    return jnp.sum((a - 1) * log_pieces, axis=-1) + log_det - log_norm


def _gamma(fn: Any, x: Float[Array, "..."]) -> Float[Array, "..."]:
    a, rate = fn.concentration, fn.rate
    return a * (jnp.log(rate) + x) - rate * jnp.exp(x) - gammaln(a)


def _inverse_gamma(fn: Any, x: Float[Array, "..."]) -> Float[Array, "..."]:
    a, rate = fn.concentration, fn.rate
    return a * (jnp.log(rate) - x) - rate * jnp.exp(-x) - gammaln(a)


# Distributions that can have much mass where floats saturate, each with the log density (nats) of
# the unconstrained value.
_IN_LOG_SPACE: dict[type, Callable] = {
    dist.Beta: _beta,
    dist.Dirichlet: _dirichlet,
    dist.Gamma: _gamma,
    dist.InverseGamma: _inverse_gamma,
}


def is_in_log_space(site: dict) -> bool:
    """Whether a latent site's density is to be computed from its unconstrained value.

    Sites of a `scan` are left as they are, since a handler around the `scan` does not see them.
    """
    return not site.get("_control_flow_done") and _density(site["fn"]) is not None


def _density(fn: Any) -> Callable | None:
    """The log density of the unconstrained value; None for a distribution without one here."""
    if isinstance(fn, (dist.ExpandedDistribution, dist.Independent)):
        inner = _density(fn.base_dist)
        dims = fn.reinterpreted_batch_ndims if isinstance(fn, dist.Independent) else 0
        if inner is None or isinstance(fn, dist.ExpandedDistribution):
            return inner
        return lambda x: sum_rightmost(inner(x), dims)
    for family, density in _IN_LOG_SPACE.items():
        if isinstance(fn, family) and type(fn).log_prob is family.log_prob:
            return lambda x: density(fn, x)
    return None


class in_log_space(Messenger):  # noqa: N801 (NumPyro's handlers have such names)
    """Give sites their values, and densities that are computed from the unconstrained values.

    Args:
        fn: the model.
        values: unconstrained values by site; all of these satisfy `is_in_log_space`.
    """

    def __init__(self, fn: Callable, values: dict[str, Any]):
        super().__init__(fn)
        self.values = values

    def process_message(self, msg: dict) -> None:
        """Replace the distribution of a site by one whose density uses the unconstrained value."""
        if msg["type"] != "sample" or msg["name"] not in self.values:
            return
        fn, x = msg["fn"], self.values[msg["name"]]
        msg["value"] = dist.biject_to(fn.support)(x)
        msg["fn"] = _Known(fn, x)


class _Known(dist.Distribution):
    """A distribution at one value, with the density computed from the unconstrained value."""

    def __init__(self, fn: Any, x: Float[Array, "..."]):
        self._fn, self._x = fn, x
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support of the distribution that it replaces."""
        return self._fn.support

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        """Log density of the unconstrained value (nats), the transform's Jacobian included."""
        density = _density(self._fn)
        assert density is not None
        return density(self._x)
