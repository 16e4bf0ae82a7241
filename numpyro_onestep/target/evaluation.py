"""U and its gradient at many points, by programs that every part of a run shares.

To compile a program takes longer than to run it, so that parts which evaluate the same target call
the same one, with blocks of the same size.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from numpyro_onestep._util.batching import map_in_batches, map_in_blocks, side_by_side
from numpyro_onestep._util.compilation import compiled

_BLOCK = 256  # points of which U is evaluated in one call
# The same with gradients: as many as compute so many numbers, within these limits.
_NUMBERS, _FEWEST, _MOST = 2**20, 16, 256


def energies(potential: Any, x: Float[Any, "n d"]) -> Float[np.ndarray, " n"]:
    """U of many points (nats), a block of them at a time."""
    return map_in_blocks(lambda rows: _energies(potential, rows), x, _BLOCK)


def energies_and_gradients(
    potential: Any, x: Float[Any, "n d"], of_gradients: Callable = lambda gradients: gradients
) -> tuple[Float[np.ndarray, " n"], np.ndarray]:
    """U of many points (nats) and a function of its gradients, a block of them at a time.

    Args:
        potential: U, a function of a point.
        x: points.
        of_gradients: what is kept of the gradients (points, d) of a block: all of them by default,
            which takes as much memory as the points.
    """
    numbers = getattr(potential, "num_numbers", 1)
    size = int(np.clip(_NUMBERS // numbers, _FEWEST, _MOST))

    def block(rows):
        energy, gradient = _energies_and_gradients(potential, rows)
        return energy, of_gradients(gradient)

    return map_in_blocks(block, x, size)


@compiled
def _energies(potential: Any, x: Float[Array, "n d"]) -> Float[Array, " n"]:
    return map_in_batches(potential, x, side_by_side(potential))


@compiled
def _energies_and_gradients(potential: Any, x: Float[Array, "n d"]) -> tuple[Array, Array]:
    most = side_by_side(potential, gradients=True)
    return map_in_batches(jax.value_and_grad(potential), x, most)
