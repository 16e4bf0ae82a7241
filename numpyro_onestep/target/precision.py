"""Whether single precision is enough for the target, by evaluating it in double precision too.

In single precision the sum over many data can be off although the draws are right.  With a binomial
likelihood of large counts the log density of every draw can be off by the same twenty nats: no
weight shows it, but the evidence is wrong by as much.  And where a Cholesky factor fails in single
precision now and then, the flow keeps away from a part of the posterior.  Both errors show at a few
hundred points that are evaluated in both precisions.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from numpyro_onestep._util.numerics import numerics
from numpyro_onestep.target.evaluation import energies
from numpyro_onestep.target.potential import Potential
from numpyro_onestep.target.targets import AbstractTarget
from numpyro_onestep.target.traced import TracedFunction

# Nats. A mean error of the log density above this counts: the log evidence is given to 0.001 nats,
# and its Monte Carlo error is seldom below a few times that.
_LARGEST_SHIFT = 0.01
# Nats. A standard deviation of the error above this counts: half its square is added to the gap.
_LARGEST_DEVIATION = 0.05
# Fraction of the points whose density is a number in double precision only. Any mass there would be
# missing.
_LARGEST_LOST = 1e-3
# Distance of neighbouring floats, in standard deviations of a coordinate. Above this the rounding
# of a draw changes its density.
LARGEST_GRAIN = 0.02


class PrecisionError(NamedTuple):
    """By how much single precision is off at the points compared (nats)."""

    shift: float  # mean of U in single less U in double precision
    deviation: float  # standard deviation of that difference
    lost: float  # fraction of the points whose density single precision cannot represent
    grain: float = 0.0  # distance of neighbouring floats, in standard deviations of a coordinate

    @property
    def counts(self) -> bool:
        """Whether one of the errors is so large that the results would be visibly wrong."""
        off = abs(self.shift) > _LARGEST_SHIFT or self.deviation > _LARGEST_DEVIATION
        return off or self.lost > _LARGEST_LOST or self.grain > LARGEST_GRAIN


def double_energy(target: AbstractTarget) -> TracedFunction | None:
    """U in double precision, or None where the target cannot be traced in it.

    (A model may demand single precision, for example in the carry of a `lax.scan`.)
    """
    with numerics(double=True):
        try:
            return target.energy_only(np.float64)
        except Exception:  # a model may raise any error
            return None


def precision_error(
    single: Potential, double: TracedFunction, x: Float[Any, "n d"], log_q: Float[Any, " n"] | None
) -> PrecisionError:
    """Compare the potential in both precisions, at points in single precision.

    Args:
        single: the potential in single precision.
        double: the same in double precision.
        x: points.
        log_q: log density (nats) of the distribution that the points are drawn from; None for the
            posterior. If it is given, only the half of the points with larger weights is compared:
            far out the error is large, but the density so low that it does not matter.
    """
    apart = float(np.max(grain(x)))
    u_single = energies(single, x).astype(np.float64)
    with numerics(double=True):
        u_double = energies(double, np.asarray(x, np.float64))
    finite = np.isfinite(u_double)
    lost = float(np.mean(~np.isfinite(u_single) & finite))
    both = np.isfinite(u_single) & finite
    if both.sum() < 2:
        return PrecisionError(0.0, 0.0, lost, apart)
    off = u_single[both] - u_double[both]
    if log_q is not None:
        log_weight = (-u_double - np.asarray(log_q, np.float64))[both]
        off = off[np.argsort(-log_weight, kind="stable")[: -(-len(off) // 2)]]
    return PrecisionError(float(off.mean()), float(off.std()), lost, apart)


def grain(x: Float[Any, "n d"]) -> Float[np.ndarray, " d"]:
    """How far neighbouring floats of the points' type are apart, in standard deviations."""
    return np.spacing(abs(x).mean(0)) / (x.std(0, dtype=np.float64) + 1e-30)


_SINGLE = {"float64": np.float32, "int64": np.int32, "complex128": np.complex64}


def in_single(value: np.ndarray) -> np.ndarray:
    """A NumPy array in the types of a session of single precision."""
    return value.astype(_SINGLE.get(str(value.dtype), value.dtype))


def in_double(tree: Any) -> Any:
    """A pytree, its single-precision arrays in double; to be called in `numerics(double=True)`."""
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(np.asarray(leaf, np.float64))
            if getattr(leaf, "dtype", None) == np.float32
            else leaf
        ),
        tree,
    )
