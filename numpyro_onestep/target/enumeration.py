"""Discrete latent sites, summed out of the density as `numpyro.infer.NUTS` does it.

NumPyro sums them out with the package funsor: every such site takes all its values, each along an
axis of its own, and funsor sums over these axes one after the other.
"""

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.infer.util import potential_energy

from numpyro_onestep.target.model_trace import Site

# How funsor and NumPyro call the values of a chain one step earlier, and its axis of time.
PREVIOUS, TIME = "_PREV_", "_time"


@cache
def funsor() -> Any:
    """The package funsor.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module("funsor")
    except ImportError as error:
        raise ImportError(
            "The model has discrete latent sites, and to sum them out NumPyro needs the package "
            "funsor: pip install 'numpyro_onestep[enumerate]'."
        ) from error


@cache
def handlers_of_funsor() -> Any:
    """NumPyro's handlers for enumeration; raises an ImportError where funsor is not installed."""
    funsor()
    return import_module("numpyro.contrib.funsor")


def enumerated(sites: Iterable[Site]) -> list[Site]:
    """The latent sites that are summed out."""
    return [site for site in sites if site.is_enumerated]


def first_free_dim(sites: Iterable[Site]) -> int:
    """The first axis, counted from the right, that no plate takes."""
    return min((dim for site in sites for _, dim, _ in site.axes.plates), default=0) - 1


def summed_out(model: Callable, sites: Iterable[Site]) -> Callable:
    """The model with all values of its discrete latent sites.

    Args:
        model: the model, with random keys for its sites.
        sites: all of its sites.
    """
    handlers = handlers_of_funsor()
    return handlers.enum(handlers.config_enumerate(model), first_free_dim(sites))


def summed_energy(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    values: dict[str, Any],
    sites: Iterable[Site],
) -> Float[Array, ""]:
    """Minus the log density of unconstrained values (nats), summed over the discrete sites.

    Raises:
        ValueError: a discrete value is used outside of its plate or of its scan.
    """
    try:
        energy = potential_energy(summed_out(model, sites), args, kwargs, values, enum=True)
    except ValueError as error:
        if "joint log density is a scalar" not in str(error):
            raise
        names = ", ".join(site.name for site in enumerated(sites))
        raise ValueError(
            f"The discrete latent sites {names} cannot be summed out: some site uses one of them "
            "outside of the plate or of the scan that it belongs to. Move that site into the plate "
            "or scan, or sum out by hand, with numpyro.factor for the log likelihood."
        ) from error
    return jnp.asarray(energy)


def packed_trace(
    model: Callable, args: tuple, kwargs: dict[str, Any], sites: Iterable[Site]
) -> dict[str, Any]:
    """The trace of `summed_out(model)`, in which every axis of a density has a name."""
    handlers = handlers_of_funsor()
    with handlers.infer_util.plate_to_enum_plate():
        return handlers.trace(summed_out(model, sites)).get_trace(*args, **kwargs)


def axes_of(site: dict[str, Any]) -> set[str]:
    """The names of the axes of a site's density in a packed trace: sites and plates."""
    return set(site["infer"]["dim_to_name"].values())


def plates_of(site: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The plates around a site, each with its axis, counted from the right, and its size."""
    frames = sorted(site["cond_indep_stack"], key=lambda frame: frame.dim)
    return {frame.name: (frame.dim, frame.size) for frame in frames}


def factor(site: dict[str, Any]) -> Any:
    """The log density of a site of a packed trace (nats), as a funsor over its named axes."""
    log_prob = site["fn"].log_prob(site["value"])
    if site["scale"] is not None:
        log_prob = site["scale"] * log_prob
    names = site["infer"]["dim_to_name"]
    if not names:
        log_prob = jnp.sum(log_prob)  # of one number, whatever its axes
    return funsor().to_funsor(log_prob, output=funsor().Real, dim_to_name=names)


def as_array(total: Any, sizes: dict[str, int]) -> Any:
    """A funsor as an array, with an axis for each name of `sizes`, in that order."""
    inputs = {name: funsor().Bint[size] for name, size in sizes.items()}
    zeros = funsor().Tensor(jnp.zeros(tuple(sizes.values())), inputs)
    return (zeros + total).align(tuple(sizes)).data
