"""The structured map before training: the conditional means and scales of the fitted Gaussian."""

from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_onestep._util.random import numpy_generator, stream
from numpyro_onestep.flow import FlowMap, StructuredMap
from numpyro_onestep.flow.conditional import Conditional, Linear, SharedNetwork, core_unit
from numpyro_onestep.flow.gaussian import StructuredPreconditioner
from numpyro_onestep.initialise.regression import fitted
from numpyro_onestep.initialise.structured_fit import StructuredFit
from numpyro_onestep.initialise.structured_gaussian import independent
from numpyro_onestep.structure.structure import Structure

_DRAWS = 128  # from which the standard deviations of the nodes are estimated
# The two terms of each node begin with slopes that differ by a random number of this size.  If they
# were alike, their gradients would be as well, and they would stay alike.
_TILT = 0.1


def preconditioner_of(
    fit: StructuredFit, dtype: Any, rng_key: PRNGKeyArray
) -> StructuredPreconditioner:
    """The core's own Gaussian, and the other coordinates scaled by their standard deviations."""
    gaussian, structure = fit.gaussian, fit.gaussian.structure
    rng = numpy_generator(stream(rng_key, "scales"))
    x = gaussian.draw(rng.standard_normal((_DRAWS, len(gaussian.loc))))[:, structure.order]
    sd = np.sqrt(np.mean((x - gaussian.loc) ** 2, 0))[structure.num_core :]
    arrays = gaussian.loc[structure.place], gaussian.core_tril, sd
    indices = structure.order, structure.place
    return StructuredPreconditioner(
        *jax.device_put([np.asarray(v, dtype) for v in arrays]),
        *jax.device_put([v.astype(np.int32) for v in indices]),
    )


def map_of(
    fit: StructuredFit,
    preconditioner: StructuredPreconditioner,
    core: FlowMap,
    width: int,
    rng_key: PRNGKeyArray,
) -> StructuredMap:
    """The structured map that starts from the fit, in the preconditioner's coordinates.

    Args:
        fit: the Gaussian, and how the scales of the nodes change with the core.
        preconditioner: the preconditioner of the same fit.
        core: the untrained map of the core.
        width: units of the network that the nodes share; 0 for none.
        rng_key: key of the network's random initial weights.
    """
    gaussian, structure, dtype = fit.gaussian, fit.gaussian.structure, core.dtype
    n, p = structure.parents.shape
    g, sd = structure.num_core, np.asarray(preconditioner.scale, float)
    rng = numpy_generator(stream(rng_key, "tilt"))
    tilt = _TILT * rng.standard_normal((n, g))
    to_core = gaussian.to_core @ gaussian.core_tril / sd[:, None]
    to_parents = gaussian.to_parents * sd[structure.parents] / sd[:, None] * structure.has_parent
    constant, of_core, of_parents = (np.zeros((*m, 3, 2, n)) for m in ((), (g,), (p,)))
    precisions, means = 0, 2  # between them the excess of the gains, which begins at zero
    slopes = np.zeros((n, g)) if fit.conditionals is None else fit.conditionals.slopes
    constant[precisions] = -2 * np.log(gaussian.sd / sd) - np.log(2)
    tilted = np.stack([slopes + tilt, slopes - tilt])
    of_core[:, precisions] = core_unit(g) * tilted.transpose(2, 0, 1)
    of_core[:, means] = core_unit(g) * to_core.T[:, None]
    of_parents[:, means] = to_parents.T[:, None]
    linear = Linear(*jax.device_put([v.astype(dtype) for v in (constant, of_core, of_parents)]))
    network = None
    if width:
        network = SharedNetwork(n, g, p, width, stream(rng_key, "network"), dtype)
    graph = structure.parents, structure.has_parent, structure.sees_core
    graph = jax.device_put([np.ascontiguousarray(part.T) for part in graph])
    nodes = Conditional(*graph, linear=linear, network=network)
    if fit.conditionals is not None:
        nodes = fitted(nodes, preconditioner, structure, fit.conditionals)
    return StructuredMap(core, nodes, structure.ends)


def placeholder(structure: Structure) -> StructuredFit:
    """A fit of the right shapes, to compile programs ahead."""
    d = len(structure.order)
    gaussian, _ = independent(structure, np.zeros(d), np.ones(d))
    return StructuredFit(gaussian, 0.0)
