"""Names for the parts of a pytree, and for single numbers of an array."""

from collections.abc import Iterable
from typing import Any

import jax
from jaxtyping import PyTree


def named_leaves(samples: PyTree) -> dict[str, tuple[str, Any]]:
    """The leaves of a pytree by unique names, each with the name of its outermost key."""

    def text(path) -> str:
        return jax.tree_util.keystr(path, simple=True, separator=".") or "x"

    leaves = jax.tree_util.tree_leaves_with_path(samples)
    # A site that is an array keeps its name; a leaf of another site with that name gets a new one.
    taken = {text(path) for path, _ in leaves if len(path) < 2}
    found = {}
    for path, leaf in leaves:
        name = text(path) if len(path) < 2 else free_name(text(path), taken)
        taken.add(name)
        found[name] = text(path[:1]), leaf
    return found


def flatten_names(samples: PyTree) -> dict[str, Any]:
    """Draws of any pytree as a flat dict of numbers: the keys on the way to a leaf, joined by dots.

    A deterministic site that is a tuple `t` becomes `t.0`, `t.1`, and so on.  Truth values become
    0 and 1, so that they have means and intervals.  Arrays of size zero are left out.
    """
    leaves = {name: leaf for name, (_, leaf) in named_leaves(samples).items() if leaf.size}
    return {name: leaf.astype(int) if leaf.dtype == bool else leaf for name, leaf in leaves.items()}


def free_name(name: str, taken: Iterable[str]) -> str:
    """The name, with underscores added until it is not among those taken."""
    while name in taken:
        name += "_"
    return name


def label(name: str, index: tuple[int, ...]) -> str:
    """The name of one number of an array."""
    return name + (f"[{','.join(map(str, index))}]" if index else "")
