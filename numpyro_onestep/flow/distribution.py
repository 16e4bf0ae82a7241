"""The trained flow as a distribution on R^d, with exact densities."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample
from numpyro.util import is_prng_key

from numpyro_onestep.flow.base_distribution import STANDARD_NORMAL, AbstractBaseDistribution
from numpyro_onestep.flow.flow_map import FlowMap
from numpyro_onestep.flow.gaussian import AbstractPreconditioner
from numpyro_onestep.flow.transform import FlowTransform, Image

_PARAMETERS = "flow", "preconditioner", "base"


class FlowDistribution(Distribution):
    """The distribution of x = loc + A Phi_k(z), z a draw of the base distribution.

    A draw costs k evaluations of the network, and its density is exact, by the change of variables
        log q(x) = log n(z) - log|det dx/dz|,   n the density of the base distribution.
    `sample_and_log_prob` gets it on the way, by the exact volume of the map; `log_prob` finds z by
    the map's inverse first, and is differentiable in x and in the parameters by the implicit
    function theorem.

    Where the inverse is not found, or the map folds (its determinant is negative there, so that
    several z may lead to x), the density is not known: `log_prob` is not a number.

    Args:
        flow: the k-step map in whitened coordinates.
        preconditioner: the Gaussian preconditioner, from whitened to unconstrained coordinates.
        base: the base distribution. Default N(0, I).
        num_steps: k, a divisor of the flow's grid. Default 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro_onestep import OneStep
        >>> sampler = OneStep(potential_fn=lambda x: jnp.sum(x**2), progress_bar=False)
        >>> sampler.run(jax.random.key(0), init_params=jnp.zeros(2))
        >>> q = sampler.get_posterior()
        >>> x, log_q = q.sample_and_log_prob(jax.random.key(1), (5,))
        >>> x.shape, bool(jnp.allclose(q.log_prob(x), log_q, atol=1e-3))
        ((5, 2), True)
    """

    support: Any = constraints.real_vector

    def __init__(
        self,
        flow: FlowMap,
        preconditioner: AbstractPreconditioner,
        base: AbstractBaseDistribution = STANDARD_NORMAL,
        num_steps: int = 1,
        *,
        validate_args: bool | None = None,
    ):
        self.flow, self.preconditioner, self.base = flow, preconditioner, base
        self.num_steps = num_steps
        super().__init__((), (preconditioner.loc.shape[-1],), validate_args=validate_args)

    @property
    def dim(self) -> int:
        """d."""
        return self.event_shape[0]

    @property
    def transform(self) -> FlowTransform:
        """The map alone."""
        return FlowTransform(self.flow, self.preconditioner, self.num_steps)

    def with_flow(self, flow: FlowMap) -> "FlowDistribution":
        """The same with another map in whitened coordinates."""
        return type(self)(flow, self.preconditioner, self.base, self.num_steps)

    def with_steps(self, num_steps: int) -> "FlowDistribution":
        """The same with another number of flow steps.

        Raises:
            ValueError: it does not divide the flow's grid.
        """
        self.flow.schedule(num_steps)
        return type(self)(self.flow, self.preconditioner, self.base, num_steps)

    def sample_base(
        self, rng_key: PRNGKeyArray, num: int, scale: float | Float[Array, " n"] = 1.0
    ) -> Float[Array, "n d"]:
        """Draws of the base distribution, of the network's type, inflated by `scale`."""
        # Where the target is in double precision the network still is in single.
        like = self.preconditioner.loc.astype(self.flow.dtype)
        return self.base.sample(rng_key, num, like, scale).astype(like.dtype)

    def log_prob_at(self, z: Float[Array, " d"], image: Image) -> Float[Array, ""]:
        """Log q(x), x the image of z (nats)."""
        return self.base.log_density(z) - image.log_det

    def sample(self, key: PRNGKeyArray | None, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draws: `(*sample_shape, d)`."""
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(
        self, key: PRNGKeyArray | None, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Any, list[Any]]:
        """Draws and, for their densities, the base draws that they were made of."""
        z = self._base_draws(key, sample_shape)
        return self.transform(z), [z]

    def sample_and_log_prob(
        self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Float[Array, "*n d"], Float[Array, "*n"]]:
        """Draws and their log densities (nats), without the map's inverse."""

        def one(z):
            image = self.transform.image(z)
            return image.x, self.log_prob_at(z, image)

        z = self._base_draws(key, sample_shape)
        return jnp.vectorize(one, signature="(d)->(d),()")(z)

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Log densities at any points (nats).

        Args:
            value: points.
            intermediates: what `sample_with_intermediates` gave with them; then no inverse is
                looked for.
        """
        if intermediates:
            (z,) = intermediates
            found = jnp.ones(jnp.shape(z)[:-1], bool)
        else:
            z, found = self.transform.invert(value)

        def one(z, found):
            image = self.transform.image(z)
            # A draw that is known to come from z has a density whatever the map does elsewhere.
            known = found & ((image.sign > 0) | bool(intermediates))
            return jnp.where(known, self.log_prob_at(z, image), jnp.nan)

        return jnp.vectorize(one, signature="(d),()->()")(z, found)

    def _base_draws(self, key, sample_shape):
        assert is_prng_key(key)
        z = self.sample_base(key, math.prod(sample_shape))
        return z.reshape(*sample_shape, self.dim)

    def tree_flatten(self) -> Any:
        """The parameters, in a fixed order, so that programs are the same in every process."""
        return (
            tuple(self.__dict__.get(name) for name in _PARAMETERS),
            (self.num_steps, self._event_shape, self.__dict__.get("_validate_args")),
        )

    @classmethod
    def tree_unflatten(cls, aux_data: Any, params: Any) -> "FlowDistribution":
        """The way back, without looking at the parameters: JAX may put anything in their place."""
        new = cls.__new__(cls)
        new.num_steps, new._event_shape, validate = aux_data
        new._batch_shape = ()
        if validate is not None:
            new._validate_args = validate
        for name, value in zip(_PARAMETERS, params, strict=True):
            setattr(new, name, value)
        return new
