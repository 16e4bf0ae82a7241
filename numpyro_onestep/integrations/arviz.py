"""Results as ArviZ data: an InferenceData under ArviZ 0.x, a DataTree under 1.x."""

import inspect
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, Float, PyTree

from numpyro_onestep._util.batching import map_in_batches, map_in_blocks
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.naming import free_name, named_leaves
from numpyro_onestep.result import Result
from numpyro_onestep.target import Axes, Potential, Site
from numpyro_onestep.target.potential import unraveller
from numpyro_onestep.target.traced import TracedFunction, trace

# Values, and the model's name for each axis (None without a name), the axes of draws left out.
_Named = tuple[np.ndarray, list[str | None]]

_SAMPLE_DIMS = ("chain", "draw")
# NumPyro's reparameterisations replace a site `s` by a site `s_<suffix>`, with one of these
# suffixes, and a deterministic site `s`.
_AUXILIARY = ("base", "decentered", "normal", "unwrapped", "unobserved")


@cache
def arviz() -> Any:
    """ArviZ itself."""
    # Imported when it is used, since with its plots the import takes as long as NumPyro and JAX.
    return import_module("arviz")


@cache
def _xarray() -> Any:
    return import_module("xarray")


@cache
def is_tree() -> bool:
    """Whether ArviZ is of the generation whose data are trees, 1.x."""
    return "posterior" not in inspect.signature(arviz().from_dict).parameters


class Naming(NamedTuple):
    """What a user calls axes, and their values, in place of the model's names and of 0, 1, ..."""

    coords: dict[str, Any] = {}  # noqa: RUF012, never changed
    dims: dict[str, Sequence[str]] = {}  # noqa: RUF012


def from_result(
    result: Result,
    naming: Naming,
    log_likelihood: bool,
    log_prior: bool,
):
    """A run's results, as `OneStep.to_inference_data` describes them."""
    problem, x = result.problem, result.corrected.x
    observed = jax.tree.map(np.asarray, _observed(problem.potential, jnp.asarray(x[0])))
    likelihood, prior = {}, {}
    if log_likelihood:
        likelihood = pointwise_likelihood(problem.potential, x)
    if log_prior:
        unravel = unraveller(problem.target.prototype)
        traced = trace(lambda at: problem.target.log_prior(unravel(at)), x[0])
        prior = map_in_blocks(lambda rows: _values(traced, rows), x)
    attrs = {
        **{name: float(value) for name, value in result.evidence._asdict().items()},
        **{f"{name}_time": value for name, value in result.seconds.items()},
        "sampling_time": sum(result.seconds.values()),
        "warnings": "\n".join(result.messages),
        **versions(),
    }
    return build(
        result.samples,
        result.stats,
        likelihood,
        observed,
        problem.target.sites,
        attrs,
        result.num_chains,
        log_prior=prior,
        naming=naming,
    )


def pointwise_likelihood(
    potential: Potential, x: Float[np.ndarray, "n d"]
) -> dict[str, np.ndarray]:
    """The log likelihood of each observation of each observed site, at many points (nats)."""
    return map_in_blocks(lambda rows: _likelihood(potential, rows), x)


@compiled
def _observed(potential: Potential, x: Float[Array, " d"]) -> dict[str, Array]:
    return potential.outcome(x).observed


@compiled
def _likelihood(potential: Potential, x: Float[Array, "n d"]) -> dict[str, Array]:
    return map_in_batches(lambda at: potential.outcome(at).log_likelihood, x)


@compiled
def _values(traced: TracedFunction, x: Float[Array, "n d"]) -> dict[str, Array]:
    return map_in_batches(traced, x)


def axis_names(axes: Axes, shape: Sequence[int]) -> list[str | None]:
    """The model's name for each axis of an array of that shape, None for an axis without one.

    A plate's name goes to the axis that is at the plate's place, counted from the right, and has
    its size: a value may well broadcast over a plate without having its axis.
    """
    names: list[str | None] = [None] * len(shape)
    if axes.event_dim is None:
        plates = _likeliest_plates(axes, shape)
    else:
        # More names than event axes go on to the batch axes left of these, if they are no plates.
        start = len(shape) - max(axes.event_dim, len(axes.event_names))
        for axis, name in enumerate(axes.event_names, start):
            if axis >= axes.num_loop_axes:
                names[axis] = name
        plates, _ = _plates_at(axes, shape, axes.event_dim)
    for axis, name in plates.items():
        names[axis] = name
    return names


def _plates_at(axes: Axes, shape: Sequence[int], event_dim: int) -> tuple[dict[int, str], bool]:
    """The plates' axes for an event of `event_dim` axes, and whether all sizes allow that."""
    found, is_possible = {}, True
    for name, dim, size in axes.plates:
        axis = len(shape) - event_dim + dim
        if axis >= axes.num_loop_axes:
            if shape[axis] == size:
                found[axis] = name
            elif shape[axis] != 1:
                is_possible = False
    return found, is_possible


def _likeliest_plates(axes: Axes, shape: Sequence[int]) -> dict[int, str]:
    """The plates' axes where the number of event axes is unknown.

    They are those of the number of event axes with which most plates find an axis; none where
    several numbers do equally well.
    """
    readings = [_plates_at(axes, shape, event_dim) for event_dim in range(len(shape) + 1)]
    possible = [found for found, is_possible in readings if is_possible]
    most = max((len(found) for found in possible), default=0)
    best = [found for found in possible if len(found) == most]
    return best[0] if len(best) == 1 else {}


def build(
    posterior: PyTree,
    sample_stats: dict[str, Any],
    log_likelihood: dict[str, Any],
    observed_data: dict[str, Any],
    sites: Sequence[Site],
    attrs: dict[str, Any],
    num_chains: int = 1,
    log_prior: dict[str, Any] | None = None,
    naming: Naming = Naming(),  # noqa: B008, never changed
):
    """Assemble the groups; independent draws get a leading chain of one.

    Every array keeps its shape and values.  Empty groups are left out.

    Args:
        posterior: draws of each site, or of a pytree.
        sample_stats: numbers that go with each draw.
        log_likelihood: of each observation at each draw (nats).
        observed_data: values of the observed sites.
        sites: the model's sites, as `target.model_trace.inspect_model` lists them.
        attrs: attributes of every group.
        num_chains: the chains that the draws are made up of, one after the other.
        log_prior: of each latent site at each draw (nats).
        naming: names of axes, and their values, that go before the model's.

    Raises:
        ValueError: the naming does not fit the arrays.
    """
    axes = {site.name: site.axes for site in sites}
    groups: dict[str, dict[str, _Named]] = {
        "posterior": _named_draws(posterior, axes),
        "sample_stats": {name: (np.asarray(v), []) for name, v in sample_stats.items()},
        "log_likelihood": _named_densities(log_likelihood, axes),
        "log_prior": _named_densities(log_prior or {}, axes),
        "observed_data": {
            name: (np.asarray(v), axis_names(axes.get(name, Axes()), np.shape(v)))
            for name, v in observed_data.items()
        },
    }
    names = _variable_names(name for group in groups.values() for name in group)
    datasets = {
        group: _dataset(
            {names[name]: named for name, named in variables.items()},
            None if group == "observed_data" else num_chains,
            attrs,
            naming,
        )
        for group, variables in groups.items()
        if variables
    }
    if not is_tree():
        return arviz().InferenceData(attrs=attrs, **datasets)
    tree = _xarray().DataTree.from_dict(datasets)
    tree.attrs = attrs
    return tree


def _named_draws(posterior: PyTree, axes: dict[str, Axes]) -> dict[str, _Named]:
    leaves = named_leaves(posterior)
    found = {}
    for name, (site, leaf) in leaves.items():
        shape, known = np.shape(leaf)[1:], axes.get(site, Axes())
        if known.event_dim is None:
            num_batch = _num_batch(site, axes, leaves)
            if num_batch is not None and num_batch <= len(shape):
                known = known._replace(event_dim=len(shape) - num_batch)
        found[name] = np.asarray(leaf), axis_names(known, shape)
    return found


def _named_densities(densities: dict[str, Any], axes: dict[str, Axes]) -> dict[str, _Named]:
    return {
        name: (np.asarray(v), _density_axis_names(axes.get(name, Axes()), np.shape(v)[1:]))
        for name, v in densities.items()
    }


def _num_batch(site: str, axes: dict[str, Axes], leaves: dict[str, tuple[str, Any]]) -> int | None:
    """Batch axes of a site that a reparameterisation has replaced: as many as its substitute's."""
    for substitute in (f"{site}_{suffix}" for suffix in _AUXILIARY):
        known = axes.get(substitute)
        if known is None or known.event_dim is None or substitute not in leaves:
            continue
        if known.plates == axes.get(site, Axes()).plates:
            return np.ndim(leaves[substitute][1]) - 1 - known.event_dim
    return None


def _density_axis_names(axes: Axes, shape: Sequence[int]) -> list[str | None]:
    """Names for the axes of a log density, which has none for an event."""
    event = (axes.event_dim or 0) * (-1,)  # placeholders, so that the other axes are in place
    return axis_names(axes, (*shape, *event))[: len(shape)]


def _variable_names(names: Iterable[str]) -> dict[str, str]:
    """The variables' names: no two alike, none that of the draws' own axes, no path in a tree."""
    found: dict[str, str] = {}
    wanted = {name: _without_slash(name) for name in names}
    # Names that can stay as they are come first.
    for name in sorted(wanted, key=lambda name: wanted[name] != name or name in _SAMPLE_DIMS):
        found[name] = free_name(wanted[name], {*_SAMPLE_DIMS, *found.values()})
    return found


def _without_slash(name: str) -> str:
    """The name as a tree allows it, where a slash (that of `numpyro.handlers.scope`) is a path."""
    return name.replace("/", ".") if is_tree() else name


def _dataset(
    variables: dict[str, _Named], num_chains: int | None, attrs: dict[str, Any], naming: Naming
) -> Any:
    """One group, its draws split by chain if there are any.

    It is built here and not by ArviZ, which turns a scalar into an array of one number.

    A dimension must have one size in all of the group, and its name must differ from that of every
    variable and of the variable's other dimensions.  Otherwise the axis is called
    `<variable>_dim_<axis>`, as if the model had no name for it.
    """
    sizes: dict[str, int] = {}
    data = {}
    for variable, (value, names) in variables.items():
        dims: list[str] = []
        if num_chains is not None:
            num_draws = len(value) // num_chains
            value = value.reshape(num_chains, num_draws, *value.shape[1:])
            dims = list(_SAMPLE_DIMS)
            sizes.update(zip(_SAMPLE_DIMS, value.shape, strict=False))
        num_sample_dims = len(dims)
        given = naming.dims.get(variable, ())
        if len(given) > value.ndim - num_sample_dims:
            raise ValueError(
                f"dims[{variable!r}] names {len(given)} axes, but a draw of {variable!r} has "
                f"{value.ndim - num_sample_dims}."
            )
        for axis, size in enumerate(value.shape[num_sample_dims:]):
            taken = {*_SAMPLE_DIMS, *variables, *dims}
            taken.update(dim for dim, other in sizes.items() if other != size)
            named = given[axis] if axis < len(given) else names[axis] if axis < len(names) else None
            dim = None if named is None else _without_slash(named)
            if dim is None or dim in taken:
                dim = free_name(f"{variable}_dim_{axis}", taken)
            sizes[dim] = size
            dims.append(dim)
        data[variable] = (dims, value)
    origin = arviz().rcParams["data.index_origin"]
    coords = {dim: np.arange(origin, origin + size) for dim, size in sizes.items()}
    for dim, values in naming.coords.items():
        if dim in sizes:
            if len(values) != sizes[dim]:
                raise ValueError(
                    f"coords[{dim!r}] has {len(values)} values, but the axis {dim!r} has "
                    f"{sizes[dim]}."
                )
            coords[dim] = np.asarray(values)
    attrs = arviz().dict_to_dataset({}, attrs=attrs).attrs  # with those that ArviZ adds
    if "sample_dims" in attrs:
        attrs["sample_dims"] = [] if num_chains is None else list(_SAMPLE_DIMS)
    return _xarray().Dataset(data, coords, attrs)


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    return {
        "inference_library": "numpyro_onestep",
        "inference_library_version": version("numpyro_onestep"),
        "numpyro_version": numpyro.__version__,
        "jax_version": jax.__version__,
    }
