"""The losses by which a flow is trained, each in a file of its own."""

from numpyro_onestep.training.objectives.denoising import Noised, denoising_loss, noised
from numpyro_onestep.training.objectives.elbo import DrawWeights, elbo_loss
from numpyro_onestep.training.objectives.path import path_loss
from numpyro_onestep.training.objectives.state_consistency import state_consistency_loss
from numpyro_onestep.training.objectives.volume_consistency import volume_consistency_loss

__all__ = [
    "DrawWeights",
    "Noised",
    "denoising_loss",
    "elbo_loss",
    "noised",
    "path_loss",
    "state_consistency_loss",
    "volume_consistency_loss",
]
