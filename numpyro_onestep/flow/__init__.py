"""The flow: its network, its map and exact volume, and the distribution that it makes."""

from numpyro_onestep.flow.distribution import FlowDistribution
from numpyro_onestep.flow.flow_map import AbstractFlowMap, FlowMap, Score, Volume, uniform_grid
from numpyro_onestep.flow.jacobian import StepJacobian
from numpyro_onestep.flow.network import ResidualVelocity
from numpyro_onestep.flow.preconditioned import PreconditionedPotential
from numpyro_onestep.flow.structured_map import StructuredMap
from numpyro_onestep.flow.transform import FlowTransform

__all__ = [
    "AbstractFlowMap",
    "FlowDistribution",
    "FlowMap",
    "FlowTransform",
    "PreconditionedPotential",
    "ResidualVelocity",
    "Score",
    "StepJacobian",
    "StructuredMap",
    "Volume",
    "uniform_grid",
]
