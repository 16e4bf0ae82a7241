"""What a run leaves behind, and how a user reads it: `OneStep` is this plus `run`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpyro.diagnostics import print_summary

from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.naming import flatten_names
from numpyro_onestep._util.numerics import numerics, refuse_transformations
from numpyro_onestep._util.random import as_key
from numpyro_onestep.corrections import Corrected
from numpyro_onestep.diagnostics import report as diagnostics
from numpyro_onestep.diagnostics.coverage import Missed
from numpyro_onestep.diagnostics.line_scan import Scan
from numpyro_onestep.flow.gaussian import WhitenedPotential
from numpyro_onestep.importance.evidence import (
    Evidence,
    Pool,
    draw,
    draw_pool,
    summarise,
    without_nan,
)
from numpyro_onestep.importance.interval import EvidenceInterval, evidence_interval
from numpyro_onestep.integrations import arviz as inference_data
from numpyro_onestep.problem import CONSTRAIN_BATCH, Problem, attached
from numpyro_onestep.settings import Settings, as_count
from numpyro_onestep.target import ModelTarget, Potential
from numpyro_onestep.target.precision import energies
from numpyro_onestep.training.loop import TrainingResult

_FEWEST_SUMMARISED = 4  # NumPyro halves a chain, and asks each half for two


@dataclass
class Run:
    """Everything one call of `run` computed, filled in from top to bottom."""

    problem: Problem
    training: TrainingResult
    seconds: dict[str, float] = field(default_factory=dict)
    num_flow_steps: int = 1
    pool: Pool | None = None
    evidence: Evidence | None = None
    smoothed: np.ndarray | None = None
    corrected: Corrected | None = None
    missed: Missed | None = None
    scan: Scan | None = None
    samples: PyTree = None
    messages: list[str] = field(default_factory=list)

    @property
    def potential(self) -> WhitenedPotential:
        """The target in whitened coordinates."""
        return self.problem.whitened


class Results:
    """Accessors of the last run."""

    settings: Settings
    _last: Run | None

    def get_samples(self, group_by_chain: bool = False) -> PyTree:
        """Equally weighted posterior draws: `{site: (num_samples, *shape)}`.

        Constrained, deterministic sites included; with `potential_fn`, a pytree like
        `init_params`.  Drawn from the pool by its smoothed weights unless `correction=None`, and
        moved by short Markov chains where those weights are heavy-tailed (`num_moves`).

        Args:
            group_by_chain: put an axis of chains first, as MCMC does: one, or four where the
                correction runs chains. Default False.
        """
        run = self._ran()
        assert run.corrected is not None
        if not group_by_chain:
            return run.samples
        num = run.corrected.num_chains
        each = len(run.corrected.x) // num  # spelt out, since a site may be of size zero
        return jax.tree.map(lambda leaf: leaf.reshape(num, each, *leaf.shape[1:]), run.samples)

    def get_weighted_samples(self) -> tuple[PyTree, Float[np.ndarray, " pool"]]:
        """All of the pool, and the draws' exact log weights (nats, unsmoothed).

        Nine in ten are the flow's own draws, the last tenth is drawn a little wider (none with
        `correction=None`); the weights are those of the two together, and their log mean estimates
        the log evidence.  Minus infinity where the density is zero or not a number.
        """
        run = self._ran()
        assert run.pool is not None
        return self._constrain(run.pool.x), without_nan(run.pool.log_weight)

    def sample(self, rng_key: PRNGKeyArray, num_samples: int) -> PyTree:
        """Further draws from the trained flow: `num_flow_steps` evaluations each, no training.

        These are the flow's own draws, without correction: where `pareto_k` is poor, raise
        `num_samples` in the constructor instead.

        Args:
            rng_key: a JAX random key.
            num_samples: how many.

        Returns:
            As `get_samples`.

        Raises:
            RuntimeError: nothing was trained yet.
            TypeError: `rng_key` is no JAX random key.
            ValueError: `num_samples` is not positive.
        """
        num, run = _require_count("num_samples", num_samples), self._trained()
        flow, steps = run.training.flow, run.num_flow_steps
        with self._environment(rng_key) as key:
            return self._constrain(draw(flow, run.potential, key, num, steps))

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
            RuntimeError: nothing was trained yet.
            ValueError: k does not divide the grid, or `num_draws` is not positive.
        """
        num, run = _require_count("num_draws", num_draws), self._trained()
        flow, limit = run.training.flow, self.settings.batch_bytes
        with self._environment(rng_key) as key:
            pool = draw_pool(flow, run.potential, key, num, num_flow_steps, 0, limit)
            return summarise(pool)[0]

    def evidence_interval(self, rng_key: PRNGKeyArray, num_moves: int = 100) -> EvidenceInterval:
        """Bounds of the log evidence from both sides (nats).

        The lower one is `elbo`.  The upper one, E_p[log w], is the mean log weight of posterior
        draws: every corrected draw takes `num_moves` steps of Hamiltonian Monte Carlo, and is sent
        back through the inverse of the map, checked by round trip.  It is above log Z as far as
        those chains have reached the posterior; a mode that neither draws nor chains visit is
        missing from both bounds.

        Args:
            rng_key: a JAX random key.
            num_moves: steps of each chain. Default 100.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from numpyro_onestep import OneStep
            >>> sampler = OneStep(potential_fn=lambda x: jnp.sum(x**2), progress_bar=False)
            >>> sampler.run(jax.random.key(0), init_params=jnp.zeros(2))
            >>> interval = sampler.evidence_interval(jax.random.key(1))
            >>> bool(interval.lower < jnp.log(jnp.pi) + 0.01 < interval.upper + 0.02)
            True
        """
        run = self._ran()
        assert run.pool is not None
        assert run.corrected is not None
        with self._environment(rng_key) as key:
            return evidence_interval(
                self._evidence,
                run.pool,
                run.training.flow,
                run.potential,
                run.num_flow_steps,
                run.corrected.x,
                key,
                num_moves,
            )

    @contextmanager
    def _environment(self, rng_key: Any = None) -> Iterator[PRNGKeyArray]:
        """The precision that the last run was made in; gives the key, checked."""
        refuse_transformations((rng_key,))
        with numerics(self._trained().problem.is_double):
            yield None if rng_key is None else as_key(rng_key)  # type: ignore

    def _constrain(self, x: Float[Any, "n d"]) -> PyTree:
        return self._trained().problem.constrain(x)

    @property
    def elbo(self) -> float:
        """Mean log weight (nats): a lower bound of the log evidence where the map is injective."""
        return self._evidence.elbo

    @property
    def base_elbo(self) -> float:
        """ELBO of the Gaussian base alone (nats): what the flow started from.

        From 512 draws, and the highest of the several fits that were tried, so a little optimistic.
        """
        return float(self._trained().problem.base_fit.elbo)

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
        """Share of the flow's own draws at which the map's determinant is negative."""
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
        problem = self._trained().problem
        target = problem.target
        if isinstance(target, ModelTarget):
            start = target.unravelled(problem.start) if target.is_start_given else None
            return target.args, target.kwargs, start
        return (), {}, target.unravelled(problem.start)

    @property
    def _evidence(self) -> Evidence:
        evidence = self._ran().evidence
        assert evidence is not None
        return evidence

    def _trained(self) -> Run:
        if self._last is None:
            raise RuntimeError("There are no results yet: call run(rng_key, ...) first.")
        if self._last.potential.potential.is_detached:
            self._last.problem = attached(self._last.problem)
        return self._last

    def _ran(self) -> Run:
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
        grouped = flatten_names(self.get_samples(group_by_chain=True))
        if next(iter(grouped.values())).shape[1] >= _FEWEST_SUMMARISED:
            print_summary(grouped, prob=prob, group_by_chain=True)
        rows = [
            ("ELBO", f"{self.elbo:.3f} +- {self.elbo_std_error:.3f} nats"),
            (
                "log evidence",
                f"{self.log_evidence:.3f} +- {self.log_evidence_std_error:.3f} nats",
            ),
            ("Pareto k", f"{self.pareto_k:.2f} (limit {evidence.pareto_k_limit:.2f})"),
            ("", diagnostics.verdict(run)),
            ("ESS of weights", f"{self.ess:.0f} of {evidence.num_draws} draws"),
            ("map folds at", f"{self.folded_share:.2%} of draws"),
            ("target in", run.problem.line),
            ("draws", diagnostics.draws_line(self.settings, run.num_flow_steps, run.corrected)),
            ("training", diagnostics.training_line(run.training, run.seconds)),
        ]
        if evidence.num_non_finite:
            rows.append(("left out", f"{evidence.num_non_finite} draws without a finite density"))
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

        An axis has a plate's name where it is that plate's, or one of those that a site was given
        by `infer={"event_dims": [...]}`; any other is `<site>_dim_<axis>`, and so is one whose name
        is that of a variable, or of an axis of another size.  A deterministic site that is a tuple
        `t` becomes the variables `t.0`, `t.1`, and so on.  A site named `chain` or `draw` gets an
        underscore after its name, and a slash becomes a dot in a `DataTree`.
        """
        run = self._ran()
        assert run.pool is not None
        assert run.corrected is not None
        potential, chosen = run.potential.potential, run.corrected.chosen
        with self._environment():
            x = jnp.asarray(run.corrected.x)
            data = jax.tree.map(np.asarray, observed_and_likelihood(potential, x))
            energy = np.asarray(energies(potential, x)) if chosen is None else None
        observed, likelihood = data
        if run.corrected.stats:
            stats = run.corrected.stats
        elif energy is not None:
            stats = {"lp": -energy}
        else:
            pool = jax.tree.map(lambda leaf: np.asarray(leaf)[chosen], run.pool)
            log_weight = pool.log_density - pool.log_q
            stats = {"lp": pool.log_density, "log_q": pool.log_q, "log_weight": log_weight}
        attrs = {
            **{name: float(value) for name, value in self._evidence._asdict().items()},
            **{f"{name}_time": value for name, value in run.seconds.items()},
            "sampling_time": sum(run.seconds.values()),
            "warnings": "\n".join(run.messages),
            **inference_data.versions(),
        }
        chains = run.corrected.num_chains
        sites = run.problem.target.sites
        return inference_data.build(run.samples, stats, likelihood, observed, sites, attrs, chains)


@compiled
def observed_and_likelihood(potential: Potential, x: Float[Array, "n d"]) -> tuple[dict, dict]:
    """The observed values, which no draw changes, and their log likelihood at every draw (nats)."""
    observed = potential.outcome(x[0]).observed
    likelihood = map_in_batches(lambda at: potential.outcome(at).log_likelihood, x, CONSTRAIN_BATCH)
    return observed, likelihood


def _require_count(name: str, value: Any) -> int:
    """A number of draws, given as 1000 or as 1e3."""
    number = as_count(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be a positive number of draws, but is {value!r}.")
    return number
