"""Everything that verdicts are judged on: each posterior, what is judged of its draws, the truth.

Beside the posteriors with answers by quadrature these are the reference posteriors, the held-out
models and the mixtures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from benchmarks.problems.held_out import HELD_OUT
from benchmarks.problems.mixtures import targets
from benchmarks.problems.posterior import Posterior
from benchmarks.problems.reference_posteriors import POSTERIORS
from benchmarks.problems.target import Target, nearest_component
from benchmarks.problems.verdicts import KNOWN
from benchmarks.problems.verdicts.answers import Answer, Known, stacked

# How far the published log evidences of the reference posteriors are known (nats).
_PUBLISHED_ERROR = 0.03
# So many exact draws of a mixture stand for the truth about it.
_EXACT_DRAWS = 100_000


@dataclass(frozen=True)
class Case:
    """One posterior.

    Attributes:
        name: of the posterior.
        kind: of the posterior; the page has a line for each kind.
        target: what it is, as keyword arguments of `OneStep`: a model or a potential, and settings.
        args: gives the model's arguments.
        quantities: draws as `get_samples` gives them -> what is judged (draw, quantity).
        answer: gives the truth about the quantities.
        start: where to start, for a potential.
    """

    name: str
    kind: str
    target: dict[str, Any]
    args: Callable[[], tuple]
    quantities: Callable
    answer: Callable[[], Answer]
    start: np.ndarray | None = None


def _of_known(one: Known) -> Case:
    target = {"model": one.model}
    return Case(one.name, one.kind, target, lambda: one.args, one.quantities, one.answer)


def _of_reference(kind: str, posterior: Posterior) -> Case:
    def answer() -> Answer:
        mean, sd, size = posterior.reference()
        exact = posterior.log_evidence in (None, 0.0)
        error = 0.0 if exact else _PUBLISHED_ERROR
        unknown = np.full(len(mean), np.nan)
        return Answer(mean, sd, unknown, posterior.log_evidence, size, error)

    def quantities(draws):
        return np.asarray(posterior.parameters(draws), np.float64)

    target = {"model": posterior.model}
    return Case(posterior.name, kind, target, posterior.args, quantities, answer)


def _of_mixture(target: Target) -> Case:
    """Coordinates are judged, and the share of each mode: by exact draws, since modes overlap."""

    def quantities(draws) -> np.ndarray:
        x = np.asarray(draws, np.float64)
        if target.means is None:
            return stacked(x, x[:, : target.wells] > 0)
        return stacked(x, nearest_component(target, x)[:, None] == np.arange(len(target.means)))

    def answer() -> Answer:
        assert target.sample is not None
        exact = quantities(target.sample(np.random.default_rng(123), _EXACT_DRAWS))
        mean, sd = exact.mean(0), exact.std(0)
        kurtosis = (((exact - mean) / sd) ** 4).mean(0)
        return Answer(mean, sd, kurtosis, target.log_z, _EXACT_DRAWS)

    given = {"potential_fn": target.potential, "multimodal": True}
    start = np.full(target.dim, 0.1)
    return Case(target.name, "mixtures", given, tuple, quantities, answer, start)


def cases() -> dict[str, Case]:
    """All of them, by name."""
    found = [_of_known(one) for one in KNOWN.values()]
    found += [_of_reference("reference posteriors", p) for p in POSTERIORS.values()]
    found += [_of_reference("held out", p) for p in HELD_OUT.values()]
    found += [_of_mixture(target) for target in targets().values()]
    by_name = {case.name: case for case in found}
    assert len(by_name) == len(found), "two posteriors share a name"
    return by_name


def halves(known: dict[str, Case]) -> dict[str, str]:
    """Half a or b of each posterior, by the hash of its name; every kind is split evenly."""

    def digest(text: str) -> str:
        return sha256(text.encode()).hexdigest()

    found = {}
    for kind in sorted({case.kind for case in known.values()}):
        names = sorted((name for name in known if known[name].kind == kind), key=digest)
        first = int(digest(kind), 16) % 2
        found |= {name: "ab"[(index + first) % 2] for index, name in enumerate(names)}
    return found
