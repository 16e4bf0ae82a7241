"""`OneStep`: the inference class.  It assembles the other files and holds no mathematics."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpyro.infer.initialization import init_to_uniform

from numpyro_onestep._util.numerics import is_double, numerics, refuse_transformations
from numpyro_onestep._util.random import as_key, stream
from numpyro_onestep.corrections import correct
from numpyro_onestep.diagnostics import report as diagnostics
from numpyro_onestep.diagnostics.coverage import find_missed
from numpyro_onestep.diagnostics.doubts import folds, is_good
from numpyro_onestep.diagnostics.line_scan import scan_lines
from numpyro_onestep.flow import FlowMap, ResidualVelocity, uniform_grid
from numpyro_onestep.flow.gaussian import GaussianBase, WhitenedPotential
from numpyro_onestep.importance.evidence import Evidence, draw_pool, summarise
from numpyro_onestep.initialise import best_fit as base
from numpyro_onestep.initialise.best_fit import LARGEST_MATCHED, best_base
from numpyro_onestep.multimodal import modes
from numpyro_onestep.multimodal.mixture_fit import fit_mixture
from numpyro_onestep.multimodal.tempered_smc import MOST_DIMENSIONS, explore, require_explorable
from numpyro_onestep.problem import (
    Problem,
    completed,
    fitted_in_double_precision,
    in_double_precision,
    precision_at_base,
    precision_at_pool,
)
from numpyro_onestep.result import Results, Run
from numpyro_onestep.settings import Settings, make_settings
from numpyro_onestep.target import AbstractTarget, Potential, function_target, model_target
from numpyro_onestep.target.precision import double_energy
from numpyro_onestep.training import loop as training

# Where the step budget is free, one step more is tried if the weights are worth less than the first
# share of the pool, or less than the second and Pareto k may be above its limit.
_ENOUGH_ESS, _ENOUGH_ESS_OF_BAD_WEIGHTS = 0.15, 0.6
# Starts beside the first that the base's fit descends from.
_MOST_OTHER_STARTS = 3
# Where modes that the draws do not reach hold so many times their mass, the run was in the wrong
# place, and is made again from the heaviest of these.
_ELSEWHERE = 100.0


class OneStep(Results):
    """Posterior draws in one network evaluation each, with an evidence that is a true bound.

    Used as `numpyro.infer.MCMC` is: construct with a model, `run` with a key and the model's
    arguments, `get_samples`.  `run` fits a Gaussian base, trains a one-step flow on the model's
    own log density, weighs a pool of draws by their exact density and resamples it.

    Args:
        model: a NumPyro model with continuous latent sites.
        potential_fn: instead of a model, a potential (negative log density, nats) of a pytree of
            unconstrained values; `run` then needs `init_params`.
        init_strategy: where a model starts, as for `numpyro.infer.NUTS`. Default
            `init_to_uniform`.
        **settings: see `Settings` for each name, its meaning and default.

    Raises:
        ValueError: both or neither of `model` and `potential_fn`, or a setting out of range.
        TypeError: an unknown setting.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro_onestep import OneStep
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 10))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> sampler = OneStep(model, num_samples=500, progress_bar=False)
        >>> sampler.run(jax.random.key(0), jax.numpy.array([1.0, 2.0, 3.0]))
        >>> sampler.get_samples()["mu"].shape
        (500,)
    """

    def __init__(
        self,
        model: Callable | None = None,
        *,
        potential_fn: Callable | None = None,
        init_strategy: Callable = init_to_uniform,
        **settings: Any,
    ):
        if (model is None) == (potential_fn is None):
            raise ValueError(
                "OneStep takes a model or a potential_fn, and exactly one of them: "
                "OneStep(model) or OneStep(potential_fn=...)."
            )
        for name, value in (("model", model), ("potential_fn", potential_fn)):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be callable, but is {type(value).__name__}.")
        self.model = model
        self.potential_fn = potential_fn
        self.init_strategy = init_strategy
        self.settings = make_settings(settings)
        self._last: Run | None = None

    def run(
        self, rng_key: PRNGKeyArray, *args: Any, init_params: PyTree = None, **kwargs: Any
    ) -> None:
        """Train on the model's log density, then draw and weigh.

        The same key, model, arguments and settings give bit-identical draws on the same machine.
        The model is traced anew, so that a run always sees the values that are there now; a
        second run with arrays of the same shapes compiles nothing.  An interrupt (Ctrl-C) while
        training ends it there, and the draws come from the flow as it is.

        Args:
            rng_key: a JAX random key.
            *args: the model's arguments.
            init_params: where to start: unconstrained values of each latent site, as for
                `numpyro.infer.MCMC.run`; with `potential_fn`, a pytree of its argument's shape.
            **kwargs: the model's keyword arguments.

        Raises:
            TypeError: `rng_key` is no JAX random key, or the run is inside a transformation of
                JAX's.
            ValueError: no latent site, a discrete latent site, no starting point of finite
                density, `init_params` of wrong shape, arguments beside a `potential_fn`, or
                `many_modes` in more than 128 dimensions.

        Warns:
            OneStepWarning: the result may be wrong; the message says why and what to do.
        """
        refuse_transformations((rng_key, args, kwargs, init_params))
        with numerics():
            messages = self._run(as_key(rng_key), args, kwargs, init_params)
        diagnostics.warn(messages, stacklevel=2)

    def _run(self, rng_key, args, kwargs, init_params) -> list[str]:
        seconds: dict[str, float] = {}
        run = self._infer(rng_key, args, kwargs, init_params, seconds)
        missed = run.missed
        if missed is not None and missed.odds > _ELSEWHERE and not run.training.interrupted:
            there = run.problem.target.unravelled(missed.where)
            again = self._infer(stream(rng_key, "elsewhere"), args, kwargs, there, seconds)
            self._last = run = max((run, again), key=_quality)
        return run.messages

    def _infer(self, rng_key, args, kwargs, init_params, seconds: dict[str, float]) -> Run:
        settings = self.settings
        clock = time.perf_counter()
        target, potential, start = self._target(stream(rng_key, "start"), args, kwargs, init_params)
        if settings.many_modes:
            require_explorable(start.size)
        flow = _initial_flow(start, stream(rng_key, "flow"), settings)
        problem = completed(Problem(target, potential, start), stream(rng_key, "completion"))
        if settings.target_precision != "double" or is_double():
            self._compile_ahead(flow, problem, rng_key)
        clock = _lap(seconds, "initialisation", clock)
        with ExitStack() as environment:
            if settings.target_precision == "double" and not is_double():
                problem = in_double_precision(problem, required=True)
                environment.enter_context(numerics(double=True))
            fitted = self._fit_base(problem, rng_key, seconds)
            double = None  # U in double precision, as long as it is not used
            clock = time.perf_counter()
            if settings.target_precision == "auto" and not is_double():
                double = double_energy(target)
                fitted = replace(fitted, is_only_single=double is None)
            if double is not None:
                error = precision_at_base(fitted, double, stream(rng_key, "precision"))
                _lap(seconds, "precision", clock)
                if error.counts:
                    problem = in_double_precision(problem, error)
                    environment.enter_context(numerics(problem.is_double))
                    fitted, double = self._fit_base(problem, rng_key, seconds), None
            lost = not math.isfinite(float(fitted.base_fit.elbo)) and self._is_explorable(start)
            fitted = self._explore(fitted, rng_key, seconds, always=lost)
            run = self._train(flow, fitted, rng_key, seconds)
            if double is not None:
                clock = time.perf_counter()
                error = precision_at_pool(run, double, stream(rng_key, "precision"))
                _lap(seconds, "precision", clock)
                if error.counts:
                    fitted = fitted_in_double_precision(fitted, error)
                    environment.enter_context(numerics(fitted.is_double))
                    run = self._train(run.training.flow, fitted, rng_key, seconds)
            self._last = run = self._finish(run, rng_key)
            if self._has_obstacle(run):
                # No gradient shows an edge or a step, so none can train a flow around it.
                found = self._explore(fitted, rng_key, seconds, always=True)
                if found is not fitted:
                    again = self._untrained(flow, found, rng_key, seconds)
                    run = max((run, self._finish(again, rng_key)), key=_quality)
            self._last = run
            return run

    def _compile_ahead(self, flow: FlowMap, problem: Problem, key) -> None:
        """Begin to compile in another thread what the run comes to by and by."""
        settings, potential, start = self.settings, problem.potential, problem.start
        if start.size > LARGEST_MATCHED:
            return  # the base may be another by then
        base.compile_ahead(potential, start, key)
        if settings.many_modes:
            modes.compile_ahead(potential, start, key)
            return  # the noise will be another by then
        num_steps = settings.step_budgets(start.size)[0]
        anywhere: Any = np.zeros_like(start), np.eye(start.size, dtype=start.dtype)
        whitened = WhitenedPotential(potential, GaussianBase(*anywhere))
        first = replace(settings, num_flow_steps=num_steps)
        training.compile_ahead(flow, whitened, key, first)
        pool = settings.num_pool, num_steps, settings.num_wide, settings.batch_bytes
        draw_pool.ahead(flow, whitened, key, *pool)

    def _fit_base(self, problem: Problem, rng_key, seconds) -> Problem:
        clock = time.perf_counter()
        dtype = problem.start.dtype
        others = problem.target.other_starts(rng_key, problem.potential, _MOST_OTHER_STARTS, dtype)
        starts: Any = (np.asarray(start, dtype) for start in chain([problem.start], others))
        base_fit = best_base(problem.potential, starts, stream(rng_key, "base"))
        whitened = WhitenedPotential(problem.potential, base_fit.base)
        _lap(seconds, "base", clock)
        return replace(problem, whitened=whitened, base_fit=base_fit)

    def _explore(self, problem: Problem, rng_key, seconds, always: bool = False) -> Problem:
        if not (always or self.settings.many_modes):
            return problem
        clock = time.perf_counter()
        gaussian: Any = problem.base_fit.base
        key = stream(rng_key, "exploration")
        try:
            population = explore(problem.potential, problem.start, gaussian, key)
        except ValueError:
            if self.settings.many_modes:
                raise
            return problem  # it was worth a try
        key = stream(rng_key, "mixture")
        whitened, base_fit = fit_mixture(problem.potential, population, key)
        _lap(seconds, "exploration", clock)
        return replace(problem, whitened=whitened, base_fit=base_fit)

    def _train(self, flow: FlowMap, problem: Problem, rng_key, seconds) -> Run:
        """The best of the attempts, with its pool."""
        settings, attempts = self.settings, []
        whitened, base_fit = problem.whitened, problem.base_fit
        for num_steps in settings.step_budgets(problem.start.size):
            clock = time.perf_counter()
            attempt = replace(settings, num_flow_steps=num_steps)
            key = stream(rng_key, "training", num_steps)
            trained = training.train(flow, whitened, key, attempt, float(base_fit.elbo))
            _lap(seconds, "training", clock)
            # From here on the trained flow is safe, whatever happens to the draws.
            self._last = run = Run(problem, trained, seconds, num_steps)
            self._weigh(run, stream(rng_key, "pool"))
            attempts.append(run)
            assert run.evidence is not None
            if trained.interrupted or _one_step_is_enough(run.evidence):
                break
        best = max(attempts, key=_quality)
        if not (best.training.bends or is_good(best)):
            # A mixture is near the target before any training, which an edge can only spoil.
            best = max(best, self._untrained(flow, problem, rng_key, seconds), key=_quality)
        return best

    def _untrained(self, flow: FlowMap, problem: Problem, rng_key, seconds) -> Run:
        """Draws of the fitted distribution itself, which is what a flow starts from."""
        steps = self.settings.num_flow_steps or 1
        run = Run(problem, training.TrainingResult(flow, bends=False), seconds, steps)
        self._weigh(run, stream(rng_key, "untrained pool"))
        return run

    def _finish(self, run: Run, rng_key) -> Run:
        """Correct the draws, look for what they lack, and say so."""
        clock, problem = time.perf_counter(), run.problem
        run.corrected = correct(run, self.settings, stream(rng_key, "correction"))
        x: Any = np.asarray(run.corrected.x)
        run.corrected.x = x
        budget = run.seconds["training"]
        run.scan = scan_lines(
            problem.potential, x, problem.target.names(), stream(rng_key, "lines"), budget
        )
        if run.scan is not None and not run.training.bends:
            # Particles have looked everywhere; modes far apart are too narrow for points on a line.
            run.scan = run.scan._replace(off=0.0)
        key = stream(rng_key, "coverage")
        run.missed = find_missed(run.potential, problem.start, x, _mean_energy(run), key, budget)
        run.samples = jax.block_until_ready(problem.constrain(x))
        _lap(run.seconds, "draws", clock)
        run.messages = diagnostics.check(run)
        return run

    def _is_explorable(self, start) -> bool:
        """Whether the settings leave it open to start from a mixture."""
        settings = self.settings
        plain = settings.correction != "nuts" and not settings.num_distillation_steps
        return plain and start.size <= MOST_DIMENSIONS

    def _has_obstacle(self, run: Run) -> bool:
        """Whether the density has an edge or a step that the flow could not be trained around."""
        evidence, scan = run.evidence, run.scan
        if not self._is_explorable(run.problem.start) or run.training.interrupted:
            return False
        if not run.training.bends:
            return False  # this is what exploration found
        assert evidence is not None
        if not math.isfinite(evidence.log_evidence):
            return True
        found = scan is not None and bool(scan.edge or scan.step)
        return found and not is_good(run)

    def _weigh(self, run: Run, rng_key: PRNGKeyArray) -> None:
        """Make the pool, and say what its weights are worth."""
        clock, settings = time.perf_counter(), self.settings
        pool = draw_pool(
            run.training.flow,
            run.potential,
            rng_key,
            settings.num_pool,
            run.num_flow_steps,
            settings.num_wide,
            settings.batch_bytes,
        )
        # NumPy chooses among them: each operation of JAX's would be one more program.
        pool = jax.tree.map(np.asarray, pool)
        run.pool, (run.evidence, run.smoothed) = pool, summarise(pool)
        _lap(run.seconds, "draws", clock)

    def _target(
        self, rng_key, args, kwargs, init_params
    ) -> tuple[AbstractTarget, Potential, Float[Array, " d"]]:
        if self.model is not None:
            model, rest = self.model, (init_params, self.init_strategy)
            try:
                own, named = _own(np.array, args, kwargs)
                return model_target(rng_key, model, own, named, *rest)
            except jax.errors.TracerArrayConversionError:
                # NumPyro checks NumPy's arrays with NumPy, where a support depends on a site.
                own, named = _own(jnp.asarray, args, kwargs)
                return model_target(rng_key, model, own, named, *rest)
        if args or kwargs:
            raise ValueError(
                "run() passes its arguments to the model, but this sampler has a potential_fn, "
                "which takes none: bind them first, with functools.partial say."
            )
        assert self.potential_fn is not None
        return function_target(self.potential_fn, init_params)


def _own(copy: Callable, *arguments: Any) -> Any:
    """Arguments with NumPy's arrays as copies, which nobody can change."""
    return jax.tree.map(lambda v: copy(v) if isinstance(v, np.ndarray) else v, arguments)


def _one_step_is_enough(evidence: Evidence) -> bool:
    enough = _ENOUGH_ESS_OF_BAD_WEIGHTS if evidence.doubtful else _ENOUGH_ESS
    return evidence.ess >= enough * evidence.num_draws


def _quality(run: Run) -> tuple[bool, float]:
    """By which one run is better than another: the ELBO of a map that folds is no bound."""
    assert run.evidence is not None
    return not folds(run.evidence), run.evidence.elbo


def _mean_energy(run: Run) -> float:
    """The posterior's (nats), from the pool, no draw of more weight than a corrected one has."""
    assert run.pool is not None
    assert run.smoothed is not None
    assert run.corrected is not None
    energy = -np.asarray(run.pool.log_density, np.float64)
    weight = np.minimum(np.exp(run.smoothed), 1 / len(run.corrected.x))
    weight = np.where(np.isfinite(energy), weight, 0.0)
    if weight.sum() == 0:
        return math.nan
    return float(np.average(np.where(weight > 0, energy, 0.0), weights=weight))


def _initial_flow(start: Float[Array, " d"], rng_key: PRNGKeyArray, settings: Settings) -> FlowMap:
    d, width = start.size, settings.network_width(start.size)
    network = ResidualVelocity(d, width, settings.horizon, rng_key, start.dtype)
    return FlowMap(network, uniform_grid(settings.horizon, settings.num_grid_steps))


def _lap(seconds: dict[str, float], name: str, since: float) -> float:
    now = time.perf_counter()
    seconds[name] = seconds.get(name, 0.0) + now - since
    return now
