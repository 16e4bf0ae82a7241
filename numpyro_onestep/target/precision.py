"""Whether single precision is enough for the target, by evaluating it in double precision too.

Draws are right long before sums are: with a binomial likelihood of large counts the log density of
every draw can be off by the same twenty nats, which no weight shows, but the evidence is wrong by
as much.  And where a Cholesky factor fails in single precision now and then, the flow keeps away
from a part of the posterior.  A few hundred points, evaluated both ways, show either.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from numpyro_onestep._util.batching import map_in_batches, map_in_blocks
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.numerics import numerics
from numpyro_onestep.target.potential import Potential
from numpyro_onestep.target.targets import AbstractTarget
from numpyro_onestep.target.traced import TracedFunction

# The log evidence is given to 0.001 nats, and its Monte Carlo error is seldom below a few of these:
# a common error of the log density that is larger than this (nats) counts, ...
_LARGEST_SHIFT = 0.01
# ... and one that differs from draw to draw by more: half its square is added to the gap.
_LARGEST_DEVIATION = 0.05
# Fraction of the points that are a number in double precision only.
_LARGEST_LOST = 1e-3
# Floats this many standard deviations apart put a draw where its density is another.
LARGEST_GRAIN = 0.02
_BLOCK = 256  # points evaluated in one call: as many as are compared


class PrecisionError(NamedTuple):
    """By how much single precision is off at the points compared (nats)."""

    shift: float  # mean of U in single less U in double precision
    deviation: float  # standard deviation of that difference
    lost: float  # fraction of the points whose density single precision cannot represent
    grain: float = 0.0  # distance of neighbouring floats, in standard deviations of a coordinate

    @property
    def counts(self) -> bool:
        """Whether the results would be visibly wrong."""
        off = abs(self.shift) > _LARGEST_SHIFT or self.deviation > _LARGEST_DEVIATION
        return off or self.lost > _LARGEST_LOST or self.grain > LARGEST_GRAIN


def double_energy(target: AbstractTarget) -> TracedFunction | None:
    """U in double precision, or None where the target cannot be traced so.

    (A model may demand single precision, in the carry of a `lax.scan` say.)
    """
    with numerics(double=True):
        try:
            return target.energy_only(np.float64)
        except Exception:  # whatever a model raises
            return None


def precision_error(
    single: Potential, double: TracedFunction, x: Float[Any, "n d"], log_q: Float[Any, " n"] | None
) -> PrecisionError:
    """Compare the two at points in single precision.

    Args:
        single: the potential in single precision.
        double: the same in double precision.
        x: points.
        log_q: log density of the distribution that they are drawn from, where that is not the
            posterior (nats): then the half of the points of larger weight is compared, since far
            out the error is as large as the density is low, and of no consequence.
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


def energies(potential: Any, x: Float[Any, "n d"], block: int = _BLOCK) -> Float[np.ndarray, " n"]:
    """U of many points (nats), a block of them at a time."""
    return map_in_blocks(lambda rows: _energies(potential, rows), x, block)


@compiled
def _energies(potential: Any, x: Float[Array, "n d"]) -> Float[Array, " n"]:
    return map_in_batches(potential, x)


_SINGLE = {"float64": np.float32, "int64": np.int32, "complex128": np.complex64}


def in_single(value: np.ndarray) -> np.ndarray:
    """A NumPy array in the types of a session of single precision."""
    return value.astype(_SINGLE.get(str(value.dtype), value.dtype))


def in_double(tree: Any) -> Any:
    """A pytree with its single-precision arrays in double precision; call it under `numerics`."""
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(np.asarray(leaf, np.float64))
            if getattr(leaf, "dtype", None) == np.float32
            else leaf
        ),
        tree,
    )
