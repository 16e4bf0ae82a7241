"""What a run leaves behind: one frozen object, built whole.

A run that is interrupted leaves the part that it had finished, in a class of its own: each of
these classes is the one before and what the next step of the run has added.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, PyTree

from numpyro_onestep._util.pickling import ArraysAsNumpy
from numpyro_onestep.checks.coverage import Missed
from numpyro_onestep.checks.line_scan import Scan
from numpyro_onestep.corrections import Corrected
from numpyro_onestep.flow import FlowDistribution, PreconditionedPotential
from numpyro_onestep.importance.evidence import Evidence, WeightedPool
from numpyro_onestep.importance.pool import Pool
from numpyro_onestep.initialise.best_fit import Fit
from numpyro_onestep.problem import Problem
from numpyro_onestep.training.loop import TrainingResult


@dataclass(frozen=True)
class Trained(ArraysAsNumpy):
    """The trained flow: all that further draws need.

    Attributes:
        problem: the target, and the precision it is evaluated in.
        fit: what the flow started from.
        training: the trained flow, and how training went.
        num_flow_steps: network evaluations that each draw takes.
    """

    problem: Problem
    fit: Fit
    training: TrainingResult
    num_flow_steps: int

    def attached(self) -> "Trained":
        """The same, with a target that works: one that came out of a pickle is traced again."""
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
    """And a pool of its draws, weighed.

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
        """What their weights say."""
        return self.weighted.evidence

    @property
    def smoothed_log_weights(self) -> Float[np.ndarray, " n"]:
        """Pareto-smoothed log weights of the pool; the weights sum to one."""
        return self.weighted.smoothed_log_weights


@dataclass(frozen=True)
class Drawn(Weighted):
    """And corrected draws, with what was found by looking at them.

    Attributes:
        corrected: draws on R^d, and how they came about.
        samples: the same as the model's own sites.
        scan: what lines through the draws show, None where they are too few.
        missed: modes that the draws do not reach, None where none was found.
        seconds: wall time of each part of the run, compilation included.
    """

    corrected: Corrected
    samples: PyTree
    scan: Scan | None
    missed: Missed | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class Result(Drawn):
    """And what is to be warned of: all that a run leaves behind.

    Attributes:
        messages: one for the result where it may be wrong, and one for each thing it leaves out.
    """

    messages: tuple[str, ...]


_Stage = TypeVar("_Stage", bound=Trained)


def extended(stage: type[_Stage], earlier: Trained, **more: Any) -> _Stage:
    """The next stage: what was there, and more."""
    return stage(**{f.name: getattr(earlier, f.name) for f in fields(earlier)}, **more)
