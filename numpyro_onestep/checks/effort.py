"""How much the checks of a run may compute: a fraction of what its training has computed.

Effort is counted, in numbers computed, and not timed: by the clock a check would look at more in
one run than in the next, so that the same key would not give the same result.
"""

from typing import Any

from numpyro_onestep.flow import FlowDistribution

# A gradient takes about three times the numbers of the function.
_GRADIENT = 3.0
# Numbers in whose time an operation at least takes place, however few it computes itself.
_OF_OPERATION = 1000
# What may be spent in any case, about as long as compilation takes; and beside it a fraction of the
# effort of training.
_LEAST, _FRACTION = 2.0**29, 0.3


def of_gradients(potential: Any, num_points: int) -> float:
    """The effort of one call that evaluates U with its gradient at some points."""
    numbers = getattr(potential, "num_numbers", 1) * num_points
    return _GRADIENT * (numbers + _OF_OPERATION * getattr(potential, "num_operations", 1))


def of_training(
    distribution: FlowDistribution, potential: Any, num_iterations: int, batch_size: int
) -> float:
    """The effort of training a flow on a potential."""
    of_flow = distribution.flow.numbers_per_draw * batch_size
    return num_iterations * (of_flow + of_gradients(potential, batch_size))


def allowed(of_training: float) -> float:
    """The effort that a check may take, after a training of this effort."""
    return _LEAST + _FRACTION * of_training
