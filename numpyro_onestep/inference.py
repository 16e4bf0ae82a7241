"""One run, from a target to a result: it puts the steps in order and holds no mathematics.

The steps: trace the target; fit the preconditioner; with `multimodal=True`, run tempered SMC and
fit a mixture; train the flow; weigh a pool; correct; check the draws.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_onestep import limits, starts
from numpyro_onestep._util.clock import Stopwatch
from numpyro_onestep._util.numerics import is_double, numerics
from numpyro_onestep._util.random import stream
from numpyro_onestep.checkpoint.journal import Journal, recorded
from numpyro_onestep.checks.every_check import look_over
from numpyro_onestep.corrections import AbstractCorrection
from numpyro_onestep.corrections.none import NoCorrection
from numpyro_onestep.diagnostics import report
from numpyro_onestep.diagnostics.choice import is_enough, quality
from numpyro_onestep.diagnostics.doubts import is_good
from numpyro_onestep.flow import FlowDistribution, PreconditionedPotential
from numpyro_onestep.given_draws.agreement import compared
from numpyro_onestep.given_draws.fit import Given, fit_of_draws
from numpyro_onestep.importance import pool as pools
from numpyro_onestep.importance.evidence import mean_energy, weigh
from numpyro_onestep.importance.psis import import_ahead
from numpyro_onestep.initialise import best_fit
from numpyro_onestep.initialise.best_fit import Fit
from numpyro_onestep.multimodal import modes
from numpyro_onestep.multimodal.mixture_fit import fit_mixture
from numpyro_onestep.multimodal.tempered_smc import explore, require_explorable
from numpyro_onestep.problem import (
    Problem,
    completed,
    fit_in_double_precision,
    in_double_precision,
    precision_at_fit,
    precision_at_pool,
)
from numpyro_onestep.result import Drawn, Result, Trained, Weighted, extended
from numpyro_onestep.settings import Settings
from numpyro_onestep.structure.structure import Structure
from numpyro_onestep.target.precision import double_energy
from numpyro_onestep.target.traced import TracedFunction
from numpyro_onestep.training import loop
from numpyro_onestep.training.course import Course, course_of
from numpyro_onestep.warm_start import fit_of_earlier

# Mass of the modes that the draws do not reach, over the mass that they do reach.  Above this the
# run was in the wrong place, and is made again from the heaviest of these modes.
_ELSEWHERE = 100.0

# A function of a random key and a start (or None) that returns the traced target with a start.
Tracer = Callable[[PRNGKeyArray, Any], Problem]


class Inference:
    """One call of `OneStep.run`.

    Args:
        settings: all settings of the sampler.
        correction: how the flow's draws become draws of the posterior.
        rng_key: a JAX random key.
        keep: called with every flow as soon as it is trained, so that an interrupt does not lose
            it.
        previous: an earlier run, whose flow the training begins with where it can.
        journal: the record of the steps, from which a run that was ended goes on.
        given: draws of the posterior, which a dense map starts from, in place of `previous`.
    """

    def __init__(
        self,
        settings: Settings,
        correction: AbstractCorrection,
        rng_key: PRNGKeyArray,
        keep: Callable[[Trained], None],
        previous: Trained | None = None,
        journal: Journal | None = None,
        given: Given | None = None,
    ):
        self.settings, self.correction, self.keep = settings, correction, keep
        self.previous, self.given = previous, given
        self.journal = Journal() if journal is None else journal
        self.rng_key = rng_key
        self.clock = Stopwatch()
        self.courses: list[Course] = []  # of every map that was trained
        self._dtype: Any = None  # of the session, and so of the network

    def run(self, trace: Tracer, init_params: Any) -> Result:
        """The result; the run is repeated from another mode if nearly all mass is there."""
        result = self._best(trace, init_params)
        if not self.journal.is_ended:
            result = result.among(self.courses)
        self.journal.end(result)
        return result

    def _best(self, trace: Tracer, init_params: Any) -> Result:
        result = self._from(trace, init_params)
        if self.journal.is_ended:
            return result
        if self.previous is not None and result.messages and not result.training.interrupted:
            # Other data may have moved the posterior away from the earlier flow.
            self.previous, warm = None, result
            result = max((warm, self._from(trace, init_params)), key=quality)
        missed = result.missed
        if missed is None or missed.odds <= _ELSEWHERE or result.training.interrupted:
            return result
        if self.given is not None:  # they are not there, and the warning says so
            return result
        there = result.problem.target.unravelled(missed.where)
        self.rng_key = stream(self.rng_key, "elsewhere")
        return max((result, self._from(trace, there)), key=quality)

    def _key(self, name: str, index: int = 0) -> PRNGKeyArray:
        return stream(self.rng_key, name, index)

    def _settings_for(self, fit: Fit) -> Settings:
        d = fit.preconditioner.loc.size
        return self.settings if fit.structure is None else self.settings.of_structured_map(d)

    def _pool_sizes(self, problem: Problem) -> list[tuple[int, int, int]]:
        """Of a first pool and of a full one: draws, inflated ones, and a batch's memory (bytes)."""
        draws, of_target = self.settings.draws, (problem.start.size, problem.potential.num_numbers)
        sizes = sorted({draws.num_first_pool_in(*of_target), draws.num_pool_in(*of_target)})
        fraction = self.correction.inflated_fraction
        return [(num, int(fraction * num), draws.batch_bytes) for num in sizes]

    def _from(self, trace: Tracer, init_params: Any) -> Result:
        """A run from one point, in the precision that it turns out to need."""
        precision = self.settings.draws.target_precision
        with ExitStack() as environment:
            with self.clock.part("initialisation"):
                problem = trace(self._key("start"), init_params)
                self.journal.begin(problem, self.rng_key, self.settings, self.previous)
                if self.journal.is_ended:
                    key = stream(stream(self.rng_key, "elsewhere"), "start")
                    return self.journal.result(lambda there: trace(key, there))
                self._dtype = problem.start.dtype
                if self.settings.draws.multimodal:
                    require_explorable(problem.start.size)
                problem = completed(problem, self._key("completion"))
                known = fit_of_earlier(self.previous, problem, self.settings, self._key("earlier"))
                if known is None:
                    self.previous = None
            with self.clock.part("structure"):
                structure = None
                if known is None:
                    structure = self._structure(problem)
            with self.clock.part("initialisation"):
                is_new = known is None and not self.journal.has_steps
                if is_new and (precision != "double" or is_double()):
                    self._compile_ahead(problem, structure)
            if precision == "double" and not is_double():
                problem = in_double_precision(problem, required=True)
                environment.enter_context(numerics(double=True))
            fit, double = known or self._fit(problem, structure), None
            if precision == "auto" and not is_double():
                problem, double = self._with_double(problem)
            if double is not None:
                problem, fit, double = self._precise_fit(problem, fit, double, environment)
            lost = not math.isfinite(float(fit.elbo)) and self._is_explorable(problem)
            if self.settings.draws.multimodal or lost:
                fit = self._explored(problem, fit)
            weighted = self._trained(problem, fit, is_near=fit is known)
            weighted = self._or_dense(weighted)
            if double is not None:
                weighted = self._precise(weighted, double, environment)
            result = self._finished(weighted)
            self.keep(result)
            result = self._or_structured(result)
            if self._has_obstacle(result):
                # No gradient shows an edge or a step, so no flow can be trained around it.
                found = self._explored(result.problem, result.fit)
                if found is not result.fit:
                    again = self._untrained(result.problem, found)
                    result = max((result, self._finished(again)), key=quality)
            return result

    def _or_dense(self, weighted: Weighted) -> Weighted:
        """The same run; where a structured map is not enough, the better of it and a dense map."""
        problem, d = weighted.problem, weighted.problem.start.size
        is_dense = weighted.fit.structure is None
        if is_dense or d > limits.BATCH_AND_MATCH or weighted.training.interrupted:
            return weighted
        if is_enough(weighted):
            return weighted
        dense = self._trained(problem, self._fit(problem, None))
        return max((weighted, dense), key=quality)

    def _or_structured(self, result: Result) -> Result:
        """The same result; where one of few coordinates is doubted, the better of two maps."""
        problem = result.problem
        # With sites that are named, and with many coordinates, a structure was looked for before.
        is_tried = self.settings.flow.structure != "auto"
        is_tried |= problem.start.size >= limits.STRUCTURED_MAP
        doubted = bool(result.messages) and result.evidence.doubtful
        if is_tried or not doubted or result.training.interrupted:
            return result
        with self.clock.part("structure"):
            structure = self._structure(problem, limits.SMALLEST_STRUCTURED_MAP)
        if structure is None:
            return result
        other = self._finished(self._trained(problem, self._fit(problem, structure)))
        return max((result, other), key=lambda run: (not run.messages, *quality(run)))

    def _with_double(self, problem: Problem) -> tuple[Problem, TracedFunction | None]:
        """U in double precision, to compare with; None where the model cannot be traced in it."""
        with self.clock.part("precision"):
            double = double_energy(problem.target)
        return replace(problem, is_only_single=double is None), double

    def _precise_fit(
        self, problem: Problem, fit: Fit, double: TracedFunction, environment: ExitStack
    ) -> tuple[Problem, Fit, TracedFunction | None]:
        """The problem and its fit, in double precision if draws of the fit show the need."""
        with self.clock.part("precision"):
            error = precision_at_fit(problem, fit, double, self._key("precision"))
        if not error.counts:
            return problem, fit, double
        problem = in_double_precision(problem, error)
        environment.enter_context(numerics(problem.is_double))
        return problem, self._fit(problem, fit.structure), None

    def _precise(
        self, weighted: Weighted, double: TracedFunction, environment: ExitStack
    ) -> Weighted:
        """The weighed pool; if its draws show the need, after further training in double."""
        problem = weighted.problem
        with self.clock.part("precision"):
            key = self._key("precision", 1)  # the first one was used at the fit
            error = precision_at_pool(problem, weighted.weighted, double, key)
        if not error.counts:
            return weighted
        precise = in_double_precision(problem, error)
        fit = fit_in_double_precision(weighted.fit) if precise.is_double else weighted.fit
        environment.enter_context(numerics(precise.is_double))
        return self._trained(precise, fit._replace(flow=weighted.training.flow))

    def _compile_ahead(self, problem: Problem, structure: Structure | None) -> None:
        """Begin to compile, in another thread, the programs that later steps will need."""
        settings, potential, start = self.settings, problem.potential, problem.start
        key = self.rng_key
        if structure is None:
            if self.given is not None or start.size > limits.BATCH_AND_MATCH:
                return  # the type of the preconditioner is not known yet
            best_fit.compile_ahead(potential, start, key)
            if settings.draws.multimodal:
                modes.compile_ahead(potential, start, key)
                return  # the base distribution is not known yet
        else:
            settings = settings.of_structured_map(start.size)
        fit = starts.shapes_of_fit(problem, structure, settings, self._dtype, key)
        flow, num_steps = next(starts.untrained_maps(fit, settings, self._dtype, key))
        distribution = FlowDistribution(flow, fit.preconditioner, num_steps=num_steps)
        preconditioned = PreconditionedPotential(potential, fit.preconditioner)
        loop.compile_ahead(distribution, preconditioned, key, settings)
        pools.compile_ahead(distribution, potential, key, *self._pool_sizes(problem)[0])
        import_ahead()

    @recorded("structure")
    def _structure(self, problem: Problem, *fewest: int) -> Structure | None:
        return starts.find_structure(problem, self.settings, self.rng_key, *fewest)

    @recorded("preconditioner")
    def _fit(self, problem: Problem, structure: Structure | None) -> Fit:
        with self.clock.part("preconditioner"):
            if structure is not None:
                settings, key = self.settings, self.rng_key
                found = starts.structured_fit(problem, structure, settings, self._dtype, key)
                if found is not None:
                    return found
            if self.given is not None:
                settings, key = self.settings, self._key("given draws")
                return fit_of_draws(self.given, problem, settings, self._dtype, key)
            return starts.gaussian_fit(problem, self.rng_key)

    def _explored(self, problem: Problem, fit: Fit) -> Fit:
        """A mixture fitted to the particles of tempered SMC; the same fit where that fails."""
        found = self._mixture(problem, fit)
        return fit if found is None else found

    @recorded("exploration")
    def _mixture(self, problem: Problem, fit: Fit) -> Fit | None:
        with self.clock.part("exploration"):
            gaussian: Any = fit.preconditioner
            key = self._key("exploration")
            try:
                population = explore(problem.potential, problem.start, gaussian, key)
            except ValueError:
                if self.settings.draws.multimodal:
                    raise
                return None  # the user did not ask for tempered SMC: its failure is no error
            return fit_mixture(problem.potential, population, self._key("mixture"))

    def _trained(self, problem: Problem, fit: Fit, is_near: bool = False) -> Weighted:
        """The best of the flows trained one after the other, with its pool."""
        attempts: list[Weighted] = []
        potential = PreconditionedPotential(problem.potential, fit.preconditioner)
        settings = self._settings_for(fit)
        maps = starts.untrained_maps(
            fit, settings, self._dtype, self.rng_key, lambda: attempts[-1].training.flow
        )
        for untrained, num_steps in maps:
            start = FlowDistribution(untrained, fit.preconditioner, fit.base, num_steps)
            with self.clock.part("training"):
                key = self._key("training", num_steps)
                arguments = start, potential, key, settings, float(fit.elbo), is_near
                training = self.journal.training(partial(loop.train, *arguments))
            trained = self._of(problem, fit, training, num_steps)
            # From here on an interrupt or an error does not lose the trained flow.
            self.keep(trained)
            attempts.append(self._weighted(trained, self._key("pool")))
            self.courses += course_of(training, num_steps, attempts[-1].evidence.elbo)
            if training.interrupted or is_enough(attempts[-1]):
                break
        best = max(attempts, key=quality)
        if not (best.training.from_gaussian or is_good(best.evidence)):
            # A mixture is near the target without training, and near an edge training makes it
            # worse.
            best = max(best, self._untrained(problem, fit), key=quality)
        return best

    def _untrained(self, problem: Problem, fit: Fit) -> Weighted:
        """A pool of draws of the fitted distribution itself, by a flow that is not trained."""
        steps = self.settings.draws.num_flow_steps or 1
        flow = starts.dense_map(self.settings.flow, problem.start.size, self._dtype, self.rng_key)
        training = loop.TrainingResult(flow, from_gaussian=False)
        untrained = self._of(problem, fit, training, steps)
        return self._weighted(untrained, self._key("untrained pool"))

    def _of(self, problem: Problem, fit: Fit, training: loop.TrainingResult, steps: int) -> Trained:
        seconds, before = dict(self.clock.seconds), tuple(self.courses)
        return Trained(problem, fit, training, steps, seconds, trained_before=before)

    def _weighted(self, trained: Trained, rng_key: PRNGKeyArray) -> Weighted:
        """A weighed pool of the flow's draws, with its evidence."""
        with self.clock.part("draws"):
            flow, potential = trained.distribution, trained.problem.potential
            first, *full = self._pool_sizes(trained.problem)
            weighted = weigh(pools.draw_pool(flow, potential, rng_key, *first))
            if full and (weighted.evidence.doubtful or not weighted.evidence.is_even):
                weighted = weigh(pools.draw_pool(flow, potential, rng_key, *full[0]))
            return extended(Weighted, trained, weighted=weighted)

    def _finished(self, weighted: Weighted) -> Result:
        """Correct the draws, check what they miss, and write the warnings."""
        problem, losses = weighted.problem, self._settings_for(weighted.fit).losses
        with self.clock.part("draws"):
            correction = self.correction
            if not np.isfinite(weighted.evidence.log_evidence):
                correction = NoCorrection(self.settings.draws)  # no weight is of any use
            arguments = weighted.weighted, weighted.distribution, problem.potential
            corrected = self.journal.step(
                "correction", lambda: correction(*arguments, self._key("correction"))
            )
            x = corrected.x
            of_flow = weighted.distribution, weighted.preconditioned, weighted.training
            of_target = problem.start, problem.target.names(), weighted.fit.structure
            mean, batch_size = mean_energy(weighted.weighted, len(x)), losses.batch_size
            found = look_over(*of_flow, *of_target, x, mean, self.rng_key, batch_size)
            samples = jax.block_until_ready(problem.constrain(x))
            agreement = compared(self.given, *arguments, x, self._key("agreement"))
        found = {"corrected": corrected, "samples": samples, **found._asdict()}
        found |= {"agreement": agreement, "seconds": dict(self.clock.seconds)}
        drawn = extended(Drawn, weighted, **found)
        return extended(Result, drawn, messages=report.check(drawn))

    def _is_explorable(self, problem: Problem) -> bool:
        """Whether settings and dimension allow a start from a mixture."""
        plain = self.correction.is_multimodal and not self.settings.schedule.num_distillation_steps
        return plain and problem.start.size <= limits.MULTIMODAL

    def _has_obstacle(self, result: Result) -> bool:
        """Whether the density has an edge or a step that the flow could not be trained around."""
        evidence, scan = result.evidence, result.scan
        if not self._is_explorable(result.problem) or result.training.interrupted:
            return False
        if not result.training.from_gaussian:
            return False  # it started from a mixture already
        if not math.isfinite(evidence.log_evidence):
            return True
        found = scan is not None and bool(scan.edge or scan.step)
        return found and not is_good(evidence, scan)
