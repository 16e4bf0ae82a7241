"""When training ends and what is undone: pure functions of the losses."""

import math
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from numpyro_onestep.training.stopping import (
    FEWEST_STEPS,
    Judgement,
    after_folds,
    is_below,
    judge,
    num_at_constant_rate,
    recent_rise,
)

BATCH, TOLERANCE = 100, 0.01


def noise(num: int, seed: int = 0):
    return np.random.default_rng(seed).standard_normal(num)


def even_noise(num: int):
    """Normal noise without chance: in random order, but its quantiles are exact."""
    rng = np.random.default_rng(0)
    quantiles = norm.ppf((np.arange(num) + 0.5) / num)
    return rng.permutation(quantiles)


def losses_of(num: int, rise: float = 0.0, deviation: float = 0.01, at: float = 5.0):
    """Losses whose ELBO rises by so much from the third quarter to the last, with noise.

    Every quarter has the same quantiles, so that what is judged is known and not a matter of luck.
    """
    ends = [num * quarter // 4 for quarter in range(5)]
    quarters = [even_noise(end - begin) for begin, end in pairwise(ends)]
    steady = at - rise * (np.arange(num) >= ends[3])
    return steady + deviation * np.concatenate(quarters)


def judged(losses, tolerance: float = TOLERANCE) -> Judgement:
    return judge(losses, BATCH, tolerance)


def test_level_noise_has_converged():
    found = judged(losses_of(2000))
    assert found.converged
    assert found.is_judged
    assert not found.still_rising


# The noise of a difference of medians of 500 losses each is 0.01 * 1.25 * sqrt(2 / 500) = 0.0008:
# a rise within that of the tolerance is neither.
@pytest.mark.parametrize(
    ("rise", "converged", "still_rising"),
    [(0.005, True, False), (0.0097, False, False), (0.0103, False, False), (0.015, False, True)],
)
def test_a_rise_beyond_the_tolerance_has_not(rise, converged, still_rising):
    found = judged(losses_of(2000, rise))
    assert found.rise == pytest.approx(rise)
    assert (found.converged, found.still_rising) == (converged, still_rising)


def test_an_elbo_that_falls_has_stopped_rising():
    found = judged(losses_of(2000, -0.1))
    assert found.converged
    assert not found.still_rising


def test_noise_as_large_as_the_tolerance_proves_nothing():
    # The gap is 0.5 * 100 * 0.01 = 0.5 nats, so the tolerance is four times what is asked for, and
    # the noise of the difference is 0.1 * 1.25 * sqrt(2 / 500) = 0.008 nats.
    losses = losses_of(2000, deviation=0.1)
    assert judged(losses, 0.01).converged
    found = judged(losses, 0.001)
    assert (found.converged, found.still_rising, found.is_judged) == (False, False, True)


@pytest.mark.parametrize(
    ("num", "is_judged", "converged"),
    [
        (FEWEST_STEPS // 2 - 1, False, False),
        (FEWEST_STEPS // 2, True, False),
        (FEWEST_STEPS - 1, True, False),
        (FEWEST_STEPS, True, True),
    ],
)
def test_too_few_iterations_end_nothing(num, is_judged, converged):
    assert FEWEST_STEPS == 1000
    # A standard deviation of 0.05 is a gap of 0.125 nats: next to nothing, but not negligible.
    found = judged(losses_of(num, deviation=0.05), 0.1)
    assert (found.is_judged, found.converged) == (is_judged, converged)
    if not is_judged:
        assert found.rise == math.inf


@pytest.mark.parametrize(("deviation", "converged"), [(0.004, True), (0.01, False)])
def test_a_flow_with_nothing_to_gain_ends_sooner(deviation, converged):
    # Gaps of 0.0008 and 0.005 nats, where 0.002 is negligible.
    found = judged(losses_of(800, deviation=deviation))
    assert found.gap == pytest.approx(0.5 * BATCH * deviation**2, rel=0.05)
    assert found.converged == converged


# A rise of a fifth of the gap is slow.  The gap is half the variance of single log weights.
@pytest.mark.parametrize(
    ("gap", "rise", "converged"),
    [
        (0.1, 0.013, True),  # the tolerance is 0.02 here
        (0.1, 0.030, False),
        (0.5, 0.022, True),  # it would be 0.1, but is four times the setting at most
        (0.5, 0.060, False),
        (20.0, 0.090, False),  # 4 nats, were it not for that limit
    ],
)
def test_the_tolerance_grows_with_the_gap_up_to_four_times(gap, rise, converged):
    num = 200_000  # so that the noise is below a tenth of the rise
    found = judged(losses_of(num, rise, deviation=(2 * gap / BATCH) ** 0.5))
    assert found.gap == pytest.approx(gap, rel=0.01)
    assert found.converged == converged


def test_a_large_tolerance_is_not_lowered_where_the_gap_is_small():
    assert judged(losses_of(2000, 0.5, deviation=0.001), 1.0).converged


def test_losses_that_are_not_finite_are_left_out():
    losses = losses_of(2000, 0.05)
    broken = losses.copy()
    broken[::7], broken[3::7] = math.nan, math.inf
    expected, found = recent_rise(losses), recent_rise(broken)
    # Two in seven are gone, from the medians and from what their noise is taken to be.
    assert found[0] == pytest.approx(expected[0], abs=0.003)
    assert found[1] == pytest.approx(expected[1] * (7 / 5) ** 0.5, rel=0.15)
    assert found[2] == pytest.approx(expected[2], rel=0.15)
    assert judged(losses_of(2000)).converged
    broken = losses_of(2000)
    broken[::7] = math.nan
    assert judged(broken).converged


def test_without_finite_losses_nothing_is_judged():
    losses = np.full(2000, math.nan)
    losses[1900] = 1.0
    found = judged(losses)
    assert (found.is_judged, found.converged, found.rise) == (False, False, math.inf)


def test_a_single_loss_far_out_changes_nothing():
    losses = losses_of(2000, 0.005)
    far = losses.copy()
    far[1800] = -1e6  # as if the ELBO of one batch were a million
    np.testing.assert_allclose(recent_rise(far), recent_rise(losses), atol=2e-4)


def test_the_rise_is_from_the_third_quarter_to_the_last():
    # The first half may be anything.
    losses = np.concatenate([np.full(1000, 99.0), np.full(500, 3.0), np.full(500, 1.0)])
    assert recent_rise(losses) == (2.0, 0.0, 0.0)


def test_the_noise_of_the_rise_is_that_of_two_medians():
    rises, noises = zip(*(recent_rise(noise(1000, seed))[:2] for seed in range(400)), strict=True)
    # A standard deviation from 400 has an error of 3.5%.
    assert np.std(rises) == pytest.approx(np.mean(noises), rel=0.15)


@pytest.mark.parametrize(("gap", "fraction"), [(0.2, 0.5), (0.3, 1.0)])
def test_a_large_gap_cools_for_as_long_as_it_was_trained(gap, fraction):
    assert Judgement(0.0, gap, True, False, True).cooling_fraction == fraction


def test_a_third_of_all_iterations_is_kept_for_cooling():
    assert [num_at_constant_rate(total) for total in (0, 1, 2, 3, 100, 3000)] == [
        0, 1, 2, 2, 67, 2000,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("folded", "from_gaussian", "undone", "scale"),
    [
        # Single folded draws are straightened by the others, where there is one Gaussian to bend.
        (0.0, True, False, 0.5),
        (0.2, True, False, 0.5),
        (0.3, True, True, 0.35),
        # In a mixture's heavy tails they would stay.
        (0.0, False, False, 0.5),
        (0.01, False, True, 0.5),
        (0.3, False, True, 0.35),
    ],
)
def test_a_step_that_folds_the_map_is_undone(folded, from_gaussian, undone, scale):
    found = after_folds(jnp.asarray(folded), jnp.asarray(0.5), from_gaussian)
    assert bool(found[0]) == undone
    assert float(found[1]) == pytest.approx(scale)


# The mean of 100 losses of standard deviation 0.1 is known to 0.01: a drop counts beyond
# 0.05 + 4 * 0.01 nats.
@pytest.mark.parametrize(
    ("drop", "below"), [(-1.0, False), (0.0, False), (0.06, False), (0.12, True), (5.0, True)]
)
def test_an_elbo_below_the_floor_beyond_its_noise_has_lost_mass(drop, below):
    floor = -5.0  # the ELBO, minus the losses
    wiggle = noise(100)
    wiggle = 0.1 * (wiggle - wiggle.mean()) / wiggle.std()
    losses = -floor + drop + wiggle
    assert is_below(floor, losses) == below
    losses = np.concatenate([losses, [math.nan, math.inf]])
    assert is_below(floor, losses) == below


def test_more_noise_hides_a_larger_drop():
    wiggle = noise(100)
    wiggle = (wiggle - wiggle.mean()) / wiggle.std()
    assert is_below(0.0, 0.3 + 0.1 * wiggle)
    assert not is_below(0.0, 0.3 + wiggle)  # known to 0.1: 0.45 would be needed


def test_without_a_floor_nothing_is_below_it():
    assert not is_below(-math.inf, np.full(100, 1e9))
    assert not is_below(-math.inf, np.full(100, math.nan))


def test_no_finite_loss_is_below_any_floor():
    assert is_below(-5.0, np.full(100, math.nan))
    assert is_below(-5.0, np.array([5.0, math.nan, math.inf]))
