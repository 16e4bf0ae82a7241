import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numpyro_onestep.importance.resampling import resample


def normalised(log_weights):
    return log_weights - np.logaddexp.reduce(log_weights)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 20.0), st.integers(1, 100))
def test_draws_are_distinct_members_of_the_pool(seed, spread, num):
    log_w = normalised(np.random.default_rng(seed).normal(0, spread, 100))
    chosen, excess = resample(jr.key(seed), log_w, num)
    assert len(np.unique(chosen)) == num
    assert chosen.min() >= 0
    assert chosen.max() < 100
    assert 0 <= excess < 1


def test_inclusion_is_proportional_to_weight():
    weights = np.array([4.0, 3.0, 2.0, 1.0, 1.0, 1.0])
    log_w = np.log(weights / weights.sum())
    trials = 2000
    counts = np.zeros(6)
    for seed in range(trials):
        chosen, excess = resample(jr.key(seed), log_w, 2)
        counts[chosen] += 1
        assert excess == 0
    expected = 2 * weights / weights.sum()
    std_error = np.sqrt(expected * (1 - expected) / trials)
    assert np.all(np.abs(counts / trials - expected) < 4 * std_error)


def test_weight_beyond_certainty_is_reported():
    log_w = np.log(np.array([0.7, 0.1, 0.1, 0.1]))
    chosen, excess = resample(jr.key(0), log_w, 2)
    assert 0 in chosen
    assert excess == pytest.approx((2 * 0.7 - 1) / 2)


def test_zero_weights_come_last():
    log_w = np.array([np.log(0.5)] * 2 + [-np.inf] * 8)
    chosen, _ = resample(jr.key(0), log_w, 2)
    assert set(chosen) == {0, 1}
    chosen, _ = resample(jr.key(0), log_w, 4)
    assert {0, 1} < set(chosen)


def test_the_same_key_chooses_the_same():
    log_w = normalised(np.random.default_rng(0).normal(size=1000))
    np.testing.assert_array_equal(
        resample(jr.key(3), log_w, 100)[0], resample(jr.key(3), log_w, 100)[0]
    )


@pytest.mark.slow
def test_balancing_keeps_inclusion_proportional_to_weight():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (400, 2))
    log_w = normalised(0.3 * x[:, 0] + 0.3 * rng.uniform(-1, 1, 400))
    expected = 128 * np.exp(log_w)
    trials = 2000
    counts = np.zeros(400)
    for seed in range(trials):
        chosen, excess = resample(jr.key(seed), log_w, 128, [x])
        assert excess == 0
        assert len(np.unique(chosen)) == 128
        counts[chosen] += 1
    z = (counts / trials - expected) / np.sqrt(expected * (1 - expected) / trials)
    assert np.abs(z).max() < 4.5
    assert np.mean(z**2) < 1.4  # mean 1, standard deviation 0.07


def test_balanced_features_have_the_pools_means():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((10_000, 5))
    log_w = normalised(0.5 * x[:, 0])
    weights = np.exp(log_w)
    errors = []
    for features in ([], [x, x**2]):
        chosen = [resample(jr.key(seed), log_w, 1000, features)[0] for seed in range(10)]
        both = np.concatenate([x, x**2], axis=1)
        means = np.array([both[at].mean(0) for at in chosen])
        errors.append(np.sqrt(np.mean((means - weights @ both) ** 2)))
    # The last 31 of the 1000 are not made good: sqrt(31 / 1000) = 0.18 of the error is left.
    assert errors[1] < 0.3 * errors[0]


def test_features_that_are_too_many_are_left_out():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 30))
    log_w = normalised(0.1 * x[:, 0])
    plain, _ = resample(jr.key(0), log_w, 100)
    assert set(resample(jr.key(0), log_w, 100, [x])[0]) == set(plain)
