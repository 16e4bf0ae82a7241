import warnings

import arviz as az
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import log_likelihood as numpyro_log_likelihood

from numpyro_onestep import OneStep, compare_with_nuts
from tests.conftest import QUICK, Pair


@pytest.fixture(scope="module")
def data(schools):
    return schools.to_inference_data()


def test_groups_dimensions_and_values(schools, data):
    posterior = data["posterior"]
    assert posterior["theta"].dims == ("chain", "draw", "school")
    assert posterior["mu"].dims == ("chain", "draw")
    np.testing.assert_array_equal(np.ravel(posterior["mu"]), schools.get_samples()["mu"])
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "school")
    assert data["log_likelihood"]["y"].shape == (4, 1000, 8)
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


@pytest.mark.slow
def test_one_chain_of_nuts_beside_a_potential():
    def potential(x):
        return 0.5 * (x["a"][1] - 3) ** 2 + 0.5 * x["a"][0] ** 2

    sampler = OneStep(potential_fn=potential, max_steps=100, progress_bar=False)
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
    few = comparison.select(["tau", "mu"])
    assert few.rows() == [rows["tau"], rows["mu"]]
    assert "theta" not in str(few)
    assert str(few).splitlines()[-1] == str(comparison).splitlines()[-1]  # the times
    assert len([axis for axis in few.plot().axes if axis.axison]) == 2
    with pytest.raises(ValueError, match=r"sites= has 'nu', but the sites are \['mu', "):
        comparison.select(["mu", "nu"])
    assert comparison.plot(tmp_path / "picture.png") is not None
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def a_gap_and_a_scan(series, reading):
    a, b = numpyro.plate("a", 3, dim=-3), numpyro.plate("b", 4, dim=-1)
    with b:
        d = numpyro.sample("d", dist.Normal(0, 1))
    with a, b:
        e = numpyro.sample("e", dist.Normal(d, 1))
        numpyro.deterministic("parts", (e, {"d": d}, Pair(2 * d.sum(), d > 0)))
        numpyro.sample("row", dist.Normal(e, 1), obs=reading)

    def step(previous, value):
        with numpyro.plate("animal", 3):
            z = numpyro.sample("z", dist.Normal(0.5 * previous, 1))
            numpyro.sample("seen", dist.Normal(z, 1), obs=value)
        return z, None

    scan(step, jnp.zeros(3), series)


@pytest.fixture(scope="module")
def gap():
    sampler = OneStep(a_gap_and_a_scan, **QUICK)
    with warnings.catch_warnings():  # a moment's training warns
        warnings.simplefilter("ignore")
        sampler.run(jr.key(0), jnp.zeros((5, 3)), jnp.arange(4.0))
    return sampler


def test_every_array_of_a_run_keeps_its_shape_and_values(gap):
    data, draws = gap.to_inference_data(), gap.get_samples()
    e, by_name, pair = draws.pop("parts")
    likelihood = numpyro_log_likelihood(gap.model, draws, *gap.run_arguments[0])
    draws["parts.0"], draws["parts.1.d"] = e, by_name["d"]
    draws["parts.2.total"], draws["parts.2.is_positive"] = pair
    observed = {"row": np.arange(4.0), "seen": np.zeros((5, 3))}
    expected = {"posterior": draws, "log_likelihood": likelihood, "observed_data": observed}
    for group, arrays in expected.items():
        assert set(data[group].data_vars) == set(arrays)
        for name, values in arrays.items():
            found = np.asarray(data[group][name])
            if group != "observed_data":
                found = found.reshape(200, *found.shape[2:])
            assert found.shape == values.shape
            np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5, err_msg=name)
    posterior = data["posterior"]
    assert posterior["e"].shape == (4, 50, 3, 1, 4)
    assert posterior["e"].dims == ("chain", "draw", "a", "e_dim_1", "b")
    assert posterior["parts.0"].dims == ("chain", "draw", "a", "parts.0_dim_1", "b")
    assert posterior["parts.2.is_positive"].dtype == bool
    assert posterior["z"].dims == ("chain", "draw", "z_dim_0", "animal")
    assert data["log_likelihood"]["row"].dims == ("chain", "draw", "a", "row_dim_1", "b")
    assert data["observed_data"]["row"].dims == ("b",)


def test_deterministic_pytrees_and_truth_values_are_summarised(gap, capsys):
    gap.print_summary(exclude_deterministic=False)
    table = capsys.readouterr().out
    assert "parts.1.d[3]" in table
    assert "parts.2.is_positive[3]" in table
    gap.print_summary(sites=["d"])
    table = capsys.readouterr().out
    assert "d[3]" in table
    assert "parts" not in table
    with pytest.raises(ValueError, match="'nothing', but the sites are"):
        gap.print_summary(sites=["nothing"])


def test_deterministic_pytrees_beside_nuts(gap):
    comparison = compare_with_nuts(gap, jr.key(1), num_chains=1, num_warmup=50, num_samples=50)
    assert {"parts.1.d[3]", "parts.2.total"} < {row["name"] for row in comparison.rows()}
    total = 2 * comparison.nuts["d"].sum(-1)
    np.testing.assert_allclose(comparison.nuts["parts.2.total"], total, rtol=1e-4, atol=1e-4)
