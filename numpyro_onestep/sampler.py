"""`OneStep`: the inference class, and how its results are read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray, PyTree
from numpyro.diagnostics import print_summary
from numpyro.infer.initialization import init_to_uniform

from numpyro_onestep._util.naming import flatten_names
from numpyro_onestep._util.numerics import numerics, refuse_transformations
from numpyro_onestep._util.random import as_key
from numpyro_onestep.corrections import correction_of
from numpyro_onestep.diagnostics import report
from numpyro_onestep.flow import FlowDistribution, FlowTransform
from numpyro_onestep.importance.evidence import Evidence, weigh
from numpyro_onestep.importance.interval import EvidenceInterval, evidence_interval
from numpyro_onestep.importance.pool import Pool, draw, draw_pool
from numpyro_onestep.importance.psis import without_nan
from numpyro_onestep.inference import Inference
from numpyro_onestep.problem import Problem, problem_of_function, problem_of_model
from numpyro_onestep.result import Result, Trained
from numpyro_onestep.settings import Settings, require_count
from numpyro_onestep.structure.structure import Structure

_FEWEST_SUMMARISED = 4  # draws of a chain: NumPyro halves it, and each half needs two
_RENAMED = {"base_elbo": "initial_elbo", "folded_share": "folded_fraction"}


class OneStep:
    """Posterior draws in one network evaluation each, with a true bound of the log evidence.

    Use it like `numpyro.infer.MCMC`: construct it with a model, call `run` with a key and the
    model's arguments, then `get_samples`.  `run` trains a one-step flow on the model's own log
    density, weighs a pool of draws by their exact density and resamples it (docs/method.md).
    A method that reads results raises a RuntimeError while there are none.

    Args:
        model: a NumPyro model with continuous latent sites.
        potential_fn: instead of a model, a potential (negative log density, nats) of a pytree of
            unconstrained values; `run` then needs `init_params`.
        init_strategy: where a model starts, as for `numpyro.infer.NUTS`. Default
            `init_to_uniform`.
        **settings: see `Settings` for each name, its meaning and default.

    Raises:
        ValueError: both or neither of `model` and `potential_fn`, or a setting out of range.
        TypeError: an unknown setting, or a `model` or `potential_fn` that is not callable.

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
        self.settings = Settings.of(**settings)
        self._correction = correction_of(self.settings.draws)
        self._last: Trained | None = None

    def run(
        self, rng_key: PRNGKeyArray, *args: Any, init_params: PyTree = None, **kwargs: Any
    ) -> None:
        """Train on the model's log density, then draw and weigh.

        The same key, model, arguments and settings give bit-identical draws on the same machine.
        The model is traced anew, so that a run sees the current values of all that the model reads;
        a second run with arrays of the same shapes compiles nothing.  An interrupt (Ctrl-C) ends
        the training, and the draws come from the flow as it is then.

        Args:
            rng_key: a JAX random key.
            *args: the model's arguments.
            init_params: where to start: unconstrained values of each latent site, as for
                `numpyro.infer.MCMC.run`; with `potential_fn`, a pytree of its argument's shape.
            **kwargs: the model's keyword arguments.

        Raises:
            TypeError: `rng_key` is no JAX random key, or the run is inside `jax.jit` or the like.
            ValueError: no latent site, a discrete latent site, no starting point of finite
                density, no `init_params` or model arguments with a `potential_fn`, `init_params`
                of wrong shape, or `multimodal` in more than 128 dimensions.

        Warns:
            OneStepWarning: the result may be wrong; the message says why and what to do.
        """
        refuse_transformations((rng_key, args, kwargs, init_params))

        def trace(key: PRNGKeyArray, start: PyTree) -> Problem:
            if self.potential_fn is not None:
                return problem_of_function(self.potential_fn, args, kwargs, start)
            return problem_of_model(key, self.model, args, kwargs, start, self.init_strategy)

        def keep(trained: Trained) -> None:
            self._last = trained

        with numerics():
            inference = Inference(self.settings, self._correction, as_key(rng_key), keep)
            self._last = result = inference.run(trace, init_params)
        report.warn(result.messages, stacklevel=2)

    @property
    def result(self) -> Result:
        """All results of the last run, frozen; the accessors below read single parts of it.

        Raises:
            RuntimeError: `run` was not called, or was interrupted before its draws were weighed.
        """
        run = self._trained()
        if not isinstance(run, Result):
            raise RuntimeError(
                "run() was interrupted after training, before its draws were weighed. "
                "sample(rng_key, num_samples) draws from the trained flow."
            )
        return run

    def get_samples(self, group_by_chain: bool = False) -> PyTree:
        """Equally weighted posterior draws: `{site: (num_samples, *shape)}`.

        The draws are constrained, with deterministic sites; with `potential_fn`, they are a pytree
        like `init_params`.  By default they are resampled from the pool by its smoothed weights,
        and moved by HMC rejuvenation where those are heavy-tailed (settings `correction` and
        `num_rejuvenation_steps`).

        Args:
            group_by_chain: put an axis of chains first, as MCMC does: four chains of
                `num_samples / 4` draws with `"imh"` and `"nuts"`, else one. Default False.
        """
        result = self.result
        if not group_by_chain:
            return result.samples
        num = result.corrected.num_chains
        each = len(result.corrected.x) // num  # spelt out, since a site may be of size zero
        return jax.tree.map(lambda leaf: leaf.reshape(num, each, *leaf.shape[1:]), result.samples)

    def get_weighted_samples(self) -> tuple[PyTree, Float[np.ndarray, " pool"]]:
        """All draws of the pool, `{site: (pool_size, *shape)}`, and their exact log weights.

        Nine in ten are the flow's own draws, the last tenth are inflated draws (none with
        `correction=None`).  All are weighed against the density of the mixture of both; the log of
        the mean weight estimates the log evidence.  Log weights (nats, unsmoothed) are minus
        infinity where the density is zero or not a number.
        """
        result = self.result
        return result.problem.constrain(result.pool.x), without_nan(result.pool.log_weight)

    def get_pool(self) -> Pool:
        """The pool on R^d: draws with the log densities of target, flow and pool (nats)."""
        return self.result.pool

    def get_posterior(self) -> FlowDistribution:
        """The trained flow as a NumPyro distribution on R^d, before any correction.

        Its draws are vectors `(*sample_shape, d)` in the order of `ravel_pytree`.
        """
        return self._trained().distribution

    def get_transform(self) -> FlowTransform:
        """The trained map as a NumPyro transform: base draws z to unconstrained values x."""
        return self._trained().distribution.transform

    def sample(self, rng_key: PRNGKeyArray, num_samples: int) -> PyTree:
        """Further draws from the trained flow: `num_flow_steps` evaluations each, no training.

        They are not corrected: where `pareto_k` is above about 0.7, raise `num_samples` instead.

        Args:
            rng_key: a JAX random key.
            num_samples: number of draws.

        Returns:
            `{site: (num_samples, *shape)}`, as `get_samples`.

        Raises:
            RuntimeError: nothing was trained yet.
            TypeError: `rng_key` is no JAX random key.
            ValueError: `num_samples` is not positive.
        """
        num, run = require_count("num_samples", num_samples), self._trained()
        with self._environment(rng_key) as key:
            return run.problem.constrain(draw(run.distribution, key, num))

    def evaluate(
        self, rng_key: PRNGKeyArray, num_flow_steps: int, num_draws: int = 10_000
    ) -> Evidence:
        """The evidence from the trained flow at another step budget, by that map's exact volume.

        Args:
            rng_key: a JAX random key.
            num_flow_steps: k, a divisor of `num_grid_steps`. Only a budget the flow was trained
                for is good: after the distillation stage every budget, after the evidence stage
                `sampler.num_flow_steps`.
            num_draws: draws to weigh, none of them inflated. Default 10000.

        Raises:
            RuntimeError: nothing was trained yet.
            TypeError: `rng_key` is no JAX random key.
            ValueError: k does not divide the grid, or `num_draws` is not positive.
        """
        num, run = require_count("num_draws", num_draws), self._trained()
        distribution = run.distribution.with_steps(num_flow_steps)
        limit = self.settings.draws.batch_bytes
        with self._environment(rng_key) as key:
            pool = draw_pool(distribution, run.problem.potential, key, num, 0, limit)
            return weigh(pool).evidence

    def evidence_interval(
        self, rng_key: PRNGKeyArray, num_rejuvenation_steps: int = 100
    ) -> EvidenceInterval:
        """Bounds of the log evidence from both sides (nats).

        The lower bound is `elbo`.  The upper bound, E_p[log w], is the mean log weight of
        posterior draws: every corrected draw takes `num_rejuvenation_steps` steps of Hamiltonian
        Monte Carlo, and is sent back through the inverse of the map, checked by round trip.  The
        upper bound is above log Z as far as those chains have reached the posterior; a mode that
        neither draws nor chains visit is missing from both bounds.

        Args:
            rng_key: a JAX random key.
            num_rejuvenation_steps: steps of each chain, or 0 for none. Default 100.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from numpyro_onestep import OneStep
            >>> sampler = OneStep(potential_fn=lambda x: jnp.sum(x**2), progress_bar=False)
            >>> sampler.run(jax.random.key(0), init_params=jnp.zeros(2))
            >>> interval = sampler.evidence_interval(jax.random.key(1))
            >>> bool(interval.lower < jnp.log(jnp.pi) + 0.01 < interval.upper + 0.02)
            True
        """
        result = self.result
        with self._environment(rng_key) as key:
            return evidence_interval(
                result.evidence,
                result.pool,
                result.distribution,
                result.problem.potential,
                result.corrected.x,
                key,
                num_rejuvenation_steps,
            )

    @contextmanager
    def _environment(self, rng_key: Any = None) -> Iterator[PRNGKeyArray]:
        """Work in the precision of the last run; yields the key after checking it."""
        refuse_transformations((rng_key,))
        with numerics(self._trained().problem.is_double):
            yield None if rng_key is None else as_key(rng_key)  # type: ignore

    @property
    def elbo(self) -> float:
        """Mean log weight (nats): a lower bound of the log evidence where the map is injective."""
        return self.result.evidence.elbo

    @property
    def elbo_std_error(self) -> float:
        """Monte Carlo standard error of `elbo` (nats)."""
        return self.result.evidence.elbo_std_error

    @property
    def initial_elbo(self) -> float:
        """ELBO of the fitted Gaussian or mixture that the flow started from, a rough one (nats)."""
        return float(self._trained().fit.elbo)

    @property
    def log_evidence(self) -> float:
        """Log of the mean Pareto-smoothed weight of the pool (nats)."""
        return self.result.evidence.log_evidence

    @property
    def log_evidence_std_error(self) -> float:
        """Monte Carlo standard error of `log_evidence` (nats)."""
        return self.result.evidence.log_evidence_std_error

    @property
    def pareto_k(self) -> float:
        """Shape k of the weights' tail: above about 0.7 the weights cannot be relied on."""
        return self.result.evidence.pareto_k

    @property
    def ess(self) -> float:
        """Effective number of draws in the pool, (sum w)^2 / sum w^2."""
        return self.result.evidence.ess

    @property
    def folded_fraction(self) -> float:
        """Fraction of the flow's own draws at which the map's determinant is negative."""
        return self.result.evidence.folded_fraction

    @property
    def structure(self) -> Structure | None:
        """Which coordinates depend on which in the map; None where the map is dense."""
        return self._trained().fit.structure

    @property
    def num_flow_steps(self) -> int:
        """Network evaluations that each draw takes."""
        return self._trained().num_flow_steps

    @property
    def losses(self) -> Float[np.ndarray, " iterations"]:
        """Estimated upper bound of minus the log evidence at every training iteration (nats)."""
        return self._trained().training.losses

    @property
    def losses_by_stage(self) -> dict[str, Float[np.ndarray, " iterations"]]:
        """The same for each stage of training."""
        return {**self._trained().training.losses_by_stage}

    @property
    def chunk_seconds(self) -> tuple[float, ...]:
        """Wall time of each hundred training iterations in seconds; the first compiles."""
        return self._trained().training.chunk_seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of each part of `run` in seconds, compilation included."""
        return dict(self._trained().seconds)

    @property
    def messages(self) -> list[str]:
        """What the last run warned of."""
        return list(self.result.messages)

    @property
    def run_arguments(self) -> tuple[tuple, dict[str, Any], PyTree]:
        """The model's arguments and keyword arguments, and `init_params`, of the last run."""
        return self._trained().problem.arguments

    def _trained(self) -> Trained:
        if self._last is None:
            raise RuntimeError("There are no results yet: call run(rng_key, ...) first.")
        self._last = self._last.attached()
        return self._last

    def __getattr__(self, name: str) -> Any:
        if name in _RENAMED:
            raise AttributeError(f"OneStep.{name} is now called {_RENAMED[name]}: use that name.")
        raise AttributeError(f"OneStep has no attribute {name!r}.")

    def print_summary(self, prob: float = 0.9) -> None:
        """Print NumPyro's table of the draws, and below it evidence, diagnostics and verdict.

        Args:
            prob: mass of the highest-density interval. Default 0.9.
        """
        result = self.result
        grouped = flatten_names(self.get_samples(group_by_chain=True))
        if next(iter(grouped.values())).shape[1] >= _FEWEST_SUMMARISED:
            print_summary(grouped, prob=prob, group_by_chain=True)
        print(report.summary(result, self.settings.draws))

    def to_inference_data(self):
        """The results as ArviZ data: `InferenceData` under ArviZ 0.x, `DataTree` under 1.x.

        Groups: `posterior`, with dimensions chain, draw and the plates'; `sample_stats`, with `lp`,
        the unnormalised log density of the unconstrained draw, and, unless HMC rejuvenation moved
        the draws, `log_q`, that of the flow, and `log_weight = lp - log_q` (nats); for a model
        also `log_likelihood` and `observed_data`.  Attributes: `elbo`, `log_evidence`, their
        standard errors, `pareto_k`, `ess`, times in seconds, versions.

        A plate's axis has the plate's name, and an event axis the name that the model gives it by
        `infer={"event_dims": [...]}`.  Any other axis is `<site>_dim_<axis>`, as is one whose name
        would be that of a variable, or of an axis of another size.  A deterministic site that is a
        tuple `t` becomes the variables `t.0`, `t.1`, and so on.  A site named `chain` or `draw`
        gets an underscore after its name, and a slash becomes a dot in a `DataTree`.
        """
        # ArviZ is imported here, since its import takes longer than that of all else together.
        from numpyro_onestep.integrations.arviz import from_result

        result = self.result
        with self._environment():
            return from_result(result)
