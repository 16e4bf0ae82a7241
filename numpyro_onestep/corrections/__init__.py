"""From the flow's weighted draws to draws of the posterior.

`None` leaves the flow's own draws, `"psis"` resamples the pool by its smoothed weights, `"imh"`
runs independence Metropolis-Hastings with the pool's draws as proposals, `"nuts"` runs NUTS on
z, the coordinates of the base distribution, and `"pgibbs"` runs particle Gibbs over the path of the
diffusion.
"""

from numpyro_onestep.corrections.base import AbstractCorrection, Corrected
from numpyro_onestep.corrections.imh import IndependenceMetropolis
from numpyro_onestep.corrections.latent_nuts import LatentNUTS
from numpyro_onestep.corrections.none import NoCorrection
from numpyro_onestep.corrections.pgibbs import ParticleGibbs
from numpyro_onestep.corrections.psis import PSIS
from numpyro_onestep.settings import DrawSettings, require

__all__ = ["CORRECTIONS", "AbstractCorrection", "Corrected", "correction_of"]

# Each correction by the name that users give as `correction=`.
CORRECTIONS: dict[str | None, type[AbstractCorrection]] = {
    "psis": PSIS,
    "imh": IndependenceMetropolis,
    "nuts": LatentNUTS,
    "pgibbs": ParticleGibbs,
    None: NoCorrection,
}


def correction_of(settings: DrawSettings) -> AbstractCorrection:
    """The correction that the settings name.

    Raises:
        ValueError: no correction has that name, or it does not allow another of the settings.
    """
    name = settings.correction
    *others, last = (repr(known) for known in CORRECTIONS)
    require("correction", name, f"{', '.join(others)} or {last}", lambda v: v in CORRECTIONS)
    correction = CORRECTIONS[name](settings)
    correction.require_possible(name)
    return correction
