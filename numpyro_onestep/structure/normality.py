"""Whether the nodes are normal given the core.

Where they are, the second derivatives in the nodes depend on the core alone, as in a hierarchy of
normal distributions.  So they are compared at points that differ in the nodes and not in the core.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, PRNGKeyArray

from numpyro_onestep._util.random import numpy_generator
from numpyro_onestep.structure.curvature import colouring, curvature
from numpyro_onestep.structure.structure import Structure

# Distance of the other point in each node.
_DISTANCE = 1.0
# Largest difference of two entries, relative to the diagonal entries of row and column, that may be
# a rounding error.
_ROUNDING = 1e-3


def is_normal_given_core(
    potential: Any, structure: Structure, start: Float[Any, " d"], rng_key: PRNGKeyArray
) -> bool:
    """Whether the Hessian of the nodes is the same where the nodes have other values.

    A structured map then needs no network for its nodes.  If this holds at the two points but not
    elsewhere, the weights of the trained map show it, and a network is added.

    Args:
        potential: U, a function of x in R^d.
        structure: which coordinates interact.
        start: a point of finite density.
        rng_key: a JAX random key.
    """
    nodes = structure.order[structure.num_core :]
    shift = np.zeros(start.size)
    shift[nodes] = _DISTANCE * numpy_generator(rng_key).standard_normal(len(nodes))
    points = np.asarray(start), np.asarray(start + shift, start.dtype)
    by = colouring(structure)
    one, other = (curvature(potential, point[None], by, of_core=False) for point in points)
    scale = np.sqrt(np.abs(one.diagonal))
    of_parents = np.abs(one.to_parents - other.to_parents) * structure.has_parent
    of_parents = of_parents / (scale[:, None] * scale[structure.parents])
    of_diagonal = np.abs(one.diagonal - other.diagonal) / scale**2
    # A value that is not finite is not small either.
    return all(bool(np.all(change <= _ROUNDING)) for change in (of_diagonal, of_parents))
