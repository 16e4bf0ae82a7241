"""The groups of ArviZ data that a user brings, by ArviZ's own converter."""

from typing import Any

import numpy as np

from numpyro_onestep.integrations.arviz import Naming, arviz, is_tree

_GIVEN = (
    "prior",
    "prior_predictive",
    "posterior_predictive",
    "predictions",
    "constant_data",
    "predictions_constant_data",
)


def with_groups(data: Any, sampler: Any, given: dict[str, dict], naming: Naming):
    """The data of a run, with further groups.

    Args:
        data: as `from_result` gives it.
        sampler: the sampler, as `arviz.from_numpyro` takes it.
        given: arguments of `arviz.from_numpyro`.
        naming: names of axes, and their values, as the user gave them.
    """
    dims = _dims_of(data) | naming.dims
    pred_dims = {name: dims[name] for name in given.get("predictions", {}) if name in dims}
    converted = arviz().from_numpyro(
        sampler,
        **given,
        log_likelihood=False,
        coords=naming.coords,
        dims=dims,
        pred_dims=pred_dims,
    )
    groups = {name: _group(converted, name) for name in _GIVEN}
    groups = {name: group for name, group in groups.items() if group is not None}
    if not is_tree():
        data.add_groups(groups)
        return data
    for name, group in groups.items():
        data[name] = type(data)(group)
    return data


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
