"""The target of a run before training: traced, in the precision it needs, with a start."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from numpyro_onestep._util.batching import map_in_batches, map_in_blocks
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.numerics import numerics
from numpyro_onestep._util.pickling import ArraysAsNumpy
from numpyro_onestep._util.random import numpy_generator
from numpyro_onestep.importance.evidence import WeightedPool
from numpyro_onestep.initialise.best_fit import Fit
from numpyro_onestep.optimise.lbfgs import descent
from numpyro_onestep.target import (
    AbstractTarget,
    ModelTarget,
    Potential,
    function_target,
    model_target,
)
from numpyro_onestep.target.completion import find_completion
from numpyro_onestep.target.precision import (
    LARGEST_GRAIN,
    PrecisionError,
    energies,
    in_double,
    in_single,
    precision_error,
)
from numpyro_onestep.target.traced import TracedFunction

_NUM_COMPARED = 256  # points that are evaluated in both precisions


@dataclass(frozen=True)
class Problem(ArraysAsNumpy):
    """The target, traced, and a point to start from."""

    target: AbstractTarget
    potential: Potential
    start: Float[Any, " d"]
    is_double: bool = False  # the target is in double precision, the session in single
    error: PrecisionError | None = None  # of single precision, where that made it double
    is_only_single: bool = False  # the target cannot be traced in double precision
    is_without_data: bool = False  # read from a file; nothing but latent sites can be computed

    def constrain(self, x: Float[Any, "n d"]) -> PyTree:
        """Draws as the model's own sites, in the session's own precision.

        Raises:
            RuntimeError: the problem was read from a file without data, and then pickled.
        """
        if self.potential.is_detached:
            raise RuntimeError(
                "This sampler was read from a file without its data, and then pickled: for further "
                "draws read the file again, with OneStep.load."
            )
        with numerics(self.is_double):
            draws = map_in_blocks(lambda rows: _constrain(self.potential, rows), x)
            if self.is_double:
                # NumPy rounds, since JAX warns of 64-bit arrays in a session without them.
                draws = jax.tree.map(in_single, draws)
            return jax.tree.map(jax.device_put, draws)

    def require_data(self) -> None:
        """Raise a RuntimeError where the model cannot be evaluated for want of its data."""
        if self.is_without_data:
            raise RuntimeError(
                "This evaluates the model, which was read from a file without its data: give the "
                "arguments of the run to OneStep.load(path, model, ...)."
            )

    def attached(self) -> "Problem":
        """The same problem; if it came out of a pickle, with its target traced again.

        Raises:
            RuntimeError: the model has changed since.
        """
        if not self.potential.is_detached or self.is_without_data:
            return self
        with numerics(self.is_double):
            again = self.target.potential(self.start.dtype)
            return replace(self, potential=self.potential.attached(again))

    @property
    def arguments(self) -> tuple[tuple, dict[str, Any], PyTree]:
        """The model's arguments and keyword arguments, and `init_params` where they were given."""
        target = self.target
        if isinstance(target, ModelTarget):
            start = target.unravelled(self.start) if target.is_start_given else None
            return target.args, target.kwargs, start
        return (), {}, target.unravelled(self.start)

    @property
    def flat(self) -> list[str]:
        """Names of flat coordinates and directions that the user should be warned of.

        Where NumPyro's `obs_mask` says that a value is known, the latent value is left unused, and
        the deterministic site has the known value.  That is as it should be, so such coordinates
        are left out.
        """
        completion = self.potential.completion
        if completion is None:
            return []
        names = self.target.names()
        observed = {site.name for site in self.target.sites if site.is_observed}
        flat = [names[j] for j in np.flatnonzero(np.asarray(completion.flat))]
        flat = [name for name in flat if not _is_masked(name, observed)]
        return flat + [_written(row, names) for row in np.asarray(completion.directions)]

    @property
    def line(self) -> str:
        """The precision, and why, in words."""
        if not self.is_double:
            only = "; the model cannot be traced in float64" if self.is_only_single else ""
            return f"{self.start.dtype}{only}"
        if self.error is None:
            return "float64, as asked for"
        if self.error.lost:
            return f"float64, since float32 is not a number at {self.error.lost:.1%} of the points"
        if self.error.grain > LARGEST_GRAIN:
            return f"float64, since float32 values are {self.error.grain:.2g} sd apart"
        off = max(abs(self.error.shift), self.error.deviation)
        return f"float64, since float32 is off by {off:.2g} nats"


def _is_masked(name: str, observed: set[str]) -> bool:
    site, suffix, _ = name.partition("_unobserved")
    return bool(suffix) and f"{site}_observed" in observed


def _written(direction: Float[np.ndarray, " d"], names: list[str]) -> str:
    """A direction in words: the three largest terms of the sum that changes along it."""
    largest = np.argsort(-abs(direction), kind="stable")[:3]
    terms = [f"{direction[j]:+.2f} {names[j]}" for j in largest if abs(direction[j]) > 0.005]
    return " ".join(terms) + " ..." * bool(np.sum(abs(direction) > 0.005) > 3)


def problem_of_model(
    rng_key: PRNGKeyArray, model: Any, args: tuple, kwargs: dict, start: PyTree, init_strategy: Any
) -> Problem:
    """The problem of a model with copies of its arguments, so that no later change matters.

    Args:
        rng_key: a JAX random key.
        model: a NumPyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        start: unconstrained values to start from, or None.
        init_strategy: how to find a start where `start` is None.

    Raises:
        ValueError: as `model_target`.
    """
    return with_own_arguments(
        lambda own, named: Problem(*model_target(rng_key, model, own, named, start, init_strategy)),
        args,
        kwargs,
    )


def with_own_arguments(make: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What `make(args, kwargs)` returns for copies of a model's arguments."""
    try:
        return make(*own_arguments(args, kwargs))
    except jax.errors.TracerArrayConversionError:
        # Where a support depends on a site, NumPyro checks NumPy arrays with NumPy, which fails
        # while the model is traced; JAX arrays pass.
        return make(*_own(jnp.asarray, args, kwargs))


def problem_of_function(potential_fn: Any, args: tuple, kwargs: dict, start: PyTree) -> Problem:
    """The problem of a potential function, which takes no arguments but the values.

    Raises:
        ValueError: there are arguments, or as `function_target`.
    """
    if args or kwargs:
        raise ValueError(
            "run() passes its arguments to the model, but this sampler has a potential_fn, "
            "which takes none: bind them first, with functools.partial say."
        )
    return Problem(*function_target(potential_fn, start))


def own_arguments(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Copies of a model's arguments, so that no later change matters."""
    return _own(np.array, args, kwargs)


def _own(copy: Any, *arguments: Any) -> Any:
    """Arguments with NumPy's arrays as copies."""
    return jax.tree.map(lambda v: copy(v) if isinstance(v, np.ndarray) else v, arguments)


@compiled
def _constrain(potential: Potential, x: Float[Array, "n d"]) -> PyTree:
    """Unconstrained draws as the model's own sites."""
    return map_in_batches(potential.constrain, x)


def completed(problem: Problem, rng_key: Any) -> Problem:
    """The problem with its density normalisable in coordinates in which it has no scale."""
    candidates = problem.target.may_be_improper()
    completion = find_completion(problem.potential, problem.start, rng_key, candidates)
    if completion is None:
        return problem
    # The window is centred at a mode, so that the other copies of an angle have little weight.
    centre = descent(problem.potential, problem.start).path[-1]
    completion = replace(completion, centre=centre)
    return replace(problem, potential=replace(problem.potential, completion=completion))


def in_double_precision(
    problem: Problem, why: PrecisionError | None = None, required: bool = False
) -> Problem:
    """The problem with its target in double precision.

    Raises:
        ValueError: `required`, and the model cannot be traced in double precision.
    """
    with numerics(double=True):
        try:
            potential = problem.target.potential(np.float64)
            completion = in_double(problem.potential.completion)
            potential = replace(potential, completion=completion)
        except Exception as error:  # whatever a model raises
            if not required:
                return problem
            raise ValueError(
                "target_precision='double': the model cannot be traced with 64-bit values; it may "
                "fix a type (dtype=jnp.float32) somewhere. Take the type of its inputs there, or "
                "leave target_precision out."
            ) from error
    start = np.asarray(problem.start, np.float64)
    return Problem(problem.target, potential, start, is_double=True, error=why)


def fit_in_double_precision(fit: Fit) -> Fit:
    """A fit with its numbers in double precision, otherwise as it is."""
    with numerics(double=True):
        preconditioner, base = in_double((fit.preconditioner, fit.base))
    return fit._replace(preconditioner=preconditioner, base=base)


def precision_at_fit(
    problem: Problem, fit: Fit, double: TracedFunction, rng_key: Any
) -> PrecisionError:
    """What single precision costs at draws of the fitted distribution."""
    x, log_q = (np.asarray(v) for v in _fitted_draws(fit, rng_key))
    return precision_error(problem.potential, double, x, log_q)


@compiled
def _fitted_draws(fit: Fit, rng_key: Any):
    z = fit.base.sample(rng_key, _NUM_COMPARED, fit.preconditioner.loc)
    log_q = jax.vmap(fit.base.log_density)(z) - fit.preconditioner.log_det
    return jax.vmap(fit.preconditioner.unwhiten)(z), log_q


def precision_at_pool(
    problem: Problem, weighted: WeightedPool, double: TracedFunction, rng_key: Any
) -> PrecisionError:
    """What single precision costs at draws of the posterior.

    Draws whose density is not finite are evaluated in double precision as well, which may give
    them a finite one.
    """
    pool, smoothed = weighted.pool, weighted.smoothed_log_weights
    rng = numpy_generator(rng_key)
    weights = np.where(np.isfinite(smoothed), np.exp(smoothed), 0.0)
    error = PrecisionError(0.0, 0.0, 0.0)
    if weights.sum() > 0:
        chosen = rng.choice(len(weights), _NUM_COMPARED, p=weights / weights.sum())
        error = precision_error(problem.potential, double, pool.x[chosen], None)
    bad = np.flatnonzero(~np.isfinite(pool.log_density) & np.isfinite(pool.x).all(1))
    if len(bad):
        with numerics(double=True):
            some = rng.choice(bad, _NUM_COMPARED)
            found = np.isfinite(energies(double, np.asarray(pool.x[some], np.float64))).mean()
        error = error._replace(lost=float(found) * len(bad) / len(pool.x))
    return error
