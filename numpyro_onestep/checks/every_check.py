"""All checks of the draws of a run, one after the other."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, PRNGKeyArray

from numpyro_onestep._util import progress
from numpyro_onestep._util.random import numpy_generator, stream
from numpyro_onestep.checks import effort
from numpyro_onestep.checks.coverage import Missed, find_missed
from numpyro_onestep.checks.line_scan import Scan, scan_lines
from numpyro_onestep.flow import FlowDistribution, PreconditionedPotential
from numpyro_onestep.structure.structure import Structure
from numpyro_onestep.structure.verification import unexplained
from numpyro_onestep.training.loop import TrainingResult

_NUM_VERIFIED = 4  # draws at which the structure of the map is verified


class Found(NamedTuple):
    """What the checks found; `Drawn` (`result.py`) says what each part means."""

    scan: Scan | None
    missed: Missed | None
    num_unexplained: int


@progress.stage("checking the draws")
def look_over(
    distribution: FlowDistribution,
    potential: PreconditionedPotential,
    training: TrainingResult,
    start: Float[Any, " d"],
    names: list[str],
    structure: Structure | None,
    x: Float[Any, "n d"],
    mean_energy: float,
    rng_key: PRNGKeyArray,
    batch_size: int,
) -> Found:
    """Look for what the draws of a run miss.

    Args:
        distribution: the flow.
        potential: the target.
        training: how the flow was trained.
        start: the point that the run started from.
        names: of the coordinates.
        structure: that of the map, or None.
        x: draws of the posterior.
        mean_energy: of the posterior, by the weighted pool (nats).
        rng_key: a JAX random key.
        batch_size: draws in each iteration of training.
    """
    target, num_iterations = potential.unconstrained, len(training.losses)
    of_training = effort.of_training(distribution, target, num_iterations, batch_size)
    allowed = effort.allowed(of_training)
    key_lines, key_coverage = stream(rng_key, "lines"), stream(rng_key, "coverage")
    scan = scan_lines(target, x, names, key_lines, allowed)
    if scan is not None and not training.from_gaussian:
        # Tempered SMC has looked everywhere, and modes far apart are too narrow for the points on a
        # line.
        scan = scan._replace(off=0.0)
    missed = find_missed(potential, start, x, mean_energy, key_coverage, allowed / 2)
    if structure is None:
        return Found(scan, missed, 0)
    rng, own = numpy_generator(stream(rng_key, "verification")), structure.coordinates(x)
    draws, scale = np.asarray(own[:_NUM_VERIFIED], start.dtype), np.std(own, axis=0)
    found = unexplained(structure.potential(target), structure, draws, scale, rng)
    return Found(scan, missed, found)
