"""The target: a NumPyro model, or a potential function, as a potential on R^d."""

from numpyro_onestep.target.initial_point import require_finite
from numpyro_onestep.target.model_trace import Site
from numpyro_onestep.target.potential import Outcome, Potential
from numpyro_onestep.target.targets import (
    AbstractTarget,
    FunctionTarget,
    ModelTarget,
    function_target,
    model_target,
)
from numpyro_onestep.target.traced import TRACING

__all__ = [
    "TRACING",
    "AbstractTarget",
    "FunctionTarget",
    "ModelTarget",
    "Outcome",
    "Potential",
    "Site",
    "function_target",
    "model_target",
    "require_finite",
]
