"""Given draws, as MCMC returns them, as vectors of R^d; errors where they cannot be used.

All errors come before anything is trained.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree
from numpyro import handlers

from numpyro_onestep._util.batching import map_in_batches, map_in_blocks
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.naming import flatten_names, label
from numpyro_onestep.problem import with_own_arguments
from numpyro_onestep.target.model_trace import inspect_model, refuse_unfit
from numpyro_onestep.target.traced import TRACING, TracedFunction, trace

# The fewest draws, and the fewest for each dimension: with fewer a covariance means nothing.
_FEWEST, _FEWEST_EACH = 50, 2
# A value on its support comes back from R^d with no more than this relative error.  Larger ones are
# outside: a vector that is no simplex comes back as another one.
_ROUND_TRIP = 1e-2
# Fraction of the draws that may lie at the very edge of a support, where rounding put them.
_MOST_AT_EDGE = 0.01


def given_values(
    rng_key: PRNGKeyArray,
    model: Callable | None,
    args: tuple,
    kwargs: dict,
    draws: Any,
    strategy: Callable,
) -> PyTree:
    """Unconstrained values of given draws: `{site: (n, *unconstrained shape)}` of latent sites.

    Sites that are not latent, as deterministic ones, are left out.

    Args:
        rng_key: a JAX random key, for the trace alone.
        model: a NumPyro model; None for a potential function, whose draws are a pytree already.
        args: its arguments.
        kwargs: its keyword arguments.
        draws: `{site: (n, *shape)}`, on the sites' supports.
        strategy: how values of sites are found while the model's sites are listed.

    Raises:
        ValueError: a latent site is missing, a shape is wrong, a value is not a number or outside
            of its support, or there are too few draws.
    """
    if model is None:
        return _of_pytree(draws)
    return with_own_arguments(
        lambda own, named: _of_model(rng_key, model, own, named, draws, strategy), args, kwargs
    )


def _of_model(rng_key, model, args, kwargs, draws, strategy) -> dict[str, np.ndarray]:
    sites, free = inspect_model(rng_key, model, args, kwargs, strategy)
    refuse_unfit(sites, free)
    if not isinstance(draws, dict):
        raise ValueError(
            f"draws must be a dict {{site: (n, *shape)}}, as mcmc.get_samples() gives it, but is "
            f"{type(draws).__name__}."
        )
    missing = sorted(set(free) - set(draws))
    if missing:
        raise ValueError(
            f"draws hold no values of the latent site {missing[0]!r}; the latent sites are "
            f"{', '.join(sorted(free))}, and draws hold {', '.join(sorted(map(str, draws)))}. "
            "Draws must be those of this very model: a reparameterised one has other sites."
        )
    shapes = _site_shapes(rng_key, model, args, kwargs, strategy, set(free))
    values = {name: np.asarray(draws[name]) for name in sorted(free)}
    num = _common_number(values, {name: shapes[name].shape for name in values})
    _refuse_nan(values)

    def one(*leaves):
        values = dict(zip(sorted(free), leaves, strict=True))
        seeded = handlers.substitute(handlers.seed(model, rng_seed=0), data=values)
        found = handlers.trace(seeded).get_trace(*args, **kwargs)
        return {name: _unconstrain(found[name]["fn"].support, values[name]) for name in values}

    like = [np.zeros(shapes[name].shape, shapes[name].dtype) for name in values]
    traced = trace(one, *like)
    typed = [values[name].astype(shapes[name].dtype) for name in values]
    found: Any = map_in_blocks(lambda rows: _mapped(traced, rows), typed)
    at_edge = np.zeros(num, bool)
    for name, (_, outside, edge) in found.items():
        if outside.any():
            row = int(np.argmax(outside))
            raise ValueError(
                f"draws[{name!r}] is outside of the site's support in {outside.sum()} of {num} "
                f"draws, first in draw {row}: {np.array2string(values[name][row], threshold=6)}. "
                "Draws must be on the supports, as mcmc.get_samples() gives them, and not "
                "unconstrained; and they must be those of this model with these arguments."
            )
        at_edge |= edge
    if at_edge.mean() > _MOST_AT_EDGE:
        raise ValueError(
            f"{at_edge.sum()} of {num} draws lie at the very edge of a support, where rounding put "
            "them, and have no finite unconstrained value. Draw in double precision "
            "(numpyro.enable_x64()), or move the parameters away from the edge."
        )
    kept = {name: value[~at_edge] for name, (value, _, _) in found.items()}
    _refuse_few(kept)
    return kept


def _of_pytree(draws: PyTree) -> PyTree:
    """Given draws of a potential function's argument, checked: each leaf `(n, *shape)`.

    Raises:
        ValueError: the leaves have different numbers of draws, a value is not a number, or there
            are too few draws.
    """
    dtype = jax.dtypes.canonicalize_dtype(float)
    draws = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), draws)
    leaves = flatten_names(draws)
    if not leaves:
        raise ValueError("draws hold no numbers, so there is nothing to distil.")
    _common_number(leaves, {name: leaf.shape[1:] for name, leaf in leaves.items()})
    _refuse_nan(leaves)
    _refuse_few(leaves)
    return draws


@compiled
def _mapped(traced: TracedFunction, values: list[Array]) -> Any:
    return map_in_batches(lambda row: traced(*row), values)


def _site_shapes(rng_key, model, args, kwargs, strategy, names: set[str]) -> dict[str, Any]:
    """Shape and type of the value of each latent site, on its support."""

    def values(key_data):
        key = jr.wrap_key_data(key_data, impl=jr.key_impl(rng_key))
        seeded = handlers.substitute(handlers.seed(model, key), substitute_fn=strategy)
        found = handlers.trace(seeded).get_trace(*args, **kwargs)
        return {name: jnp.asarray(found[name]["value"]) for name in names}

    with TRACING:
        return jax.eval_shape(values, jr.key_data(rng_key))


def _unconstrain(
    support: Any, value: Array
) -> tuple[Float[Array, "*shape"], Bool[Array, ""], Bool[Array, ""]]:
    """The unconstrained value, whether the value is outside, and whether it is at the edge."""
    transform: Any = dist.biject_to(support)
    free = transform.inv(value)
    back = transform(free)
    off = jnp.abs(back - value) > _ROUND_TRIP * (1 + jnp.abs(value))
    finite = jnp.all(jnp.isfinite(free))
    # A support of NumPyro is strict to the last digit, so it decides only where the way back fails.
    outside = ~(finite & ~jnp.any(off)) & ~jnp.all(support(value))
    return free, outside, ~finite & ~outside


def _common_number(values: dict[str, np.ndarray], shapes: dict[str, tuple]) -> int:
    """The number of draws; a ValueError where the sites differ in it, or in their shapes."""
    nums = {}
    for name, value in values.items():
        wanted = shapes[name]
        if value.shape[1:] != wanted or value.ndim == 0:
            grouped = value.ndim == len(wanted) + 2 and value.shape[2:] == wanted
            hint = " Leave group_by_chain=True out." if grouped else ""
            raise ValueError(
                f"draws[{name!r}] has shape {value.shape}, but must be (n, *shape) with the site's "
                f"shape {wanted}.{hint}"
            )
        nums[name] = len(value)
    if len(set(nums.values())) > 1:
        raise ValueError(f"draws must hold as many draws of every site, but hold {nums}.")
    return next(iter(nums.values()))


def _refuse_nan(values: dict[str, np.ndarray]) -> None:
    for name, value in values.items():
        bad: Any = ~np.isfinite(value.astype(float)).reshape(len(value), -1).all(1)
        if bad.any():
            raise ValueError(
                f"draws[{name!r}] is NaN or infinite in {bad.sum()} of {len(bad)} draws, first in "
                f"draw {int(np.argmax(bad))}. Leave such draws out, after finding their cause."
            )


def _refuse_few(values: dict[str, np.ndarray]) -> None:
    """A ValueError where there are too few draws, or a coordinate never moves."""
    num = len(next(iter(values.values())))
    d = sum(int(np.prod(value.shape[1:])) for value in values.values())
    fewest = max(_FEWEST, _FEWEST_EACH * d)
    if num < fewest:
        raise ValueError(
            f"There are {num} draws of {d} unconstrained coordinates, but at least {fewest} are "
            "needed. Give more draws (of all chains, unthinned), or take run(), which needs none."
        )
    for name, value in values.items():
        still = np.ptp(value.reshape(num, -1).astype(float), axis=0) == 0
        if still.any():
            index: Any = np.unravel_index(int(np.argmax(still)), value.shape[1:])
            at = label(name, index)
            raise ValueError(
                f"{at} has the same value in all {num} draws, so the chains did not move there. "
                "Run them again, or take run(), which needs no draws."
            )
