"""The Hessian of a structured target, from few products.

Two nodes get the same colour if no row of the Hessian that is read has entries of both.  One
product with the sum of the unit vectors of a colour then shows the entries of all of its nodes
(Coleman & Moré, "Estimation of sparse Hessian matrices and graph coloring problems", 1984).  Each
member of the core has a product of its own.  The number of products depends on the structure, and
not on the number of coordinates.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from numpyro_onestep.structure.interactions import hessian_products
from numpyro_onestep.structure.structure import Structure


class Curvature(NamedTuple):
    """The entries of a symmetric matrix at which a structured one may differ from zero."""

    core: Any  # (g, g)
    to_core: Any  # (n, g), or (n, 0) without the core, rows of the nodes, columns of the core
    to_parents: Any  # (n, p)
    diagonal: Any  # (n,)


class Colouring(NamedTuple):
    """A structure with a colour for each of its nodes."""

    structure: Structure
    colour: Int[np.ndarray, " n"]


def colouring(structure: Structure) -> Colouring:
    """Colours such that each node's row shows its own entry and those of its parents.

    A node's row has entries of the node itself, of its parents, and of its children.  So a node
    must differ in colour from its parents, from theirs, and from the other parents of its children.
    Nodes are coloured in the order in which they are made, so the latter are coloured before.
    """
    n = structure.num_nodes
    own = [
        row[has].tolist() for row, has in zip(structure.parents, structure.has_parent, strict=True)
    ]
    # Parents of one node interact with each other after its elimination, so that they are each
    # other's parents; so these sets hold every pair that must differ.
    colour = np.zeros(n, np.int32)
    for i in range(n):
        around = set(own[i])
        for j in own[i]:
            around |= set(own[j])
        used = {int(colour[j]) for j in around}
        free = 0
        while free in used:
            free += 1
        colour[i] = free
    return Colouring(structure, colour)


def probes(by: Colouring, dtype: Any) -> Float[np.ndarray, "m d"]:
    """Vectors of R^d whose products with the Hessian show its entries."""
    g, order = by.structure.num_core, by.structure.order
    vectors = np.zeros((g + by.colour.max(initial=-1) + 1, len(order)), dtype)
    vectors[np.arange(g), order[:g]] = 1
    vectors[g + by.colour, order[g:]] = 1
    return vectors


def curvature(
    potential: Any, points: Float[Any, "s d"], by: Colouring, of_core: bool = True
) -> Curvature:
    """The Hessian's entries, averaged over points; without those of the core if so asked."""
    first = 0 if of_core else by.structure.num_core
    vectors = probes(by, points.dtype)[first:]
    products = np.mean([hessian_products(potential, at, vectors) for at in points], axis=0)
    return entries(products.astype(float), by, of_core)


def entries(products: Float[np.ndarray, "m d"], by: Colouring, of_core: bool = True) -> Curvature:
    """The entries, from the products with the probes of the nodes and, if so asked, of the core."""
    structure, g = by.structure, by.structure.num_core
    ordered, index = products[:, structure.order], np.arange(structure.num_nodes)
    core = ordered[:g] if of_core else np.zeros((0, len(structure.order)))
    nodes = ordered[len(core) :, g:]
    to_parents = nodes[by.colour[structure.parents], index[:, None]]
    small = core[:, :g] if of_core else np.zeros((0, 0))
    return Curvature(small, core[:, g:].T, to_parents, nodes[by.colour, index])
