"""What a run has found out about its target before training, in the precision that this needs."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.numerics import numerics
from numpyro_onestep._util.random import numpy_generator
from numpyro_onestep.flow.gaussian import WhitenedPotential
from numpyro_onestep.initialise.best_fit import BaseFit, descent
from numpyro_onestep.target import AbstractTarget, Potential
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

# Draws constrained at a time: bounds the memory that a model's deterministic sites may take.
CONSTRAIN_BATCH = 1000
# Points that are evaluated in both precisions.
_NUM_COMPARED = 256


@dataclass
class Problem:
    """The target, where to start, and the distribution that was fitted to it."""

    target: AbstractTarget
    potential: Potential
    start: Float[Any, " d"]
    whitened: Any = None  # a WhitenedPotential, once the base is fitted
    base_fit: Any = None  # a BaseFit
    is_double: bool = False  # in a session of single precision
    error: PrecisionError | None = None  # of single precision, why it is double
    is_only_single: bool = False  # it cannot be traced in double precision

    def __getstate__(self):
        """Arrays as NumPy's, which keep their type in a session of another precision."""
        return jax.tree.map(lambda v: np.asarray(v) if _is_plain(v) else v, vars(self))

    def __setstate__(self, state):
        with numerics(state["is_double"]):
            parts = ("potential", "whitened", "base_fit")
            fitted = {name: jax.tree.map(jnp.asarray, state[name]) for name in parts}
        vars(self).update(state | fitted)

    def constrain(self, x: Float[Any, "n d"]) -> PyTree:
        """Draws as the model's own sites, in the session's own precision."""
        with numerics(self.is_double):
            draws = _constrain(self.potential, jnp.asarray(x))
            if not self.is_double:
                return draws
            # NumPy's rounding: JAX warns of 64-bit arrays in a session without them.
            rounded = jax.tree.map(lambda v: in_single(np.asarray(v)), draws)
            return jax.tree.map(jnp.asarray, rounded)

    @property
    def flat(self) -> list[str]:
        """Coordinates, and sums of several, that nothing depends on, but should.

        Where NumPyro's `obs_mask` says that a value is known, it leaves the latent one unused: as
        it should be, since the deterministic site has the known value there.
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
        off = max(abs(self.error.shift), self.error.spread)
        return f"float64, since float32 is off by {off:.2g} nats"


def _is_masked(name: str, observed: set[str]) -> bool:
    site, suffix, _ = name.partition("_unobserved")
    return bool(suffix) and f"{site}_observed" in observed


def _written(direction: Float[np.ndarray, " d"], names: list[str]) -> str:
    """A direction as the sum that changes along it, its largest terms."""
    largest = np.argsort(-abs(direction), kind="stable")[:3]
    terms = [f"{direction[j]:+.2f} {names[j]}" for j in largest if abs(direction[j]) > 0.005]
    return " ".join(terms) + " ..." * bool(np.sum(abs(direction) > 0.005) > 3)


@compiled
def _constrain(potential: Potential, x: Float[Array, "n d"]) -> PyTree:
    """Unconstrained draws as the model's own sites."""
    return map_in_batches(potential.constrain, x, CONSTRAIN_BATCH)


def _is_plain(value: Any) -> bool:
    """Whether it is an array of JAX's that NumPy has a type for: random keys are none."""
    is_array = isinstance(value, jax.Array)
    return is_array and not jnp.issubdtype(value.dtype, jax.dtypes.extended)


def completed(problem: Problem, rng_key: Any) -> Problem:
    """The problem with its density normalisable in coordinates in which it has no scale."""
    candidates = problem.target.may_be_improper()
    completion = find_completion(problem.potential, problem.start, rng_key, candidates)
    if completion is None:
        return problem
    # From a mode on: the copies of an angle are then those that matter least.
    centre = descent(problem.potential, problem.start).path[-1]
    completion = replace(completion, centre=centre)
    return replace(problem, potential=replace(problem.potential, completion=completion))


def in_double_precision(
    problem: Problem, why: PrecisionError | None = None, required: bool = False
) -> Problem:
    """The problem with its target in double precision, nothing fitted yet.

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


def fitted_in_double_precision(problem: Problem, error: PrecisionError) -> Problem:
    """The problem with its target in double precision, the fit kept as it is."""
    again = in_double_precision(problem, error)
    if not again.is_double:
        return problem
    with numerics(double=True):
        base, noise = in_double((problem.whitened.base, problem.whitened.noise))
    whitened = WhitenedPotential(again.potential, base, noise)
    return replace(again, whitened=whitened, base_fit=BaseFit(base, problem.base_fit.elbo))


def precision_at_base(problem: Problem, double: TracedFunction, rng_key: Any) -> PrecisionError:
    """What single precision costs at draws of the fitted base."""
    x, log_q = (np.asarray(v) for v in _base_draws(problem.whitened, rng_key))
    return precision_error(problem.potential, double, x, log_q)


@compiled
def _base_draws(whitened: WhitenedPotential, rng_key: Any):
    z = whitened.sample_noise(rng_key, _NUM_COMPARED)
    log_q = jax.vmap(whitened.noise.log_density)(z) - whitened.base.log_det
    return jax.vmap(whitened.base.unwhiten)(z), log_q


def precision_at_pool(run: Any, double: TracedFunction, rng_key: Any) -> PrecisionError:
    """What single precision costs at draws of the posterior.

    Of the draws without a density those are looked at that double precision may give one.
    """
    pool, problem = run.pool, run.problem
    rng = numpy_generator(rng_key)
    weights = np.where(np.isfinite(run.smoothed), np.exp(run.smoothed), 0.0)
    error = PrecisionError(0.0, 0.0, 0.0)
    if weights.sum() > 0:
        chosen = rng.choice(len(weights), _NUM_COMPARED, p=weights / weights.sum())
        error = precision_error(problem.potential, double, pool.x[chosen], None)
    bad = np.flatnonzero(~np.isfinite(pool.log_density) & np.isfinite(pool.x).all(1))
    if len(bad):
        with numerics(double=True):
            some = rng.choice(bad, _NUM_COMPARED)
            x = jnp.asarray(np.asarray(pool.x[some], np.float64))
            found = np.isfinite(np.asarray(energies(double, x))).mean()
        error = error._replace(lost=float(found) * len(bad) / len(pool.x))
    return error


def attached(problem: Problem) -> Problem:
    """A problem that came out of a pickle, with its target traced again.

    Raises:
        RuntimeError: the model has changed since.
    """
    with numerics(problem.is_double):
        again = problem.target.potential(problem.start.dtype)
        potential = problem.potential.attached(again)
        old = problem.whitened
        whitened = WhitenedPotential(potential, old.base, old.noise)
        return replace(problem, potential=potential, whitened=whitened)
