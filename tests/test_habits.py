"""What is written for `numpyro.infer.MCMC` works with a sampler: ArviZ, prediction, a prior."""

import math
import pickle
import warnings

import arviz as az
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, Predictive

from numpyro_onestep import OneStep
from tests.conftest import QUICK

X = np.linspace(-1.0, 1.0, 6)
Y = np.array([-2.1, -1.0, -0.6, 0.7, 1.2, 2.3])
SD_PRIOR, SD = 3.0, 0.5


def regression(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0, SD_PRIOR))
    scale = numpyro.sample("scale", dist.LogNormal(0, 1))
    with numpyro.plate("row", len(x)):
        mean = numpyro.deterministic("mean", slope * x)
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)


@pytest.fixture(scope="module")
def sampler():
    sampler = OneStep(regression, progress_bar=False)
    sampler.run(jr.key(0), X, y=Y, extra_fields=("potential_energy",))
    return sampler


def names(group):
    return set(group.data_vars)


def test_a_sampler_has_the_attributes_of_an_mcmc(sampler):
    assert isinstance(sampler, MCMC)
    assert (sampler.num_chains, sampler.num_samples, sampler.thinning) == (4, 1000, 1)
    assert sampler.sampler.model is regression
    fields = sampler.get_extra_fields()
    assert fields["lp"].shape == (4000,)
    np.testing.assert_allclose(fields["lp"] - fields["log_q"], fields["log_weight"], rtol=1e-5)
    by_chain = sampler.get_extra_fields(group_by_chain=True)
    np.testing.assert_array_equal(by_chain["lp"].ravel(), fields["lp"])
    with pytest.raises(NotImplementedError, match=r"no warmup: run\(\)"):
        sampler.warmup(jr.key(0))


@pytest.mark.parametrize(("num_samples", "shape"), [(202, (1, 202)), (204, (4, 51)), (12, (1, 12))])
def test_independent_draws_are_shown_as_four_groups_where_they_can_be(num_samples, shape):
    sampler = OneStep(regression, **QUICK | {"num_samples": num_samples, "pool_size": 400})
    with pytest.raises(RuntimeError, match="call run"):
        assert sampler.num_chains
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the flow is hardly trained
        sampler.run(jr.key(0), X, Y)
    assert sampler.get_samples(group_by_chain=True)["slope"].shape == shape
    assert (sampler.num_chains, sampler.num_samples) == shape


def test_the_table_leaves_deterministic_sites_out_unless_asked(sampler, capsys):
    sampler.print_summary()
    assert "mean[0]" not in capsys.readouterr().out
    sampler.print_summary(exclude_deterministic=False)
    assert "mean[0]" in capsys.readouterr().out


def test_arviz_converts_a_sampler_as_it_does_an_mcmc(sampler):
    predicted = sampler.predict(jr.key(1))
    data = az.from_numpyro(
        sampler,
        prior=Predictive(regression, num_samples=100)(jr.key(2), X),
        posterior_predictive=predicted,
        constant_data={"x": X},
        coords={"row": list("abcdef")},
        log_likelihood=True,
    )
    posterior = data["posterior"]
    assert posterior["mean"].dims == ("chain", "draw", "row")
    assert list(posterior["row"].values) == list("abcdef")
    assert posterior["slope"].shape == (4, 1000)
    assert "lp" in names(data["sample_stats"])
    assert names(data["posterior_predictive"]) == {"y"}
    assert names(data["prior_predictive"]) == {"y"}
    assert "y" in names(data["log_likelihood"])
    summary = az.summary(data, var_names=["slope", "scale"])
    # Groups of independent draws: R-hat is 1 but for noise of about 1 / 1000.
    assert np.all(abs(summary["r_hat"].astype(float) - 1) < 0.01)


def test_the_data_of_a_run_take_further_groups_and_names(sampler):
    predicted = sampler.predict(jr.key(1))
    new = sampler.predict(jr.key(2), X[:3])
    data = sampler.to_inference_data(
        coords={"row": list("abcdef")},
        dims={"mean": ["place"]},
        prior=Predictive(regression, num_samples=100)(jr.key(3), X),
        posterior_predictive=predicted,
        constant_data={"x": X},
        predictions_constant_data={"x": X[:3]},
        log_prior=True,
    )
    assert data["posterior"]["mean"].dims == ("chain", "draw", "place")
    assert list(data["observed_data"]["row"].values) == list("abcdef")
    assert data["posterior_predictive"]["y"].dims == ("chain", "draw", "row")
    assert data["prior"]["slope"].shape == (1, 100)
    assert names(data["prior_predictive"]) == {"y"}
    assert names(data["constant_data"]) == {"x"}
    assert data["predictions_constant_data"]["x"].shape == (3,)
    posterior, log_prior = data["posterior"], data["log_prior"]
    of_slope = dist.Normal(0, SD_PRIOR).log_prob(posterior["slope"].to_numpy())
    of_scale = dist.LogNormal(0, 1).log_prob(posterior["scale"].to_numpy())
    np.testing.assert_allclose(log_prior["slope"], of_slope, rtol=1e-4)
    np.testing.assert_allclose(log_prior["scale"], of_scale, rtol=1e-4, atol=1e-4)
    predictions = sampler.to_inference_data(predictions=new, log_likelihood=False)
    assert predictions["predictions"]["y"].shape == (4, 1000, 3)
    groups = predictions.children if hasattr(predictions, "children") else predictions.groups()
    assert "log_likelihood" not in groups


def test_groups_of_other_sizes_and_models_without_plates_are_taken(sampler):
    new = sampler.predict(jr.key(2), X[:3])
    data = sampler.to_inference_data(coords={"row": list("abcdef")}, predictions=new)
    assert data["predictions"]["y"].shape == (4, 1000, 3)

    def model(y=None):
        parts = numpyro.sample("a/b", dist.Normal(0, 1)), numpyro.sample("c", dist.Normal(0, 1))
        numpyro.deterministic("both", parts)
        numpyro.sample("y", dist.Normal(parts[0], 1), obs=y)

    other = OneStep(model, **QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the flow is hardly trained
        other.run(jr.key(0), Y)
    data = other.to_inference_data(
        posterior_predictive=other.predict(jr.key(1)),
        prior=Predictive(model, num_samples=50, return_sites=["y"])(jr.key(3)),
        constant_data={"x": X},
    )
    assert data["posterior_predictive"]["y"].shape == (4, 50)
    assert data["prior_predictive"]["y"].shape == (1, 50)
    assert data["constant_data"]["x"].shape == (6,)


@pytest.mark.parametrize(
    ("naming", "message"),
    [
        ({"coords": {"row": [1, 2]}}, r"coords\['row'\] has 2 values, but the axis 'row' has 6"),
        ({"dims": {"slope": ["a"]}}, r"dims\['slope'\] names 1 axes, but a draw of 'slope' has 0"),
    ],
)
def test_names_that_do_not_fit_are_refused(sampler, naming, message):
    with pytest.raises(ValueError, match=message):
        sampler.to_inference_data(**naming)


def test_leave_one_out_and_power_scaling_run_on_the_data(sampler):
    data = sampler.to_inference_data(log_prior=True)
    loo = az.loo(data)
    assert np.isfinite(loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo)
    if hasattr(az, "psense_summary"):  # ArviZ 1.x
        assert {"prior", "likelihood"} <= set(az.psense_summary(data, var_names=["slope"]))


def test_prediction_draws_the_data_anew_whether_they_are_given_or_not(sampler):
    again, left_out = sampler.predict(jr.key(1)), sampler.predict(jr.key(1), X)
    assert set(again) == {"y"}
    np.testing.assert_array_equal(again["y"], left_out["y"])
    draws = sampler.get_samples()
    residual = (np.asarray(again["y"]) - draws["mean"]) / np.asarray(draws["scale"])[:, None]
    # 24,000 standard normal numbers: 5 standard errors.
    assert abs(residual.mean()) < 5 / 24_000**0.5
    assert abs(residual.std() - 1) < 5 / 48_000**0.5
    assert sampler.predict(jr.key(1), X[:2])["y"].shape == (4000, 2)


def test_prediction_draws_latent_values_of_new_groups_and_discrete_data():
    def groups(counts, num):
        rate = numpyro.sample("rate", dist.Gamma(2, 1))
        with numpyro.plate("group", num):
            numpyro.sample("counts", dist.Poisson(rate), obs=counts)
        numpyro.factor("nothing", 0.0)

    sampler = OneStep(groups, **QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the flow is hardly trained
        sampler.run(jr.key(0), np.array([1, 0, 2]), 3)
    predicted = sampler.predict(jr.key(1), None, 5)
    assert set(predicted) == {"counts"}
    assert predicted["counts"].shape == (QUICK["num_samples"], 5)
    assert jnp.issubdtype(predicted["counts"].dtype, jnp.integer)


def test_a_potential_function_predicts_nothing_but_is_converted():
    sampler = OneStep(potential_fn=lambda x: jnp.sum(x**2), **QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler.run(jr.key(0), init_params=jnp.zeros(2))
    with pytest.raises(ValueError, match="this sampler has a potential_fn"):
        sampler.predict(jr.key(1))
    assert az.from_numpyro(sampler)["posterior"]["Param:0"].shape[-1] == 2


def normal(y):
    mu = numpyro.sample("mu", dist.Normal(1, SD_PRIOR))
    numpyro.sample("y", dist.Normal(mu, SD), obs=y)


def log_evidence_of(y) -> float:
    covariance = SD_PRIOR**2 * np.ones((len(y), len(y))) + SD**2 * np.eye(len(y))
    deviation = np.asarray(y) - 1
    distance = deviation @ np.linalg.solve(covariance, deviation)
    return -0.5 * (distance + np.linalg.slogdet(2 * math.pi * covariance)[1])


@pytest.mark.slow
def test_evidence_of_data_in_two_parts_is_that_of_all():
    first, second = Y[:3], Y[3:]
    before = OneStep(normal, progress_bar=False)
    before.run(jr.key(0), first)
    prior = pickle.loads(pickle.dumps(before)).as_prior()

    def later(y):
        numpyro.sample("y", dist.Normal(prior()["mu"], SD), obs=y)

    after = OneStep(later, progress_bar=False)
    after.run(jr.key(1), second)
    assert abs(before.log_evidence + after.log_evidence - log_evidence_of(Y)) < 0.02
    precision = len(Y) / SD**2 + 1 / SD_PRIOR**2
    mean = (Y.sum() / SD**2 + 1 / SD_PRIOR**2) / precision
    third = after.as_prior()

    def last():
        numpyro.deterministic("twice", 2 * third()["mu"])

    trace = numpyro.handlers.trace(numpyro.handlers.seed(last, 0)).get_trace()
    assert set(trace) == {"flow.z", "mu", "twice"}
    mu = np.asarray(after.get_samples()["mu"], np.float64)
    # 4000 draws after a flow whose own draws are off by as little: 5 standard errors.
    assert abs(mu.mean() - mean) < 5 / (4000 * precision) ** 0.5
    assert abs(math.log(mu.std() * precision**0.5)) < 5 / 8000**0.5


@pytest.mark.slow
def test_a_prior_of_many_modes_on_a_support_keeps_its_density():
    def two_modes():
        side = dist.MixtureSameFamily(
            dist.Categorical(probs=jnp.array([0.3, 0.7])), dist.Normal(jnp.array([-8.0, 8.0]), 1.0)
        )
        numpyro.sample("side", side)
        numpyro.sample("share", dist.Beta(2, 5))

    sampler = OneStep(two_modes, multimodal=True, progress_bar=False)
    sampler.run(jr.key(0))
    prior = sampler.as_prior("modes")

    def later():
        values = prior()
        numpyro.factor("upper", jnp.where(values["side"] > 0, 0.0, -1.0))

    again = OneStep(later, multimodal=True, progress_bar=False)
    again.run(jr.key(1))
    share = np.asarray(again.get_samples()["share"])
    assert share.min() > 0
    assert share.max() < 1
    # The evidence of a prior alone is that of the factor.
    assert abs(again.log_evidence - math.log(0.7 + 0.3 * math.exp(-1))) < 0.05
