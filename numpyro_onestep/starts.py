"""What training starts from: the structure of the target, and untrained maps."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from numpyro_onestep import limits
from numpyro_onestep._util.random import numpy_generator, stream
from numpyro_onestep.flow import (
    AbstractFlowMap,
    FlowMap,
    ResidualVelocity,
    StructuredMap,
    uniform_grid,
)
from numpyro_onestep.flow.gaussian import GaussianPreconditioner, SummedPreconditioner
from numpyro_onestep.initialise.best_fit import Fit, best_fit
from numpyro_onestep.initialise.structured_fit import StructuredFit, fit_structured
from numpyro_onestep.initialise.structured_start import map_of, placeholder, preconditioner_of
from numpyro_onestep.problem import Problem
from numpyro_onestep.settings import FlowSettings, Settings
from numpyro_onestep.structure.interactions import interactions
from numpyro_onestep.structure.normality import is_normal_given_core
from numpyro_onestep.structure.running_sums import OfSums, axes_of, running_sums, summable
from numpyro_onestep.structure.structure import Structure, structure_of

# Further starts, beside the first, from which the fit of the preconditioner descends.
_MOST_OTHER_STARTS = 3
# Running sums are taken where the core is no larger than this fraction of what it is without them.
_WORTH_SUMS = 0.25


def dense_map(settings: FlowSettings, d: int, dtype: Any, rng_key: PRNGKeyArray) -> FlowMap:
    """An untrained dense map: the identity in whitened coordinates."""
    width = settings.network_width(d)
    network = ResidualVelocity(d, width, settings.horizon, stream(rng_key, "flow"), dtype)
    return FlowMap(network, uniform_grid(settings.horizon, settings.num_grid_steps))


def find_structure(
    problem: Problem,
    settings: Settings,
    rng_key: PRNGKeyArray,
    fewest: int = limits.STRUCTURED_MAP,
) -> Structure | None:
    """The structure of the target; None where the map is to be dense.

    Args:
        problem: the target.
        settings: all settings of the sampler.
        rng_key: a JAX random key.
        fewest: number of coordinates below which the map is dense, unless a structure is asked for.

    Raises:
        ValueError: the setting `structure` names a site that the target does not have.
    """
    wanted = settings.flow.structure
    core = () if wanted in ("auto", None) else problem.target.coordinates(wanted)
    plain = settings.losses.elbo_weight and not settings.schedule.num_distillation_steps
    if wanted is None or settings.draws.multimodal or not plain:
        return None
    fewest = fewest if wanted == "auto" else limits.SMALLEST_STRUCTURED_MAP
    if problem.start.size < fewest:
        return None
    potential, start = problem.potential, problem.start
    key = stream(rng_key, "structure")
    structure = _graph(potential, start, core, key)
    structure = _in_running_sums(problem, structure, core, key) or structure
    if structure is None:
        return None
    of = structure.potential(potential), structure, structure.coordinates(start)
    return replace(structure, is_normal=is_normal_given_core(*of, stream(rng_key, "normality")))


def _graph(
    potential: Any, start: Float[Any, " d"], core: Iterable[int], rng_key: PRNGKeyArray
) -> Structure | None:
    graph = interactions(potential, start, rng_key)
    return None if graph is None else structure_of(graph, core)


def _in_running_sums(
    problem: Problem, structure: Structure | None, core: Iterable[int], rng_key: PRNGKeyArray
) -> Structure | None:
    """The structure in running sums of some sites; None where that is no simpler."""
    potential, start = problem.potential, problem.start
    in_core = np.ones(start.size, bool)
    if structure is not None:
        in_core[structure.order[structure.num_core :]] = False
    axes = axes_of(problem.target.shapes())
    axes = [axis for axis in axes if in_core[axis.coordinates].mean() > 0.5]
    rng = numpy_generator(stream(rng_key, "running sums"))
    found = summable(potential, start, axes, rng)
    if not found:
        return None
    sums = running_sums(start.size, found)
    at = sums.sums_of_many(start)
    other = _graph(OfSums(potential, sums), at, core, rng_key)
    if other is None or other.num_core > _WORTH_SUMS * in_core.sum():
        return None
    return replace(other, sums=sums, summed=tuple(axis.name for axis in found))


def gaussian_fit(problem: Problem, rng_key: PRNGKeyArray) -> Fit:
    """The fit of a Gaussian preconditioner to a target, from its own start and from others."""
    target, potential, dtype = problem.target, problem.potential, problem.start.dtype
    others = target.other_starts(rng_key, potential, _MOST_OTHER_STARTS, dtype)
    points: Any = (np.asarray(start, dtype) for start in chain([problem.start], others))
    return best_fit(potential, points, stream(rng_key, "base"))


def structured_fit(
    problem: Problem, structure: Structure, settings: Settings, dtype: Any, rng_key: PRNGKeyArray
) -> Fit | None:
    """The fit of a structured map to a target; None where no start has a finite ELBO.

    Args:
        problem: the target.
        structure: its structure.
        settings: all settings of the sampler.
        dtype: type of the map's numbers.
        rng_key: a JAX random key.
    """
    key = stream(rng_key, "structured fit")
    found = fit_structured(problem.potential, structure, problem.start, key)
    return None if found is None else _as_fit(found, problem, settings, dtype, rng_key)


def shapes_of_fit(
    problem: Problem, structure: Structure | None, settings: Settings, dtype: Any, rng_key: Any
) -> Fit:
    """A fit of the right shapes, to compile programs ahead."""
    if structure is not None:
        return _as_fit(placeholder(structure), problem, settings, dtype, rng_key)
    start = problem.start
    anywhere = np.zeros_like(start), np.eye(start.size, dtype=start.dtype)
    gaussian = GaussianPreconditioner(*(jnp.asarray(part) for part in anywhere))
    return Fit(gaussian, jnp.zeros(()))


def _as_fit(found: StructuredFit, problem: Problem, settings: Settings, dtype, rng_key) -> Fit:
    structure, key = found.gaussian.structure, stream(rng_key, "structured map")
    preconditioner = preconditioner_of(found, problem.start.dtype, key)
    core = dense_map(settings.flow, structure.num_core, dtype, rng_key)
    width = 0 if structure.is_normal else limits.NODE_WIDTH
    flow = map_of(found, preconditioner, core, width, key)
    elbo: Any = np.asarray(found.elbo, problem.start.dtype)
    if structure.sums is not None:
        preconditioner = SummedPreconditioner(preconditioner, jax.device_put(structure.sums))
    return Fit(preconditioner, elbo, structure=structure, flow=flow)


def untrained_maps(
    fit: Fit,
    settings: Settings,
    dtype: Any,
    rng_key: PRNGKeyArray,
    last_trained: Callable[[], Any] = lambda: None,
) -> Iterator[tuple[AbstractFlowMap, int]]:
    """The maps to train one after the other, until one is enough, and their numbers of steps.

    Args:
        fit: what they start from.
        settings: all settings of the sampler.
        dtype: type of the maps' numbers.
        rng_key: a JAX random key.
        last_trained: returns the map that was trained last, for a map that goes on from it.
    """
    if not isinstance(fit.flow, StructuredMap):
        d = fit.preconditioner.loc.size
        given = fit.flow
        flow = dense_map(settings.flow, d, dtype, rng_key) if given is None else given
        for num_steps in settings.step_budgets(d):
            yield flow, num_steps
        return
    num_steps = settings.draws.num_flow_steps or 1
    yield fit.flow, num_steps
    flow = last_trained()
    if flow.nodes.network is None:
        key = stream(rng_key, "network of the nodes")
        yield flow.with_network(limits.NODE_WIDTH, key), num_steps
