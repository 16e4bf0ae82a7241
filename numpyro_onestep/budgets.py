"""The trained flow at any step budget: further draws, the evidence, and the one-step defect."""

import numpy as np
from jaxtyping import Float, PRNGKeyArray, PyTree

from numpyro_onestep.composition import Composed
from numpyro_onestep.diagnostics import report
from numpyro_onestep.diagnostics.codes import coded
from numpyro_onestep.flow import FlowMap
from numpyro_onestep.importance.evidence import Evidence, weigh
from numpyro_onestep.importance.interval import EvidenceInterval, evidence_interval
from numpyro_onestep.importance.pool import draw, draw_pool, one_step_defects
from numpyro_onestep.settings import require_count


class StepBudgets(Composed):
    """What a trained flow gives without further training, with its own number of steps or others.

    A RuntimeError says where nothing was trained yet.
    """

    def sample(
        self,
        rng_key: PRNGKeyArray,
        num_samples: int,
        num_flow_steps: int | None = None,
        parallel: bool = False,
    ) -> PyTree:
        """Further draws from the trained flow: `num_flow_steps` evaluations each, no training.

        They are not corrected: where `pareto_k` is above about 0.7, raise `num_samples` of the
        constructor instead.

        Args:
            rng_key: a JAX random key.
            num_samples: number of draws.
            num_flow_steps: k, a divisor of `num_grid_steps`; more than one step helps where the
                flow is good at every step budget (`evaluate`). Default None: the budget that the
                flow was trained for.
            parallel: make the steps of a draw in parallel, by parareal iterations, from four steps
                on: fewer evaluations follow each other, but more are made in all, which pays only
                where a device has room for them. The draws, and so their
                density, are those of the k steps one after the other, up to 0.01 in whitened units
                (docs/refined.md has the table). Default False.

        Returns:
            `{site: (num_samples, *shape)}`, as `get_samples`.

        Raises:
            RuntimeError: nothing was trained yet.
            TypeError: `rng_key` is no JAX random key.
            ValueError: `num_samples` is not positive, k does not divide the grid, or `parallel`
                with a structured map.

        Warns:
            OneStepWarning: the flow was not trained for k steps.
        """
        num, last = require_count("num_samples", num_samples), self._trained()
        distribution = last.distribution
        if parallel and not isinstance(distribution.flow, FlowMap):
            raise ValueError(
                "parallel=True needs a dense map, but this run has a structured one, whose nodes "
                "take one step at any budget: run with structure=None, or draw with parallel=False."
            )
        if num_flow_steps is not None:
            distribution = distribution.with_steps(num_flow_steps)
            self._warn_of_budget(num_flow_steps)
        with self._environment(rng_key) as key:
            return last.problem.constrain(draw(distribution, key, num, parallel))

    def one_step_defect(self, num_flow_steps: int | None = None) -> Float[np.ndarray, " pool"]:
        """How far one step ends from where k steps end, for every draw of the pool.

        The distance is in whitened units, in which the posterior's standard deviations are about
        1. On a flow that is good at every step budget it is the error of the one step; how little
        it says of a draw's weight is in docs/refined.md.

        Args:
            num_flow_steps: k, a divisor of `num_grid_steps`. Default None: the whole grid.

        Raises:
            RuntimeError: nothing was run yet.
            ValueError: k does not divide the grid.

        Warns:
            OneStepWarning: the flow was not trained for k steps.
        """
        result = self.result
        k = self.settings.flow.num_grid_steps if num_flow_steps is None else num_flow_steps
        distribution = result.distribution.with_steps(k)
        self._warn_of_budget(k)
        with self._environment():
            return one_step_defects(distribution, np.asarray(result.pool.z), k)

    def _warn_of_budget(self, num_flow_steps: int) -> None:
        """Warn where the flow was trained for another number of steps alone."""
        trained, settings = self._trained().num_flow_steps, self.settings
        for_all = settings.schedule.num_distillation_steps > 0 and settings.losses.elbo_weight == 0
        if num_flow_steps == trained or for_all:
            return
        message = (
            f"The flow was trained for num_flow_steps={trained}, and {num_flow_steps} steps of it "
            "may lead far from the posterior (evaluate() shows how far). A flow that is good at "
            "every step budget is trained with num_distillation_steps=2000, elbo_weight=0."
        )
        report.warn((coded(message, "step-budget"),), stacklevel=3)

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
        num, last = require_count("num_draws", num_draws), self._trained()
        distribution = last.distribution.with_steps(num_flow_steps)
        limit = self.settings.draws.batch_bytes
        with self._environment(rng_key, needs_data=True) as key:
            pool = draw_pool(distribution, last.problem.potential, key, num, 0, limit)
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
        with self._environment(rng_key, needs_data=True) as key:
            return evidence_interval(
                result.evidence,
                result.pool,
                result.distribution,
                result.problem.potential,
                result.corrected.x,
                key,
                num_rejuvenation_steps,
            )
