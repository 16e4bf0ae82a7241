"""A run that has ended, as a checkpoint keeps it: its result without the model and its data."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import PyTree

from numpyro_onestep._util.numerics import numerics
from numpyro_onestep.problem import Problem
from numpyro_onestep.result import Result


def described(result: Result, first: Problem) -> dict[str, Any]:
    """A result as plain values, for `storage/tree.py`.

    Args:
        result: of the whole run.
        first: the problem that the run began with. The result may be of another start, or of
            another precision.
    """
    problem = result.problem
    here, there = (np.asarray(one.start, np.float64) for one in (first, problem))
    return {
        # Samples may hold the data, in deterministic sites, and are computed again.
        "result": replace(result, samples=None),
        "start": problem.start,
        "is_elsewhere": not np.array_equal(here, there),
        "is_double": problem.is_double,
        "is_only_single": problem.is_only_single,
        "error": problem.error,
        "completion": problem.potential.completion,
    }


def restored(
    kept: dict[str, Any], first: Problem, trace_elsewhere: Callable[[PyTree], Problem]
) -> Result:
    """The result that was described, with its target.

    Args:
        kept: what `described` returned.
        first: the problem, as it is traced at the beginning of the run.
        trace_elsewhere: traces it again, from another start.
    """
    problem, start = first, kept["start"]
    if kept["is_elsewhere"]:
        problem = trace_elsewhere(first.target.unravelled(start))
    potential = problem.potential
    if kept["is_double"]:
        with numerics(double=True):
            potential = problem.target.potential(np.float64)
    problem = replace(
        problem,
        potential=replace(potential, completion=kept["completion"]),
        start=start,
        is_double=kept["is_double"],
        is_only_single=kept["is_only_single"],
        error=kept["error"],
    )
    result = kept["result"]
    object.__setattr__(result, "problem", problem)  # the only field that is not written
    return replace(result, samples=problem.constrain(result.corrected.x))
