"""Objects that hold arrays and can be pickled in a session of one precision and read in another."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_onestep._util.numerics import numerics


class ArraysAsNumpy:
    """Its attributes' arrays are pickled as NumPy's, which keep their type in any session."""

    def __getstate__(self) -> dict[str, Any]:
        """Attributes, JAX's arrays in them as NumPy's; random keys stay as they are."""
        return jax.tree.map(_as_numpy, vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The way back."""
        with numerics(double=True):  # arrays in single precision stay so
            vars(self).update({name: _as_jax(value) for name, value in state.items()})


class _Packed:
    """A NumPy array that was one of JAX's."""

    def __init__(self, value: np.ndarray):
        self.value = value


def _as_numpy(value: Any) -> Any:
    is_array = isinstance(value, jax.Array)
    if is_array and not jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return _Packed(np.asarray(value))
    return value


def _as_jax(tree: Any) -> Any:
    return jax.tree.map(lambda v: jnp.asarray(v.value) if isinstance(v, _Packed) else v, tree)
