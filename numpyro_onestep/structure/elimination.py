"""From a graph of interactions to an order in which the map makes the coordinates.

If coordinate i interacts with its neighbours alone, then, given them, it is independent of all
others: p(x) = p(x_i | neighbours) p(rest), and in the rest the neighbours of i interact with each
other.  Eliminating coordinates one after the other in this way writes the posterior as
    p(x) = p(x_core) prod_i p(x_i | x_parents(i), x_core),
exactly, and a triangular map of that form loses nothing (Spantini, Bigoni & Marzouk, "Inference via
low-dimensional couplings", JMLR 2018).  Coordinates that do not interact are eliminated in the same
round, so the map has as many levels as there are rounds: one for a hierarchy, the levels of a tree,
about log2(n) for a series of length n (cyclic reduction).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# Most neighbours of a coordinate that is eliminated.  Where none has so few, the one of most
# neighbours joins the core.
_MOST_PARENTS = 8
# Largest core.  The map of the core is dense, so its cost grows with the square of its size.
_LARGEST_CORE = 160
# Rounds.  More would make a program that takes long to compile.
_MOST_LEVELS = 20
# A last level joins the core if it has no more coordinates than this, all with more neighbours than
# a node may have parents: a global that was left to the last.  The map of the core is the more
# flexible one.  Coordinates between two halves of a series stay outside, since they depend on the
# globals as all others of the series do.
_FEW = 4


class Elimination(NamedTuple):
    """The core, and the levels of the other coordinates in the order in which they are made."""

    core: Int[np.ndarray, " g"]
    levels: list[list[int]]
    parents: dict[int, list[int]]  # of each coordinate outside of the core
    core_parents: dict[int, set[int]]


def eliminate(neighbours: list[set[int]], core: Iterable[int] = ()) -> Elimination | None:
    """The order of elimination for a graph; None where it would leave most of it in the core.

    Args:
        neighbours: for each coordinate the others that it interacts with.
        core: coordinates that are in the core in any case. Default none.
    """
    d = len(neighbours)
    # In the first pass members join the core between rounds, and rounds before did not know of
    # them.  So a second pass begins with all of them.
    first = _pass(neighbours, set(core), most_levels=d)
    second = None if first is None else _pass(neighbours, first[0], _MOST_LEVELS)
    if second is None:
        return None
    core, levels, parents, core_parents = second
    while levels and _are_globals(levels[-1], neighbours):
        core |= set(levels.pop())
    if 2 * len(core) > d or 2 * len(levels) > d - len(core):
        return None  # most of it is in the core, or is made one coordinate after the other
    if not core:  # all are independent of each other, or nearly; the map needs a core
        core = {levels[-1].pop()}
        levels = [level for level in levels if level]
    order = np.array(sorted(core), dtype=np.int64)
    outside = [i for level in levels for i in level]
    return Elimination(
        order,
        levels[::-1],
        {i: [j for j in parents[i] if j not in core] for i in outside},
        {i: core_parents[i] | (core & set(parents[i])) for i in outside},
    )


def _pass(neighbours, core, most_levels):
    d = len(neighbours)
    core, levels = set(core), []
    graph: dict[int, set[int]] = {i: neighbours[i] - core for i in range(d) if i not in core}
    core_parents = {i: neighbours[i] & core for i in graph}
    parents: dict[int, list[int]] = {}
    largest = min(_LARGEST_CORE, d)
    while graph:
        level = _independent(graph, neighbours)
        if not level or len(levels) >= most_levels:
            hub = max(graph, key=lambda i: (len(graph[i]), -i))
            if len(core) >= largest:
                return None
            core.add(hub)
            for i in graph.pop(hub):
                graph[i].discard(hub)
                core_parents[i].add(hub)
            core_parents.pop(hub)
            continue
        for i in level:
            around = graph.pop(i)
            parents[i] = sorted(around)
            for j in around:
                graph[j].discard(i)
                graph[j] |= around
                graph[j].discard(j)
                core_parents[j] |= core_parents[i]
        levels.append(level)
    return core, levels, parents, core_parents


def _are_globals(level: list[int], neighbours: list[set[int]]) -> bool:
    return len(level) <= _FEW and all(len(neighbours[i]) > _MOST_PARENTS for i in level)


def _independent(graph: dict[int, set[int]], neighbours: list[set[int]]) -> list[int]:
    """Coordinates of few neighbours, none of them neighbours of each other."""
    few = [i for i, around in graph.items() if len(around) <= _MOST_PARENTS]
    # Those that had many neighbours at first come last, so that globals are left to the end.
    few.sort(key=lambda i: (len(neighbours[i]) > _MOST_PARENTS, len(graph[i])))
    chosen, blocked = [], set()
    for i in few:
        if i not in blocked:
            chosen.append(i)
            blocked |= graph[i]
    return chosen
