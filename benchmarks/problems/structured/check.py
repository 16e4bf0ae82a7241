"""Doubts the answers: NumPyro's own density with its latent values integrated by its own Hessian.

    python -m benchmarks.problems.structured.check [--names level_100_centred ...]

Where everything but a few globals is normal, the integral over it follows from the value, gradient
and Hessian of NumPyro's density at any point. This is compared with the integral by hand, and so
are means and variances, at globals that are drawn about the mode. Nothing is shared with the
sufficient statistics or the Kalman filter. Where the latent values are not normal, one group at a
time is integrated by SciPy. The quadrature over the globals is compared with a finer and wider one.

It prints one line for each problem with an answer: by how much the two differ at most in the log
density (nats), in a mean (standard deviations), in a log standard deviation, and in the log
evidence by the two quadratures.
"""

import argparse
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from jax.scipy.special import logit
from numpyro.infer.util import constrain_fn, initialize_model, potential_energy
from scipy.integrate import quad

from benchmarks.problems.structured import STRUCTURED
from benchmarks.problems.structured.base import Structured
from benchmarks.problems.structured.counts import KIND as NOT_NORMAL
from benchmarks.problems.structured.exact import Marginal

MOST_DIMENSIONS = 1100  # of a Hessian that is formed


class Joint:
    """NumPyro's joint density of a problem, as a function of what is integrated by hand.

    Args:
        problem: of which the density is taken, in double precision.
        args: of its model.
        coordinates: the globals that are kept, as `Marginal` names them.
    """

    def __init__(self, problem: Structured, args: tuple, coordinates: tuple[str, ...]):
        self.problem = problem
        # Data in single precision would make NumPyro's sums single, too.
        self.args = tuple(np.asarray(a, np.float64) if a.dtype == np.float32 else a for a in args)
        info = initialize_model(jax.random.key(0), problem.model, model_args=self.args)
        self.sites = dict(info.param_info.z)
        names = [name.rstrip("+%") for name in coordinates]
        self.kept = {name: self.sites.pop(name) for name in names}
        self.rest, self.unravel = ravel_pytree(self.sites)
        self._seeded = numpyro.handlers.seed(problem.model, 0)

    def _unconstrained(self, point, rest):
        parts, start = {}, 0
        for name, like in self.kept.items():
            parts[name] = point[start : start + like.size].reshape(like.shape)
            start += like.size
        return parts | self.unravel(rest)

    def log_density(self, point, rest):
        """The joint density of data, kept globals (unconstrained) and all the rest (nats)."""
        return -potential_energy(self._seeded, self.args, {}, self._unconstrained(point, rest))

    def quantities(self, point, rest):
        """What the problem compares, in its order, on the scale on which it is compared."""
        inner = self._unconstrained(point, rest)
        sites = constrain_fn(self._seeded, self.args, {}, inner, return_deterministic=True)
        parts = []
        for name in self.problem.sites:
            value = jnp.ravel(sites[name.rstrip("+%")])
            if name.endswith("+"):
                value = jnp.log(value)
            elif name.endswith("%"):
                value = logit(value)
            parts.append(value)
        return jnp.concatenate(parts)

    def integrated(self, point):
        """Log integral over the rest, which is normal, and means and variances of quantities."""
        point, rest = jnp.asarray(point), jnp.zeros_like(self.rest)
        value, gradient = jax.value_and_grad(self.log_density, 1)(point, rest)
        precision = -jax.hessian(self.log_density, 1)(point, rest)
        mean = jnp.linalg.solve(precision, gradient)
        log_z = value + 0.5 * gradient @ mean + 0.5 * len(mean) * np.log(2 * np.pi)
        log_z -= 0.5 * jnp.linalg.slogdet(precision)[1]
        slopes = jax.jacobian(self.quantities, 1)(point, mean)
        variances = (slopes * jnp.linalg.solve(precision, slopes.T).T).sum(1)
        return log_z, self.quantities(point, mean), variances


def _marginal(problem: Structured, args: tuple | None = None) -> Marginal:
    assert problem.marginal is not None
    return problem.marginal(*(problem.args() if args is None else args))


def _points(marginal: Marginal) -> np.ndarray:
    """Globals at and beside the start of the search for the mode."""
    rng = np.random.default_rng(0)
    return np.asarray(marginal.start) + 0.3 * rng.standard_normal((3, len(marginal.start)))


def by_hessian(problem: Structured) -> tuple[float, float, float]:
    """Largest differences of log density, mean (sd) and log sd, the latent values being normal."""
    marginal = _marginal(problem)
    joint = Joint(problem, problem.args(), marginal.coordinates)
    integrated = jax.jit(joint.integrated)
    density, means, sds = [], [], []
    for point in _points(marginal):
        log_z, mean, variance = (np.asarray(each) for each in integrated(point))
        density.append(abs(log_z - marginal.log_density(point[None])[0]))
        own_mean, own_variance = marginal.conditional(point)
        moving = own_variance > 0
        sd = np.sqrt(own_variance[moving])
        means.append(np.abs((mean - own_mean)[moving] / sd).max())
        sds.append(np.abs(np.log(variance[moving] / own_variance[moving]) / 2).max())
    return float(max(density)), float(max(means)), float(max(sds))


def by_one_group(problem: Structured) -> float:
    """Largest difference of the log density of one group's data, its value integrated by SciPy."""
    (y,), worst = problem.args(), 0.0
    for row in (np.argmin(y.sum(1)), np.argmax(y.sum(1))):
        args = (y[row : row + 1],)
        marginal = _marginal(problem, args)
        joint = Joint(problem, args, marginal.coordinates)
        log_density = jax.jit(joint.log_density)
        for point in _points(marginal):
            found, _ = quad(
                lambda x, at=point, f=log_density: float(np.exp(f(at, np.array([x])))),
                *(-12, 12),
                epsabs=0,
                epsrel=1e-9,
                limit=200,
            )
            worst = max(worst, abs(np.log(found) - marginal.log_density(point[None])[0]))
    return worst


def by_finer_quadrature(problem: Structured) -> float:
    """Difference of the log evidence by a finer and wider grid of the globals (nats)."""
    marginal = _marginal(problem)
    finer = replace(marginal, reach=1.15 * marginal.reach, step=0.8 * marginal.step)
    ours, other = (each.answer().log_evidence or np.nan for each in (marginal, finer))
    return abs(ours - other)


def check(problem: Structured) -> str:
    """By how much the two opinions differ, in one line."""
    text = f"quadrature {by_finer_quadrature(problem):.1e}"
    if problem.kind == NOT_NORMAL:
        return f"{text}  log density {by_one_group(problem):.1e}"
    if sum(np.size(a) for a in problem.args()) > 5 * MOST_DIMENSIONS:
        return f"{text}  too many dimensions for a Hessian"
    density, mean, sd = by_hessian(problem)
    return f"{text}  log density {density:.1e}  means {mean:.1e}  log sds {sd:.1e}"


def main() -> None:
    """Print a line for each problem whose answer is by quadrature."""
    known = [name for name, problem in STRUCTURED.items() if problem.marginal is not None]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--names", nargs="+", default=known, choices=known, metavar="NAME")
    options = parser.parse_args()
    numpyro.enable_x64()
    for name in options.names:
        print(f"{name:28s}{check(STRUCTURED[name])}", flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
