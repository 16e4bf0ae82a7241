"""What is said where draws that the user gave disagree with those of the sampler."""

import numpy as np

from numpyro_onestep.result import Drawn

# Fraction of draws of one kind that may lie where the other kind has none.  Between two sets of
# draws of the same posterior it is about a hundredth.
_APART = 0.05
# Standard deviations.  The mean of a chain is known to 0.14 of them at an ESS of 50.
_LARGEST_SHIFT = 0.5
_UNREACHED = 0.02  # fraction of given draws to which the flow may give no density


def disagreements(run: Drawn) -> list[str]:
    """A warning where given draws and the sampler's are not of one distribution; else none.

    One sentence says which of the two goes further, as the weights, exact as they are, cannot know
    what neither kind of draws visits.
    """
    found = run.agreement
    if found is None:
        return []
    names = run.problem.target.names()
    signs = []
    if found.new_fraction > _APART:
        signs.append(
            f"{found.new_fraction:.0%} of the sampler's draws lie where no given draw is, so the "
            "given draws leave out a part of the posterior"
        )
    lost = max(found.lost_fraction, 1 - found.reached_fraction)
    if found.lost_fraction > _APART or 1 - found.reached_fraction > _UNREACHED:
        signs.append(
            f"{lost:.0%} of the given draws lie where the sampler has none, so the sampler leaves "
            "out a part of the posterior, or they are draws of something else"
        )
    if not signs and found.shift > _LARGEST_SHIFT:
        signs.append(
            f"the means of {names[found.shifted]} are {found.shift:.1f} standard deviations apart"
        )
    if not signs:
        return []
    upper = "infinite" if np.isinf(found.upper) else f"{found.upper:.2f}"
    return [
        f"The given draws and the sampler disagree: {'; '.join(signs)}. (The log evidence is "
        f"{run.evidence.log_evidence:.2f} nats, the upper estimate by given draws {upper}.) Check "
        "that the draws are those of this model with these arguments, after warmup, and that their "
        "chains agree with each other (R-hat); then compare with run(), which does not use them."
    ]
