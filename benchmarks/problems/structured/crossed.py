"""Crossed effects: every student answers every item of a test (the Rasch model).

Nothing integrates both sides by hand, so that their references are long runs of NUTS.
"""

from collections.abc import Callable

import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import plate

from benchmarks.problems.structured.base import Structured, forms, normal_effect

KIND = "crossed effects"

sample: Callable = numpyro.sample


def _rasch(centred: bool):
    def model(y):
        students, items = y.shape
        mu = sample("mu", dist.Normal(0, 2))  # the mean difficulty
        spread = sample("spread", dist.HalfNormal(2))  # of abilities
        width = sample("width", dist.HalfNormal(2))  # of difficulties
        with plate("student", students):
            ability = normal_effect("ability", 0.0, spread, centred)
        with plate("item", items):
            difficulty = normal_effect("difficulty", mu, width, centred, z="z_item")
        logits = ability[:, None] - difficulty
        sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=y)

    return model


def _data(students: int, items: int):
    def make():
        rng = np.random.default_rng(7000 + students)
        ability = 1.2 * rng.standard_normal((students, 1))
        logits = ability - (-0.3 + 0.9 * rng.standard_normal(items))
        return (rng.binomial(1, 1 / (1 + np.exp(-logits))),)

    return make


def crossed() -> list[Structured]:
    """All of this file."""
    models = {"centred": _rasch(True), "noncentred": _rasch(False)}
    latents = ("ability", "difficulty")
    sites = ("mu", "spread+", "width+", *latents)
    found = []
    for students, items in ((100, 30), (2000, 50)):
        name = f"rasch_{students}x{items}"
        found += forms(name, KIND, models, _data(students, items), sites, latents)
    return found
