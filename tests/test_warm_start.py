"""A second run that trains the first one's flow further."""

import math

import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_onestep import OneStep
from tests.conftest import EFFECT, STD_ERROR, eight_schools

SD_PRIOR, SD = 3.0, 0.5
Y = np.array([-0.4, 0.9, 1.6, 0.2])


def groups(y):
    """A mean, and a value for each group: all of it is normal."""
    mu = numpyro.sample("mu", dist.Normal(0, SD_PRIOR))
    with numpyro.plate("group", len(y)):
        value = numpyro.sample("value", dist.Normal(mu, 1))
        numpyro.sample("y", dist.Normal(value, SD), obs=y)


def log_evidence_of(y) -> float:
    covariance = SD_PRIOR**2 * np.ones((len(y), len(y))) + (1 + SD**2) * np.eye(len(y))
    log_det = np.linalg.slogdet(2 * math.pi * covariance)[1]
    return -0.5 * (y @ np.linalg.solve(covariance, y) + log_det)


def warm(first, *others):
    """Evidence and iterations of each run on the data, the second from the first one's flow."""
    sampler, found = OneStep(groups, warm_start=True, progress_bar=False), []
    for index, y in enumerate((first, *others)):
        sampler.run(jr.key(index), y)
        found.append((sampler.log_evidence, len(sampler.losses)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [Y + 0.3, Y + 200.0, np.append(Y, [0.3, 2.0])],
    ids=["near", "far away", "more groups"],
)
def test_other_data_give_their_own_evidence(other):
    _, (log_evidence, _) = warm(Y, other)
    exact = log_evidence_of(other)
    # In single precision, and at data far away, a density is known to some 1e-6 of itself.
    assert abs(log_evidence - exact) < 0.01 + 1e-5 * abs(exact)


@pytest.mark.slow
def test_data_that_are_like_the_first_take_a_fraction_of_the_iterations():
    sampler = OneStep(eight_schools, warm_start=True, progress_bar=False)
    sampler.run(jr.key(0), STD_ERROR, EFFECT)
    first = len(sampler.losses)
    effect = EFFECT.at[0].set(12.0)
    sampler.run(jr.key(1), STD_ERROR, effect)
    assert len(sampler.losses) <= first / 2
    again = OneStep(eight_schools, progress_bar=False)
    again.run(jr.key(1), STD_ERROR, effect)
    errors = sampler.log_evidence_std_error, again.log_evidence_std_error
    assert abs(sampler.log_evidence - again.log_evidence) < 0.01 + 4 * math.hypot(*errors)


def test_a_first_run_and_a_sampler_without_the_setting_start_from_the_model():
    plain = OneStep(groups, progress_bar=False, num_samples=400)
    kept = OneStep(groups, warm_start=True, progress_bar=False, num_samples=400)
    for sampler in (plain, kept):
        sampler.run(jr.key(0), Y)
    np.testing.assert_array_equal(plain.get_samples()["mu"], kept.get_samples()["mu"])
    plain.run(jr.key(0), Y)
    np.testing.assert_array_equal(plain.get_samples()["mu"], kept.get_samples()["mu"])
