"""Points of finite density, from which a run can start."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import initialize_model

from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.target.potential import Potential, ravel
from numpyro_onestep.target.traced import TracedFunction, trace

_MOST_TRIES = 100  # as many as NumPyro makes


def uniform_radius(init_strategy: Callable) -> float | None:
    """The radius of `init_to_uniform`, as given or by default; None for another strategy."""
    if init_strategy is init_to_uniform:
        return 2.0
    if getattr(init_strategy, "func", None) is init_to_uniform:
        return float(getattr(init_strategy, "keywords", {}).get("radius", 2.0))
    return None


@compiled
def uniform_start(
    potential: Potential, rng_key: PRNGKeyArray, radius: float, like: Float[Any, " d"]
) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
    """The first of 100 uniform points whose density and gradient are finite, and whether any is.

    This is what NumPyro's search does, but by one draw for all sites and with one copy of the
    model.  On a model of many sites it compiles in a fraction of the time.
    """

    def another(state):
        index, key, _, _ = state
        key, key_point = jr.split(key)
        point = jr.uniform(key_point, like.shape, like.dtype, -radius, radius)
        energy, gradient = jax.value_and_grad(potential)(point)
        return index + 1, key, point, jnp.isfinite(energy) & jnp.all(jnp.isfinite(gradient))

    def go_on(state):
        index, _, _, is_valid = state
        return (index < _MOST_TRIES) & ~is_valid

    start = 0, rng_key, jnp.asarray(like), jnp.asarray(False)
    _, _, point, is_valid = jax.lax.while_loop(go_on, another, start)
    return point, is_valid


def searched_start(
    rng_key: PRNGKeyArray,
    model: Callable,
    args: tuple,
    kwargs: dict,
    init_strategy: Callable,
    latents: list[str],
) -> tuple[dict, Bool[Array, ""], dict]:
    """NumPyro's own search for a valid starting point, compiled as a whole.

    Returns:
        Unconstrained values of the latent sites, whether they are valid, and what the model must
        keep from call to call.
    """

    def search(key):
        info = initialize_model(
            key, model, init_strategy=init_strategy, model_args=args, model_kwargs=kwargs
        )
        values, energy, gradient = info.param_info
        fixed = {
            name: site["value"]
            for name, site in info.model_trace.items()
            if site["type"] in ("param", "mutable", "plate") and site["value"] is not None
        }
        is_valid = jnp.isfinite(energy) & jnp.all(jnp.isfinite(ravel(gradient)))
        # Only latent sites are drawn; a parameter keeps its value.
        return {name: values[name] for name in latents}, is_valid, fixed

    return _call(trace(search, rng_key), rng_key)


@compiled
def _call(traced: TracedFunction, rng_key: PRNGKeyArray) -> PyTree:
    return traced(rng_key)


@compiled  # since NumPyro's own validation of a value that is not finite names no remedy
def _value_and_gradient(potential: Potential, x: Float[Array, " d"]):
    return jax.value_and_grad(potential)(x)


def require_finite(potential: Potential, start: Float[Array, " d"]) -> None:
    """Raise ValueError unless the potential and its gradient are finite at `start`."""
    value, gradient = (np.asarray(v) for v in _value_and_gradient(potential, start))
    if not (np.isfinite(value) and np.all(np.isfinite(gradient))):
        raise ValueError(
            f"At init_params the potential is {float(value)} and its gradient is "
            f"{'finite' if np.all(np.isfinite(gradient)) else 'not finite'}: start from a point "
            "of finite density. (For a model, init_params are unconstrained values.)"
        )


def match(init_params: PyTree, prototype: dict) -> dict:
    """`init_params` in the prototype's types; a ValueError where sites or shapes differ."""
    if not isinstance(init_params, dict) or set(init_params) != set(prototype):
        given = sorted(init_params) if isinstance(init_params, dict) else type(init_params).__name__
        raise ValueError(
            f"init_params must be a dict with an unconstrained value for each latent site "
            f"{sorted(prototype)}, but holds {given}."
        )
    for name, value in prototype.items():
        if jnp.shape(init_params[name]) != jnp.shape(value):
            raise ValueError(
                f"init_params[{name!r}] has shape {jnp.shape(init_params[name])}, but the site's "
                f"unconstrained shape is {jnp.shape(value)}."
            )
    return {k: jnp.asarray(init_params[k], dtype=jnp.result_type(v)) for k, v in prototype.items()}
