"""The flow: its network, its map and its exact volume."""

from numpyro_onestep.flow.flow_map import FlowMap, Volume, uniform_grid
from numpyro_onestep.flow.jacobian import StepJacobian
from numpyro_onestep.flow.network import ResidualVelocity

__all__ = ["FlowMap", "ResidualVelocity", "StepJacobian", "Volume", "uniform_grid"]
