"""The Gaussians of the nodes given the core, at a number of values of the core.

Where the nodes are normal given the core, one Newton step from anywhere leads to their mean, and
the Hessian there is their precision.  Elsewhere a few rounds of expected curvature, as in
`structured_fit`, lead to the nearest Gaussian.  The expectations are means over points one standard
deviation away on both sides, which for a single node is exact up to the third power.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_onestep.initialise.structured_gaussian import StructuredGaussian, of_precision
from numpyro_onestep.structure.curvature import Colouring, Curvature, entries, probes
from numpyro_onestep.structure.interactions import gradients_and_products
from numpyro_onestep.structure.structure import Structure

# Values of the core: so many for each member, within these limits.  They are drawn wider than the
# core's Gaussian, since what follows from them has to hold in the tails too.
_POINTS_PER_MEMBER, _FEWEST_POINTS, _MOST_POINTS = 2, 32, 128
_WIDER = 1.5
_FEWEST_KNOWN = 8  # of these that are of use
# Numbers in all of these points, above which there are fewer of them.
_MOST_NUMBERS = 2**20
# Draws from which the standard deviations of the nodes are estimated.
_DRAWS = 128
# Rounds, and the pairs of points in each.
_MOST_ROUNDS, _PAIRS = 8, 2
# Standard deviations.  A longer step is cut; rounds end when all are shorter than the first number;
# where the last is longer than the second there is nothing to be trusted.
_SHORT_STEP, _LONG_STEP = 0.05, 0.5


class Conditionals(NamedTuple):
    """What is known of the nodes at each of m values of the core."""

    core: Float[np.ndarray, "m g"]  # whitened
    mean: Float[np.ndarray, "m n"]
    log_precision: Float[np.ndarray, "m n"]  # of each node given its parents too
    to_parents: Float[np.ndarray, "m n p"]  # slopes of its mean in the values of its parents

    @property
    def slopes(self) -> Float[np.ndarray, "n g"]:
        """Slopes of the log precisions in the core, by least squares."""
        centred = self.core - self.core.mean(0)
        return (np.linalg.pinv(centred, rcond=1e-3) @ self.log_precision).T


def conditionals(
    potential: Any,
    gaussian: StructuredGaussian,
    by: Colouring,
    rng: np.random.Generator,
    dtype: Any,
) -> Conditionals | None:
    """The Gaussians of the nodes given the core; None where too few values of the core have one.

    Args:
        potential: U, a function of x in R^d.
        gaussian: the Gaussian of all coordinates that was fitted to the target.
        by: its structure, with colours.
        rng: of the values of the core.
        dtype: type of the target's arguments.
    """
    structure, d = by.structure, len(gaussian.loc)
    g, n = structure.num_core, structure.num_nodes
    most = min(_MOST_POINTS, max(_FEWEST_POINTS, _POINTS_PER_MEMBER * g), _MOST_NUMBERS // d)
    half = _WIDER * rng.standard_normal((max(4, most // 2), g))
    core = np.concatenate([half, -half])
    loc = gaussian.images(np.concatenate([core, np.zeros((len(core), n))], axis=1))
    drawn = gaussian.images(rng.standard_normal((_DRAWS, d)))[:, g:]
    scale = drawn.std(0)
    if structure.is_normal:
        signs = np.zeros((1, n))
    else:
        # The same for all values of the core, so that what these differ by is no noise.
        half = rng.choice([-1.0, 1.0], (_PAIRS, n))
        signs = np.concatenate([half, -half])
    longest = np.inf if structure.is_normal else scale
    normals = [_of_nodes(structure, at) for at in loc]
    aside, largest = 0.0, np.zeros(len(core))
    for _ in range(1 if structure.is_normal else _MOST_ROUNDS):
        points = np.stack([one.images(_with_core(aside * signs, g)) for one in normals])
        there = _slopes_and_curvature(potential, points, by, dtype)
        for k, (gradient, hessian) in enumerate(there):
            normals[k], step = _step(structure, normals[k], gradient, hessian, longest)
            largest[k] = np.abs(step / scale).max(initial=0.0)
        aside = 1.0
        # Where the target has no finite curvature a step is NaN, and stays so.
        if largest[np.isfinite(largest)].max(initial=0.0) < _SHORT_STEP:
            break
    fine = np.isfinite(largest) if structure.is_normal else largest < _LONG_STEP
    normals = [one for one, good in zip(normals, fine.tolist(), strict=True) if good]
    if len(normals) < _FEWEST_KNOWN:
        return None
    mean = np.stack([one.loc[g:] for one in normals])
    log_precision = np.stack([-2 * np.log(one.sd) for one in normals])
    return Conditionals(core[fine], mean, log_precision, np.stack([v.to_parents for v in normals]))


def _slopes_and_curvature(potential, points, by: Colouring, dtype):
    """For each value of the core the mean gradient, in the structure's order, and Hessian."""
    structure, g = by.structure, by.structure.num_core
    vectors = probes(by, dtype)[g:]
    num, each, d = points.shape
    x = points[..., structure.place].astype(dtype)
    shape = num, each, len(vectors), d
    pairs = (np.broadcast_to(v, shape).reshape(-1, d) for v in (x[:, :, None], vectors))
    gradients, products = gradients_and_products(potential, *pairs)
    gradients, products = (v.reshape(shape).astype(float).mean(1) for v in (gradients, products))
    for gradient, product in zip(gradients[:, 0], products, strict=True):
        yield gradient[structure.order], entries(product, by, of_core=False)


def _step(structure: Structure, normal: StructuredGaussian, gradient, there: Curvature, longest):
    """The nodes' Gaussian after a step of Newton's method, and the step."""
    g = structure.num_core
    new = _of_nodes(structure, normal.loc, there)
    gradient[:g] = 0
    step = new.times_covariance(-gradient)
    step[g:] = np.clip(step[g:], -longest, longest)
    return new.moved(step), step[g:]


def _of_nodes(structure: Structure, loc, there: Curvature | None = None) -> StructuredGaussian:
    """The Gaussian of the nodes alone; the core has unit scales, which nothing here uses."""
    (n, p), g = structure.parents.shape, structure.num_core
    to_parents, diagonal = np.zeros((n, p)), np.ones(n)
    if there is not None:
        to_parents, diagonal = there.to_parents, there.diagonal
    return of_precision(
        structure, loc, Curvature(np.eye(g), np.zeros((n, g)), to_parents, diagonal)
    )


def _with_core(z, g: int):
    return np.concatenate([np.zeros((len(z), g)), z], axis=1)
