"""What is said beside the doubts: an interrupt, flat directions, plates that draw a part."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_onestep.diagnostics.report import check, verdict
from numpyro_onestep.target.completion import Completion
from tests.test_doubts import evidence, problem, training, with_gap


def test_an_interrupt_is_told_beside_what_else_is_wrong(schools):
    result = training(schools.result, interrupted=True)
    (message,) = check(result)
    assert message.startswith("Training was interrupted; the draws come from the flow as it was")
    assert "Call run() again to train to the end." in message
    assert len(check(evidence(result, folded_fraction=0.02))) == 2
    # That it ended too early is no news then.
    assert len(check(with_gap(training(result, is_judged=False), 0.15))) == 1


def with_flat(result, flat):
    zeros, nothing = jnp.zeros(10), jnp.zeros(10, bool)
    completion = Completion(jnp.asarray(flat), zeros, nothing, zeros, jnp.zeros((0, 10)))
    potential = result.problem.potential
    return problem(result, potential=replace(potential, completion=completion))


@pytest.mark.parametrize(
    ("flat", "named"),
    [
        (np.arange(10) == 0, "nothing depends on mu (unconstrained)"),
        (np.arange(10) < 3, "nothing depends on mu, standardised[0], standardised[1] (uncons"),
        (np.arange(10) < 7, "on mu, standardised[0], standardised[1] and 4 more (uncons"),
    ],
)
def test_a_flat_direction_is_named_with_its_remedy(flat, named, schools):
    (message,) = check(with_flat(schools.result, flat))
    assert message.startswith("A flat direction: nothing depends on mu")
    assert named in message
    assert "Remove the site, fix one of several, or give it a proper prior." in message
    assert verdict(with_flat(schools.result, flat)).startswith("good")


def test_each_plate_that_draws_a_part_of_its_members_is_named(schools):
    target = schools.result.problem.target
    plates = [site for site in target.sites if site.name == "school"]
    assert len(plates) == 1
    others = [site for site in target.sites if site.name != "school"]
    part = plates[0]._replace(subsample=(2, 10))
    sites = [*others, part, part._replace(name="row", subsample=(3, 7))]
    messages = check(problem(schools.result, target=replace(target, sites=sites)))
    assert len(messages) == 2
    expected = "'school' draws 2 of its 10", "'row' draws 3 of its 7"
    for message, text in zip(messages, expected, strict=True):
        assert message.startswith(f"The plate {text} members.")
        assert "Leave subsample_size out to use all the data." in message
