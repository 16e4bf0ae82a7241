import arviz as az
import jax
import numpy as np
import pytest

from numpyro_onestep import OneStep, OneStepWarning, compare_with_nuts


@pytest.fixture(scope="module")
def data(schools):
    return schools.to_inference_data()


def test_groups_dimensions_and_values(schools, data):
    posterior = data["posterior"]
    assert posterior["theta"].dims == ("chain", "draw", "school")
    assert posterior["mu"].dims == ("chain", "draw")
    np.testing.assert_array_equal(posterior["mu"][0], schools.get_samples()["mu"])
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "school")
    assert data["log_likelihood"]["y"].shape == (1, 4000, 8)
    assert data["observed_data"]["y"].dims == ("school",)
    stats = data["sample_stats"]
    np.testing.assert_allclose(stats["log_weight"], stats["lp"] - stats["log_q"], rtol=1e-5)


def test_attributes_hold_the_evidence_times_and_versions(schools, data):
    attrs = data["posterior"].attrs
    assert attrs["elbo"] == schools.elbo
    assert attrs["log_evidence"] == schools.log_evidence
    assert attrs["pareto_k"] == schools.pareto_k
    assert 0 < attrs["training_time"] < attrs["sampling_time"]
    assert attrs["inference_library"] == "numpyro_onestep"
    assert {"numpyro_version", "jax_version", "inference_library_version"} <= set(attrs)


def test_arviz_summarises_and_cross_validates(data):
    summary = az.summary(data, var_names=["mu", "theta"])
    assert len(summary) == 9
    loo = az.loo(data)
    # posteriordb's draws give elpd_loo of about -30.7 for this model.
    value = getattr(loo, "elpd_loo", None)
    value = loo.elpd if value is None else value
    assert -32 < float(value) < -29.5


def test_arviz_plots(data):
    import matplotlib

    matplotlib.use("Agg")
    if hasattr(az, "plot_posterior"):  # ArviZ 0.x
        az.plot_posterior(data, var_names=["mu"])
    else:
        az.plot_dist(data, var_names=["mu"], backend="matplotlib")


def test_one_chain_of_nuts_beside_a_potential():
    def potential(x):
        return 0.5 * (x["a"][1] - 3) ** 2 + 0.5 * x["a"][0] ** 2

    sampler = OneStep(potential_fn=potential, max_steps=100, progress_bar=False)
    with pytest.warns(OneStepWarning, match="max_steps"):
        sampler.run(jax.random.key(0), init_params={"a": jax.numpy.array([0, 0])})
    comparison = compare_with_nuts(sampler, jax.random.key(1), num_chains=1, num_samples=1000)
    assert comparison.nuts["a"].shape == (1000, 2)
    np.testing.assert_allclose(comparison.nuts["a"].mean(0), [0, 3], atol=0.3)


def test_side_by_side_with_nuts(schools, tmp_path):
    comparison = compare_with_nuts(schools, jax.random.key(1), num_samples=500, num_warmup=500)
    rows = {row["name"]: row for row in comparison.rows()}
    assert len(rows) == 18
    for row in rows.values():
        # 18 means from 4000 and from some NUTS draws: 5 standard errors of the difference.
        std_error = (1 / 4000 + 1 / row["nuts_ess"]) ** 0.5
        assert abs(row["mean_error"]) < 5 * std_error, row
        assert abs(row["log_sd_error"]) < 0.25, row
    assert "theta[7]" in str(comparison)
    assert comparison.plot(tmp_path / "picture.png") is not None
    assert (tmp_path / "picture.png").stat().st_size > 10_000
