"""The picture of a structure: which coordinates depend on which in the map, as a matrix.

In many dimensions a cell of the matrix stands for several coordinates, and only the pairs that are
there are looked at, so that it costs as little as the structure is sparse.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int

from numpyro_onestep.result import Trained
from numpyro_onestep.structure.structure import Structure

# Rows of the matrix.  With more coordinates a cell stands for several.
MOST_CELLS = 300
# The globals take at least this fraction of the rows then: a row alone would be too thin to see.
_LEAST_OF_CORE = 0.05
_MOST_NAMES = 30  # coordinates that are named at the axes
NOTHING, JOINED, INTERACT, GLOBAL, DENSE = range(5)
_COLOURS = ["white", "#f2b5b5", "C3", "C0", "0.75"]
_WORDS = {
    JOINED: "joined by the elimination",
    INTERACT: "interact",
    GLOBAL: "globals, and what depends on them",
    DENSE: "dense map: each may depend on any other",
}


def structure(ax: Any, run: Trained) -> Any:
    """The structure of a run's map."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    found, names = run.fit.structure, run.problem.target.names()
    d = len(names)
    if found is None:
        cells, order, num_core = np.full([min(d, MOST_CELLS)] * 2, DENSE), np.arange(d), 0
        title = f"dense map of {d} coordinate{'s' * (d > 1)}"
    else:
        order, num_core = arranged(found), found.num_core
        cells = matrix(found, order)
        title = f"{found}\n({d} coordinates)"
    colours = ListedColormap(_COLOURS)
    ax.imshow(cells, colours, vmin=-0.5, vmax=len(_COLOURS) - 0.5, interpolation="nearest")
    ax.set_title(title, fontsize=10)
    kinds = [kind for kind in _WORDS if np.any(cells == kind)]
    patches = [Patch(facecolor=_COLOURS[kind], label=_WORDS[kind]) for kind in kinds]
    ax.legend(
        handles=patches, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.04)
    )
    ax.set_xticks([])
    if d <= _MOST_NAMES:
        ax.set_yticks(range(d), [names[i] for i in order], fontsize=7)
        for between in np.arange(1, d) - 0.5:
            ax.axhline(between, color="white", lw=0.8)
            ax.axvline(between, color="white", lw=0.8)
        return ax
    border = _cells_of_core(num_core, d)
    places = [(0, border, f"{num_core} global{'s' * (num_core > 1)}")] if num_core else []
    places.append((border, len(cells), f"{d - num_core} coordinates"))
    ax.set_yticks([(a + b - 1) / 2 for a, b, _ in places], [text for *_, text in places])
    ax.tick_params(axis="y", length=0)
    if num_core:
        ax.axhline(border - 0.5, color="0.6", lw=0.5)
        ax.axvline(border - 0.5, color="0.6", lw=0.5)
    if d > MOST_CELLS:
        each = (d - num_core) / (len(cells) - border)
        ax.set_xlabel(f"a cell stands for some {each:.0f} x {each:.0f} coordinates", fontsize=8)
        ax.xaxis.set_label_position("top")
    return ax


def arranged(found: Structure) -> Int[np.ndarray, " d"]:
    """The coordinates as the picture has them: globals, then block by block.

    Within a block they are in their own order, or in that of reverse Cuthill and McKee where that
    makes a narrower band.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee

    n, g = found.num_nodes, found.num_core
    pairs = np.concatenate([_edges(found), _parents(found)])
    ones = np.ones(2 * len(pairs), np.int8)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    graph = coo_array((ones, (both[:, 0], both[:, 1])), shape=(n, n)).tocsr()
    _, block = connected_components(graph, directed=False)
    own = found.order[g:]
    first = np.full(block.max() + 1, len(found.order))
    np.minimum.at(first, block, own)
    shown = _edges(found) if len(_edges(found)) else pairs
    places = [np.argsort(np.argsort(own))]  # by coordinate
    some = np.concatenate([shown, shown[:, ::-1]])
    sparse = coo_array((np.ones(len(some), np.int8), (some[:, 0], some[:, 1])), shape=(n, n))
    places.append(np.argsort(reverse_cuthill_mckee(sparse.tocsr(), symmetric_mode=True)))
    within, widths = [], []
    for place in places:
        rows = np.lexsort((place, first[block]))
        rank = np.empty(n, np.int64)
        rank[rows] = np.arange(n)
        width = np.zeros(len(first), np.int64)
        np.maximum.at(width, block[shown[:, 0]], abs(rank[shown[:, 0]] - rank[shown[:, 1]]))
        within.append(rank)
        widths.append(width)
    best = np.where((widths[0] <= widths[1])[block], within[0], within[1])
    return np.concatenate([found.order[:g], own[np.lexsort((best, first[block]))]])


def matrix(found: Structure, order: Int[np.ndarray, " d"]) -> Int[np.ndarray, "m m"]:
    """The kind of each cell: nothing, joined, interact, or of the globals.

    Args:
        found: the structure.
        order: the coordinates in the order of the rows; the globals come first.
    """
    n, g, d = found.num_nodes, found.num_core, len(order)
    num, border = min(d, MOST_CELLS), _cells_of_core(found.num_core, d)
    cells = np.full((num, num), NOTHING)
    row = np.empty(d, np.int64)
    row[order] = np.arange(d)
    node = border + (row[found.order[g:]] - g) * (num - border) // n  # the cell of each node
    cells[node, node] = INTERACT
    for kind, pairs in ((JOINED, _parents(found)), (INTERACT, _edges(found))):
        a, b = node[pairs[:, 0]], node[pairs[:, 1]]
        cells[a, b] = cells[b, a] = np.maximum(cells[a, b], kind)
    ends = np.arange(g + 1) * border // max(g, 1)
    for member, (begin, end) in enumerate(pairwise(ends)):
        at = np.unique(node[found.has_core[:, member]])
        cells[begin:end, at] = cells[at, begin:end] = GLOBAL
    cells[:border, :border] = GLOBAL
    return cells


def _cells_of_core(num_core: int, d: int) -> int:
    if d <= MOST_CELLS or not num_core:
        return num_core
    return int(np.ceil(MOST_CELLS * max(_LEAST_OF_CORE, num_core / d)))


def _edges(found: Structure) -> Int[np.ndarray, "e 2"]:
    """Pairs of nodes that interact; where that is not known, those that are joined in the map."""
    return _parents(found) if found.edges is None else found.edges


def _parents(found: Structure) -> Int[np.ndarray, "e 2"]:
    """Pairs of nodes of which one depends on the other in the map."""
    node, slot = np.nonzero(found.has_parent)
    return np.stack([node, found.parents[node, slot]], axis=1)
