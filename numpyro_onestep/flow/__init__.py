"""The flow: its network, its map and exact volume, and the distribution that it makes."""

from numpyro_onestep.flow.distribution import FlowDistribution
from numpyro_onestep.flow.flow_map import FlowMap, Volume, uniform_grid
from numpyro_onestep.flow.jacobian import StepJacobian
from numpyro_onestep.flow.network import ResidualVelocity
from numpyro_onestep.flow.preconditioned import PreconditionedPotential
from numpyro_onestep.flow.transform import FlowTransform

__all__ = [
    "FlowDistribution",
    "FlowMap",
    "FlowTransform",
    "PreconditionedPotential",
    "ResidualVelocity",
    "StepJacobian",
    "Volume",
    "uniform_grid",
]
