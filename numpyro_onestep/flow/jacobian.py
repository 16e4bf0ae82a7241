"""The Jacobian of one step, kept as a diagonal plus a product of two thin matrices.

With one hidden layer of m units a step's Jacobian is J = diag(f) + R W, R of d x m and W of m x d.
Where d <= m the matrix J itself is formed and factorised.  Where d > m everything goes through
    M = I + W diag(1/f) R   (m x m),
    det J = det(M) prod f                                       (matrix determinant lemma),
    J^-T v = v/f - W^T M^-T R^T (v/f) / f                       (Woodbury),
so that the exact volume costs O(d m^2) at any d.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.linalg import lu_factor, lu_solve
from jaxtyping import Array, Float


class Factorised(NamedTuple):
    """Log-determinant, sign and inverse from one factorisation."""

    log_det: Float[Array, ""]
    sign: Float[Array, ""]
    inverse: Float[Array, "n n"]  # of J where d <= m, else of M


class StepJacobian(eqx.Module):
    """diag(diagonal) + rows @ columns."""

    diagonal: Float[Array, " d"]
    rows: Float[Array, "d m"]
    columns: Float[Array, "m d"]

    @property
    def thin(self) -> bool:
        """Whether the m x m form is the smaller one."""
        return self.rows.shape[1] < self.rows.shape[0]

    def dense(self) -> Float[Array, "d d"]:
        """The matrix itself."""
        return jnp.diag(self.diagonal) + self.rows @ self.columns

    def slogdet(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Sign and log of the determinant."""
        sign, log_det = jnp.linalg.slogdet(self._core())
        if self.thin:
            sign = sign * jnp.prod(jnp.sign(self.diagonal))
            log_det = log_det + jnp.sum(jnp.log(jnp.abs(self.diagonal)))
        return sign, log_det

    def factorise(self) -> Factorised:
        """Determinant and inverse, from one factorisation."""
        core = self._core()
        n = len(core)
        factors, pivots = lu_factor(core)
        inverse = lu_solve((factors, pivots), jnp.eye(n, dtype=core.dtype))
        pivot_values = jnp.diagonal(factors)
        swaps = jnp.sum(pivots != jnp.arange(n))
        sign = jnp.prod(jnp.sign(pivot_values)) * (1 - 2 * (swaps % 2))
        log_det = jnp.sum(jnp.log(jnp.abs(pivot_values)))
        if self.thin:
            sign = sign * jnp.prod(jnp.sign(self.diagonal))
            log_det = log_det + jnp.sum(jnp.log(jnp.abs(self.diagonal)))
        return Factorised(log_det, sign, inverse)

    def solve(self, known: Factorised, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """J^-1 v."""
        if not self.thin:
            return known.inverse @ v
        scaled = v / self.diagonal
        return scaled - self.rows @ (known.inverse @ (self.columns @ scaled)) / self.diagonal

    def solve_transposed(self, known: Factorised, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """J^-T v."""
        if not self.thin:
            return known.inverse.T @ v
        scaled = v / self.diagonal
        inner = known.inverse.T @ (self.rows.T @ scaled)
        return scaled - self.columns.T @ inner / self.diagonal

    def log_det_gradient(self, known: Factorised) -> tuple[Float[Array, " d"], Float[Array, "d m"]]:
        """The gradient of log|det J| with respect to diagonal and rows."""
        if not self.thin:
            return jnp.diagonal(known.inverse), known.inverse.T @ self.columns.T
        scaled = (known.inverse @ self.columns).T / self.diagonal[:, None]
        return 1 / self.diagonal - jnp.sum(scaled * self.rows, 1) / self.diagonal, scaled

    def _core(self):
        if not self.thin:
            return self.dense()
        scaled = self.rows / self.diagonal[:, None]
        return jnp.eye(len(self.columns), dtype=scaled.dtype) + self.columns @ scaled
