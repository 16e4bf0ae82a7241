"""What a structured problem is: a NumPyro model whose latent values repeat over groups or times."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import logit

from benchmarks.problems.posterior import DATA
from benchmarks.problems.structured.exact import Marginal
from benchmarks.problems.verdicts.answers import Answer

_COLUMNS = 2000  # of a site in double precision at a time, since 60,000 of them take gigabytes


def normal_effect(name: str, loc: Any, scale: Any, centred: bool, z: str = "z") -> Any:
    """The site of a normal effect; not centred, it is made from the standard normal site `z`."""
    if centred:
        return numpyro.sample(name, dist.Normal(loc, scale))
    unit: Any = numpyro.sample(z, dist.Normal(0, 1))
    return numpyro.deterministic(name, loc + scale * unit)


def reference_file(posterior: str) -> Path:
    """Where the reference of a posterior lies whose answer nobody knows."""
    return DATA / f"structured_{posterior}.json"


@dataclass(frozen=True)
class Structured:
    """One form of one posterior.

    Forms of a posterior, such as the centred and the non-centred, are models that give the same
    sites the same joint distribution. They share the data, the reference and the log evidence.
    The methods of the benchmarks take it as they take a `Posterior`.

    Attributes:
        name: of the problem.
        kind: of the posterior; the page has a table for each kind.
        posterior: name of the posterior that this is a form of.
        model: a NumPyro model.
        args: gives the model's positional arguments.
        sites: what is compared with the reference, in its order. A '+' at the end of a name stands
            for the logarithm of that site, a '%' for its logit.
        latents: those of the sites that repeat over groups or times. The others are the globals.
        answer: gives the truth about the sites. None where nothing but long runs knows it.
        marginal: from the arguments, the density that the answer is the integral of.
    """

    name: str
    kind: str
    posterior: str
    model: Callable
    args: Callable[[], tuple]
    sites: tuple[str, ...]
    latents: tuple[str, ...]
    answer: Callable[[], Answer] | None = None
    marginal: Callable[..., Marginal] | None = None

    def reference(self) -> Answer | None:
        """What draws are compared with: the truth, or long runs where these have been made."""
        if self.answer is not None:
            return self.answer()
        path = reference_file(self.posterior)
        if not path.exists():
            return None
        stored = json.loads(path.read_text())
        mean = np.array(stored["mean"])
        return Answer(
            mean,
            np.array(stored["sd"]),
            np.full(mean.shape, np.nan),
            stored["log_evidence"],
            stored["effective_size"],
            stored["log_evidence_error"] or 0.0,
        )

    def blocks(self, draws: dict) -> Iterator[tuple[str, np.ndarray]]:
        """The quantities of draws {site: (draw, ...)}, some columns (draw, quantity) at a time."""
        for name in self.sites:
            values = np.asarray(draws[name.rstrip("+%")])
            values = values.reshape(len(values), -1)
            for start in range(0, values.shape[1], _COLUMNS):
                part = values[:, start : start + _COLUMNS].astype(np.float64)
                if name.endswith("+"):
                    part = np.log(part)
                elif name.endswith("%"):
                    part = logit(part)
                yield name, part

    def moments(self, draws: dict) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Mean, standard deviation and site of every quantity, from draws {site: (draw, ...)}."""
        means, sds, owners = [], [], []
        for name, part in self.blocks(draws):
            means.append(part.mean(0))
            sds.append(part.std(0))
            owners += [name] * part.shape[1]
        return np.concatenate(means), np.concatenate(sds), owners


def forms(
    posterior: str,
    kind: str,
    models: dict[str, Callable],
    args: Callable[[], tuple],
    sites: tuple[str, ...],
    latents: tuple[str, ...],
    marginal: Callable[..., Marginal] | None = None,
) -> list[Structured]:
    """A problem for each form of a posterior.

    Args:
        posterior: its name. That of a form is this name, an underscore and the name of the form.
        kind: of the posterior.
        models: by the names of the forms.
        args: makes the models' arguments; it is called once, when they are first asked for.
        sites: as in `Structured`.
        latents: as in `Structured`.
        marginal: as in `Structured`.
    """
    args = cache(args)
    answer = None if marginal is None else cache(lambda: marginal(*args()).answer())
    return [
        Structured(
            f"{posterior}_{form}", kind, posterior, model, args, sites, latents, answer, marginal
        )
        for form, model in models.items()
    ]
