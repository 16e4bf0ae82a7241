"""The log evidence by importance sampling, where latent values are nearly normal given the globals.

Globals are drawn from a Student t distribution, and latent values given these from the normal
distribution at their mode, which Newton's method finds in NumPyro's own density.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from scipy.special import logsumexp

from benchmarks.problems.structured.base import Structured
from benchmarks.problems.structured.check import Joint
from benchmarks.problems.verdicts.answers import gaussian_at_mode
from benchmarks.problems.verdicts.check import Student, effective_size

_MOST_NEWTON_STEPS = 50
_LARGEST_MOVE = 3.0  # of a coordinate in one Newton step, against overshooting
_NEAR = 1e-8  # the last step's size, beside which the distance to the mode is negligible
_AT_A_TIME = 8  # draws, each with matrices of its own


class Nearly:
    """A problem whose latent values are nearly normal given the globals; double precision."""

    def __init__(self, problem: Structured):
        latents = {name.rstrip("+%") for name in problem.latents}
        self.globals = tuple(name for name in problem.sites if name not in latents)
        self.joint = Joint(problem, problem.args(), self.globals)
        self.size = sum(like.size for like in self.joint.kept.values())
        self.draw = jax.jit(self._draw)
        self.approximate = jax.jit(lambda point: self._laplace(point)[0])

    def _laplace(self, point):
        """Log integral over the latent values of their normal approximation, mode and factor."""
        log_density = self.joint.log_density

        def move(state):
            x, _, count = state
            precision = -jax.hessian(log_density, 1)(point, x)
            step = jnp.linalg.solve(precision, jax.grad(log_density, 1)(point, x))
            largest = jnp.abs(step).max()
            return x + step * jnp.minimum(1.0, _LARGEST_MOVE / largest), largest, count + 1

        def goes_on(state):
            return (state[1] > _NEAR) & (state[2] < _MOST_NEWTON_STEPS)

        start = (jnp.zeros_like(self.joint.rest), jnp.inf, 0)
        mode = jax.lax.while_loop(goes_on, move, start)[0]
        factor = jnp.linalg.cholesky(-jax.hessian(log_density, 1)(point, mode))
        log_z = log_density(point, mode) + 0.5 * mode.size * jnp.log(2 * jnp.pi)
        return log_z - jnp.log(jnp.diag(factor)).sum(), mode, factor

    def _draw(self, points, keys):
        """Log weights but for the density of the globals, and the quantities of one draw each."""

        def one(point, key):
            _, mode, factor = self._laplace(point)
            z = jax.random.normal(key, mode.shape)
            x = mode + solve_triangular(factor, z, lower=True, trans=1)
            log_q = -0.5 * (z @ z) - 0.5 * z.size * jnp.log(2 * jnp.pi)
            log_q += jnp.log(jnp.diag(factor)).sum()
            return self.joint.log_density(point, x) - log_q, self.joint.quantities(point, x)

        return jax.lax.map(lambda each: one(*each), (points, keys), batch_size=_AT_A_TIME)


def by_importance(problem: Structured, num: int, seed: int = 0) -> dict[str, Any]:
    """The log evidence from so many draws, with its standard error, and all moments.

    Returns:
        `log_evidence` and `log_evidence_error` (nats), `ess` (the effective number of draws),
        `mean` and `sd` of every quantity, `mean_error` (sd) and `log_sd_error`. Where single draws
        far out are heavy, these errors are larger than `ess` says.
    """
    nearly = Nearly(problem)

    def log_density(points):
        return np.array([float(nearly.approximate(jnp.asarray(point))) for point in points])

    mode, scale_tril = gaussian_at_mode(log_density, np.zeros(nearly.size))
    proposal = Student(mode, scale_tril @ scale_tril.T)
    points, log_q = proposal.draw(np.random.default_rng(seed), num)
    keys = jax.random.split(jax.random.key(seed), num)
    log_target, quantities = (np.asarray(e) for e in nearly.draw(jnp.asarray(points), keys))
    log_weight = np.where(np.isfinite(log_target), log_target - log_q, -np.inf)
    weight = np.exp(log_weight - logsumexp(log_weight))
    kept = weight > 0
    weight, quantities, ess = weight[kept], quantities[kept], effective_size(log_weight)
    mean = weight @ quantities
    sd = np.sqrt(weight @ (quantities - mean) ** 2)
    apart = (quantities - mean) / sd
    return {
        "log_evidence": float(logsumexp(log_weight) - np.log(num)),
        "log_evidence_error": float(np.sqrt(1 / ess - 1 / num)),
        "ess": ess,
        "mean": mean,
        "sd": sd,
        "mean_error": np.sqrt(weight**2 @ apart**2),
        "log_sd_error": np.sqrt(weight**2 @ (apart**2 - 1) ** 2) / 2,
    }
