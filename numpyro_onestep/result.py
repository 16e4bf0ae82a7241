"""The result of a run: one frozen object, which is never changed.

The classes follow the steps of a run: `Trained`, `Weighted`, `Drawn`, `Result`.  Each has the
attributes of the class before it and adds those of one step.  A run that is interrupted leaves
the class of the last step that it has finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float, PyTree

from numpyro_onestep._util.pickling import ArraysAsNumpy
from numpyro_onestep.checks.coverage import Missed
from numpyro_onestep.checks.line_scan import Scan
from numpyro_onestep.corrections import Corrected
from numpyro_onestep.flow import FlowDistribution, PreconditionedPotential
from numpyro_onestep.given_draws.agreement import Agreement
from numpyro_onestep.importance.evidence import Evidence, WeightedPool
from numpyro_onestep.importance.pool import Pool
from numpyro_onestep.initialise.best_fit import Fit
from numpyro_onestep.problem import Problem
from numpyro_onestep.target.evaluation import energies
from numpyro_onestep.training.course import Course
from numpyro_onestep.training.loop import TrainingResult

_GROUPS, _FEWEST_OF_A_GROUP = 4, 4  # that independent draws are shown as; R-hat needs so many


@dataclass(frozen=True)
class Trained(ArraysAsNumpy):
    """The trained flow: all that further draws need.

    Attributes:
        problem: the target, and the precision it is evaluated in.
        fit: what the flow started from.
        training: the trained flow, and how training went.
        num_flow_steps: network evaluations that each draw takes.
        seconds: wall time of each part of the run so far in seconds, compilation included.
        trained_before: how the trainings of the run before this one went.
        trained_after: those after it, of maps that were not taken.
    """

    problem: Problem
    fit: Fit
    training: TrainingResult
    num_flow_steps: int
    seconds: dict[str, float]
    trained_before: tuple[Course, ...] = field(default=(), kw_only=True)
    trained_after: tuple[Course, ...] = field(default=(), kw_only=True)

    def attached(self) -> "Trained":
        """The same, with a target that can be evaluated: after unpickling it is traced again."""
        problem = self.problem.attached()
        return self if problem is self.problem else replace(self, problem=problem)

    @property
    def distribution(self) -> FlowDistribution:
        """The flow's distribution on R^d."""
        fit = self.fit
        return FlowDistribution(
            self.training.flow, fit.preconditioner, fit.base, self.num_flow_steps
        )

    @property
    def preconditioned(self) -> PreconditionedPotential:
        """The target in unconstrained and in whitened coordinates."""
        return PreconditionedPotential(self.problem.potential, self.fit.preconditioner)


@dataclass(frozen=True)
class Weighted(Trained):
    """The trained flow, and a weighed pool of its draws.

    Attributes:
        weighted: the pool, its evidence and its smoothed weights.
    """

    weighted: WeightedPool

    @property
    def pool(self) -> Pool:
        """Draws with their exact densities."""
        return self.weighted.pool

    @property
    def evidence(self) -> Evidence:
        """ELBO, log evidence and diagnostics from the weights of the pool."""
        return self.weighted.evidence

    @property
    def smoothed_log_weights(self) -> Float[np.ndarray, " n"]:
        """Pareto-smoothed log weights of the pool; the weights sum to one."""
        return self.weighted.smoothed_log_weights


@dataclass(frozen=True)
class Drawn(Weighted):
    """The weighed pool, the corrected draws, and what checks of these draws found.

    Attributes:
        corrected: draws on R^d, `(num_samples, d)`, and how they came about.
        samples: the same draws as the model's own sites, `{site: (num_samples, *shape)}`.
        scan: what lines through the draws show; None where there are too few draws.
        missed: modes that the draws do not reach; None where none was found.
        num_unexplained: coordinates with an interaction, at the draws, that the structure of the
            map leaves out.
        agreement: what draws given to `distil` and these say about each other; None after `run`.
    """

    corrected: Corrected
    samples: PyTree
    scan: Scan | None
    missed: Missed | None
    num_unexplained: int
    agreement: Agreement | None = field(default=None, kw_only=True)

    @property
    def num_chains(self) -> int:
        """Chains that the draws are shown as: independent draws as four groups, where they can be.

        With one chain ArviZ has no R-hat.  That of such groups is 1 but for noise.
        """
        num, chains = len(self.corrected.x), self.corrected.num_chains
        is_divisible = num % _GROUPS == 0 and num >= _GROUPS * _FEWEST_OF_A_GROUP
        return _GROUPS if chains == 1 and is_divisible else chains

    def by_chain(self, draws: PyTree) -> PyTree:
        """Arrays with one row for each draw, with an axis of chains put first."""
        num = self.num_chains
        each = len(self.corrected.x) // num  # spelt out, since a site may be of size zero
        return jax.tree.map(lambda leaf: leaf.reshape(num, each, *leaf.shape[1:]), draws)

    @property
    def stats(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Numbers that go with each draw: `lp`, and more where the correction gives more."""
        corrected, pool = self.corrected, self.pool
        if corrected.stats:
            return dict(corrected.stats)
        if corrected.chosen is None:
            self.problem.require_data()
            return {"lp": -energies(self.problem.potential, corrected.x)}
        lp, log_q = (v[corrected.chosen] for v in (pool.log_density, pool.log_q))
        return {"lp": lp, "log_q": log_q, "log_weight": lp - log_q}


@dataclass(frozen=True)
class Result(Drawn):
    """All results of a run: flow, pool, evidence, corrected draws, checks, and warnings.

    `OneStep.result` returns it.  Log densities, log weights and log evidence are in nats.

    Attributes:
        messages: the warnings of the run. The first says why the result may be wrong, if it may
            be; the others name what the result leaves out.
        problem: the target, and the precision in which it is evaluated.
        fit: the Gaussian preconditioner, and the base distribution that the flow started from.
        training: the trained flow, and how training went.
        num_flow_steps: network evaluations that each draw takes.
        weighted: the pool, its evidence and its smoothed weights.
        corrected: draws on R^d, `(num_samples, d)`, and how they came about.
        samples: the same draws as the model's own sites, `{site: (num_samples, *shape)}`.
        scan: what lines through the draws show; None where there are too few draws.
        missed: modes that the draws do not reach; None where none was found.
        num_unexplained: coordinates with an interaction, at the draws, that the structure of the
            map leaves out.
        agreement: what draws given to `distil` and these say about each other; None after `run`.
        seconds: wall time of each part of the run in seconds, compilation included.
        trained_before: how the trainings of the run before this one went.
        trained_after: those after it, of maps that were not taken.
    """

    messages: tuple[str, ...]

    def among(self, courses: Sequence[Course]) -> "Result":
        """The same, with all the trainings of the run; a fit that was not trained has none here."""
        later = len(self.trained_before) + bool(len(self.training.losses))
        return replace(self, trained_after=tuple(courses[later:]))


_Stage = TypeVar("_Stage", bound=Trained)


def extended(stage: type[_Stage], earlier: Trained, **more: Any) -> _Stage:
    """An object of the next class, from the earlier one and the attributes that the step sets."""
    return stage(**{f.name: getattr(earlier, f.name) for f in fields(earlier)} | more)
