"""The step-conditioned residual velocity r(y, tau, h).

The network learns the residual of the score, r(y, tau, h) = y + grad log p_tau(y) at h -> 0, and
at larger steps h the mean of that residual over the step.  r = 0 is exact where the target equals
the base distribution.  The last layer starts at zero, so an untrained flow is the identity, and its
draws are those of the base distribution.

The residual is split into s(y) y + t(y), coordinate by coordinate, and a step integrates the
linear part exactly:
    y e^{h s} + h t  =  y + h r,   r = y (e^{h s} - 1) / h + t.
Hierarchical models such as the funnel need a scale that depends on another coordinate.  And a
factor e^{h s} is always positive, while 1 + h s can turn a coordinate round.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep._util.random import numpy_generator
from numpyro_onestep.flow.jacobian import StepJacobian

# Logs of the smallest and the largest factor by which a step scales a coordinate, e^-4 and e^6.
# These limits decide what a single step can do.
_SMALLEST_LOG_SCALE, _LARGEST_LOG_SCALE = -4.0, 6.0
# Units of the hidden layer through which time and step size modulate the network.
_MODULATION_WIDTH = 32


def silu(x: Array) -> Array:
    """The function x / (1 + e^-x), in a form that can be pickled; JAX's jitted one cannot."""
    return jax.nn.silu(x)


class ResidualVelocity(eqx.Module):
    """One hidden layer, modulated by time and step size; scales s and shifts t come out.

    Time and step size enter only by a scale and a shift of the hidden units.  These do not depend
    on y, so for a batch they are computed once.

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
        # NumPy draws the weights, since JAX would first compile for a second or so.
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
        """r(y, tau, h): the mean velocity of the step of size h that leaves y at time tau."""
        _, log_scale, t = self._scale_and_shift(y, tau, step_size)
        return y * jnp.expm1(log_scale) / step_size + t

    def step_jacobian(
        self, y: Float[Array, " d"], tau: Float[Array, ""], step_size: Float[Array, ""]
    ) -> StepJacobian:
        """d(y + h r)/dy, the Jacobian of one step, in closed form.

        Forward tangents would cost three times as much, and so would the gradient of the volume.
        """
        slope, log_scale, _ = self._scale_and_shift(y, tau, step_size)
        of_scale, of_shift = jnp.split(self.last.weight, 2)
        factor = jnp.exp(log_scale)
        bend = 1 - (log_scale / _limit(log_scale)) ** 2
        rows = step_size / self.width**0.5 * ((y * factor * bend)[:, None] * of_scale + of_shift)
        return StepJacobian(factor, rows * slope, self.first.weight)

    def _scale_and_shift(self, y, tau, step_size):
        """Slopes of the hidden units, h s after its limit, and t."""
        narrow, wide = self.modulation
        scale, shift = jnp.split(wide(silu(narrow(self._features(tau, step_size)))), 2)
        before = (1 + scale) * self.first(y) + shift
        hidden, slope = jax.jvp(silu, (before,), (jnp.asarray(1 + scale, before.dtype),))
        # Divided by sqrt(width), the sum over the units has the same size at any width, and so has
        # the change of the output in a step of Adam.
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
