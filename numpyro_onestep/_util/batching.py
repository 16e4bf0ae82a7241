"""Mapping over many draws in bounded memory: inside a compiled program, and from outside of one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

# Draws that are computed side by side.  Larger batches are no faster.
BATCH = 1000
# Draws that one call of a compiled program takes: it loops over two batches.
BLOCK = 2 * BATCH


def map_in_batches(function: Callable, values: PyTree, limit: int = BATCH) -> PyTree:
    """`jax.vmap(function)(values)`, at most `limit` of the values at a time.

    All batches have one size, and the last one is padded.  `jax.lax.map` would compile the
    function once more for a smaller last batch.
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


def map_in_blocks(program: Callable, values: PyTree, size: int = BLOCK) -> PyTree:
    """Apply a compiled program to blocks of rows, all of one size, and join what it returns.

    Every block has `size` rows, so that another number of rows in all compiles nothing.  The last
    block is filled up with repeated rows, whose results are dropped.

    Args:
        program: a function from a pytree of arrays with `size` rows each to such a pytree.
        values: arrays of n rows each, n at least 1.
        size: rows of a block. Default 2000.

    Returns:
        NumPy arrays of n rows.
    """
    values = jax.tree.map(np.asarray, values)
    n = len(jax.tree.leaves(values)[0])
    # All blocks are started before the result of the first is waited for.
    blocks = [
        program(jax.tree.map(lambda leaf: _rows(leaf, begin, size), values))  # noqa: B023
        for begin in range(0, n, size)
    ]
    return jax.tree.map(lambda *leaves: _joined(leaves, n), *blocks)


def _rows(leaf: np.ndarray, begin: int, size: int) -> np.ndarray:
    block = leaf[begin : begin + size]
    missing = size - len(block)
    return np.concatenate([block, np.repeat(block[-1:], missing, axis=0)]) if missing else block


def _joined(leaves: tuple[Any, ...], n: int) -> np.ndarray:
    return np.concatenate([np.asarray(leaf) for leaf in leaves])[:n]
