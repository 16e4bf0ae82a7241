"""What a NumPyro model consists of: its sites, found by one trace that computes nothing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jaxtyping import PRNGKeyArray
from numpyro import handlers

from numpyro_onestep.target.axes import Axes, axes_of
from numpyro_onestep.target.log_space import is_in_log_space
from numpyro_onestep.target.traced import TRACING


class Site(NamedTuple):
    """What the model's trace says about a site, without its values."""

    name: str
    type: str
    is_observed: bool
    is_discrete: bool
    axes: Axes
    is_delta: bool = False
    has_state: bool = False  # a value that must not change from call to call
    subsample: tuple[int, int] | None = None  # for a plate that draws a part: (part, size)
    is_in_log_space: bool = False  # its density is taken from the unconstrained value
    may_be_improper: bool = False  # a latent site whose prior is improper or masked
    is_flow_base: bool = False  # the base draw of a flow that is this model's prior
    is_enumerated: bool = False  # a discrete latent site of finitely many values, summed out
    has_unplated_axes: bool = False  # a batch axis that is in no plate


def inspect_model(
    rng_key: PRNGKeyArray, model: Callable, args: tuple, kwargs: dict, init_strategy: Callable
) -> tuple[list[Site], dict[str, jax.ShapeDtypeStruct]]:
    """The model's sites, and the unconstrained shapes of its continuous latent ones."""
    found: list[Site] = []

    def record(key_data):
        found.clear()
        unconstrained = {}
        key = jr.wrap_key_data(key_data, impl=jr.key_impl(rng_key))
        seeded = handlers.substitute(handlers.seed(model, key), substitute_fn=init_strategy)
        for name, site in handlers.trace(seeded).get_trace(*args, **kwargs).items():
            is_sample = site["type"] == "sample"
            is_observed = bool(is_sample and site["is_observed"])
            is_discrete = bool(is_sample and site["fn"].support.is_discrete)
            is_latent = is_sample and not is_observed
            found.append(
                Site(
                    name,
                    site["type"],
                    is_observed,
                    is_discrete,
                    axes_of(site),
                    is_delta=is_sample and isinstance(site["fn"], dist.Delta),
                    has_state=_has_state(site),
                    subsample=_subsample(site),
                    is_in_log_space=is_latent and is_in_log_space(site),
                    may_be_improper=is_latent and _may_be_improper(site["fn"]),
                    is_flow_base=is_latent and getattr(site["fn"], "is_flow_base", False),
                    is_enumerated=is_latent and is_discrete and _is_enumerable(site),
                    has_unplated_axes=is_sample and _has_unplated_axes(site),
                )
            )
            if is_latent and not is_discrete:
                unconstrained[name] = dist.biject_to(site["fn"].support).inv(site["value"])
        return unconstrained

    with TRACING:
        try:
            prototype = jax.eval_shape(record, jr.key_data(rng_key))
        except AssertionError as error:
            if "size of plate" not in str(error):
                raise
            raise ValueError(
                "The model has a plate of size zero, which NumPyro does not allow: leave out the "
                "plate, and what is in it, where there are no members."
            ) from error
    return found, prototype


def refuse_unfit(sites: list[Site], prototype: dict[str, Any]) -> None:
    """Raise a ValueError where there is nothing that a flow could move."""
    latents = [site for site in sites if site.type == "sample" and not site.is_observed]
    for site in latents:
        if site.is_discrete and not site.is_enumerated:
            raise ValueError(
                f"The latent site {site.name!r} is discrete and has no finite number of values to "
                f"sum over (or is marked with another enumeration than 'parallel'). Sum it out by "
                f"hand, truncate it (numpyro.distributions.Categorical), or replace it by a "
                f"continuous relaxation."
            )
        if site.is_delta:
            raise ValueError(
                f"The latent site {site.name!r} has a Delta distribution, so there is nothing to "
                "infer of it: use numpyro.deterministic for its value."
            )
    summed = [site.name for site in latents if site.is_enumerated]
    unplated = [site.name for site in sites if site.has_unplated_axes]
    if summed and unplated:
        raise ValueError(
            f"The discrete latent site {summed[0]!r} is summed out, and for that every batch axis "
            f"must be in a plate; {unplated[0]!r} has one that is in none. Put the site into "
            f"numpyro.plate, or make its axes an event by .to_event()."
        )
    if not sum(leaf.size for leaf in prototype.values()):
        raise ValueError(
            "The model has no latent sites, so there is nothing to infer. Check that it contains "
            "numpyro.sample statements without obs=, that the arguments given to run() are "
            "not conditioning every site, and that not every latent site is of size zero."
        )


def _is_enumerable(site: dict) -> bool:
    """Whether a discrete site can take all its values side by side."""
    marked = site["infer"].get("enumerate", "parallel")
    return site["fn"].has_enumerate_support and marked == "parallel"


def _has_unplated_axes(site: dict) -> bool:
    """Whether a batch axis of several members is in no plate; an axis of time needs none."""
    fn, shape = site["fn"], jnp.shape(site["value"])
    # A value may have axes that the distribution has not, over which it broadcasts.
    batch = np.broadcast_shapes(fn.batch_shape, shape[: len(shape) - fn.event_dim])
    batch = batch[axes_of(site).num_loop_axes :]
    plates = {frame.dim for frame in site["cond_indep_stack"]}
    return any(size > 1 and i - len(batch) not in plates for i, size in enumerate(batch))


def _has_state(site: dict) -> bool:
    """Whether it is a parameter, mutable state, or a plate that draws a part of its members."""
    if site["type"] == "plate":
        return _subsample(site) is not None
    return site["type"] not in ("sample", "deterministic", "plate", "prng_key")


def _subsample(site: dict) -> tuple[int, int] | None:
    if site["type"] != "plate":
        return None
    size, subsample_size = site["args"][:2]
    return None if subsample_size in (None, size) else (subsample_size, size)


def _may_be_improper(distribution: Any) -> bool:
    """Whether a prior is improper, or masked as for values that `obs_mask` says are known."""
    while distribution is not None:
        if isinstance(distribution, (dist.ImproperUniform, dist.MaskedDistribution)):
            return True
        distribution = getattr(distribution, "base_dist", None)
    return False
