"""Whether a structure holds where the draws are: mixed second differences that it does not explain.

The structure is found at a few points, and a term may vanish there that counts elsewhere.  So at
draws of the posterior the entries of the Hessian are computed as the structure has them, and the
product of that matrix with a random vector is compared with the exact product.  They differ by the
sum of all entries that the structure leaves out.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from numpyro_onestep.structure.curvature import Colouring, colouring, entries, probes
from numpyro_onestep.structure.interactions import hessian_products
from numpyro_onestep.structure.structure import Structure

# Nats, for a vector of one standard deviation in each coordinate: what may be left out.
_NEGLIGIBLE = 0.03
# The same, relative to the sum of the terms: rounding leaves some.
_ROUNDING = 2e-3


def unexplained(
    potential: Any,
    structure: Structure,
    draws: Float[np.ndarray, "s d"],
    scale: Float[np.ndarray, " d"],
    rng: np.random.Generator,
) -> int:
    """How many coordinates have an interaction that matters and that the structure leaves out.

    Args:
        potential: U, a function of x in R^d.
        structure: the structure.
        draws: points at which it is verified.
        scale: standard deviations of the coordinates.
        rng: of the random vectors.
    """
    by = colouring(structure)
    vectors = probes(by, draws.dtype)
    wrong = np.zeros(len(scale), bool)
    for point in draws:
        u = (scale * rng.standard_normal(len(scale))).astype(draws.dtype)
        products = hessian_products(potential, point, np.concatenate([vectors, u[None]]))
        products = products.astype(np.float64)
        if not np.isfinite(products).all():
            continue
        predicted, size = _product(products[:-1], u[structure.order].astype(float), by)
        off = np.abs(products[-1][structure.order] - predicted)
        nats = off * scale[structure.order]
        wrong |= (nats > _NEGLIGIBLE) & (off > _ROUNDING * size)
    return int(wrong.sum())


def _product(products, u, by: Colouring):
    """The product of the structure's matrix with u, and the sums of its terms' sizes."""
    known, structure = entries(products, by), by.structure
    g, parents = structure.num_core, structure.parents
    of_parents = np.where(structure.has_parent, known.to_parents, 0.0)
    results = []
    for matrix, vector in ((lambda v: v, u), (np.abs, np.abs(u))):
        core, nodes = vector[:g], vector[g:]
        edge = matrix(of_parents)
        to_core = matrix(known.to_core)
        out = to_core @ core + matrix(known.diagonal) * nodes + (edge * nodes[parents]).sum(1)
        np.add.at(out, parents, edge * nodes[:, None])
        results.append(np.concatenate([matrix(known.core) @ core + to_core.T @ nodes, out]))
    return results
