"""Named streams of random numbers, from which the package derives its random keys.

A key must be used only once.  `jax.random.split(key)[i]` equals `jax.random.fold_in(key, i)`, so a
key that is split in one place and folded with a small number in another gives the same numbers
twice.  A stream therefore has a name, whose checksum is folded in.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray


def stream(rng_key: PRNGKeyArray, name: str, index: Any = 0) -> PRNGKeyArray:
    """The key of the stream of that name, and of its `index`-th part where it has several."""
    return jr.fold_in(jr.fold_in(rng_key, zlib.crc32(name.encode())), index)


def numpy_generator(rng_key: PRNGKeyArray) -> np.random.Generator:
    """NumPy's generator, seeded by a key: with JAX, each operation would be compiled."""
    return np.random.default_rng(np.asarray(jr.key_data(rng_key)))


def as_key(rng_key: Any) -> PRNGKeyArray:
    """A JAX random key, from a new-style key, an old-style one, or a NumPy copy of the latter.

    Raises:
        TypeError: it is no random key, or several keys.
    """
    kind = type(rng_key).__name__
    if isinstance(rng_key, jax.Array) and jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key):
        if rng_key.shape == ():
            return rng_key
        kind = f"an array of {rng_key.size} keys"
    if isinstance(rng_key, (jax.Array, np.ndarray)) and rng_key.dtype == np.uint32:
        try:
            key = jr.wrap_key_data(jnp.asarray(rng_key))
        except TypeError:  # its length is not that of a key
            kind = f"an array of shape {rng_key.shape}"
        else:
            if key.shape == ():
                return key
            kind = f"an array of {key.size} keys"
    raise TypeError(f"rng_key must be a JAX random key such as jax.random.key(0), but is {kind}.")
