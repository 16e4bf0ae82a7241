"""A NumPyro model, or a potential function, as a potential on R^d.

The potential is a pytree: arrays among the model's arguments are its leaves, so that a compiled
function which takes one is compiled again only when their shapes change.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import constrain_fn, initialize_model, potential_energy

from numpyro_onestep.arguments import Constant, open_constants
from numpyro_onestep.compilation import compiled

_MOST_TRIES = 100  # as many as NumPyro makes


class AbstractPotential(eqx.Module):
    """U(x) = -log of the unnormalised target density, for x in R^d (nats)."""

    prototype: eqx.AbstractVar[PyTree]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """U(x), traced once: not in each program that uses it, and in the thread that came first.

        NumPyro's handlers know of one thread only, but programs compile in several.
        """
        return _energy(self, x)

    @abstractmethod
    def energy(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """U(x), traced anew with each call."""

    @abstractmethod
    def constrain(self, x: Float[Array, " d"]) -> PyTree:
        """The draw x as its user knows it: sites on their supports, or a pytree."""

    def unravel(self, x: Float[Array, " d"]) -> PyTree:
        """The flat vector as the pytree of unconstrained values."""
        return ravel_pytree(self.prototype)[1](x)


@eqx.filter_jit
def _energy(potential: AbstractPotential, x: Float[Array, " d"]) -> Float[Array, ""]:
    return potential.energy(x)


class FunctionPotential(AbstractPotential):
    """A potential given as a function of a pytree."""

    function: Callable
    prototype: PyTree

    def energy(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """The function's value."""
        return self.function(self.unravel(x))

    def constrain(self, x: Float[Array, " d"]) -> PyTree:
        """The pytree: there is nothing to constrain."""
        return self.unravel(x)


class ModelPotential(AbstractPotential):
    """The potential of a NumPyro model, given its arguments.

    `fixed` holds values of sites that are no latents but must not change from call to call:
    parameters and mutable state, as `numpyro.infer.NUTS` fixes them.
    """

    model: Callable
    args: tuple
    kwargs: dict
    fixed: dict
    prototype: PyTree

    def _seeded(self) -> Callable:
        # A key for statements that ask for one without being latent, a subsampling plate say.
        return handlers.seed(handlers.substitute(self.model, data=self.fixed), rng_seed=0)

    def energy(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Minus the log joint density, Jacobian of the constraining transforms included."""
        args, kwargs = open_constants((self.args, self.kwargs))
        return jnp.asarray(potential_energy(self._seeded(), args, kwargs, self.unravel(x)))

    def constrain(self, x: Float[Array, " d"]) -> PyTree:
        """Latent sites on their supports, and deterministic sites."""
        args, kwargs = open_constants((self.args, self.kwargs))
        return constrain_fn(
            self._seeded(), args, kwargs, self.unravel(x), return_deterministic=True
        )


class Site(NamedTuple):
    """What the model's trace says of a site, without its values."""

    name: str
    type: str
    is_observed: bool
    is_discrete: bool
    plates: tuple[str, ...]
    is_delta: bool = False
    has_state: bool = False  # a value that must not change from call to call


def model_potential(
    rng_key: PRNGKeyArray,
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    init_params: PyTree | None = None,
    init_strategy: Callable = init_to_uniform,
) -> tuple[ModelPotential, Float[Array, " d"], list[Site]]:
    """The potential of a model, a point to start from, and the model's sites.

    Raises:
        ValueError: no latent site, a discrete latent site, or no point of finite density.
    """
    args, kwargs, sites, prototype = _inspect(rng_key, model, args, kwargs, init_strategy)
    latents = [site for site in sites if site.type == "sample" and not site.is_observed]
    for site in latents:
        if site.is_discrete:
            raise ValueError(
                f"The latent site {site.name!r} is discrete, and a flow moves only continuous "
                f"ones. Sum it out (numpyro.distributions.MixtureSameFamily, or "
                f"numpyro.contrib.funsor's log_density with enumeration), or replace it by a "
                f"continuous relaxation."
            )
        if site.is_delta:
            raise ValueError(
                f"The latent site {site.name!r} has a Delta distribution, so there is nothing to "
                "infer of it: use numpyro.deterministic for its value."
            )
    if not latents:
        raise ValueError(
            "The model has no latent sites, so there is nothing to infer. Check that it contains "
            "numpyro.sample statements without obs=, and that the arguments given to run() are "
            "not conditioning every site."
        )
    radius = _uniform_radius(init_strategy)
    if radius is not None and not any(site.has_state for site in sites):
        prototype = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in prototype.items()}
        potential = ModelPotential(
            model=model, args=args, kwargs=kwargs, fixed={}, prototype=prototype
        )
        start, is_valid = jnp.zeros(0), jnp.asarray(True)
        if init_params is None:
            start, is_valid = _uniform_start(potential, rng_key, radius)
    else:
        names = tuple(sorted(prototype))
        values, start, is_valid, fixed = _find_start(
            rng_key, model, args, kwargs, init_strategy, names
        )
        potential = ModelPotential(
            model=model, args=args, kwargs=kwargs, fixed=fixed, prototype=values
        )
    if init_params is not None:
        prototype = _match(init_params, potential.prototype)
        potential = replace(potential, prototype=prototype)
        start = ravel_pytree(prototype)[0]
        check_start(potential, start)
    elif not is_valid:
        raise ValueError(
            "The model's log density, or its gradient, is not finite at any of 100 starting "
            "points. Check data for NaN and for values outside a likelihood's support; or say "
            "where to start with init_params= in run() or init_strategy=init_to_value(...) in "
            "OneStep(...)."
        )
    return potential, start, sites


def other_start(
    rng_key: PRNGKeyArray, potential: ModelPotential, init_strategy: Callable = init_to_uniform
) -> Float[Array, " d"] | None:
    """A further point that NumPyro's search for a start finds, or None where it finds none."""
    radius = _uniform_radius(init_strategy)
    if radius is not None and not potential.fixed:
        point, is_valid = _uniform_start(potential, rng_key, radius)
    else:
        _, point, is_valid, _ = _find_start(
            rng_key,
            potential.model,
            potential.args,
            potential.kwargs,
            init_strategy,
            tuple(sorted(potential.prototype)),
        )
    return point if is_valid else None


def _uniform_radius(init_strategy: Callable) -> float | None:
    """The radius of `init_to_uniform`, however it was given, or None for another strategy."""
    if init_strategy is init_to_uniform:
        return 2.0
    if getattr(init_strategy, "func", None) is init_to_uniform:
        return float(getattr(init_strategy, "keywords", {}).get("radius", 2.0))
    return None


@compiled
def _uniform_start(
    potential: ModelPotential, rng_key: PRNGKeyArray, radius: float
) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
    """The first of 100 uniform points whose density and gradient are finite, and whether any is.

    What NumPyro's search does, by one draw for all sites and one copy of the model: on a model of
    many sites that takes a fraction of the compilation.
    """
    like = ravel_pytree(potential.prototype)[0]

    def another(state):
        index, key, _, _ = state
        key, key_point = jr.split(key)
        point = jr.uniform(key_point, like.shape, like.dtype, -radius, radius)
        energy, gradient = jax.value_and_grad(potential)(point)
        return index + 1, key, point, jnp.isfinite(energy) & jnp.all(jnp.isfinite(gradient))

    def go_on(state):
        index, _, _, is_valid = state
        return (index < _MOST_TRIES) & ~is_valid

    _, _, point, is_valid = jax.lax.while_loop(
        go_on, another, (0, rng_key, like, jnp.asarray(False))
    )
    return point, is_valid


@compiled
def _find_start(
    rng_key: PRNGKeyArray,
    model: Callable,
    args: tuple,
    kwargs: dict,
    init_strategy: Callable,
    latents: tuple[str, ...],
) -> tuple[dict, Float[Array, " d"], Bool[Array, ""], dict]:
    """NumPyro's own search for a valid starting point, compiled as a whole.

    Returns unconstrained values of the latent sites, the same as a vector, whether that is valid,
    and what the model must keep from call to call.
    """
    args, kwargs = open_constants((args, kwargs))
    info = initialize_model(
        rng_key, model, init_strategy=init_strategy, model_args=args, model_kwargs=kwargs
    )
    values, energy, gradient = info.param_info
    # Draws are made for latent sites only: a parameter stays where it is.
    values = {name: values[name] for name in latents}
    fixed = {
        name: site["value"]
        for name, site in info.model_trace.items()
        if site["type"] in ("param", "mutable", "plate") and site["value"] is not None
    }
    is_valid = jnp.isfinite(energy) & jnp.all(jnp.isfinite(ravel_pytree(gradient)[0]))
    return values, ravel_pytree(values)[0], is_valid, fixed


def function_potential(
    potential_fn: Callable, init_params: PyTree
) -> tuple[FunctionPotential, Float[Array, " d"]]:
    """The potential of a function of a pytree, and the point `init_params` to start from.

    Raises:
        ValueError: no `init_params`, a result that is not a scalar, or one that is not finite.
    """
    if init_params is None:
        raise ValueError(
            "OneStep(potential_fn=...) cannot know the shape of its argument: give run() a pytree "
            "of that shape as init_params=, at a point of finite density."
        )
    prototype = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype=float), init_params)
    start = ravel_pytree(prototype)[0]
    if start.size == 0:
        raise ValueError("init_params holds no numbers, so there is nothing to infer.")
    potential = FunctionPotential(potential_fn, prototype)
    shape = jax.eval_shape(potential, start).shape
    if shape != ():
        raise ValueError(
            f"potential_fn must return a scalar, but returned an array of shape {shape}. "
            "Sum its terms over data and coordinates."
        )
    check_start(potential, start)
    return potential, start


@compiled  # since NumPyro's own validation of a value that is not finite names no remedy
def _value_and_gradient(potential: AbstractPotential, x: Float[Array, " d"]):
    return jax.value_and_grad(potential)(x)


def check_start(potential: AbstractPotential, start: Float[Array, " d"]) -> None:
    """Raise ValueError unless the potential and its gradient are finite at `start`."""
    value, gradient = _value_and_gradient(potential, start)
    if not (jnp.isfinite(value) and jnp.all(jnp.isfinite(gradient))):
        raise ValueError(
            f"At init_params the potential is {float(value)} and its gradient is "
            f"{'finite' if jnp.all(jnp.isfinite(gradient)) else 'not finite'}: start from a point "
            "of finite density. (For a model, init_params are unconstrained values.)"
        )


def _inspect(
    rng_key: PRNGKeyArray, model: Callable, args: tuple, kwargs: dict, init_strategy: Callable
) -> tuple[tuple, dict, list[Site], dict]:
    """The model's arguments as pytrees, its sites, and its latent sites' unconstrained shapes.

    The model is traced without computing anything.

    Arrays among the arguments stay, and what is no array becomes a `Constant`.  But a model may
    compute with the values of its data in Python (a plate of size `groups.max() + 1`), which no
    traced array allows: then all arguments become constants.
    """
    found: list[Site] = []

    def record(arguments):
        found.clear()
        args, kwargs = open_constants(arguments)
        unconstrained = {}
        seeded = handlers.substitute(handlers.seed(model, rng_key), substitute_fn=init_strategy)
        for name, site in handlers.trace(seeded).get_trace(*args, **kwargs).items():
            is_sample = site["type"] == "sample"
            is_observed = bool(is_sample and site["is_observed"])
            is_discrete = bool(is_sample and site["fn"].support.is_discrete)
            frames = sorted(site.get("cond_indep_stack", ()), key=lambda frame: frame.dim)
            found.append(
                Site(
                    name,
                    site["type"],
                    is_observed,
                    is_discrete,
                    tuple(frame.name for frame in frames),
                    is_delta=is_sample and isinstance(site["fn"], dist.Delta),
                    has_state=_has_state(site),
                )
            )
            if is_sample and not is_observed and not is_discrete:
                unconstrained[name] = dist.biject_to(site["fn"].support).inv(site["value"])
        return unconstrained

    def held(is_leaf: Callable[[Any], bool]) -> tuple[tuple, dict]:
        return jax.tree.map(lambda v: v if is_leaf(v) else Constant(v), (args, kwargs))

    arguments = held(eqx.is_array)
    try:
        prototype = eqx.filter_eval_shape(record, arguments)
    except Exception:  # any failure here: with constants it either works or says why
        arguments = held(lambda value: False)
        prototype = eqx.filter_eval_shape(record, arguments)
    return *arguments, found, prototype


def _has_state(site: dict) -> bool:
    """Parameters, mutable state, and plates that draw a part of their members."""
    if site["type"] == "plate":
        size, subsample_size = site["args"][:2]
        return size != subsample_size
    return site["type"] not in ("sample", "deterministic", "plate")


def _match(init_params: PyTree, prototype: dict) -> dict:
    """`init_params` in the prototype's shapes and types, or a ValueError that says what differs."""
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
