"""The numerical environment of the package's own computations, and limits for outlying values.

A user's session may forbid JAX's promotion of types or ranks, but the package's own code relies on
both.  Where the target is evaluated in double precision, all computations with it are in double
precision too, whatever the session's default is.  Nothing global is changed: each environment ends
with its `with` block.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from numpyro_onestep._util.persistent_cache import every_program_kept

# A value is clipped at this many interquartile ranges from the median, which is about eight
# standard deviations of a normal distribution.  Otherwise a few draws of a heavy tail would rule.
_REACH = 6.0


@contextmanager
def numerics(double: bool = False) -> Iterator[None]:
    """JAX's usual rules of promotion, 64-bit types if asked for, and a cache that keeps all."""
    with ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(every_program_kept())
        if double:
            stack.enter_context(jax.enable_x64(True))
        yield


def is_double() -> bool:
    """Whether 64-bit types are in force here."""
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


def refuse_transformations(values: Iterable[Any]) -> None:
    """Raise a TypeError inside `jax.jit`, `vmap` and the like, where no value is known.

    Args:
        values: all values that the run depends on.
    """
    # Inside jit even an operation on constants is traced and not computed.
    inside = isinstance(jax.lax.add(np.float32(0), np.float32(0)), Tracer)
    if inside or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values)):
        raise TypeError(
            "OneStep decides by the values it meets, so it cannot run inside jax.jit, jax.vmap, "
            "jax.grad or another transformation: call run() outside of it, and for several data "
            "sets in a Python loop (a second run with data of the same shapes compiles nothing)."
        )


def clipped(
    values: Float[np.ndarray, "*n"], like: Float[np.ndarray, "*m"]
) -> Float[np.ndarray, "*n"]:
    """Values, clipped at six interquartile ranges from the median of other values.

    Args:
        values: the values to clip, along their first axis.
        like: the values whose median and interquartile range are taken, along their first axis.
    """
    low, middle, high = np.quantile(like, [0.25, 0.5, 0.75], axis=0)
    reach = _REACH * (high - low)
    return np.clip(values, middle - reach, middle + reach)
