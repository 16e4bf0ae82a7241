"""The Gaussian preconditioner: an affine map x = loc + A y.

It leads from whitened coordinates y to unconstrained coordinates x.  Its Gaussian N(loc, A A^T) is
fitted to the target, so that the target is near a standard normal in y, and the flow has less to
learn.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int

from numpyro_onestep.structure.running_sums import RunningSums


class AbstractPreconditioner(eqx.Module):
    """A Gaussian on R^d: x = loc + A y, with y standard normal."""

    loc: eqx.AbstractVar[Float[Array, " d"]]

    @abstractmethod
    def unwhiten(self, y: Float[Array, " d"]) -> Float[Array, " d"]:
        """x = loc + A y."""

    @abstractmethod
    def whiten(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """y = A^-1 (x - loc)."""

    @property
    @abstractmethod
    def log_det(self) -> Float[Array, ""]:
        """log|det A|, the log-volume change of `unwhiten`."""

    @abstractmethod
    def times_precision(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """A^-T A^-1 v."""

    @abstractmethod
    def times_covariance(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """A A^T v."""

    def matrix(self) -> Float[Any, "d d"]:
        """A itself, for a number of dimensions in which it can be formed."""
        images = jax.vmap(self.unwhiten)(jnp.eye(self.loc.size, dtype=self.loc.dtype))
        return (images - self.loc).T

    def moved(self, by: Float[Array, " d"]) -> "AbstractPreconditioner":
        """The same Gaussian with its mean shifted by a vector."""
        return eqx.tree_at(lambda own: own.loc, self, self.loc + by)


class GaussianPreconditioner(AbstractPreconditioner):
    """N(loc, L L^T): A is the lower triangle L, `scale_tril`."""

    loc: Float[Array, " d"]
    scale_tril: Float[Array, "d d"]

    def unwhiten(self, y: Float[Array, " d"]) -> Float[Array, " d"]:
        """x = loc + L y."""
        return self.loc + self.scale_tril @ y

    def whiten(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """y = L^-1 (x - loc)."""
        return solve_triangular(self.scale_tril, x - self.loc, lower=True)

    @property
    def log_det(self) -> Float[Array, ""]:
        """log|det L|, the log-volume change of `unwhiten`."""
        return jnp.log(jnp.abs(jnp.diagonal(self.scale_tril))).sum()

    def times_precision(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """L^-T L^-1 v."""
        white = solve_triangular(self.scale_tril, v, lower=True)
        return solve_triangular(self.scale_tril, white, lower=True, trans="T")

    def times_covariance(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """L L^T v."""
        return self.scale_tril @ (v @ self.scale_tril)

    def matrix(self) -> Float[Array, "d d"]:
        """L."""
        return self.scale_tril


class LowRankPreconditioner(AbstractPreconditioner):
    """A = diag(scale) (I + Q diag(stretch) Q^T), the columns of Q orthonormal: no d x d matrix."""

    loc: Float[Array, " d"]
    scale: Float[Array, " d"]
    directions: Float[Array, "d r"]
    stretch: Float[Array, " r"]

    def unwhiten(self, y: Float[Array, " d"]) -> Float[Array, " d"]:
        """x = loc + A y."""
        return self.loc + self.scale * self._stretched(y, self.stretch)

    def whiten(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """y = A^-1 (x - loc)."""
        return self._stretched((x - self.loc) / self.scale, 1 / (1 + self.stretch) - 1)

    @property
    def log_det(self) -> Float[Array, ""]:
        """log|det A|."""
        return jnp.log(self.scale).sum() + jnp.log1p(self.stretch).sum()

    def times_precision(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """A^-T A^-1 v; (I + Q diag(stretch) Q^T)^-1 is I + Q diag(1 / (1 + stretch) - 1) Q^T."""
        return self._stretched(v / self.scale, (1 + self.stretch) ** -2 - 1) / self.scale

    def times_covariance(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """A A^T v."""
        return self.scale * self._stretched(self.scale * v, (1 + self.stretch) ** 2 - 1)

    def _stretched(self, v: Float[Array, " d"], by: Float[Array, " r"]) -> Float[Array, " d"]:
        """(I + Q diag(by) Q^T) v."""
        return v + self.directions @ (by * (self.directions.T @ v))


class StructuredPreconditioner(AbstractPreconditioner):
    """x = loc + A y for y in the order of a structure: a triangle for the core, then scales.

    `order[k]` is the coordinate of x that y's k-th belongs to, and `place` is its inverse.
    """

    loc: Float[Array, " d"]
    core_tril: Float[Array, "g g"]
    scale: Float[Array, " n"]  # of the coordinates outside of the core
    order: Int[Array, " d"]
    place: Int[Array, " d"]

    def unwhiten(self, y: Float[Array, " d"]) -> Float[Array, " d"]:
        """x = loc + A y."""
        return self.loc + self._times(y)

    def whiten(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """y = A^-1 (x - loc)."""
        return self._solve(x - self.loc)

    @property
    def log_det(self) -> Float[Array, ""]:
        """log|det A|; the order is a permutation and has none."""
        core = jnp.log(jnp.abs(jnp.diagonal(self.core_tril))).sum()
        return core + jnp.log(self.scale).sum()

    def times_precision(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """A^-T A^-1 v."""
        y, g = self._solve(v), len(self.core_tril)
        core = solve_triangular(self.core_tril, y[:g], lower=True, trans="T")
        return jnp.concatenate([core, y[g:] / self.scale])[self.place]

    def times_covariance(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """A A^T v."""
        ordered, g = v[self.order], len(self.core_tril)
        return self._times(
            jnp.concatenate([ordered[:g] @ self.core_tril, ordered[g:] * self.scale])
        )

    def matrix(self) -> Float[Any, "d d"]:
        """A itself, as a NumPy array: JAX would compile a program for each operation."""
        g, d = len(self.core_tril), self.loc.size
        ordered = np.zeros((d, d), self.loc.dtype)
        ordered[:g, :g] = self.core_tril
        nodes = np.arange(g, d)
        ordered[nodes, nodes] = self.scale
        return ordered[np.asarray(self.place)]

    def _times(self, y):
        g = len(self.core_tril)
        return jnp.concatenate([self.core_tril @ y[:g], self.scale * y[g:]])[self.place]

    def _solve(self, x):
        ordered, g = x[self.order], len(self.core_tril)
        core = solve_triangular(self.core_tril, ordered[:g], lower=True)
        return jnp.concatenate([core, ordered[g:] / self.scale])


class SummedPreconditioner(AbstractPreconditioner):
    """A Gaussian of running sums, as one of the model's coordinates x, which are their steps."""

    loc: Float[Array, " d"]
    of_sums: StructuredPreconditioner
    sums: RunningSums

    def __init__(self, of_sums: StructuredPreconditioner, sums: RunningSums):
        # By NumPy, since JAX would compile a program for each operation.
        self.loc = jax.device_put(sums.steps_of_many(np.asarray(of_sums.loc)))
        self.of_sums, self.sums = of_sums, sums

    def unwhiten(self, y: Float[Array, " d"]) -> Float[Array, " d"]:
        """x = loc + A y."""
        return self.sums.steps(self.of_sums.unwhiten(y))

    def whiten(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """y = A^-1 (x - loc)."""
        return self.of_sums.whiten(self.sums.sums(x))

    @property
    def log_det(self) -> Float[Array, ""]:
        """log|det A|; the determinant of the sums is one."""
        return self.of_sums.log_det

    def times_precision(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """A^-T A^-1 v."""
        inner = self.of_sums.times_precision(self.sums.sums(v))
        return jax.vjp(self.sums.sums, v)[1](inner)[0]

    def times_covariance(self, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """A A^T v."""
        (of_sums,) = jax.vjp(self.sums.steps, v)[1](v)
        return self.sums.steps(self.of_sums.times_covariance(of_sums))

    def moved(self, by: Float[Array, " d"]) -> "SummedPreconditioner":
        """The same Gaussian with its mean shifted by a vector."""
        inner = self.of_sums.moved(self.sums.sums(by))
        return eqx.tree_at(lambda own: (own.loc, own.of_sums), self, (self.loc + by, inner))

    def matrix(self) -> Float[Any, "d d"]:
        """A itself, as a NumPy array."""
        return self.sums.steps_of_many(self.of_sums.matrix().T).T
