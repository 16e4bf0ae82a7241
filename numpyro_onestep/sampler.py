"""`OneStep`: the inference class.  It assembles the other files and holds no mathematics."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpyro.diagnostics import print_summary
from numpyro.infer.initialization import init_to_uniform

from numpyro_onestep import diagnostics, inference_data
from numpyro_onestep.base import BaseFit, WhitenedPotential, fit_base
from numpyro_onestep.compilation import compiled
from numpyro_onestep.evidence import Evidence, Pool, draw, draw_pool, map_in_batches, summarise
from numpyro_onestep.flow import FlowMap, ResidualVelocity, uniform_grid
from numpyro_onestep.moves import move
from numpyro_onestep.potential import (
    AbstractPotential,
    ModelPotential,
    Site,
    function_potential,
    model_potential,
)
from numpyro_onestep.predictive import log_likelihood, observed_data
from numpyro_onestep.resampling import resample
from numpyro_onestep.settings import Settings, make_settings
from numpyro_onestep.training import TrainingResult, train

# Draws constrained at a time: bounds the memory that a model's deterministic sites may take.
_CONSTRAIN_BATCH = 1000
# Share of the pool below which one step more is tried, where the step budget is free.
_ENOUGH_ESS = 0.25
# Nats between the log evidence and the ELBO.
_NEGLIGIBLE_GAP = 0.01


@dataclass
class _Run:
    """Everything one call of `run` computed, filled in from top to bottom."""

    args: tuple
    kwargs: dict[str, Any]
    init_params: PyTree
    sites: list[Site]
    potential: WhitenedPotential
    base_fit: BaseFit
    training: TrainingResult
    seconds: dict[str, float] = field(default_factory=dict)
    num_flow_steps: int = 1
    pool: Pool | None = None
    evidence: Evidence | None = None
    smoothed: np.ndarray | None = None
    chosen: np.ndarray | None = None
    capped_share: float = 0.0
    x: Any = None
    moved: bool = False
    samples: PyTree = None
    messages: list[str] = field(default_factory=list)


class OneStep:
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
        self._last: _Run | None = None

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
            ValueError: no latent site, a discrete latent site, no starting point of finite
                density, or `init_params` of wrong shape.

        Warns:
            OneStepWarning: the result may be wrong; the message says why and what to do.
        """
        _require_key(rng_key)
        settings, seconds = self.settings, {}
        keys = jr.split(rng_key, 7)
        key_init, key_base, key_flow, key_train, key_pool, key_choice, key_move = keys

        clock = time.perf_counter()
        potential, start, sites = self._potential(key_init, args, kwargs, init_params)
        clock = _lap(seconds, "initialisation", clock)
        base_fit = jax.block_until_ready(fit_base(potential, start, key_base))
        whitened = WhitenedPotential(potential, base_fit.base)
        clock = _lap(seconds, "base", clock)
        flow = _initial_flow(start, key_flow, settings)
        attempts = []
        for num_steps in settings.step_budgets:
            attempt = replace(settings, num_flow_steps=num_steps)
            training = train(flow, whitened, jr.fold_in(key_train, num_steps), attempt)
            clock = _lap(seconds, "training", clock)
            # From here on the trained flow is safe, whatever happens to the draws.
            run = _Run(args, kwargs, init_params, sites, whitened, base_fit, training, seconds)
            run.num_flow_steps = num_steps
            self._last = run
            pool = draw_pool(
                training.flow,
                whitened,
                key_pool,
                settings.num_pool,
                num_steps,
                settings.num_wide,
                settings.batch_bytes,
            )
            run.pool = pool
            run.evidence, run.smoothed = summarise(pool)
            clock = _lap(seconds, "draws", clock)
            attempts.append(run)
            enough = run.evidence.ess >= _ENOUGH_ESS * settings.num_pool
            if enough or training.interrupted:
                break
        self._last = run = max(attempts, key=lambda run: run.evidence.elbo)
        training, pool = run.training, run.pool
        run.chosen = np.arange(settings.num_samples)
        if settings.correction == "psis" and np.isfinite(run.evidence.log_evidence):
            run.chosen, run.capped_share = resample(key_choice, run.smoothed, settings.num_samples)
        run.x = pool.x[run.chosen]
        if self._needs_moves(run.evidence):
            run.moved = True
            run.x = move(whitened, run.x, key_move, settings.num_moves)
        run.samples = jax.block_until_ready(self._constrain(run.x))
        _lap(seconds, "draws", clock)
        run.messages = diagnostics.check(
            run.evidence, training, float(base_fit.elbo), run.capped_share
        )
        diagnostics.warn(run.messages, stacklevel=2)

    def _needs_moves(self, evidence: Evidence) -> bool:
        settings = self.settings
        heavy = evidence.pareto_k > diagnostics.GOOD_PARETO_K
        # Where the gap is next to nothing, so is the mass that any tail can lack.
        gap = evidence.log_evidence - evidence.elbo
        wanted = settings.correction == "psis" and settings.num_moves > 0
        return wanted and heavy and _NEGLIGIBLE_GAP < gap < math.inf

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

    def get_samples(self, group_by_chain: bool = False) -> PyTree:
        """Equally weighted posterior draws: `{site: (num_samples, *shape)}`.

        Constrained, deterministic sites included; with `potential_fn`, a pytree like
        `init_params`.  Drawn from the pool by its smoothed weights unless `correction=None`, and
        moved by short Markov chains where those weights are heavy-tailed (`num_moves`).

        Args:
            group_by_chain: put an axis of one chain first, as MCMC does. Default False.
        """
        samples = self._ran().samples
        return jax.tree.map(lambda leaf: leaf[None], samples) if group_by_chain else samples

    def get_weighted_samples(self) -> tuple[PyTree, Float[np.ndarray, " pool"]]:
        """All of the pool, and the draws' exact log weights (nats, unsmoothed).

        Nine in ten are the flow's own draws, the last tenth is drawn a little wider; the weights
        are those of the two together, and their log mean estimates the log evidence.
        """
        run = self._ran()
        assert run.pool is not None
        return self._constrain(run.pool.x), np.asarray(run.pool.log_weight)

    def sample(self, rng_key: PRNGKeyArray, num_samples: int) -> PyTree:
        """Further draws from the trained flow: `num_flow_steps` evaluations each, no training.

        These are the flow's own draws, without correction: where `pareto_k` is poor, raise
        `num_samples` in the constructor instead.

        Args:
            rng_key: a JAX random key.
            num_samples: how many.

        Returns:
            As `get_samples`.
        """
        _require_key(rng_key)
        run = self._trained()
        steps = run.num_flow_steps
        return self._constrain(draw(run.training.flow, run.potential, rng_key, num_samples, steps))

    def evaluate(
        self, rng_key: PRNGKeyArray, num_flow_steps: int, num_draws: int = 10_000
    ) -> Evidence:
        """The evidence from the trained flow at another step budget, by that map's exact volume.

        Args:
            rng_key: a JAX random key.
            num_flow_steps: k, a divisor of `num_grid_steps`. Only budgets the flow was trained
                for are good: every one of them after the distillation stage, `num_flow_steps` of
                the constructor after the evidence stage.
            num_draws: draws to weigh. Default 10000.

        Raises:
            ValueError: k does not divide the grid.
        """
        _require_key(rng_key)
        run, limit = self._trained(), self.settings.batch_bytes
        pool = draw_pool(
            run.training.flow, run.potential, rng_key, num_draws, num_flow_steps, 0, limit
        )
        return summarise(pool)[0]

    def _constrain(self, x: Float[Array, "n d"]) -> PyTree:
        return _constrain(self._trained().potential.potential, x)

    @property
    def elbo(self) -> float:
        """Mean log weight (nats): a lower bound of the log evidence where the map is injective."""
        return self._evidence.elbo

    @property
    def elbo_std_error(self) -> float:
        """Monte Carlo standard error of `elbo` (nats)."""
        return self._evidence.elbo_std_error

    @property
    def log_evidence(self) -> float:
        """Log of the mean Pareto-smoothed weight (nats)."""
        return self._evidence.log_evidence

    @property
    def log_evidence_std_error(self) -> float:
        """Monte Carlo standard error of `log_evidence` (nats)."""
        return self._evidence.log_evidence_std_error

    @property
    def pareto_k(self) -> float:
        """Shape of the weights' tail: above about 0.7 they are not to be trusted."""
        return self._evidence.pareto_k

    @property
    def ess(self) -> float:
        """Effective number of draws in the pool, (sum w)^2 / sum w^2."""
        return self._evidence.ess

    @property
    def folded_share(self) -> float:
        """Share of the pool at which the map's determinant is negative."""
        return self._evidence.folded_share

    @property
    def num_flow_steps(self) -> int:
        """Network evaluations that each draw takes."""
        return self._trained().num_flow_steps

    @property
    def losses(self) -> Float[np.ndarray, " iterations"]:
        """The bound on minus the log evidence at every training iteration (nats)."""
        return self._trained().training.losses

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of each part of `run`, compilation included."""
        return dict(self._trained().seconds)

    @property
    def messages(self) -> list[str]:
        """What the last run warned of."""
        return list(self._ran().messages)

    @property
    def run_arguments(self) -> tuple[tuple, dict[str, Any], PyTree]:
        """The model's arguments and keyword arguments, and `init_params`, of the last run."""
        run = self._trained()
        return run.args, run.kwargs, run.init_params

    @property
    def _evidence(self) -> Evidence:
        evidence = self._ran().evidence
        assert evidence is not None
        return evidence

    def _trained(self) -> _Run:
        if self._last is None:
            raise RuntimeError("There are no results yet: call run(rng_key, ...) first.")
        return self._last

    def _ran(self) -> _Run:
        run = self._trained()
        if run.samples is None:
            raise RuntimeError(
                "run() was interrupted after training, before its draws were weighed. "
                "sample(rng_key, num_samples) draws from the trained flow."
            )
        return run

    def print_summary(self, prob: float = 0.9) -> None:
        """Print NumPyro's table of the draws, and below it what the weights say.

        Args:
            prob: mass of the highest-density interval. Default 0.9.
        """
        run, evidence = self._ran(), self._evidence
        print_summary(flatten_names(run.samples), prob=prob, group_by_chain=False)
        threshold = diagnostics.pareto_k_threshold(evidence.num_draws)
        rows = [
            ("ELBO", f"{self.elbo:.3f} +- {self.elbo_std_error:.3f} nats"),
            (
                "log evidence",
                f"{self.log_evidence:.3f} +- {self.log_evidence_std_error:.3f} nats",
            ),
            ("Pareto k", f"{self.pareto_k:.2f} (limit {threshold:.2f})"),
            ("", diagnostics.verdict(evidence)),
            ("ESS of weights", f"{self.ess:.0f} of {evidence.num_draws} draws"),
            ("map folds at", f"{self.folded_share:.2%} of draws"),
            ("draws", diagnostics.draws_line(self.settings, run.num_flow_steps, run.moved)),
            ("training", diagnostics.training_line(run.training, run.seconds)),
        ]
        for name, value in rows:
            print(f"{name:>16s}  {value}")
        for message in run.messages:
            print(f"WARNING: {message}")
        print()

    def to_inference_data(self):
        """The results as ArviZ data: `InferenceData` under ArviZ 0.x, `DataTree` under 1.x.

        Groups: `posterior` (chain, draw and the plates' dimensions), `sample_stats` (`lp`, the
        unnormalised log density of the unconstrained draw; and unless they were moved `log_q`, the
        flow's, and `log_weight`, their difference; nats), and for a model `log_likelihood` and
        `observed_data`.  Attributes: `elbo`, `log_evidence`, their standard errors, `pareto_k`,
        `ess`, times in seconds, versions.
        """
        run = self._ran()
        assert run.pool is not None
        posterior = {name: np.asarray(value) for name, value in flatten_names(run.samples).items()}
        potential = run.potential.potential
        if run.moved:
            stats = {"lp": _log_density(potential, run.x)}
        else:
            pool = jax.tree.map(lambda leaf: np.asarray(leaf)[run.chosen], run.pool)
            log_weight = pool.log_density - pool.log_q
            stats = {"lp": pool.log_density, "log_q": pool.log_q, "log_weight": log_weight}
        likelihood, observed = {}, {}
        if isinstance(potential, ModelPotential):
            likelihood = log_likelihood(potential, run.samples, run.args, run.kwargs)
            observed = observed_data(potential, run.samples, run.args, run.kwargs)
        dims = {
            **inference_data.plate_dims(run.sites, posterior),
            **inference_data.plate_dims(run.sites, observed, prefix_ndim=0),
        }
        attrs = {
            **{name: float(value) for name, value in self._evidence._asdict().items()},
            **{f"{name}_time": value for name, value in run.seconds.items()},
            "sampling_time": sum(run.seconds.values()),
            "warnings": "\n".join(run.messages),
            **inference_data.versions(),
        }
        return inference_data.build(posterior, stats, likelihood, observed, dims, attrs)


@compiled
def _log_density(potential: AbstractPotential, x: Float[Array, "n d"]) -> Float[Array, " n"]:
    return -map_in_batches(potential, x, _CONSTRAIN_BATCH)


@compiled
def _constrain(potential: AbstractPotential, x: Float[Array, "n d"]) -> PyTree:
    return map_in_batches(potential.constrain, x, _CONSTRAIN_BATCH)


def _initial_flow(start: Float[Array, " d"], rng_key: PRNGKeyArray, settings: Settings) -> FlowMap:
    d, width = start.size, settings.network_width(start.size)
    network = ResidualVelocity(d, width, settings.horizon, rng_key, start.dtype)
    return FlowMap(network, uniform_grid(settings.horizon, settings.num_grid_steps))


def flatten_names(samples: PyTree) -> dict[str, Any]:
    """Draws of any pytree as a flat dict: a nested dict's keys are joined by dots."""
    if isinstance(samples, dict) and all(hasattr(v, "shape") for v in samples.values()):
        return samples
    leaves = jax.tree_util.tree_leaves_with_path(samples)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".") or "x": leaf for path, leaf in leaves
    }


def _require_key(rng_key: Any) -> None:
    if isinstance(rng_key, jax.Array) and (
        jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key) or rng_key.dtype == jnp.uint32
    ):
        return
    raise TypeError(
        f"rng_key must be a JAX random key such as jax.random.key(0), but is "
        f"{type(rng_key).__name__}."
    )


def _lap(seconds: dict[str, float], name: str, since: float) -> float:
    now = time.perf_counter()
    seconds[name] = seconds.get(name, 0.0) + now - since
    return now
