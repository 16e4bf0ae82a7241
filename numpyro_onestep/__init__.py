"""One-step flow inference for NumPyro: draws, an evidence that is a true bound, and diagnostics."""

from importlib.metadata import version

from numpyro_onestep.compare import Comparison, compare_with_nuts
from numpyro_onestep.diagnostics.report import OneStepWarning
from numpyro_onestep.flow import FlowDistribution, FlowTransform
from numpyro_onestep.importance.evidence import Evidence
from numpyro_onestep.importance.interval import EvidenceInterval
from numpyro_onestep.result import Result
from numpyro_onestep.sampler import OneStep
from numpyro_onestep.settings import Settings

__all__ = [
    "Comparison",
    "Evidence",
    "EvidenceInterval",
    "FlowDistribution",
    "FlowTransform",
    "OneStep",
    "OneStepWarning",
    "Result",
    "Settings",
    "compare_with_nuts",
]
__version__ = version("numpyro_onestep")
