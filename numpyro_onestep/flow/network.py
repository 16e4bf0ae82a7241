"""The step-conditioned residual velocity r(y, tau, h).

The network learns the residual of the score, r(y, tau, h) = y + grad log p_tau(y) at h -> 0, and
at larger steps h the mean of that residual over the step.  r = 0 is exact where the target equals
the base, and the last layer starts at zero, so an untrained flow is the base.

The residual is split into s(y) y + t(y), coordinate by coordinate, and a step integrates the
linear part exactly:
    y e^{h s} + h t  =  y + h r,   r = y (e^{h s} - 1) / h + t.
A scale that depends on another coordinate is what hierarchical models ask for (the funnel), and a
factor e^{h s} cannot turn a coordinate round as 1 + h s can.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep._util.random import numpy_generator
from numpyro_onestep.flow.jacobian import StepJacobian

# A step scales a coordinate by no less than e^-4 and no more than e^6.
_SMALLEST_LOG_SCALE, _LARGEST_LOG_SCALE = -4.0, 6.0
# Width of the random layers of the modulation by time and step size.
_MODULATION_WIDTH = 32


def silu(x: Array) -> Array:
    """X / (1 + e^-x): a function that can be pickled, as JAX's jitted one cannot."""
    return jax.nn.silu(x)


class ResidualVelocity(eqx.Module):
    """One hidden layer, modulated by time and step size; scales s and shifts t come out.

    Time and step size enter by scale and shift of the hidden units alone, which do not depend on
    y: along a batch they are computed once.

    Args:
        dim: d, length of y.
        width: units of the hidden layer.
        horizon: T, the largest time, by which times are scaled.
        rng_key: key of the random initial weights.
        dtype: type of the weights.
    """

    first: eqx.nn.Linear
    last: eqx.nn.Linear
    modulation: tuple[eqx.nn.Linear, eqx.nn.Linear]
    horizon: float = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __init__(self, dim: int, width: int, horizon: float, rng_key: PRNGKeyArray, dtype):
        # NumPy draws the weights: JAX would compile a second or so for it.
        rng = numpy_generator(rng_key)

        def linear(num_in, num_out, scale):
            layer = eqx.filter_eval_shape(eqx.nn.Linear, num_in, num_out, key=rng_key)
            values = [scale * rng.standard_normal(shape.shape) for shape in _arrays(layer)]
            # Not jnp.asarray, which compiles a program for each shape.
            return eqx.tree_at(_arrays, layer, jax.device_put([v.astype(dtype) for v in values]))

        self.first = linear(dim, width, dim**-0.5)
        self.last = linear(width, 2 * dim, 0.0)
        self.modulation = (
            linear(4, _MODULATION_WIDTH, 0.5),
            linear(_MODULATION_WIDTH, 2 * width, 0.1),
        )
        self.horizon = horizon
        self.width = width

    def __call__(
        self, y: Float[Array, " d"], tau: Float[Array, ""], step_size: Float[Array, ""]
    ) -> Float[Array, " d"]:
        """r(y, tau, h): the velocity to leave y at time tau with in one step of size h."""
        _, log_scale, t = self._scale_and_shift(y, tau, step_size)
        return y * jnp.expm1(log_scale) / step_size + t

    def step_jacobian(
        self, y: Float[Array, " d"], tau: Float[Array, ""], step_size: Float[Array, ""]
    ) -> StepJacobian:
        """D (y + h r) / D y.

        Forward tangents would cost three times as much, and the gradient of the volume is as much
        cheaper again.
        """
        slope, log_scale, _ = self._scale_and_shift(y, tau, step_size)
        of_scale, of_shift = jnp.split(self.last.weight, 2)
        factor = jnp.exp(log_scale)
        bend = 1 - (log_scale / _limit(log_scale)) ** 2
        rows = step_size / self.width**0.5 * ((y * factor * bend)[:, None] * of_scale + of_shift)
        return StepJacobian(factor, rows * slope, self.first.weight)

    def _scale_and_shift(self, y, tau, step_size):
        narrow, wide = self.modulation
        """Slopes of the hidden units, h s after its limit, and t."""
        scale, shift = jnp.split(wide(silu(narrow(self._features(tau, step_size)))), 2)
        before = (1 + scale) * self.first(y) + shift
        hidden, slope = jax.jvp(silu, (before,), (jnp.asarray(1 + scale, before.dtype),))
        # The sum over the units keeps its size, and Adam its pace, at any width.
        s, t = jnp.split(self.last(hidden) / self.width**0.5, 2)
        limit = _limit(s)
        return slope, limit * jnp.tanh(step_size * s / limit), t

    def _features(self, tau, step_size) -> Float[Array, " 4"]:
        # The process changes fastest near time 0: the logarithms resolve that end.
        tau, step_size = tau / self.horizon, step_size / self.horizon
        return jnp.stack([tau, step_size, 0.3 * jnp.log(tau + 0.01), 0.3 * jnp.log(step_size)])


def _limit(log_scale):
    return jnp.where(log_scale > 0, _LARGEST_LOG_SCALE, _SMALLEST_LOG_SCALE)


def _arrays(layer: eqx.nn.Linear):
    return [layer.weight, layer.bias]
