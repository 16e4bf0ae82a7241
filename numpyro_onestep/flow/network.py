"""The step-conditioned residual velocity r(y, tau, h).

The network learns the residual of the score, r(y, tau, h) = y + grad log p_tau(y) at h -> 0, and
at larger steps h the mean of that residual over the step.  r = 0 is exact where the target equals
the base, and the last layer starts at zero, so an untrained flow is the base.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray


class ResidualVelocity(eqx.Module):
    """Two hidden layers, each modulated by time and step size.

    Time and step size enter by scale and shift of the hidden units alone, which do not depend on
    y: along a batch they are computed once.

    Args:
        dim: d, length of y.
        width: units of each hidden layer.
        horizon: T, the largest time, by which times are scaled.
        rng_key: key of the random initial weights.
        dtype: type of the weights.
    """

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    last: eqx.nn.Linear
    modulation: eqx.nn.MLP
    horizon: float = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __init__(self, dim: int, width: int, horizon: float, rng_key: PRNGKeyArray, dtype):
        keys = jr.split(rng_key, 4)
        self.first = eqx.nn.Linear(dim, width, dtype=dtype, key=keys[0])
        self.second = eqx.nn.Linear(width, width, dtype=dtype, key=keys[1])
        last = eqx.nn.Linear(width, dim, dtype=dtype, key=keys[2])
        self.last = jax.tree.map(jnp.zeros_like, last)
        self.modulation = eqx.nn.MLP(
            4, 4 * width, width_size=32, depth=1, activation=jax.nn.silu, dtype=dtype, key=keys[3]
        )
        self.horizon = horizon
        self.width = width

    def __call__(
        self, y: Float[Array, " d"], tau: Float[Array, ""], step_size: Float[Array, ""]
    ) -> Float[Array, " d"]:
        """r(y, tau, h): the velocity to leave y at time tau with in one step of size h."""
        modulation = self.modulation(self._features(tau, step_size)).reshape(4, self.width)
        scale_1, shift_1, scale_2, shift_2 = modulation
        hidden = jax.nn.silu((1 + scale_1) * self.first(y) + shift_1)
        hidden = jax.nn.silu((1 + scale_2) * self.second(hidden) + shift_2)
        return self.last(hidden)

    def _features(self, tau, step_size) -> Float[Array, " 4"]:
        # The process changes fastest near time 0: the logarithms resolve that end.
        tau, step_size = tau / self.horizon, step_size / self.horizon
        return jnp.stack([tau, step_size, 0.3 * jnp.log(tau + 0.01), 0.3 * jnp.log(step_size)])
