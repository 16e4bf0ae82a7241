"""The groups of ArviZ data that a user brings, by ArviZ's own converter."""

from typing import Any

import numpy as np

from numpyro_onestep.integrations.arviz import Naming, arviz, is_tree
from numpyro_onestep.result import Result

_GIVEN = (
    "prior",
    "prior_predictive",
    "posterior_predictive",
    "predictions",
    "constant_data",
    "predictions_constant_data",
)


class _Posterior:
    """What ArviZ's converters ask a posterior: how many draws there are, and which sites it has.

    Both generations read it, 0.x as an MCMC and 1.x as an adapter.  The draws themselves are in
    the data already, under names and with axes that the converter would refuse.
    """

    def __init__(self, shape: tuple[int, int], axes: dict[str, tuple[int, ...]]):
        self.num_chains, self.num_samples = self.sample_shape = shape
        self.axes, self.thinning, self.sample_dims = axes, 1, ["chain", "draw"]
        self.sampler, self.model = self, None
        self._args, self._kwargs = (), {}

    def get_samples(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """Zeros for each site."""
        del args, kwargs
        return {
            site: np.broadcast_to(0.0, self.sample_shape + axes) for site, axes in self.axes.items()
        }

    def get_extra_fields(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Nothing."""
        del args, kwargs
        return {}

    get_sample_stats = get_extra_fields


def with_groups(data: Any, result: Result, given: dict[str, dict], naming: Naming):
    """The data of a run, with further groups.

    Args:
        data: as `from_result` gives it.
        result: the run's.
        given: arguments of `arviz.from_numpyro`.
        naming: names of axes, and their values, as the user gave them.
    """
    samples = result.samples if isinstance(result.samples, dict) else {}
    prior = given.get("prior", {})
    sites = {site: np.shape(prior[site])[1:] for site in samples if site in prior}
    shape = result.num_chains, len(result.corrected.x) // result.num_chains
    names = _dims_of(data) | naming.dims
    found: dict[str, Any] = {}
    for argument, values in given.items():  # each for itself, since their axes differ in size
        num_sample_dims = 0 if argument.endswith("constant_data") else None
        dims = {
            name: names[name]
            for name, value in values.items()
            if name in names and _fit(names[name], value, num_sample_dims, shape, naming)
        }
        converted = arviz().from_numpyro(
            _Posterior(shape, sites),
            **{argument: values},
            log_likelihood=False,
            coords=naming.coords,
            dims=dims,
            pred_dims=dims,
        )
        groups = {name: _group(converted, name) for name in _GIVEN}
        found |= {name: group for name, group in groups.items() if group is not None}
    if not is_tree():
        data.add_groups(found)
        return data
    for name, group in found.items():
        data[name] = type(data)(group)
    return data


def _fit(
    names: Any, value: Any, num_sample_dims: int | None, shape: tuple[int, int], naming: Naming
) -> bool:
    """Whether an array has as many axes as there are names, of the sizes of their coordinates."""
    sizes = np.shape(value)
    if num_sample_dims is None:
        num_sample_dims = 2 if sizes[:2] == shape and len(sizes) == len(names) + 2 else 1
    axes = sizes[num_sample_dims:]
    return len(axes) == len(names) and all(
        size == len(naming.coords.get(name, range(size)))
        for name, size in zip(names, axes, strict=True)
    )


def _dims_of(data: Any) -> dict[str, list[str]]:
    """The names of the axes of every variable, without those of draws."""
    found: dict[str, list[str]] = {}
    for group, num_sample_dims in (("observed_data", 0), ("posterior", 2)):
        dataset = _group(data, group)
        for name, variable in ({} if dataset is None else dataset.data_vars).items():
            found[str(name)] = [str(dim) for dim in variable.dims[num_sample_dims:]]
    return found


def _group(data: Any, name: str) -> Any:
    """A group as a dataset, or None where there is none or it is empty."""
    names = data.children if is_tree() else data.groups()
    if name not in names:
        return None
    group = data[name]
    dataset = group.to_dataset() if is_tree() else group
    return dataset if any(np.size(v) for v in dataset.data_vars.values()) else None
