"""Discrete latent sites are summed out, and drawn given the continuous ones."""

import itertools
import sys
from functools import partial

import arviz as az
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan

from numpyro_onestep import OneStep
from numpyro_onestep.prediction import discrete_draws
from numpyro_onestep.target import enumeration
from tests.conftest import QUICK

RNG = np.random.default_rng(0)
LABELS = RNG.random(40) < 0.4
Y = jnp.asarray(np.where(LABELS, 2.0, -2.0) + RNG.normal(size=40), jnp.float32)


def mixture(y=None, num=40):
    share = numpyro.sample("share", dist.Beta(2, 2))
    mu = numpyro.sample("mu", dist.Normal(jnp.array([-2.0, 2.0]), 1).to_event(1))
    with numpyro.plate("n", num):
        z = numpyro.sample("z", dist.Bernoulli(share))
        at = numpyro.deterministic("at", mu[z])
        numpyro.sample("y", dist.Normal(at, 1), obs=y)


def marginal_mixture(y):
    share = numpyro.sample("share", dist.Beta(2, 2))
    mu = numpyro.sample("mu", dist.Normal(jnp.array([-2.0, 2.0]), 1).to_event(1))
    with numpyro.plate("n", len(y)):
        parts = dist.Categorical(jnp.stack([1 - share, share]))
        numpyro.sample("y", dist.MixtureSameFamily(parts, dist.Normal(mu, 1)), obs=y)


STAY, MEANS, NOISE = np.array([0.8, 0.6]), np.array([-1.0, 1.0]), 1.0
SERIES = jnp.array([[-0.5, 0.3], [0.2, -0.4], [1.0, 0.1], [0.3, -0.2]])  # time, series


def markov(y):
    """Two series whose states change in time; the mean is known but for 0.001."""
    shift = numpyro.sample("shift", dist.Normal(0, 1e-3))

    def step(before, y_now):
        up = jnp.where(before == 1, STAY[1], 1 - STAY[0])
        with numpyro.plate("series", y.shape[1]):
            state = numpyro.sample("state", dist.Bernoulli(up))
            mean = numpyro.deterministic("mean", jnp.asarray(MEANS)[state] + shift)
            numpyro.sample("y", dist.Normal(mean, NOISE), obs=y_now)
        return state, None

    scan(step, jnp.zeros(y.shape[1], int), y)


def markov_from_a_drawn_state(y):
    shift = numpyro.sample("shift", dist.Normal(0, 1e-3))
    first = numpyro.sample("first", dist.Categorical(jnp.array([0.3, 0.7])))

    def step(before, y_now):
        state = numpyro.sample(
            "state", dist.Bernoulli(jnp.where(before == 1, STAY[1], 1 - STAY[0]))
        )
        numpyro.sample("y", dist.Normal(jnp.asarray(MEANS)[state] + shift, NOISE), obs=y_now)
        return state, None

    scan(step, first, y)


def paths_of_one_series(y, first):
    """Every path of states after each first one, and its log density with the data (nats)."""
    move = np.log(np.array([[STAY[0], 1 - STAY[0]], [1 - STAY[1], STAY[1]]]))
    paths = np.array(list(itertools.product([0, 1], repeat=len(y))))
    before = np.concatenate([np.full((len(paths), 1), first), paths[:, :-1]], axis=1)
    density = -0.5 * ((np.asarray(y) - MEANS[paths]) / NOISE) ** 2 - 0.5 * np.log(2 * np.pi)
    return paths, np.sum(move[before, paths] + density, axis=1)


@pytest.fixture(scope="module")
def of_mixture():
    sampler = OneStep(mixture, progress_bar=False)
    sampler.run(jr.key(0), Y)
    return sampler


@pytest.fixture(scope="module")
def of_marginal():
    sampler = OneStep(marginal_mixture, progress_bar=False)
    sampler.run(jr.key(0), Y)
    return sampler


def test_evidence_is_that_of_the_marginal_model(of_mixture, of_marginal):
    # The targets are the same function and the keys are the same; what differs is rounding.
    assert of_mixture.elbo == pytest.approx(of_marginal.elbo, abs=2e-3)
    assert of_mixture.log_evidence == pytest.approx(of_marginal.log_evidence, abs=2e-3)


def test_labels_have_their_exact_probabilities(of_mixture):
    draws = of_mixture.get_samples()
    log_odds = jnp.log(draws["share"] / (1 - draws["share"]))[:, None]
    sides = dist.Normal(draws["mu"][:, :, None], 1).log_prob(Y)
    chance = jax.nn.sigmoid(log_odds + sides[:, 1] - sides[:, 0])
    # Given the continuous sites each label is a coin of that chance.
    error = np.mean(draws["z"] - np.asarray(chance), axis=0)
    sd = np.sqrt(np.mean(chance * (1 - chance), axis=0) / len(chance))
    # Rare labels are no normal deviates: Bernstein's bound has 4.5^2 / 3 draws more.
    rare = 7 / len(chance)
    assert np.all(np.abs(error) < 4.5 * sd + rare)
    # Two labels of the same draw are independent coins too, and a draw has its own.
    pairs = (draws["z"] - chance)[:, :-1] * (draws["z"] - chance)[:, 1:]
    assert np.all(np.abs(np.mean(pairs, 0)) < 4.5 * np.std(pairs, 0) / len(chance) ** 0.5 + rare)
    moved = np.take_along_axis(np.asarray(draws["mu"]), np.asarray(draws["z"], int), axis=1)
    np.testing.assert_array_equal(draws["at"], moved)


def test_log_likelihood_sums_each_label_out(of_mixture, of_marginal):
    ours, theirs = (s.to_inference_data()["log_likelihood"]["y"] for s in (of_mixture, of_marginal))
    assert ours.shape == theirs.shape
    draws = of_mixture.get_samples()
    weights = jnp.log(jnp.stack([1 - draws["share"], draws["share"]], axis=1))[:, :, None]
    exact = logsumexp(weights + dist.Normal(draws["mu"][:, :, None], 1).log_prob(Y), axis=1)
    np.testing.assert_allclose(np.asarray(ours).reshape(exact.shape), exact, atol=1e-4)
    loo = az.loo(of_mixture.to_inference_data())
    assert float(np.max(loo.pareto_k)) < 0.5


def test_discrete_sites_are_in_the_data_and_not_in_the_table(of_mixture, capsys):
    data = of_mixture.to_inference_data()
    assert data["posterior"]["z"].dims == ("chain", "draw", "n")
    of_mixture.print_summary()
    assert "z[0]" not in capsys.readouterr().out
    of_mixture.print_summary(exclude_deterministic=False)
    assert "z[0]" in capsys.readouterr().out


def test_prediction_classifies_new_rows(of_mixture):
    new = jnp.array([-4.0, 4.0, 0.0])
    drawn = of_mixture.predict(jr.key(1), new, num=3)
    assert drawn["z"].shape == drawn["y"].shape == (4000, 3)
    assert np.mean(drawn["z"], axis=0) == pytest.approx([0, 1, np.mean(drawn["z"][:, 2])], abs=0.01)
    unseen = of_mixture.predict(jr.key(1), None, num=1)
    # Without data a label is a coin of the share: 4.5 standard errors of 4000 coins.
    share = float(np.mean(of_mixture.get_samples()["share"]))
    assert abs(float(np.mean(unseen["z"])) - share) < 4.5 * (share * (1 - share) / 4000) ** 0.5


def test_a_file_keeps_labels(of_mixture, tmp_path):
    of_mixture.save(tmp_path / "run.nos")
    again = OneStep.load(tmp_path / "run.nos", mixture, Y)
    np.testing.assert_array_equal(again.get_samples()["z"], of_mixture.get_samples()["z"])
    alone = OneStep.load(tmp_path / "run.nos", mixture)
    np.testing.assert_array_equal(alone.get_samples()["z"], of_mixture.get_samples()["z"])
    assert set(alone.sample(jr.key(0), 3)) == {"share", "mu"}


def test_a_prior_of_a_mixture_has_its_continuous_sites(of_mixture):
    values = numpyro.handlers.seed(of_mixture.as_prior(), jr.key(0))()
    assert set(values) == {"share", "mu"}


@pytest.mark.slow
def test_states_of_a_chain_have_their_exact_joint_distribution():
    sampler = OneStep(markov, progress_bar=False)
    sampler.run(jr.key(0), SERIES)
    draws, exact = sampler.get_samples(), 0.0
    assert draws["state"].shape == draws["mean"].shape == (4000, *SERIES.shape)
    for series in range(SERIES.shape[1]):
        paths, density = paths_of_one_series(SERIES[:, series], 0)
        exact += logsumexp(density)
        chance = np.exp(density - logsumexp(density))
        code = np.asarray(draws["state"])[:, :, series] @ (1 << np.arange(len(SERIES)))
        found = np.bincount(code, minlength=len(paths)) / len(code)
        found = found[paths @ (1 << np.arange(len(SERIES)))]
        assert np.all(np.abs(found - chance) < 4.5 * np.sqrt(chance / len(code)))
    assert sampler.log_evidence == pytest.approx(float(exact), abs=2e-3)
    other = np.mean(draws["mean"] - MEANS[np.asarray(draws["state"])], axis=(0, 1, 2))
    assert abs(float(other)) < 1e-3


@pytest.mark.slow
def test_a_first_state_that_is_drawn_before_the_chain():
    y = SERIES[:, 0]
    sampler = OneStep(markov_from_a_drawn_state, progress_bar=False)
    sampler.run(jr.key(0), y)
    density = np.array([logsumexp(paths_of_one_series(y, first)[1]) for first in (0, 1)])
    density += np.log([0.3, 0.7])
    assert sampler.log_evidence == pytest.approx(float(logsumexp(density)), abs=2e-3)
    chance = float(np.exp(density[1] - logsumexp(density)))
    drawn = float(np.mean(sampler.get_samples()["first"]))
    assert abs(drawn - chance) < 4.5 * (chance * (1 - chance) / 4000) ** 0.5


def small_chain(y, **direction):
    """The last state of a chain of two states."""
    shift = numpyro.sample("shift", dist.Normal(0, 1))

    def step(before, y_now):
        state = numpyro.sample("state", dist.Bernoulli(jnp.where(before == 1, 0.8, 0.3)))
        numpyro.sample("y", dist.Normal(state + shift, 1), obs=y_now)
        return state, None

    return scan(step, 0, y, **direction)[0]


def refused(model, words, *args, error=ValueError):
    with pytest.raises(error, match=words):
        OneStep(model, **QUICK).run(jr.key(0), *args)


def test_sites_that_cannot_be_summed_out_are_refused_by_name():
    def counts(y):
        count = numpyro.sample("count", dist.Poisson(3.0))
        numpyro.sample("y", dist.Normal(count, numpyro.sample("s", dist.HalfNormal(1))), obs=y)

    refused(counts, "'count' is discrete.*no finite number of values", jnp.ones(2))

    def without_plate(y):
        share = numpyro.sample("share", dist.Beta(2, 2))
        z = numpyro.sample("z", dist.Bernoulli(share).expand([3]))
        numpyro.sample("y", dist.Normal(z, 1), obs=y)

    refused(without_plate, "'z' is summed out.*numpyro.plate", jnp.ones(3))

    def used_after_the_chain(y):
        numpyro.sample("end", dist.Normal(small_chain(y), 1), obs=1.0)

    refused(used_after_the_chain, "outside of the plate or of the scan", jnp.ones(3))


def noisy(y=None, num=3):
    """A label whose two kinds of rows differ in their noise a hundredfold."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", num):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(mu, jnp.array([0.1, 10.0])[z]), obs=y)


def noisy_states(y=None, num=3):
    mu = numpyro.sample("mu", dist.Normal(0, 1))

    def step(before, y_now):
        z = numpyro.sample("z", dist.Bernoulli(jnp.where(before == 1, 0.8, 0.3)))
        numpyro.sample("y", dist.Normal(mu, jnp.array([0.1, 10.0])[z]), obs=y_now)
        return z, None

    scan(step, 0, y, length=num)


@pytest.mark.parametrize(
    ("model", "chances"), [(noisy, [0.3, 0.3, 0.3]), (noisy_states, [0.3, 0.45, 0.525])]
)
def test_without_data_labels_are_those_of_their_prior(model, chances):
    latents = {"mu": np.zeros(4000, np.float32)}
    drawn = discrete_draws(model, latents, jr.key(0), (), {"num": 3})["z"]
    error = np.mean(np.asarray(drawn, float), axis=0) - chances
    assert np.all(np.abs(error) < 4.5 * 0.5 / 4000**0.5)


@pytest.mark.slow
def test_a_label_of_several_observations_is_not_summed_out_of_each():
    def pairs(y, w):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(mu + 3 * z, 1), obs=y)
            numpyro.sample("w", dist.Normal(-3 * z, 1), obs=w)

    sampler = OneStep(pairs, **QUICK)
    sampler.run(jr.key(0), Y[:5], -Y[:5])
    draws = sampler.get_samples()
    found = sampler.to_inference_data()["log_likelihood"]
    at_label = dist.Normal(draws["mu"][:, None] + 3 * draws["z"], 1).log_prob(Y[:5])
    np.testing.assert_allclose(np.asarray(found["y"]).reshape(at_label.shape), at_label, atol=1e-4)
    with pytest.raises(ValueError, match="drawn values of the discrete sites"):
        sampler.refits(jr.key(0), site="y")


def test_what_numpyro_would_sum_in_a_wrong_way_is_refused():
    refused(partial(small_chain, reverse=True), "reverse=True", jnp.ones(3))

    def scaled(y):
        share = numpyro.sample("share", dist.Beta(2, 2))
        with numpyro.plate("n", len(y)), numpyro.handlers.scale(scale=2.0):
            z = numpyro.sample("z", dist.Bernoulli(share))
            numpyro.sample("y", dist.Normal(z, 1), obs=y)

    refused(scaled, "'z' is scaled", jnp.ones(3))

    def observed_without_plate(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(mu + 2 * z, 1), obs=y)

    refused(observed_without_plate, "'y' has one that is in none", jnp.ones(2))

    def support_of_a_label(y):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        x = numpyro.sample("x", dist.Uniform(0, 1.0 + z))
        numpyro.sample("y", dist.Normal(x, 1), obs=y)

    refused(support_of_a_label, "z cannot be summed out.*no support may depend", 0.5)


def test_without_funsor_the_error_names_it(monkeypatch):
    enumeration.funsor.cache_clear()
    enumeration.handlers_of_funsor.cache_clear()
    monkeypatch.setitem(sys.modules, "funsor", None)
    refused(mixture, "pip install funsor", Y, error=ImportError)
    enumeration.funsor.cache_clear()
