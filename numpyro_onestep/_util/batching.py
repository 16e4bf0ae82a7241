"""Mapping over many draws in bounded memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def map_in_batches(function: Callable, values: PyTree, limit: int) -> PyTree:
    """`jax.vmap(function)(values)`, at most `limit` of them at a time.

    Batches are of one size, the last one padded: `jax.lax.map` compiles a remainder once more.
    """
    n = len(jax.tree.leaves(values)[0])
    num_batches = -(-n // min(limit, n))
    size = -(-n // num_batches)
    batches = jax.tree.map(
        lambda leaf: jnp.resize(leaf, (num_batches, size, *leaf.shape[1:])), values
    )
    results = jax.lax.map(jax.vmap(function), batches)
    # Sizes are spelt out, since a result may hold arrays of size zero.
    return jax.tree.map(lambda leaf: leaf.reshape(num_batches * size, *leaf.shape[2:])[:n], results)
