"""`OneStep`: the inference class.  It assembles the other files and holds no mathematics."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpyro.infer.initialization import init_to_uniform

from numpyro_onestep import base, diagnostics, modes, training
from numpyro_onestep.base import LARGEST_MATCHED, best_base
from numpyro_onestep.corrections import correct
from numpyro_onestep.coverage import find_missed
from numpyro_onestep.evidence import Evidence, Pool, draw_pool, summarise
from numpyro_onestep.exploration import explore, require_explorable
from numpyro_onestep.flow import FlowMap, ResidualVelocity, uniform_grid
from numpyro_onestep.mixture import fit_mixture
from numpyro_onestep.potential import (
    AbstractPotential,
    ModelPotential,
    Site,
    function_potential,
    model_potential,
    other_start,
)
from numpyro_onestep.results import Results, Run, require_key
from numpyro_onestep.settings import Settings, make_settings
from numpyro_onestep.whitening import GaussianBase, WhitenedPotential

# Where the step budget is free, one step more is tried if the weights are worth less than the first
# share of the pool, or less than the second and Pareto k may be above its limit.
_ENOUGH_ESS, _ENOUGH_ESS_OF_BAD_WEIGHTS = 0.15, 0.6
# Starts beside the first that the base's fit descends from.
_MOST_OTHER_STARTS = 3


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
        A second run with arrays of the same shapes compiles nothing.  An interrupt (Ctrl-C) while
        training ends it there, and the draws come from the flow as it is.

        Args:
            rng_key: a JAX random key.
            *args: the model's arguments.
            init_params: where to start: unconstrained values of each latent site, as for
                `numpyro.infer.MCMC.run`; with `potential_fn`, a pytree of its argument's shape.
            **kwargs: the model's keyword arguments.

        Raises:
            TypeError: `rng_key` is no JAX random key.
            ValueError: no latent site, a discrete latent site, no starting point of finite
                density, `init_params` of wrong shape, arguments beside a `potential_fn`, or
                `many_modes` in more than 128 dimensions.

        Warns:
            OneStepWarning: the result may be wrong; the message says why and what to do.
        """
        require_key(rng_key)
        settings, seconds = self.settings, {}
        keys = [jr.fold_in(rng_key, index) for index in range(7)]
        key_init, key_base, key_flow, key_train, key_pool, key_correct, key_missed = keys

        clock = time.perf_counter()
        potential, start, sites = self._potential(key_init, args, kwargs, init_params)
        if settings.many_modes:
            require_explorable(start.size)
        flow = _initial_flow(start, key_flow, settings)
        self._compile_ahead(flow, potential, start, rng_key)
        clock = _lap(seconds, "initialisation", clock)
        starts = self._starts(key_init, potential, start, init_params)
        base_fit = best_base(potential, starts, key_base)
        whitened = WhitenedPotential(potential, base_fit.base)
        clock = _lap(seconds, "base", clock)
        if settings.many_modes:
            key_explore, key_mixture = jr.split(jr.fold_in(key_base, 1))
            population = explore(potential, start, base_fit.base, key_explore)  # type: ignore
            whitened, base_fit = fit_mixture(potential, population, key_mixture)
            clock = _lap(seconds, "exploration", clock)
        about = args, kwargs, init_params, sites, whitened, base_fit
        attempts = []
        for num_steps in settings.step_budgets(start.size):
            attempt = replace(settings, num_flow_steps=num_steps)
            key = jr.fold_in(key_train, num_steps)
            trained = training.train(flow, whitened, key, attempt, float(base_fit.elbo))
            clock = _lap(seconds, "training", clock)
            # From here on the trained flow is safe, whatever happens to the draws.
            self._last = run = Run(*about, trained, seconds, num_steps)
            run.pool = self._pool(run, key_pool)
            run.evidence, run.smoothed = summarise(run.pool)
            clock = _lap(seconds, "draws", clock)
            attempts.append(run)
            if trained.interrupted or _one_step_is_enough(run.evidence):
                break
        self._last = run = max(attempts, key=_quality)
        run.corrected = correct(run, settings, key_correct)
        x, budget = run.corrected.x, seconds["training"]
        run.missed = find_missed(whitened, start, x, _mean_energy(run), key_missed, budget)
        run.samples = jax.block_until_ready(self._constrain(x))
        _lap(seconds, "draws", clock)
        run.messages = diagnostics.check(
            run.evidence, run.training, float(base_fit.elbo), run.corrected
        )
        run.messages += diagnostics.check_coverage(run.missed, run.samples, self._constrain)
        diagnostics.warn(run.messages, stacklevel=2)

    def _compile_ahead(
        self, flow: FlowMap, potential: AbstractPotential, start: Float[Array, " d"], key
    ) -> None:
        """Begin to compile in another thread what the run comes to by and by."""
        settings = self.settings
        if start.size > LARGEST_MATCHED:
            return  # the base may be another by then
        eqx.filter_eval_shape(potential, start)  # traces the model, in this thread
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

    def _pool(self, run: Run, rng_key: PRNGKeyArray) -> Pool:
        settings = self.settings
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
        return jax.tree.map(np.asarray, pool)

    def _potential(
        self, rng_key, args, kwargs, init_params
    ) -> tuple[AbstractPotential, Float[Array, " d"], list[Site]]:
        if self.model is not None:
            return model_potential(
                rng_key, self.model, args, kwargs, init_params, self.init_strategy
            )
        if args or kwargs:
            raise ValueError(
                "run() passes its arguments to the model, but this sampler has a potential_fn, "
                "which takes none: bind them first, with functools.partial say."
            )
        assert self.potential_fn is not None
        return *function_potential(self.potential_fn, init_params), []

    def _starts(
        self, rng_key, potential: AbstractPotential, start: Float[Array, " d"], init_params
    ) -> Iterator[Float[Array, " d"]]:
        """The start, and more where the user did not say where to."""
        yield start
        if not isinstance(potential, ModelPotential) or init_params is not None:
            return
        for index in range(_MOST_OTHER_STARTS):
            other = other_start(jr.fold_in(rng_key, index), potential, self.init_strategy)
            if other is None or np.array_equal(other, start):  # a strategy that is not random
                return
            yield other


def _one_step_is_enough(evidence: Evidence) -> bool:
    enough = _ENOUGH_ESS_OF_BAD_WEIGHTS if evidence.doubtful else _ENOUGH_ESS
    return evidence.ess >= enough * evidence.num_draws


def _quality(run: Run) -> tuple[bool, float]:
    """By which one run is better than another: the ELBO of a map that folds is no bound."""
    assert run.evidence is not None
    return not diagnostics.folds(run.evidence), run.evidence.elbo


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
