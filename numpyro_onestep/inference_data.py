"""Results as ArviZ data: an InferenceData under ArviZ 0.x, a DataTree under 1.x."""

import inspect
from importlib.metadata import version
from typing import Any

import arviz as az
import jax
import numpy as np
import numpyro
from jaxtyping import PyTree


def plate_dims(sites, samples: dict[str, Any], prefix_ndim: int = 1) -> dict[str, list[str]]:
    """Names of every site's dimensions: the model's plates, and ArviZ's names for the rest.

    Args:
        sites: the model's sites, as `potential.model_potential` lists them.
        samples: draws of each site.
        prefix_ndim: leading axes of the draws that are no dimension of the site.
    """
    dims = {}
    for site in sites:
        if site.name in samples and site.plates:
            num_event = np.ndim(samples[site.name]) - prefix_ndim - len(site.plates)
            event = [f"{site.name}_dim_{i}" for i in range(max(num_event, 0))]
            dims[site.name] = [*site.plates, *event]
    return dims


def flatten_names(samples: PyTree) -> dict[str, Any]:
    """Draws of any pytree as a flat dict: a nested dict's keys are joined by dots."""
    if isinstance(samples, dict) and all(hasattr(v, "shape") for v in samples.values()):
        return samples
    leaves = jax.tree_util.tree_leaves_with_path(samples)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".") or "x": leaf for path, leaf in leaves
    }


def build(
    posterior: dict[str, Any],
    sample_stats: dict[str, Any],
    log_likelihood: dict[str, Any],
    observed_data: dict[str, Any],
    dims: dict[str, list[str]],
    attrs: dict[str, Any],
    num_chains: int = 1,
):
    """Assemble the groups; independent draws get a leading chain of one.

    Empty groups are left out.
    """

    def by_chain(group: dict[str, Any]) -> dict[str, np.ndarray]:
        arrays = {name: np.asarray(values) for name, values in group.items()}
        return {name: v.reshape(num_chains, -1, *v.shape[1:]) for name, v in arrays.items()}

    groups = {
        "posterior": by_chain(posterior),
        "sample_stats": by_chain(sample_stats),
        "log_likelihood": by_chain(log_likelihood),
        "observed_data": {k: np.asarray(v) for k, v in observed_data.items()},
    }
    groups = {name: group for name, group in groups.items() if group}
    from_dict: Any = az.from_dict
    if "posterior" in inspect.signature(from_dict).parameters:  # ArviZ 0.x
        data = from_dict(**groups, dims=dims)
        data.attrs.update(attrs)
        for group in groups:
            data[group].attrs.update(attrs)
        return data
    return from_dict(groups, dims=dims, attrs={"/": attrs, **dict.fromkeys(groups, attrs)})


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    return {
        "inference_library": "numpyro_onestep",
        "inference_library_version": version("numpyro_onestep"),
        "numpyro_version": numpyro.__version__,
        "jax_version": jax.__version__,
    }
