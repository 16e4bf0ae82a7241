"""The target: a NumPyro model, or a potential function, as a potential on R^d."""

from numpyro_onestep.target.axes import Axes, axes_of
from numpyro_onestep.target.model_trace import Site
from numpyro_onestep.target.potential import Outcome, Potential
from numpyro_onestep.target.targets import (
    AbstractTarget,
    FunctionTarget,
    ModelTarget,
    function_target,
    model_target,
)

__all__ = [
    "AbstractTarget",
    "Axes",
    "FunctionTarget",
    "ModelTarget",
    "Outcome",
    "Potential",
    "Site",
    "axes_of",
    "function_target",
    "model_target",
]
