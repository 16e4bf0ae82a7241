"""The trained map as a NumPyro transform: base distribution to unconstrained coordinates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from numpyro_onestep.flow.flow_map import AbstractFlowMap
from numpyro_onestep.flow.gaussian import AbstractPreconditioner
from numpyro_onestep.flow.inverse import invert, inverter


class Image(NamedTuple):
    """The image x of a point, and the map's change of volume at that point."""

    x: Float[Array, " d"]
    log_det: Float[Array, ""]  # log|det dx/dz|
    sign: Float[Array, ""]  # of that determinant: -1 proves that the map folds


class FlowTransform(Transform):
    """x = loc + A Phi_k(z): the k-step map, then the Gaussian preconditioner.

    It is differentiable in both directions, and with respect to its parameters.  The inverse is
    differentiated by the implicit function theorem, whose linear system is solved by a d x d
    factorisation.  Points have shape `(*n, d)`, and log volumes, in nats, have shape `(*n,)`.

    `inv` is NaN at a point whose inverse is not found.

    Args:
        flow: the map in whitened coordinates.
        preconditioner: the affine map to unconstrained coordinates.
        num_steps: k, the number of flow steps; a divisor of the flow's grid. Default 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro_onestep import OneStep
        >>> sampler = OneStep(potential_fn=lambda x: jnp.sum(x**2), progress_bar=False)
        >>> sampler.run(jax.random.key(0), init_params=jnp.zeros(2))
        >>> transform = sampler.get_transform()
        >>> z = jnp.array([0.3, -1.0])
        >>> bool(jnp.allclose(transform.inv(transform(z)), z, atol=1e-3))
        True
    """

    domain: Any = constraints.real_vector
    codomain: Any = constraints.real_vector

    def __init__(
        self, flow: AbstractFlowMap, preconditioner: AbstractPreconditioner, num_steps: int = 1
    ):
        self.flow, self.preconditioner, self.num_steps = flow, preconditioner, num_steps

    def image(self, z: Float[Array, " d"]) -> Image:
        """The image of one point z, with the exact log change of volume (nats)."""
        y, log_det, sign = self.flow.volume(z, self.num_steps)
        x = self.preconditioner.unwhiten(y)
        return Image(x, log_det + self.preconditioner.log_det, sign)

    def move(self, z: Float[Array, " d"]) -> Float[Array, " d"]:
        """The image x of one point z."""
        return self.preconditioner.unwhiten(self.flow(z, self.num_steps))

    def preimage(
        self, x: Float[Array, " d"], near: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
        """The z that one point x comes from, by a search from `near`, and whether it was found.

        This is not differentiable, but `inv` is.
        """
        return invert(self.flow, self.preconditioner.whiten(x), near, self.num_steps)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Images x of points z; NumPyro calls the argument x."""
        return jnp.vectorize(self.move, signature="(d)->(d)")(x)

    def call_with_intermediates(self, x: Float[Array, "*n d"]) -> tuple[Any, Any]:
        """Images of points z, and the log volumes for `log_abs_det_jacobian`."""
        image = jnp.vectorize(self.image, signature="(d)->(d),(),()")(x)
        return image[0], image[1]

    def log_abs_det_jacobian(
        self, x: Float[Array, "*n d"], y: Float[Array, "*n d"], intermediates: Any = None
    ) -> Float[Array, "*n"]:
        """log|det dx/dz| at points z (nats)."""
        if intermediates is not None:
            return intermediates
        return jnp.vectorize(lambda z: self.image(z).log_det, signature="(d)->()")(x)

    def _inverse(self, y: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        z, found = self.invert(y)
        return jnp.where(found[..., None], z, jnp.nan)

    def invert(self, x: Float[Array, "*n d"]) -> tuple[Float[Array, "*n d"], Bool[Array, "*n"]]:
        """The z that each point comes from, and for which points it was found.

        It is not found where the map does not reach the point, or where Newton's method fails from
        the base draws whose images are nearest.

        Args:
            x: points, `(*n, d)`.

        Returns:
            The z, `(*n, d)`, and whether each was found, `(*n,)`.
        """
        whiten = jnp.vectorize(self.preconditioner.whiten, signature="(d)->(d)")
        y = whiten(x)
        find = inverter(self.flow, self.num_steps, jnp.shape(x)[-1], y.dtype)
        z, found = jnp.vectorize(find, signature="(d)->(d),()")(y)
        return z, found

    def tree_flatten(self):
        """The parameters as a pytree, and the number of steps."""
        names = "flow", "preconditioner"
        return tuple(getattr(self, n) for n in names), (names, {"num_steps": self.num_steps})

    def eq(self, other: object, static: bool = False) -> Any:
        """Whether another transform has the same number of steps and the same parameters."""
        if not isinstance(other, FlowTransform) or other.num_steps != self.num_steps:
            return False
        mine, its = (jax.tree.flatten((t.flow, t.preconditioner)) for t in (self, other))
        if mine[1] != its[1]:
            return False
        return jnp.all(
            jnp.asarray([jnp.array_equal(a, b) for a, b in zip(mine[0], its[0], strict=True)])
        )
