"""The trained flow as a distribution on R^d, with exact densities."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample
from numpyro.util import is_prng_key

from numpyro_onestep.flow.base_distribution import STANDARD_NORMAL, AbstractBaseDistribution
from numpyro_onestep.flow.flow_map import AbstractFlowMap
from numpyro_onestep.flow.gaussian import AbstractPreconditioner
from numpyro_onestep.flow.transform import FlowTransform, Image

_PARAMETERS = "flow", "preconditioner", "base"


class FlowDistribution(Distribution):
    """The distribution of x = loc + A Phi_k(z), z a draw of the base distribution.

    A draw costs k evaluations of the network, and its density is exact, by the change of variables,

        log q(x) = log n(z) - log|det dx/dz|,   n the density of the base distribution.

    `sample_and_log_prob` computes the density with the draw, by the exact volume of the map.
    `log_prob` finds z by the map's inverse first; it is differentiable in x and in the parameters
    by the implicit function theorem.

    Where the inverse is not found, or the map folds (its determinant is negative there, so that
    several z may lead to x), the density is not known, and `log_prob` is NaN.  The event shape is
    `(d,)`, the batch shape is empty, and log densities are in nats.

    Args:
        flow: the k-step map in whitened coordinates.
        preconditioner: the Gaussian preconditioner, from whitened to unconstrained coordinates.
        base: the base distribution. Default N(0, I).
        num_steps: k, a divisor of the flow's grid. Default 1.
        validate_args: as for every NumPyro distribution. Default None.

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
        flow: AbstractFlowMap,
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
        """Number of dimensions, d."""
        return self.event_shape[0]

    @property
    def transform(self) -> FlowTransform:
        """The map from z to x, as a NumPyro transform."""
        return FlowTransform(self.flow, self.preconditioner, self.num_steps)

    def with_flow(self, flow: AbstractFlowMap) -> "FlowDistribution":
        """The same distribution with another map in whitened coordinates."""
        return type(self)(flow, self.preconditioner, self.base, self.num_steps)

    def with_steps(self, num_steps: int) -> "FlowDistribution":
        """The same distribution with another number of flow steps.

        Raises:
            ValueError: `num_steps` does not divide the flow's grid.
        """
        self.flow.schedule(num_steps)
        return type(self)(self.flow, self.preconditioner, self.base, num_steps)

    def sample_base(
        self, rng_key: PRNGKeyArray, num: int, scale: float | Float[Array, " n"] = 1.0
    ) -> Float[Array, "n d"]:
        """Draws `(num, d)` of the base distribution, of the network's type, inflated by `scale`."""
        # The network is in single precision even where the target is in double precision.
        like = self.preconditioner.loc.astype(self.flow.dtype)
        return self.base.sample(rng_key, num, like, scale).astype(like.dtype)

    def log_prob_at(self, z: Float[Array, " d"], image: Image) -> Float[Array, ""]:
        """The log density log q(x) of the flow at x, the image of z (nats)."""
        return self.base.log_density(z) - image.log_det

    def sample(self, key: PRNGKeyArray | None, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draws of shape `(*sample_shape, d)`, by k evaluations of the network each."""
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(
        self, key: PRNGKeyArray | None, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Any, list[Any]]:
        """Draws `(*sample_shape, d)`, and the base draws they come from, for `log_prob`."""
        z = self._base_draws(key, sample_shape)
        return self.transform(z), [z]

    def sample_and_log_prob(
        self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Float[Array, "*n d"], Float[Array, "*n"]]:
        """Draws `(*sample_shape, d)` and log densities `(*sample_shape,)` (nats), no inverse."""

        def one(z):
            image = self.transform.image(z)
            return image.x, self.log_prob_at(z, image)

        z = self._base_draws(key, sample_shape)
        return jnp.vectorize(one, signature="(d)->(d),()")(z)

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Log densities at any points (nats), NaN where they are not known.

        Args:
            value: points, `(*n, d)`.
            intermediates: those that `sample_with_intermediates` returned with the points; with
                them no inverse is computed. Default None.

        Returns:
            Log densities, `(*n,)`.
        """
        if intermediates:
            (z,) = intermediates
            found = jnp.ones(jnp.shape(z)[:-1], bool)
        else:
            z, found = self.transform.invert(value)

        def one(z, found):
            image = self.transform.image(z)
            # A draw that is known to come from z has a density even where the map folds.
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
        """A distribution of these parameters, unchecked: JAX may put any object in their place."""
        new = cls.__new__(cls)
        new.num_steps, new._event_shape, validate = aux_data
        new._batch_shape = ()
        if validate is not None:
            new._validate_args = validate
        for name, value in zip(_PARAMETERS, params, strict=True):
            setattr(new, name, value)
        return new
