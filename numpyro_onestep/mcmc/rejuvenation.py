"""Short Markov chains that start at the corrected draws and move them.

Weights correct only what the flow visits.  Where they are heavy-tailed, some neck or tail of the
posterior holds more mass than the flow gives it, and the heaviest draws stand at its mouth.  A few
steps of Hamiltonian Monte Carlo from every corrected draw, in the coordinates the base whitens
and without the flow, walk on into it; draws that were exact stay exact.  (Resample-move: Gilks and
Berzuini, "Following a moving target", JRSS B 2001.)
"""

from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import stream
from numpyro_onestep.flow.gaussian import WhitenedPotential

_LEAPFROG_STEPS = 8
# Step sizes in whitened units vary from step to step: a neck needs small ones.
_STEP_SIZES = (0.08, 0.45)
# A change of a log standard deviation below the first number is nothing.  Above it, it is worth
# another round if so many standard errors large, and proof that the draws were wrong if more.
_SMALLEST_SHIFT, _SUSPECTED, _PROVEN = 0.04, 2.5, 4.0
# In many coordinates noise alone exceeds 2.5 errors somewhere: then what one run in ten would.
_FALSE_ALARMS = 0.1
# Interquartile ranges from the median, about eight standard deviations of a normal distribution.
_REACH = 6.0


class Moved(NamedTuple):
    """Where the chains ended."""

    x: Float[Array, "n d"]
    num_steps: int
    shift: float  # largest change of a log standard deviation that noise does not explain, or 0


def move_until_level(
    potential: WhitenedPotential,
    x: Float[Array, "n d"],
    rng_key: PRNGKeyArray,
    num_steps: int,
    most_rounds: int,
    doubtful: bool,
) -> Moved:
    """Rounds of `num_steps` moves, a second and more only where the first change the draws' spread.

    What a single round adds may be too little to prove, so draws are compared with the first ones,
    and where the weights are `doubtful` anyway nothing need be proven: all rounds are made.
    """
    at, taken = x, 0
    suspected = max(_SUSPECTED, NormalDist().inv_cdf(1 - _FALSE_ALARMS / 2 / x.shape[1]))
    for index in range(most_rounds):
        at = move(potential, at, stream(rng_key, "round", index), num_steps)
        taken += num_steps
        if not doubtful and not spread_shift(x, at, suspected):
            break
    return Moved(at, taken, spread_shift(x, at, _PROVEN))


def spread_shift(before: Float[Array, "n d"], after: Float[Array, "n d"], errors: float) -> float:
    """Largest change of a log standard deviation of at least so many standard errors, else zero.

    The standard error is that of the difference of two means over the same chains: a draw
    contributes half its squared deviation, in units of the variance.  Values far beyond the middle
    half of the first draws count as if they were at the end of that range, since the spread of a
    Cauchy distribution is noise.
    """
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    low, middle, high = np.quantile(old, [0.25, 0.5, 0.75], axis=0)
    reach = _REACH * (high - low)
    old, new = (np.clip(v, middle - reach, middle + reach) for v in (old, new))
    scale_old, scale_new = old.std(0), new.std(0)
    with np.errstate(divide="ignore", invalid="ignore"):  # a spread of zero shows nothing
        change = np.log(scale_new / scale_old)
        squares = [((v - v.mean(0)) / s) ** 2 for v, s in ((old, scale_old), (new, scale_new))]
    error = 0.5 * (squares[1] - squares[0]).std(0) / len(old) ** 0.5
    real = (abs(change) > _SMALLEST_SHIFT) & (abs(change) > errors * error)
    return float(np.max(abs(change), initial=0.0, where=real))


def move(
    potential: WhitenedPotential, x: Float[Array, "n d"], rng_key: PRNGKeyArray, num_steps: int
) -> Float[Array, "n d"]:
    """Where Hamiltonian Monte Carlo leads from each draw in so many steps of eight leapfrogs.

    A step to where the density is not finite is rejected.
    """
    factor = min(1.0, (50 / x.shape[1]) ** 0.25)
    sizes = np.asarray([factor * size for size in _STEP_SIZES], x.dtype)
    return hamiltonian_steps(potential, x, rng_key, num_steps, sizes)[0]


@compiled
def hamiltonian_steps(
    potential: WhitenedPotential,
    x: Float[Array, "n d"],
    rng_key: PRNGKeyArray,
    num_steps: int,
    step_sizes: Float[np.ndarray, " 2"],
) -> tuple[Float[Array, "n d"], Float[Array, ""]]:
    """The chains' ends, and the share of their steps that was accepted.

    Sizes of steps are log-uniform between the two given, in units of the base.
    """
    value_and_grad = jax.value_and_grad(potential)
    smallest, largest = jnp.log(step_sizes)

    def one(index_and_draw):
        index, draw = index_and_draw
        start = potential.base.whiten(draw)

        def step(state, step_key):
            y, energy, gradient = state
            key_momentum, key_size, key_accept = jr.split(step_key, 3)
            momentum = jr.normal(key_momentum, y.shape, y.dtype)
            size = jnp.exp(jr.uniform(key_size, (), y.dtype, smallest, largest))

            def leapfrog(carry, _):
                at, momentum, _, gradient = carry
                momentum = momentum - 0.5 * size * gradient
                at = at + size * momentum
                energy, gradient = value_and_grad(at)
                return (at, momentum - 0.5 * size * gradient, energy, gradient), None

            (at, end_momentum, new_energy, new_gradient), _ = jax.lax.scan(
                leapfrog, (y, momentum, energy, gradient), None, length=_LEAPFROG_STEPS
            )
            kinetic = 0.5 * jnp.sum(momentum**2 - end_momentum**2)
            log_ratio = energy - new_energy + kinetic
            accept = jnp.log(jr.uniform(key_accept, (), y.dtype)) < log_ratio
            accept &= jnp.isfinite(new_energy) & jnp.isfinite(log_ratio)
            new = at, new_energy, new_gradient
            return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, state), accept

        state = start, *value_and_grad(start)
        keys = jr.split(jr.fold_in(rng_key, index), num_steps)
        (end, _, _), accepted = jax.lax.scan(step, state, keys)
        return potential.base.unwhiten(end), jnp.mean(accepted)

    x, accepted = map_in_batches(one, (jnp.arange(len(x)), x), 1000)
    return x, jnp.mean(accepted)
