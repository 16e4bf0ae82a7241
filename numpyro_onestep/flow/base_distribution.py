"""The base distribution of the flow, in whitened coordinates, with a known density.

It is usually the standard normal.  Where the posterior has many modes it is a mixture, since a
continuous map cannot tear one Gaussian into many pieces; a draw still costs one evaluation, and its
density stays exact.
"""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

# Numbers in the Cholesky factors that are gathered at once, one factor for each draw: 110 MB in
# single precision.  More draws are made in batches, to bound the memory.
_LARGEST_GATHER = 27_487_790


def standard_normal_log_density(z: Float[Array, " d"]) -> Float[Array, ""]:
    """The log density log N(z; 0, I) (nats)."""
    return -0.5 * jnp.sum(z**2) - 0.5 * z.size * jnp.log(2 * jnp.pi)


class AbstractBaseDistribution(eqx.Module):
    """A distribution with draws and log densities (nats).

    `scale` inflates the distribution: every component keeps its centre, and its standard
    deviations are multiplied by `scale`.
    """

    @abc.abstractmethod
    def sample(
        self,
        rng_key: PRNGKeyArray,
        num: int,
        like: Float[Array, " d"],
        scale: float | Float[Array, " n"] = 1.0,
    ) -> Float[Array, "n d"]:
        """Independent draws of the length and type of `like`; each may have its own scale."""

    @abc.abstractmethod
    def log_density(self, z: Float[Array, " d"], scale: Any = 1.0) -> Float[Array, ""]:
        """Log density of one draw."""


class StandardNormal(AbstractBaseDistribution):
    """N(0, I)."""

    def sample(self, rng_key, num, like, scale=1.0):
        """Draws of N(0, scale^2 I)."""
        return jnp.reshape(scale, (-1, 1)) * jr.normal(rng_key, (num, like.size), like.dtype)

    def log_density(self, z, scale=1.0):
        """The log density log N(z; 0, scale^2 I)."""
        return standard_normal_log_density(z / scale) - z.size * jnp.log(scale)


STANDARD_NORMAL = StandardNormal()


class NormalMixture(AbstractBaseDistribution):
    """A mixture of Gaussians N(loc_c, L_c L_c^T)."""

    log_weights: Float[Array, " c"]
    loc: Float[Array, "c d"]
    scale_tril: Float[Array, "c d d"]
    inverse: Float[Array, "c d d"]  # of each scale_tril: products are cheaper than solves

    def sample(self, rng_key, num, like, scale=1.0):
        """Draws: for each a component is chosen, then a draw of its Gaussian."""
        key_component, key_normal = jr.split(rng_key)
        component = jr.categorical(key_component, self.log_weights, shape=(num,))
        z = jnp.reshape(scale, (-1, 1)) * jr.normal(key_normal, (num, like.size), like.dtype)
        if num * like.size**2 <= _LARGEST_GATHER:
            return self.loc[component] + jnp.einsum("nij,nj->ni", self.scale_tril[component], z)
        size = max(1, _LARGEST_GATHER // like.size**2)
        along = jax.lax.map(
            lambda at: self.scale_tril[at[0]] @ at[1], (component, z), batch_size=size
        )
        return self.loc[component] + along

    def log_density(self, z, scale=1.0):
        """Log of the weighted sum of the components' densities."""
        log_components = self.log_components(z[None], scale)[0]
        return jax.nn.logsumexp(self.log_weights + log_components)

    def log_components(self, z: Float[Array, "n d"], scale: Any = 1.0) -> Float[Array, "n c"]:
        """Log densities of the single components, without their weights."""
        white = jnp.einsum("cij,ncj->nci", self.inverse, z[:, None] - self.loc)
        log_det = jnp.log(jnp.diagonal(self.inverse, axis1=1, axis2=2)).sum(1)
        # The scale enters after the sum, so that ScaleMixture needs one product for all scales.
        log_normal = -0.5 * jnp.sum(white**2, -1) / scale**2
        return log_normal + log_det - z.shape[1] * (jnp.log(scale) + 0.5 * jnp.log(2 * jnp.pi))


def normal_mixture(log_weights, loc, scale_tril, dtype) -> NormalMixture:
    """A mixture of type `dtype` from its components' parameters, in double precision."""
    parts = log_weights, loc, scale_tril, np.linalg.inv(scale_tril)
    return NormalMixture(*(jnp.asarray(part, dtype) for part in parts))


class ScaleMixture(AbstractBaseDistribution):
    """A mixture of Gaussians, each at several scales, for heavy tails of any weight."""

    mixture: NormalMixture
    log_fractions: Float[Array, " s"]
    scales: Float[Array, " s"]

    def sample(self, rng_key, num, like, scale=1.0):
        """Draws: for each a width is chosen, then a draw of the mixture at that width."""
        key_width, key_draw = jr.split(rng_key)
        width = self.scales[jr.categorical(key_width, self.log_fractions, shape=(num,))]
        return self.mixture.sample(key_draw, num, like, scale * width)

    def log_density(self, z, scale=1.0):
        """Log of the weighted sum over widths."""
        log_widths = jax.vmap(lambda width: self.mixture.log_density(z, scale * width))(self.scales)
        return jax.nn.logsumexp(self.log_fractions + log_widths)


class ProductMixture(AbstractBaseDistribution):
    """Independent coordinates, each a mixture of one-dimensional Gaussians.

    With c components in each coordinate it has up to c^d modes; a mixture in d dimensions would
    need one component for each of them.
    """

    log_weights: Float[Array, "d c"]
    loc: Float[Array, "d c"]
    scale: Float[Array, "d c"]

    def sample(self, rng_key, num, like, scale=1.0):
        """Draws, coordinate by coordinate."""
        key_component, key_normal = jr.split(rng_key)
        shape = num, like.size
        component = jr.categorical(key_component, self.log_weights, shape=shape)[..., None]
        loc, width = (
            jnp.take_along_axis(jnp.broadcast_to(v, (num, *v.shape)), component, 2)[..., 0]
            for v in (self.loc, self.scale)
        )
        z = jr.normal(key_normal, shape, like.dtype)
        return loc + jnp.reshape(scale, (-1, 1)) * width * z

    def log_density(self, z, scale=1.0):
        """Sum over coordinates of the log density of each one's mixture."""
        width = scale * self.scale
        white = (z[:, None] - self.loc) / width
        log_normal = -0.5 * white**2 - jnp.log(width) - 0.5 * jnp.log(2 * jnp.pi)
        return jax.nn.logsumexp(self.log_weights + log_normal, axis=1).sum()


def inflated_scale(d: int) -> float:
    """Scale of inflated draws, 1 + 1/sqrt(d): their radius is larger by about 1 at any d."""
    return 1 + 1 / math.sqrt(d)
