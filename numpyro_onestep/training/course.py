"""How the ELBO of a map went while it was trained: what is kept of maps that are not taken."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_onestep.flow import StructuredMap
from numpyro_onestep.training.loop import TrainingResult

PER_POINT = 100  # iterations, as in a chunk


class Course(NamedTuple):
    """The training of one map.

    Attributes:
        name: the kind of the map, and its number of flow steps.
        elbos: medians of the estimates of the ELBO over each hundred iterations (nats).
        num_iterations: iterations in all.
        elbo: the ELBO of its pool after training (nats).
    """

    name: str
    elbos: Float[np.ndarray, " points"]
    num_iterations: int
    elbo: float


def course_of(training: TrainingResult, num_steps: int, elbo: float) -> tuple[Course, ...]:
    """The course of a training; none where there was no iteration.

    Args:
        training: the trained map, and how training went.
        num_steps: its flow steps.
        elbo: the ELBO of its pool after training (nats).
    """
    losses = training.losses
    course = Course(name_of(training, num_steps), medians(losses), len(losses), elbo)
    return (course,) if len(losses) else ()


def name_of(training: TrainingResult, num_steps: int) -> str:
    """What the map of a training is called in a picture."""
    flow, kind = training.flow, "dense map"
    if isinstance(flow, StructuredMap):
        kind = "structured map" + (" with a network" if flow.nodes.network is not None else "")
    return f"{kind}, {num_steps} flow step{'s' * (num_steps > 1)}"


def medians(losses: Float[np.ndarray, " iterations"]) -> Float[np.ndarray, " points"]:
    """Minus the median of each hundred losses; NaN where none of them is finite."""
    finite = np.where(np.isfinite(losses), losses, np.nan).astype(np.float64)
    parts = [finite[i : i + PER_POINT] for i in range(0, len(finite), PER_POINT)]
    return np.array([np.nan if np.isnan(v).all() else -np.nanmedian(v) for v in parts])
