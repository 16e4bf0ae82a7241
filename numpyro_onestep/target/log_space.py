"""Densities of values that no float can hold, from their unconstrained values.

A Beta(0.02, 0.02) has half of its mass within 1e-16 of zero or one, where floats saturate and the
density of the value says nothing of where it came from. The unconstrained value knows: the
logarithm of a share of a stick is a log-sigmoid, and that of a positive number is the unconstrained
value itself. Such sites get their density, with the Jacobian of the constraining transform, from
there; all that depends on them sees the value as it always did.
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
    # Stick breaking: each piece is a share sigmoid(x) of what the pieces before it have left.
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


# Distributions that hold much mass where floats end, and the log density (nats) of the
# unconstrained value.
_IN_LOG_SPACE: dict[type, Callable] = {
    dist.Beta: _beta,
    dist.Dirichlet: _dirichlet,
    dist.Gamma: _gamma,
    dist.InverseGamma: _inverse_gamma,
}


def is_in_log_space(site: dict) -> bool:
    """Whether a latent site's density is better known from its unconstrained value.

    Sites of a `scan` are left as they are: no handler around it sees its steps.
    """
    return not site.get("_control_flow_done") and _density(site["fn"]) is not None


def _density(fn: Any) -> Callable | None:
    """The log density of the unconstrained value, or None where there is no own one."""
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
    """Give sites their values, and their densities in terms of the unconstrained ones.

    Args:
        fn: the model.
        values: unconstrained values by site; all of these satisfy `is_in_log_space`.
    """

    def __init__(self, fn: Callable, values: dict[str, Any]):
        super().__init__(fn)
        self.values = values

    def process_message(self, msg: dict) -> None:
        """Replace the distribution of a site by one whose density the unconstrained value gives."""
        if msg["type"] != "sample" or msg["name"] not in self.values:
            return
        fn, x = msg["fn"], self.values[msg["name"]]
        msg["value"] = dist.biject_to(fn.support)(x)
        msg["fn"] = _Known(fn, x)


class _Known(dist.Distribution):
    """A distribution at one value, whose density is known from the unconstrained value."""

    def __init__(self, fn: Any, x: Float[Array, "..."]):
        self._fn, self._x = fn, x
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """That of the distribution."""
        return self._fn.support

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        """Of the unconstrained value (nats), the transform's Jacobian included."""
        density = _density(self._fn)
        assert density is not None
        return density(self._x)
