"""Arguments of a model that are no arrays, as static parts of a pytree."""

import io
import pickle
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


class _ByIdentity(pickle.Pickler):
    """Functions and classes by what they are: by name a redefined one would equal the old one."""

    def persistent_id(self, obj):
        return id(obj) if isinstance(obj, (FunctionType, type)) else None


class Constant:
    """An argument that compiled code may treat as a constant, equal where its content is.

    What cannot be pickled is equal to nothing else: it may have been changed in place since.
    """

    def __init__(self, value: Any):
        self.value = value
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            array = np.asarray(value)
            self._key = (array.shape, str(array.dtype), array.tobytes())
        elif isinstance(value, (FunctionType, BuiltinFunctionType, ModuleType, type)):
            self._key = id(value)
        else:
            try:
                buffer = io.BytesIO()
                _ByIdentity(buffer).dump(value)
                self._key = type(value), buffer.getvalue()
            except Exception:  # whatever its class raises
                self._key = object()

    def __hash__(self):
        return hash(self._key)

    def __eq__(self, other):
        return isinstance(other, Constant) and self._key == other._key


def open_constants(tree: PyTree) -> PyTree:
    """The values behind every `Constant`."""
    return jax.tree.map(lambda leaf: leaf.value if isinstance(leaf, Constant) else leaf, tree)
