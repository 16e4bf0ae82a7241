"""The log likelihood of each observation, where it has discrete values of its own: these summed.

Beside drawn values of the discrete sites, an observation's log likelihood would be that of the
value that suits it best, and leave-one-out cross-validation could not do without the observation.
"""

from typing import Any

from jaxtyping import Array

from numpyro_onestep.target.enumeration import (
    as_array,
    axes_of,
    depends_on_discrete,
    enumerated,
    factor,
    funsor,
    is_of_scan,
    plates_of,
    samples_of,
)
from numpyro_onestep.target.model_trace import Site


def marginal_likelihood(found: dict[str, Any], sites: list[Site]) -> dict[str, Array]:
    """The log likelihood (nats) of those observed sites that discrete values can be summed out of.

    They are the sites whose discrete values are in the same plates as the observations, so that
    each observation has values of its own, on which nothing else depends.  In a hidden Markov
    model there are none.

    Args:
        found: the trace that `enumeration.packed_trace` gives.
        sites: all of the model's sites.
    """
    discrete = {site.name for site in enumerated(sites)}
    samples = samples_of(found)
    likelihood = {}
    for name, site in samples.items():
        own = _own(name, samples, discrete)
        if not site["is_observed"] or not own:
            continue
        total = factor(site)
        for other in sorted(own):
            total = total + factor(samples[other])
        total = total.reduce(funsor().ops.logaddexp, frozenset(own))
        plates = plates_of(site)
        array = as_array(total, {plate: size for plate, (_, size) in plates.items()})
        dims = dict(plates.values())
        shape = [dims.get(dim, 1) for dim in range(min(dims, default=0), 0)]
        likelihood[name] = array.reshape(shape)
    return likelihood


def needs_drawn_values(name: str, found: dict[str, Any], sites: list[Site]) -> bool:
    """Whether the log likelihood of an observed site is known at drawn discrete values only.

    Args:
        name: of the site.
        found: the trace that `enumeration.packed_trace` gives.
        sites: all of the model's sites.
    """
    discrete = {site.name for site in enumerated(sites)}
    samples = samples_of(found)
    return depends_on_discrete(samples[name], sites) and not _own(name, samples, discrete)


def _own(name: str, samples: dict[str, Any], discrete: set[str]) -> set[str]:
    """The discrete sites that a site depends on, where they are its own; else none."""
    own: set[str] = set()
    new = {name}
    while new:
        if any(is_of_scan(samples[one]) for one in new):
            return set()
        new = set().union(*(axes_of(samples[one]) for one in new)) & discrete - own
        own |= new
    plates = plates_of(samples[name])
    others = [
        site for other, site in samples.items() if other not in own | {name} and axes_of(site) & own
    ]
    return own if not others and all(plates_of(samples[one]) == plates for one in own) else set()
