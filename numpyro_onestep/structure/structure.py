"""The structure of a posterior: its core, and the levels of coordinates that depend on it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from numpyro_onestep.structure.elimination import Elimination, eliminate
from numpyro_onestep.structure.running_sums import OfSums, RunningSums


@dataclass(frozen=True, eq=False)
class Structure:
    """Which coordinates a structured map makes from which others.

    Coordinates are in the order in which the map makes them: first the core, then level by level.
    Those outside of the core are called nodes.

    Attributes:
        order: `order[k]` is the coordinate of x that is made as the k-th.
        num_core: size of the core.
        ends: where each level ends, counted in nodes.
        parents: for each node its parents among the nodes; 0 where there is none.
        has_parent: whether each entry of `parents` is one.
        has_core: for each node, which members of the core it depends on.
        is_normal: whether the nodes are normal given the core.
        edges: pairs of nodes that interact. Other nodes and parents are joined by the elimination
            alone. None where it is not known, as in a file of an earlier version.
        sums: running sums that take the place of some coordinates of x; None for x itself.
        summed: the sites whose coordinates are summed.
    """

    order: Int[np.ndarray, " d"]
    num_core: int
    ends: tuple[int, ...]
    parents: Int[np.ndarray, "n p"]
    has_parent: Bool[np.ndarray, "n p"]
    has_core: Bool[np.ndarray, "n g"]
    is_normal: bool = False
    edges: Int[np.ndarray, "e 2"] | None = None
    sums: RunningSums | None = None
    summed: tuple[str, ...] = ()

    @property
    def num_nodes(self) -> int:
        """Number of coordinates outside of the core."""
        return len(self.parents)

    @property
    def levels(self) -> list[slice]:
        """The nodes of each level."""
        return [slice(a, b) for a, b in pairwise((0, *self.ends))]

    @property
    def sees_core(self) -> Bool[np.ndarray, "n g"]:
        """For each node, which whitened coordinates of the core it depends on.

        Whitening mixes the members by a lower triangle, so that a member depends on its own
        whitened coordinate and on those before it.
        """
        return np.logical_or.accumulate(self.has_core[:, ::-1], axis=1)[:, ::-1]

    @cached_property
    def slots(self) -> Int[np.ndarray, "n p p"]:
        """For each node and its parents a and b, the place of b among the parents of a, or -1."""
        parents, has = self.parents, self.has_parent
        n, p = parents.shape
        slots = np.full((n, p, p), -1)
        for a in range(p):
            for b in range(p):
                both = has[:, a] & has[:, b] & (parents[:, b] < parents[:, a])
                its = parents[parents[:, a]]  # parents of parent a
                same = (its == parents[:, [b]]) & has[parents[:, a]]
                slots[:, a, b] = np.where(both & same.any(1), same.argmax(1), -1)
        return slots

    @cached_property
    def place(self) -> Int[np.ndarray, " d"]:
        """The inverse of `order`."""
        return np.argsort(self.order)

    def potential(self, of_x: Any) -> Any:
        """A potential U(x) as a function of the coordinates that the structure is of."""
        return of_x if self.sums is None else OfSums(of_x, self.sums)

    def coordinates(self, x: Float[Any, "*n d"]) -> Float[Any, "*n d"]:
        """Points of x in the coordinates that the structure is of."""
        return x if self.sums is None else self.sums.sums_of_many(x)

    def __str__(self) -> str:
        """The structure in words."""
        return _words(self)


def structure_of(neighbours: list[set[int]], core: Iterable[int] = ()) -> Structure | None:
    """The structure of a graph; None where it is too dense to have one.

    Args:
        neighbours: for each coordinate the others that it interacts with.
        core: coordinates that are in the core in any case. Default none.
    """
    found = eliminate(neighbours, core)
    return None if found is None else _arranged(found, neighbours)


def _arranged(found: Elimination, neighbours: list[set[int]]) -> Structure:
    nodes = [i for level in found.levels for i in level]
    index = {i: k for k, i in enumerate(nodes)}
    core_index = {i: k for k, i in enumerate(found.core.tolist())}
    most = max((len(found.parents[i]) for i in nodes), default=0)
    parents = np.zeros((len(nodes), most), np.int32)
    has_parent = np.zeros((len(nodes), most), bool)
    has_core = np.zeros((len(nodes), len(core_index)), bool)
    for k, i in enumerate(nodes):
        own = [index[j] for j in found.parents[i]]
        parents[k, : len(own)], has_parent[k, : len(own)] = own, True
        has_core[k, [core_index[j] for j in found.core_parents[i]]] = True
    ends = tuple(np.cumsum([len(level) for level in found.levels]).tolist())
    order = np.concatenate([found.core, np.array(nodes, dtype=np.int64)])
    pairs = [(k, index[j]) for k, i in enumerate(nodes) for j in neighbours[i] if j in index]
    edges = np.array([pair for pair in pairs if pair[0] > pair[1]], np.int32).reshape(-1, 2)
    graph = parents, has_parent, has_core
    return Structure(order, len(core_index), ends, *graph, edges=edges)


def _words(structure: Structure) -> str:
    """What is left without the core: blocks that are independent of each other, or a graph."""
    n, g = structure.num_nodes, structure.num_core
    block = np.arange(n)  # the first node of each node's block
    for i in range(n):
        for j in structure.parents[i][structure.has_parent[i]]:
            ours, theirs = _root(block, i), _root(block, int(j))
            block[max(ours, theirs)] = min(ours, theirs)
    sizes = np.bincount([_root(block, i) for i in range(n)])
    sizes, counts = np.unique(sizes[sizes > 0], return_counts=True)
    levels = f" in {len(structure.ends)} levels" if len(structure.ends) > 1 else ""
    if len(sizes) == 1:
        blocks = f"{counts[0]} block{'s' * int(counts[0] > 1)} of {sizes[0]}"
    else:
        blocks = f"{counts.sum()} blocks of {sizes[0]} to {sizes[-1]}"
    sums = f", in running sums of {', '.join(structure.summed)}" if structure.summed else ""
    return f"{g} global{'s' * int(g > 1)}, {blocks}{levels}{sums}"


def _root(block: np.ndarray, i: int) -> int:
    while block[i] != i:
        block[i] = block[block[i]]
        i = int(block[i])
    return i
