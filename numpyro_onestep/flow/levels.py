"""The values of all nodes, level by level, and their derivatives.

A node is made from values of earlier levels, so that making all of them takes as many rounds as
there are levels.  Their derivatives take less: once the values are known, how each depends on its
own z, on the parameters and on its parents is computed for all nodes at once, and only a linear
system, triangular in blocks, is solved level by level.  So a program has the nodes' own map in it a
few times, not once and its reverse for each level.
"""

from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from numpyro_onestep.flow.conditional import Conditional

# The last levels of a series hold most of its nodes, and each has a place of its own in a program.
# All levels before are made together, in as many rounds as there are levels.
_OWN_PLACE = 2

_EVERY = slice(None)


@eqx.filter_custom_jvp
def values_of_nodes(
    nodes: Conditional, z: Float[Array, " n"], core: Float[Array, " g"], ends: tuple[int, ...]
) -> Float[Array, " n"]:
    """The values of all nodes.

    Args:
        nodes: the maps of the nodes.
        z: their base draws.
        core: the core's values.
        ends: where each level ends.
    """

    def made(values, rows):
        return nodes(z[rows], core, nodes.values_around(values, rows), rows).y

    together = len(ends) - _OWN_PLACE
    return _by_level(made, z, ends, together if together > 1 else 0)


@values_of_nodes.def_jvp
def _derivative(primals, tangents):
    nodes, z, core, ends = primals
    values = values_of_nodes(nodes, z, core, ends)
    around = nodes.values_around(values, _EVERY)

    def apart(nodes, z, core):
        return nodes(z, core, around, _EVERY).y

    direct: Any = eqx.filter_jvp(apart, (nodes, z, core), tangents[:3])[1]
    _, pull_back = jax.vjp(lambda around: nodes(z, core, around, _EVERY).y, around)
    (by_parent,) = pull_back(jnp.ones_like(values))

    def made(changes, rows):
        of_parents = by_parent[:, rows] * nodes.values_around(changes, rows)
        return direct[rows] + jnp.sum(of_parents, 0)

    return values, _by_level(made, direct, ends)


def _by_level(
    made: Any, like: Float[Array, " n"], ends: tuple[int, ...], num_together: int = 0
) -> Float[Array, " n"]:
    """`made(values, rows)` for the rows of all levels, from the values of the levels before.

    Args:
        made: the values of some rows.
        like: an array of the same length and type.
        ends: where each level ends.
        num_together: so many of the first levels are made together, in as many rounds.
    """
    values = jnp.zeros(0, like.dtype)
    if num_together:
        rows = slice(0, ends[num_together - 1])
        first = jnp.zeros(rows.stop, like.dtype)
        values = jax.lax.fori_loop(0, num_together, lambda _, values: made(values, rows), first)
    for before, end in pairwise((len(values), *ends[num_together:])):
        values = jnp.concatenate([values, made(values, slice(before, end))])
    return values
