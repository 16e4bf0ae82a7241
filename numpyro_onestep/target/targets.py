"""Targets of inference: a model with its data, or a potential function, before it is traced.

A target can be traced more than once, in single and in double precision.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import constrain_fn, potential_energy

from numpyro_onestep._util.compilation import make_room_for
from numpyro_onestep._util.naming import flatten_names, label
from numpyro_onestep._util.random import stream
from numpyro_onestep.target.discrete_draws import draw_discrete, key_of
from numpyro_onestep.target.enumeration import (
    enumerated,
    handlers_of_funsor,
    packed_trace,
    summed_energy,
)
from numpyro_onestep.target.initial_point import (
    match,
    require_finite,
    searched_start,
    uniform_radius,
    uniform_start,
)
from numpyro_onestep.target.log_space import in_log_space
from numpyro_onestep.target.model_trace import Site, inspect_model, refuse_unfit
from numpyro_onestep.target.pointwise import marginal_likelihood, needs_drawn_values
from numpyro_onestep.target.potential import Outcome, Potential, ravel, unraveller
from numpyro_onestep.target.traced import TracedFunction, trace


@dataclass
class AbstractTarget(ABC):
    """The target as functions of a pytree of unconstrained values.

    `prototype` has the shapes of those values, and their type in the user's own precision.
    """

    prototype: PyTree
    sites: list[Site] = field(default_factory=list)

    @abstractmethod
    def energy(self, values: PyTree) -> Float[Array, ""]:
        """Minus the log density (nats), Jacobians of constraining transforms included."""

    @abstractmethod
    def outcome(self, values: PyTree) -> Outcome:
        """The samples that the values stand for, with log likelihood and observed values."""

    def log_prior(self, values: PyTree) -> dict[str, Any]:
        """The log density of each latent site's own distribution (nats); by default of none."""
        return {}

    def latents(self, samples: PyTree) -> PyTree:
        """Of samples only those of latent sites; by default all."""
        return samples

    def continuous(self, samples: PyTree) -> PyTree:
        """Of samples only those of the sites that the flow moves; by default all."""
        return samples

    def may_be_improper(self) -> Bool[np.ndarray, " d"]:
        """For each coordinate, whether the density may have no scale in it."""
        return np.ones(len(ravel_zeros(self.prototype)), bool)

    def names(self) -> list[str]:
        """A name for each coordinate: that of its site or leaf, with an index where needed."""
        shapes = self.shapes().items()
        return [label(name, index) for name, shape in shapes for index in np.ndindex(shape)]

    def coordinates(self, names: Iterable[str]) -> list[int]:
        """The coordinates of these sites or leaves.

        Raises:
            ValueError: there is no site or leaf of such a name.
        """
        whose = [name for name, shape in self.shapes().items() for _ in np.ndindex(shape)]
        unknown = sorted(set(names) - set(whose))
        if unknown:
            raise ValueError(
                f"structure names {unknown[0]!r}, which is no latent site; the latent sites are "
                f"{', '.join(sorted(set(whose)))}."
            )
        return [j for j, name in enumerate(whose) if name in set(names)]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each site's or leaf's coordinates, in their order."""
        return {name: leaf.shape for name, leaf in flatten_names(self.prototype).items()}

    def other_starts(
        self, rng_key, potential: Potential, num: int, dtype: Any = None
    ) -> Iterator[Any]:
        """Up to `num` further points to start from; by default none."""
        return iter(())

    def unravelled(self, x: Float[Any, " d"]) -> PyTree:
        """A vector as the pytree of values, in the prototype's types."""
        values = unraveller(self.prototype)(jnp.asarray(x))
        return jax.tree.map(lambda v, like: v.astype(like.dtype), values, self.prototype)

    def potential(self, dtype: Any = None) -> Potential:
        """Trace the target on R^d, for vectors of a type; default: the prototype's own."""
        like = ravel_zeros(self.prototype, dtype)
        unravel = unraveller(self.prototype)
        return Potential.of(
            lambda x: self.energy(unravel(x)),
            lambda x: self.outcome(unravel(x)),
            like,
            self._is_promoted(like.dtype),
        )

    def energy_only(self, dtype: Any) -> TracedFunction:
        """U alone, for evaluation and not for training."""
        unravel = unraveller(self.prototype)
        like, precise = ravel_zeros(self.prototype, dtype), self._is_promoted(dtype)
        return trace(lambda x: self.energy(unravel(x)), like, precise=precise)

    def _is_promoted(self, dtype: Any) -> bool:
        """Whether a type is double precision, and the user's own is single."""
        own = ravel_zeros(self.prototype).dtype
        return dtype == np.float64 and own != np.float64


def ravel_zeros(prototype: PyTree, dtype: Any = None) -> Float[np.ndarray, " d"]:
    """A vector of zeros, one for each number of the prototype."""
    leaves = jax.tree.leaves(prototype)
    own = jnp.result_type(*(leaf.dtype for leaf in leaves)) if dtype is None else dtype
    return np.zeros(sum(int(np.prod(leaf.shape)) for leaf in leaves), own)


@dataclass
class FunctionTarget(AbstractTarget):
    """A potential given as a function of a pytree."""

    function: Any = None

    def energy(self, values: PyTree) -> Float[Array, ""]:
        """The function's value."""
        return self.function(values)

    def outcome(self, values: PyTree) -> Outcome:
        """The pytree itself, since it has no constraints."""
        return Outcome(values, {}, {})


@dataclass
class ModelTarget(AbstractTarget):
    """A NumPyro model with its arguments.

    `fixed` holds values of sites that are not latent but must not change from call to call:
    parameters and mutable state.  `numpyro.infer.NUTS` fixes them in the same way.
    """

    model: Any = None
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    init_strategy: Callable = init_to_uniform
    is_start_given: bool = False

    def _seeded(self) -> Callable:
        # Some statements ask for a key without being latent sites, for example numpyro.prng_key.
        return handlers.seed(handlers.substitute(self.model, data=self.fixed), rng_seed=0)

    def energy(self, values: PyTree) -> Float[Array, ""]:
        """Minus the log joint density."""
        names = {site.name for site in self.sites if site.is_in_log_space}
        model = in_log_space(self._seeded(), {k: v for k, v in values.items() if k in names})
        rest = {k: v for k, v in values.items() if k not in names}
        if enumerated(self.sites):
            return summed_energy(model, self.args, self.kwargs, rest, self.sites)
        return jnp.asarray(potential_energy(model, self.args, self.kwargs, rest))

    def outcome(self, values: PyTree) -> Outcome:
        """Latent sites on their supports, deterministic sites, log likelihood and data."""
        samples, found = self._traced_at(values)
        data = {name: site for name, site in found.items() if _is_data(site)}
        likelihood = {name: site["fn"].log_prob(site["value"]) for name, site in data.items()}
        if enumerated(self.sites):
            summed = marginal_likelihood(self._packed_at(samples), self.sites)
            likelihood |= {name: value for name, value in summed.items() if name in data}
        observed = {name: jnp.asarray(site["value"]) for name, site in data.items()}
        return Outcome(samples, likelihood, observed)

    def log_prior(self, values: PyTree) -> dict[str, Any]:
        """The log density of each latent site's own distribution, on its support (nats)."""
        samples, found = self._traced_at(values)
        sites = {name: found[name] for name in self.continuous(samples)}
        return {name: site["fn"].log_prob(site["value"]) for name, site in sites.items()}

    def latents(self, samples: PyTree) -> PyTree:
        """Of samples only those of latent sites, discrete ones included."""
        names = {site.name for site in self.sites if site.type == "sample"}
        return {name: value for name, value in samples.items() if name in names}

    def continuous(self, samples: PyTree) -> PyTree:
        """Of samples only those of the sites that the flow moves."""
        return {name: value for name, value in samples.items() if name in self.prototype}

    def needs_drawn_values(self, name: str) -> bool:
        """Whether an observed site's log likelihood is known at drawn discrete values only."""
        found = []

        def look(values):
            samples, _ = self._traced_at(values)
            found.append(needs_drawn_values(name, self._packed_at(samples), self.sites))
            return jnp.zeros(())

        jax.eval_shape(look, self.prototype)
        return found[-1]

    def _packed_at(self, samples: PyTree) -> dict[str, Any]:
        """The trace with all values of the discrete sites, beside these of the others."""
        known = handlers.substitute(self._seeded(), data=self.continuous(samples))
        return packed_trace(known, self.args, self.kwargs, self.sites)

    def _traced_at(self, values: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The samples that the values stand for, and the model's trace there."""
        samples = constrain_fn(
            self._seeded(), self.args, self.kwargs, values, return_deterministic=True
        )
        samples = jax.tree.map(jnp.asarray, samples)
        if enumerated(self.sites):
            # The deterministic sites may depend on the discrete ones, which are not drawn yet.
            samples = self.continuous(samples)
            known = handlers.substitute(self._seeded(), data=samples)
            key = key_of(ravel(values))
            samples |= draw_discrete(known, self.args, self.kwargs, self.sites, key)
        # Every latent site is given its value, since an improper prior could not be sampled.
        conditioned = handlers.substitute(self._seeded(), data=self.latents(samples))
        found = handlers.trace(conditioned).get_trace(*self.args, **self.kwargs)
        if enumerated(self.sites):
            others = (site for site in found.values() if site["type"] == "deterministic")
            samples |= {site["name"]: jnp.asarray(site["value"]) for site in others}
        return samples, found

    def may_be_improper(self) -> Bool[np.ndarray, " d"]:
        """Coordinates of sites whose prior is improper or masked."""
        those = {site.name for site in self.sites if site.may_be_improper}
        leaves = {k: np.full(v.shape, k in those) for k, v in self.prototype.items()}
        return np.concatenate([np.ravel(leaves[name]) for name in sorted(leaves)])

    def other_starts(
        self, rng_key, potential: Potential, num: int, dtype: Any = None
    ) -> Iterator[Any]:
        """Up to `num` further points from the start strategy; none if the user gave a start."""
        if self.is_start_given:
            return
        for index in range(num):
            key = stream(rng_key, "other start", index)
            start, is_valid = self._start(key, potential, dtype)
            if not is_valid:
                return
            yield start

    def _start(
        self, rng_key, potential: Potential, dtype: Any = None
    ) -> tuple[Float[Array, " d"], bool]:
        radius = uniform_radius(self.init_strategy)
        if radius is not None and not self.fixed:
            like = ravel_zeros(self.prototype, dtype)
            start, is_valid = uniform_start(potential, rng_key, radius, like)
            return start, bool(is_valid)
        values, is_valid, _ = self.searched_start(rng_key)
        return ravel(values), bool(is_valid)

    def searched_start(self, rng_key: PRNGKeyArray) -> tuple[dict, Any, dict]:
        """A start by NumPyro's own search, as `initial_point.searched_start` gives it."""
        model = self.model
        if enumerated(self.sites):
            model = handlers_of_funsor().config_enumerate(model)
        return searched_start(
            rng_key, model, self.args, self.kwargs, self.init_strategy, sorted(self.prototype)
        )


def _is_data(site: dict) -> bool:
    """Whether a site is observed; a factor is an observed site without data."""
    if site["type"] != "sample" or not site["is_observed"]:
        return False
    return not any(
        isinstance(fn, dist.Unit) for fn in (site["fn"], getattr(site["fn"], "base_dist", None))
    )


def model_target(
    rng_key: PRNGKeyArray,
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    init_params: PyTree | None = None,
    init_strategy: Callable = init_to_uniform,
) -> tuple[ModelTarget, Potential, Float[Array, " d"]]:
    """The target of a model, its potential in the user's precision, and a point to start from.

    Raises:
        ValueError: no latent site, a discrete latent site that cannot be summed out, or no point
            of finite density.
    """
    key_start = stream(rng_key, "start")
    sites, shapes = inspect_model(key_start, model, args, kwargs, init_strategy)
    refuse_unfit(sites, shapes)
    target = ModelTarget(
        prototype={name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()},
        sites=sites,
        model=model,
        args=args,
        kwargs=kwargs,
        init_strategy=init_strategy,
        is_start_given=init_params is not None,
    )
    values = is_valid = None
    if any(site.has_state for site in sites):
        values, is_valid, target.fixed = target.searched_start(key_start)
    potential = target.potential()
    make_room_for(potential.energy.program.fingerprint)
    if init_params is not None:
        start = ravel(match(init_params, target.prototype))
        require_finite(potential, start)
        return target, potential, start
    if values is not None:
        start = ravel(values)
    else:
        start, is_valid = target._start(key_start, potential)
    if not is_valid:
        raise ValueError(
            "The model's log density, or its gradient, is not finite at any of 100 starting "
            "points. Check data for NaN and for values outside a likelihood's support; or say "
            "where to start with init_params= in run() or init_strategy=init_to_value(...) in "
            "OneStep(...)."
        )
    return target, potential, start


def function_target(
    potential_fn: Callable, init_params: PyTree
) -> tuple[FunctionTarget, Potential, Float[Array, " d"]]:
    """The target of a function of a pytree, its potential, and the start `init_params`.

    Raises:
        ValueError: no `init_params`, a result that is not a scalar, or one that is not finite.
    """
    if init_params is None:
        raise ValueError(
            "OneStep(potential_fn=...) cannot know the shape of its argument: give run() a pytree "
            "of that shape as init_params=, at a point of finite density."
        )
    values = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype=float), init_params)
    start = ravel(values)
    if start.size == 0:
        raise ValueError("init_params holds no numbers, so there is nothing to infer.")
    prototype = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), values)
    target = FunctionTarget(prototype, function=potential_fn)
    shape = np.shape(jax.eval_shape(lambda v: potential_fn(v), values))
    if shape != ():
        raise ValueError(
            f"potential_fn must return a scalar, but returned an array of shape {shape}. "
            "Sum its terms over data and coordinates."
        )
    potential = target.potential()
    make_room_for(potential.energy.program.fingerprint)
    require_finite(potential, start)
    return target, potential, start
