"""The one-step map of the nodes: each a scalar map of its own z, given core and parents.

Node i is made as
    y_i = m_i + sigma_i (B_i(z_i) + t_i),
    sigma_i^-2 = e^{p_1} + e^{p_2},   m_i = sigma_i^2 (e^{p_1 + e_1} mu_1 + e^{p_2 + e_2} mu_2).
The p, e and mu are linear in the core's and the parents' values.  In a hierarchy of normal
distributions prior and data are two such terms, whether it is centred or not.  In the centred form
e = 0, and in its neck a small error of e moves the mean by many sigma; so e is a parameter of its
own, which starts at zero.

The increasing function B_i and the shift t_i come from one small network that all nodes share.  It
sees the core, the parents, and four numbers of the node's own, its embedding.  With B_i(z) = z and
t_i = 0 the node is conditionally Gaussian.  The network's last layer starts at zero.

In all arrays the nodes are the last axis, along which a processor computes several at once.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from numpyro_onestep._util.random import numpy_generator

_EDGES = (-2.4, -1.6, -0.8, 0.0, 0.8, 1.6, 2.4)  # of the bins in which a node's map has a slope
_SHARPNESS = 1.25  # with which slopes pass from bin to bin: 1 / _SHARPNESS is a bin
_LARGEST_LOG_SLOPE = 4.0
_FEW_NODES = 50  # from here on the noise of a step of the network is kept from growing
_LARGEST_EXPONENT = 24.0
_EMBEDDING = 4


class Moved(NamedTuple):
    """Values of nodes, and the logs of their derivatives in z, which are positive."""

    y: Float[Array, " n"]
    log_slope: Float[Array, " n"]


class SharedNetwork(eqx.Module):
    """The network that all nodes share: one hidden layer; log slopes and a shift come out."""

    of_core: Float[Array, "m g"]
    of_parents: Float[Array, "m p"]
    of_embedding: Float[Array, "m e"]
    bias: Float[Array, " m"]
    last: Float[Array, "k m"]
    embedding: Float[Array, "e n"]

    def __init__(self, num: int, g: int, p: int, width: int, rng_key: PRNGKeyArray, dtype):
        rng = numpy_generator(rng_key)

        def normal(*shape, scale=1.0):
            return jax.device_put((scale * rng.standard_normal(shape)).astype(dtype))

        self.bias = normal(width)
        self.of_core = normal(width, g, scale=max(1, g) ** -0.5)
        self.of_parents = normal(width, p, scale=max(1, p) ** -0.5)
        self.of_embedding = normal(width, _EMBEDDING, scale=_EMBEDDING**-0.5)
        self.last = normal(len(_EDGES) + 2, width, scale=0.0)
        self.embedding = normal(_EMBEDDING, num)

    def __call__(
        self, core: Float[Array, " g"], around: Float[Array, "p m"], rows: slice
    ) -> tuple[Float[Array, "b m"], Float[Array, " m"]]:
        """Log slopes in each bin, and shifts, of the nodes of a slice."""
        # Products of matrices are fast only where the hidden units are the last axis.
        before = (
            (self.of_core @ core + self.bias)
            + around.T @ self.of_parents.T
            + self.embedding[:, rows].T @ self.of_embedding.T
        )
        out = (jax.nn.silu(before) @ self.last.T).T / len(self.bias) ** 0.5
        # So many nodes share the network that a step of its parameters counts as often.
        out = out / max(1.0, self.embedding.shape[1] / _FEW_NODES) ** 0.5
        return _LARGEST_LOG_SLOPE * jnp.tanh(out[1:] / _LARGEST_LOG_SLOPE), out[0]


def bend(
    z: Float[Array, " m"], log_slopes: Float[Array, "b m"]
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """An increasing function of z whose slope passes from bin to bin, and the slope.

    The slope is a weighted mean of the bins' slopes.  The weights are differences of the sigmoids
    (1 + x / (1 + x^2)^(1/2)) / 2, whose gradient costs a fifth of that of logistic ones, and the
    function is the slope's integral.  With slopes of one it is z.
    """
    slopes = jnp.exp(log_slopes)
    scaled = _SHARPNESS * (z - jnp.asarray(_EDGES, z.dtype)[:, None])
    root = jnp.sqrt(1 + scaled**2)
    jumps, middle = 0.5 * (slopes[1:] - slopes[:-1]), 0.5 * (slopes[0] + slopes[-1])
    # A sum would be compiled into one loop with all that it is a sum of, three times as slow.
    total = jnp.ones(len(_EDGES), z.dtype)
    value = middle * z + total @ (jumps * root) / _SHARPNESS
    return value, middle + total @ (jumps * scaled / root)


def core_unit(g: int) -> float:
    """The unit in which slopes in a core of g members are stored: the root of its size.

    The noise of a step of Adam is as large in each parameter, so that without this unit its sum
    over the core would grow with the core's size.
    """
    return max(1, g) ** 0.5


class Linear(eqx.Module):
    """For each node the log precisions of both terms, the excess of their log gains, their means.

    Each is constant + slopes . core + slopes . parents.
    """

    constant: Float[Array, "3 2 n"]
    of_core: Float[Array, "g 3 2 n"]
    of_parents: Float[Array, "p 3 2 n"]

    def __call__(
        self,
        core: Float[Array, " g"],
        around: Float[Array, "p m"],
        rows: slice,
        sees_core: Bool[Array, "g m"],
    ) -> Float[Array, "3 2 m"]:
        """The values for the nodes of a slice."""
        constant = self.constant[..., rows]
        slopes = jnp.where(sees_core[:, None, None], self.of_core[..., rows], 0.0)
        # A product with a matrix; a sum over the first of four axes takes up to twice as long.
        of_core = (core / core_unit(core.size)) @ slopes.reshape(core.size, constant.size)
        of_parents = jnp.sum(self.of_parents[..., rows] * around[:, None, None], 0)
        return constant + of_core.reshape(constant.shape) + of_parents


class Conditional(eqx.Module):
    """The maps of all nodes; `rows` chooses a slice of them."""

    parents: Int[Array, "p n"]
    has_parent: Bool[Array, "p n"]
    sees_core: Bool[Array, "g n"]
    linear: Linear
    network: SharedNetwork | None

    def __call__(
        self,
        z: Float[Array, " m"],
        core: Float[Array, " g"],
        around: Float[Array, "p m"],
        rows: slice,
    ) -> Moved:
        """Values and slopes of some nodes.

        Args:
            z: base draws of these nodes.
            core: the core's values.
            around: the values of their parents, as `values_around` gives them.
            rows: which nodes.
        """
        mean, log_scale, _ = self.gaussian(core, around, rows)
        scale = jnp.exp(log_scale)
        if self.network is None:
            return Moved(mean + scale * z, log_scale)
        log_slopes, shift = self.network(core, around, rows)
        bent, slope = bend(z, log_slopes)
        return Moved(mean + scale * (bent + shift), log_scale + jnp.log(slope))

    def values_around(self, nodes: Float[Array, " k"], rows: slice) -> Float[Array, "p m"]:
        """For some nodes the values of their parents, and 0 where there is none.

        Args:
            nodes: values of the nodes made so far, all parents among them; empty at first.
            rows: which nodes.
        """
        has = self.has_parent[:, rows]
        none = jnp.zeros(has.shape, nodes.dtype)
        return jnp.where(has, nodes[self.parents[:, rows]], none) if nodes.size else none

    def bracket(
        self, core: Float[Array, " g"], nodes: Float[Array, " n"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """A z for each node near that of its value, and how far away that may be.

        The first is exact if the network does nothing; the slope is at least e^-4 of the scale.
        """
        every = slice(None)
        around = self.values_around(nodes, every)
        mean, log_scale, _ = self.gaussian(core, around, every)
        z = (nodes - mean) * jnp.exp(-log_scale)
        miss = (self(z, core, around, every).y - nodes) * jnp.exp(-log_scale)
        return z, 1e-3 + jnp.exp(_LARGEST_LOG_SLOPE) * jnp.abs(miss)

    def gaussian(
        self, core: Float[Array, " g"], around: Float[Array, "p m"], rows: slice
    ) -> tuple[Float[Array, " m"], Float[Array, " m"], Float[Array, "p m"]]:
        """Means and log scales of the conditional Gaussians, and the means' slopes in the parents.

        The slopes are those at fixed precisions and gains.
        """
        *logs, means = self.linear(core, around, rows, self.sees_core[:, rows])
        logs = logs[0], logs[0] + logs[1]
        precision, gain = (jnp.clip(v, -_LARGEST_EXPONENT, _LARGEST_EXPONENT) for v in logs)
        log_precision = jnp.logaddexp(*precision)
        weights = jnp.exp(gain - log_precision)
        slopes = jnp.sum(weights * self.linear.of_parents[:, 2][..., rows], 1)
        return jnp.sum(weights * means, 0), -0.5 * log_precision, slopes
