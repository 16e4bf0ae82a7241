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
# Numbers that the evaluations of a batch may compute together.  With more of them no cache holds
# what one operation leaves for the next, and an evaluation takes two to five times as long.
# Gradients share more of their work, so that fewer than so many side by side take longer.
_MOST_NUMBERS, _FEWEST_GRADIENTS = 2**21, 8


def side_by_side(target: Any, gradients: bool = False) -> int:
    """Draws at which a target is evaluated side by side: fewer where one evaluation is large.

    Args:
        target: a function with an attribute `num_numbers`, how many numbers an evaluation computes;
            without it an evaluation counts as small.
        gradients: its gradient is evaluated too.
    """
    numbers, fewest = getattr(target, "num_numbers", 1), _FEWEST_GRADIENTS if gradients else 1
    return int(np.clip(_MOST_NUMBERS // numbers, fewest, BATCH))


def map_in_batches(function: Callable, values: PyTree, limit: int = BATCH) -> PyTree:
    """`jax.vmap(function)(values)`, at most `limit` of the values at a time.

    All batches have one size, and the last one is padded.  `jax.lax.map` would compile the
    function once more for a smaller last batch.
    """
    n = len(jax.tree.leaves(values)[0])
    num_batches = -(-n // min(limit, n))
    if num_batches == 1:
        return jax.vmap(function)(values)
    size = -(-n // num_batches)
    batches = jax.tree.map(
        lambda leaf: jnp.resize(leaf, (num_batches, size, *leaf.shape[1:])), values
    )
    results = jax.lax.map(jax.vmap(function), batches)
    # Sizes are spelt out, since a result may hold arrays of size zero.
    return jax.tree.map(lambda leaf: leaf.reshape(num_batches * size, *leaf.shape[2:])[:n], results)


def map_in_blocks(
    program: Callable,
    values: PyTree,
    size: int = BLOCK,
    told: Callable[[int], None] | None = None,
) -> PyTree:
    """Apply a compiled program to blocks of rows, all of one size, and join what it returns.

    Every block has `size` rows, so that another number of rows in all compiles nothing.  The last
    block is filled up with repeated rows, whose results are dropped.

    Args:
        program: a function from a pytree of arrays with `size` rows each to such a pytree.
        values: arrays of n rows each, n at least 1.
        size: rows of a block. Default 2000.
        told: called with the number of rows whose results are there, block by block.

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
    if told is not None:
        for index, block in enumerate(blocks):
            jax.block_until_ready(block)
            told(min((index + 1) * size, n))
    return jax.tree.map(lambda *leaves: _joined(leaves, n), *blocks)


def _rows(leaf: np.ndarray, begin: int, size: int) -> np.ndarray:
    block = leaf[begin : begin + size]
    missing = size - len(block)
    return np.concatenate([block, np.repeat(block[-1:], missing, axis=0)]) if missing else block


def _joined(leaves: tuple[Any, ...], n: int) -> np.ndarray:
    return np.concatenate([np.asarray(leaf) for leaf in leaves])[:n]
