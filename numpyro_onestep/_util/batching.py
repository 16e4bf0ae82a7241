"""Mapping over many draws in bounded memory: inside a compiled program, and from outside of one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

# Draws that are computed at a time.  Larger batches are no faster.
BATCH = 1000
# Draws that one call of a compiled program takes, in a loop over batches.
BLOCK = 2 * BATCH


def map_in_batches(function: Callable, values: PyTree, limit: int = BATCH) -> PyTree:
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


def map_in_blocks(program: Callable, values: PyTree, size: int = BLOCK) -> PyTree:
    """Apply a compiled program to blocks of rows, all of one size, and join what it returns.

    The program sees blocks of `size` rows whatever their number, so that another number compiles
    nothing.  The last block is filled up with repeated rows, whose results are dropped.

    Args:
        program: of a pytree of arrays with `size` rows each, to a pytree of such arrays.
        values: arrays of n rows each, n at least 1.
        size: rows of a block. Default 2000.

    Returns:
        NumPy arrays of n rows.
    """
    values = jax.tree.map(np.asarray, values)
    n = len(jax.tree.leaves(values)[0])
    # All blocks are begun before the first is waited for.
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
