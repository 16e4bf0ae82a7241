"""Pickling of objects with arrays, to be read in a session of another precision too."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_onestep._util.numerics import numerics


class ArraysAsNumpy:
    """A class whose arrays are pickled as NumPy arrays, which keep their type in any session."""

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, with JAX arrays as NumPy arrays; random keys stay as they are."""
        return jax.tree.map(_as_numpy, vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The attributes, with JAX arrays again."""
        with numerics(double=True):  # arrays in single precision keep their type too
            vars(self).update({name: _as_jax(value) for name, value in state.items()})


class _Packed:
    """A NumPy array that was a JAX array before."""

    def __init__(self, value: np.ndarray):
        self.value = value


def _as_numpy(value: Any) -> Any:
    is_array = isinstance(value, jax.Array)
    if is_array and not jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return _Packed(np.asarray(value))
    return value


def _as_jax(tree: Any) -> Any:
    return jax.tree.map(lambda v: jnp.asarray(v.value) if isinstance(v, _Packed) else v, tree)
