"""The target's potential in both coordinate systems."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from numpyro_onestep.flow.gaussian import AbstractPreconditioner


class PreconditionedPotential(eqx.Module):
    """The potential in unconstrained coordinates x and in whitened ones, y = A^-1 (x - loc).

    `unconstrained(x)` is U(x) = -log gamma(x); `whitened(y)` is -log of the density of y.
    """

    unconstrained: Any  # a Potential, or any function of x
    preconditioner: AbstractPreconditioner

    @property
    def num_numbers(self) -> int:
        """How many numbers an evaluation computes, about; 1 where the function does not say."""
        return getattr(self.unconstrained, "num_numbers", 1)

    def whitened(self, y: Float[Array, " d"]) -> Float[Array, ""]:
        """-log gamma(y) = U(loc + A y) - log|det A| (nats)."""
        x = self.preconditioner.unwhiten(y)
        return self.unconstrained(x) - self.preconditioner.log_det
