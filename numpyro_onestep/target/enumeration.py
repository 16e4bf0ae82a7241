"""Discrete latent sites, summed out of the density as `numpyro.infer.NUTS` does it.

NumPyro sums them out with the package funsor: every such site takes all its values, each along an
axis of its own, and funsor sums over these axes one after the other.
"""

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float
from numpyro.infer.util import potential_energy
from numpyro.primitives import Messenger

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
            "funsor: pip install funsor."
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
    handlers, sites = handlers_of_funsor(), list(sites)
    if any(site.axes.num_loop_axes for site in enumerated(sites)):
        model = _without_reverse(model)
    return handlers.enum(handlers.config_enumerate(model), first_free_dim(sites))


class _without_reverse(Messenger):  # noqa: N801 (NumPyro's handlers have such names)
    """Refuse a scan that goes back in time, whose steps NumPyro would sum in a wrong order."""

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "control_flow" and len(msg["args"]) == 5 and msg["args"][4]:
            raise ValueError(
                "The discrete states of a scan with reverse=True cannot be summed out: turn the "
                "data round (y[::-1]), and let the scan go forwards."
            )


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
    except (TypeError, ValueError) as error:
        if "reverse=True" in str(error):
            raise
        names = ", ".join(site.name for site in enumerated(sites))
        why = f"NumPyro raises {type(error).__name__}: {error}"
        if "joint log density is a scalar" in str(error):
            why = (
                "some site uses one of them outside of the plate or of the scan that it belongs to"
            )
        raise ValueError(
            f"The discrete latent sites {names} cannot be summed out: {why}. Every batch axis has "
            "to be in a plate, a discrete value has to be used inside of its own plate or scan, "
            "and no shape and no support may depend on it. Or sum out by hand, with numpyro.factor "
            "for the log likelihood."
        ) from error
    return jnp.asarray(energy)


def packed_trace(
    model: Callable, args: tuple, kwargs: dict[str, Any], sites: Iterable[Site]
) -> dict[str, Any]:
    """The trace of `summed_out(model)`, in which every axis of a density has a name."""
    handlers, sites = handlers_of_funsor(), list(sites)
    with handlers.infer_util.plate_to_enum_plate():
        found = handlers.trace(summed_out(model, sites)).get_trace(*args, **kwargs)
    for name, site in samples_of(found).items():
        if _is_scaled(site) and depends_on_discrete(site, sites):
            raise ValueError(
                f"The site {name!r} is scaled (by numpyro.handlers.scale, or by a plate that draws "
                "a part of its members) and depends on a discrete latent site. The scale would "
                "multiply the density before the discrete values are summed out, which is the "
                "density of no data: take all data, or sum out by hand."
            )
    return found


def _is_scaled(site: dict[str, Any]) -> bool:
    scale = site["scale"]
    return scale is not None and (isinstance(scale, Tracer) or bool(np.any(scale != 1)))


def samples_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sample sites of a trace, by name."""
    return {name: site for name, site in found.items() if site["type"] == "sample"}


def depends_on_discrete(site: dict[str, Any], sites: Iterable[Site]) -> bool:
    """Whether a site of a packed trace is in a scan, or depends on a discrete latent site."""
    names = {one.name for one in enumerated(sites)}
    return is_of_scan(site) or bool(axes_of(site) & names)


def is_of_scan(site: dict[str, Any]) -> bool:
    """Whether an axis of a site of a packed trace is that of time, or of states before."""
    return any(axis.startswith((PREVIOUS, TIME)) for axis in axes_of(site))


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
    names = site["infer"]["dim_to_name"]
    if not names:
        log_prob = jnp.sum(log_prob)  # of one number, whatever its axes
    return funsor().to_funsor(log_prob, output=funsor().Real, dim_to_name=names)


def as_array(total: Any, sizes: dict[str, int]) -> Any:
    """A funsor as an array, with an axis for each name of `sizes`, in that order."""
    inputs = {name: funsor().Bint[size] for name, size in sizes.items()}
    zeros = funsor().Tensor(jnp.zeros(tuple(sizes.values())), inputs)
    return (zeros + total).align(tuple(sizes)).data
