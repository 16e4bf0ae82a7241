"""A Gaussian whose precision has a structure, by its conditional means and scales.

Nothing here is larger than the structure: the factorisation, a draw, and a product with the
covariance take a number of operations proportional to the number of nodes.  It runs in NumPy, in
double precision.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from numpyro_onestep.structure.curvature import Curvature
from numpyro_onestep.structure.structure import Structure

# A pivot of the factorisation that is smaller than this fraction of its diagonal entry, or is
# negative, is replaced by that fraction: away from the mode the target is not log-concave.
_SMALLEST_PIVOT = 0.01


@dataclass(frozen=True)
class StructuredGaussian:
    """x_core = loc_core + L z_core, x_i = loc_i + coef . (x - loc of parents and core) + sd_i z_i.

    All vectors are in the order of the structure.
    """

    structure: Structure
    loc: Float[np.ndarray, " d"]
    core_tril: Float[np.ndarray, "g g"]
    to_core: Float[np.ndarray, "n g"]
    to_parents: Float[np.ndarray, "n p"]
    sd: Float[np.ndarray, " n"]

    def draw(self, z: Float[np.ndarray, "s d"]) -> Float[np.ndarray, "s d"]:
        """Images of standard normal draws, as coordinates of x."""
        return self.images(z)[:, self.structure.place]

    def images(self, z: Float[np.ndarray, "s d"]) -> Float[np.ndarray, "s d"]:
        """The same in the order of the structure."""
        return self.loc + self._times(z)

    @property
    def entropy(self) -> float:
        """The Gaussian's entropy (nats)."""
        log_det = np.log(self.sd).sum() + np.log(np.diagonal(self.core_tril)).sum()
        return float(log_det + 0.5 * len(self.loc) * (1 + math.log(2 * math.pi)))

    def times_covariance(self, v: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
        """The covariance times a vector, both in the structure's order."""
        structure, g = self.structure, self.structure.num_core
        back, core = np.array(v[g:]), np.array(v[:g])
        for rows in reversed(structure.levels):
            mine = back[rows, None]
            np.add.at(back, structure.parents[rows], self.to_parents[rows] * mine)
            core += (self.to_core[rows] * mine).sum(0)
        white = np.concatenate([self.core_tril.T @ core, self.sd * back])
        return self._times(white[None])[0]

    def moved(self, by: Float[np.ndarray, " d"]) -> "StructuredGaussian":
        """The same Gaussian with its mean shifted."""
        return replace(self, loc=self.loc + by)

    def _times(self, z):
        structure, g = self.structure, self.structure.num_core
        core = z[:, :g] @ self.core_tril.T
        nodes = core @ self.to_core.T + z[:, g:] * self.sd
        for rows in structure.levels[1:]:
            around = nodes[:, structure.parents[rows]]
            nodes[:, rows] += (around * self.to_parents[rows]).sum(2)
        return np.concatenate([core, nodes], axis=1)


def of_precision(
    structure: Structure, loc: Float[np.ndarray, " d"], precision: Curvature
) -> StructuredGaussian:
    """The Gaussian of a precision, by eliminating one level after the other."""
    parents, has = structure.parents, structure.has_parent
    diagonal, own = np.array(precision.diagonal, float), np.array(precision.diagonal, float)
    edge = np.where(has, np.array(precision.to_parents, float), 0.0)
    to_core = np.array(precision.to_core, float)
    core = np.array(precision.core, float)
    core = (core + core.T) / 2
    own_core = np.diagonal(core).copy()
    slots = structure.slots
    floor = _SMALLEST_PIVOT * np.where(own > 0, own, 1.0)
    for rows in reversed(structure.levels):
        diagonal[rows] = np.maximum(diagonal[rows], floor[rows])
        share = edge[rows] / diagonal[rows, None]
        around = parents[rows]
        for a in range(parents.shape[1]):
            np.subtract.at(diagonal, around[:, a], share[:, a] * edge[rows][:, a])
            np.subtract.at(to_core, around[:, a], share[:, a, None] * to_core[rows])
            for b in range(parents.shape[1]):
                slot = slots[rows][:, a, b]
                there = slot >= 0
                at = around[there, a], slot[there]
                np.subtract.at(edge, at, (share[:, a] * edge[rows][:, b])[there])
        core -= to_core[rows].T @ (to_core[rows] / diagonal[rows, None])
    return StructuredGaussian(
        structure,
        np.array(loc, float),
        _inverse_root(core, own_core),
        -to_core / diagonal[:, None],
        -edge / diagonal[:, None],
        diagonal**-0.5,
    )


def _inverse_root(precision, own) -> Float[np.ndarray, "g g"]:
    """The Cholesky factor of the inverse, with eigenvalues floored in units of the diagonal."""
    if not len(precision):
        return precision
    if not np.isfinite(precision).all():  # LAPACK would raise an error; what is made of it tells
        return np.full_like(precision, np.nan)
    scale = np.where(own > 0, own, 1.0) ** -0.5
    values, vectors = np.linalg.eigh(precision * np.outer(scale, scale))
    values = np.maximum(values, _SMALLEST_PIVOT * 1e-4)
    covariance = (vectors / values) @ vectors.T * np.outer(scale, scale)
    return np.linalg.cholesky(covariance)


def independent(structure: Structure, loc, scale) -> tuple[StructuredGaussian, Curvature]:
    """Independent coordinates, given in the order of x, and their precision."""
    n, p, g = *structure.parents.shape, structure.num_core
    loc, scale = (np.asarray(v, float)[structure.order] for v in (loc, scale))
    precision = Curvature(
        np.diag(scale[:g] ** -2), np.zeros((n, g)), np.zeros((n, p)), scale[g:] ** -2
    )
    return of_precision(structure, loc, precision), precision
