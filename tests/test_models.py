"""What models `OneStep` accepts, and how it refuses the others.

Trained for a moment only: these tests are about shapes, supports and messages; accuracy is
tested where log evidences are known.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro.infer.reparam import LocScaleReparam

from numpyro_onestep import OneStep, OneStepWarning
from numpyro_onestep.target import model_target
from tests.conftest import QUICK

# A moment's training may well end with a warning; what warns is tested in test_sampler.
pytestmark = pytest.mark.filterwarnings("ignore::numpyro_onestep.OneStepWarning")


def run(model, *args, **kwargs):
    sampler = OneStep(model, **QUICK)
    sampler.run(jr.key(0), *args, **kwargs)
    return sampler


SUPPORTS = {
    "real": dist.Normal(0, 1),
    "positive": dist.Gamma(2.0, 1.0),
    "interval": dist.Uniform(-1.0, 2.0),
    "unit": dist.Beta(2.0, 2.0),
    "simplex": dist.Dirichlet(2 * jnp.ones(3)),
    "ordered": dist.TransformedDistribution(
        dist.Normal(0, 1).expand([3]).to_event(1), dist.transforms.OrderedTransform()
    ),
    "corr_cholesky": dist.LKJCholesky(3, 2.0),
    "positive_definite": dist.Wishart(5.0, jnp.eye(2)),
    "greater_than": dist.TruncatedNormal(0.0, 1.0, low=0.5),
    "zero_sum": dist.ZeroSumNormal(1.0, event_shape=(4,)),
}


@pytest.mark.slow
def test_every_kind_of_support_in_one_model():
    def model():
        for name, prior in SUPPORTS.items():
            numpyro.sample(name, prior)

    draws = run(model).get_samples()
    for name, prior in SUPPORTS.items():
        assert draws[name].shape == (200, *prior.event_shape)
        assert jnp.all(prior.support.check(draws[name])), name


def test_plates_factors_masks_deterministic_sites_and_keyword_arguments():
    def model(x, *, y, scale=1.0):
        loc = numpyro.sample("loc", dist.Normal(0, scale))
        with numpyro.plate("row", 3, dim=-2), numpyro.plate("column", 2, dim=-1):
            cell = numpyro.sample("cell", dist.Normal(loc, 1))
        numpyro.deterministic("total", cell.sum())
        numpyro.factor("pull", -0.1 * loc**2)
        with numpyro.handlers.mask(mask=jnp.isfinite(y)):
            numpyro.sample("y", dist.Normal(cell[0, 0] * x, 1), obs=jnp.nan_to_num(y))

    y = jnp.array([1.0, jnp.nan, 2.0])
    sampler = run(model, jnp.ones(3), y=y, scale=2.0)
    draws = sampler.get_samples()
    assert draws["cell"].shape == (200, 3, 2)
    np.testing.assert_allclose(draws["total"], draws["cell"].sum((1, 2)), rtol=1e-5)
    data = sampler.to_inference_data()
    assert data["posterior"]["cell"].dims == ("chain", "draw", "row", "column")
    assert set(data["observed_data"].data_vars) == {"y"}
    assert data["log_likelihood"]["y"].shape == (4, 50, 3)


def test_reparameterised_models_return_the_original_site():
    def model(y):
        with numpyro.handlers.reparam(config={"theta": LocScaleReparam(centered=0)}):
            with numpyro.plate("group", 3):
                theta = numpyro.sample("theta", dist.Normal(1.0, 2.0))
            numpyro.sample("y", dist.Normal(theta, 1), obs=y)

    draws = run(model, jnp.ones(3)).get_samples()
    assert draws["theta"].shape == (200, 3)
    np.testing.assert_allclose(draws["theta"], 1 + 2 * draws["theta_decentered"], rtol=1e-4)


def test_improper_priors_and_values_of_the_data_used_in_python():
    def model(group, y):
        num_groups = int(group.max()) + 1  # no traced array allows this
        mean = numpyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        with numpyro.plate("group", num_groups):
            effect = numpyro.sample("effect", dist.Normal(mean, 1))
        numpyro.sample("y", dist.Normal(effect[group], 1), obs=y)

    sampler = run(model, np.array([0, 1, 2, 1]), np.arange(4.0))
    assert sampler.get_samples()["effect"].shape == (200, 3)
    assert sampler.to_inference_data()["log_likelihood"]["y"].shape == (4, 50, 4)


TWO_PROCESSES = """
import jax, jax.numpy as jnp
from numpyro_onestep import OneStep, OneStepWarning
from numpyro_onestep.target import model_target
from tests.conftest import QUICK

def potential(z):
    x = jnp.arange(12.0)
    field = jnp.zeros(12)
    for index, scale in enumerate((1.0, 3.0)):
        length = jnp.exp(z[24 + index])
        kernel = jnp.exp(-0.5 * ((x[:, None] - x) / scale / length) ** 2) + 1e-3 * jnp.eye(12)
        field += jnp.linalg.cholesky(kernel) @ z[12 * index : 12 * index + 12]
    return 0.5 * jnp.sum(z**2) + 0.5 * jnp.sum((field - jnp.sin(x)) ** 2)

settings = dict(num_samples=300, pool_size=1000, width=16, max_steps=100, progress_bar=False)
OneStep(potential_fn=potential, **settings).run(jax.random.key(0), init_params=jnp.zeros(26))
"""


@pytest.mark.slow
def test_a_model_with_two_cholesky_factors_ends():
    # Where batched LAPACK calls wait for each other it never does, hence another process.
    subprocess.run([sys.executable, "-c", TWO_PROCESSES], check=True, timeout=300)


def test_arguments_that_are_no_arrays():
    def model(frame, transform, name="x"):
        b = numpyro.sample("b", dist.Normal(0, 1))
        mean = transform(b * frame[name].to_numpy())
        numpyro.sample("y", dist.Normal(mean, 1), obs=frame["y"].to_numpy())

    frame = pd.DataFrame({"x": [1.0, 2.0], "y": [1.0, 2.5]})
    sampler = run(model, frame, jnp.tanh)
    assert sampler.get_samples()["b"].shape == (200,)
    # Two numbers at 1000 are 10^6 nats less likely: another run sees what was changed in place.
    before, frame["y"] = sampler.elbo, 1000.0
    sampler.run(jr.key(0), frame, jnp.tanh)
    assert sampler.elbo < before - 1e5


def test_parameters_of_the_model_stay_where_they_are():
    def model(y):
        shift = numpyro.param("shift", 3.0)
        mu = numpyro.sample("mu", dist.Normal(shift, 0.1))
        numpyro.sample("y", dist.Normal(mu, 10), obs=y)

    draws = run(model, jnp.zeros(1)).get_samples()
    assert set(draws) == {"mu"}
    assert abs(float(draws["mu"].mean()) - 3.0) < 0.05


def test_a_potential_over_a_nested_dict():
    def potential(p):
        return 0.5 * (p["a"]["b"] ** 2).sum() + 0.5 * ((p["c"] - 5) / 2) ** 2

    start = {"a": {"b": jnp.zeros((2, 2))}, "c": 0.0}
    sampler = OneStep(potential_fn=potential, **QUICK)
    sampler.run(jr.key(0), init_params=start)
    draws = sampler.get_samples()
    assert draws["a"]["b"].shape == (200, 2, 2)
    assert draws["c"].shape == (200,)
    exact = 2.5 * np.log(2 * np.pi) + np.log(2)
    assert abs(sampler.log_evidence - exact) < 0.05
    assert set(sampler.to_inference_data()["posterior"].data_vars) == {"a.b", "c"}
    sampler.print_summary()


def test_a_potential_of_a_bare_array():
    sampler = OneStep(potential_fn=lambda x: 0.5 * (x**2).sum(), **QUICK)
    sampler.run(jr.key(0), init_params=np.zeros(3))
    assert sampler.get_samples().shape == (200, 3)
    assert set(sampler.to_inference_data()["posterior"].data_vars) == {"x"}


def normal(y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def refuse(model, error, words, *args, **kwargs):
    with pytest.raises(error, match=words):
        OneStep(model, **QUICK).run(jr.key(0), *args, **kwargs)


def test_models_without_latent_sites_are_refused():
    refuse(
        lambda y: numpyro.sample("y", dist.Normal(0, 1), obs=y),
        ValueError,
        "no latent",
        jnp.ones(2),
    )


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_as_few_draws_as_one(num_samples, capsys):
    settings = {**QUICK, "num_samples": num_samples, "pool_size": None}
    sampler = OneStep(normal, **settings)
    sampler.run(jr.key(0), jnp.ones(2))
    assert sampler.get_samples()["mu"].shape == (num_samples,)
    sampler.print_summary()
    assert "log evidence" in capsys.readouterr().out


def test_latent_sites_of_known_value_are_refused_by_name():
    def model():
        numpyro.sample("x", dist.Normal(0, 1))
        numpyro.sample("at", dist.Delta(1.0))

    refuse(model, ValueError, "'at' has a Delta.*numpyro.deterministic")


def test_a_plate_that_draws_a_part_of_its_members_keeps_them():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 100))
        with numpyro.plate("n", 10, subsample_size=2) as members:
            numpyro.sample("y", dist.Normal(mu, 1), obs=y[members])

    mu = run(model, jnp.arange(10.0)).get_samples()["mu"]
    # As good as ten observations, all at the mean of two of the members: half an integer.
    assert abs(float(mu.std()) - 10**-0.5) < 0.05
    assert abs(float(mu.mean()) * 2 - round(float(mu.mean()) * 2)) < 0.2


def test_data_that_no_parameter_explains_are_refused():
    refuse(normal, ValueError, "not finite at any of 100", y=jnp.array([1.0, jnp.nan]))


def test_starting_points_of_wrong_shape_or_density_are_refused():
    y = jnp.ones(2)
    refuse(normal, ValueError, r"latent site \['mu'\]", y=y, init_params={"nu": 0.0})
    refuse(normal, ValueError, r"shape \(3,\)", y=y, init_params={"mu": jnp.zeros(3)})
    refuse(normal, ValueError, "potential is nan", y=y, init_params={"mu": jnp.nan})


def test_potentials_are_refused_without_a_start_or_a_scalar():
    sampler = OneStep(potential_fn=lambda x: x**2, **QUICK)
    with pytest.raises(ValueError, match="init_params="):
        sampler.run(jr.key(0))
    with pytest.raises(ValueError, match=r"scalar.*shape \(3,\)"):
        sampler.run(jr.key(0), init_params=jnp.zeros(3))
    with pytest.raises(ValueError, match="has a potential_fn"):
        sampler.run(jr.key(0), jnp.zeros(3), init_params=0.0)
    with pytest.raises(ValueError, match="no numbers"):
        sampler.run(jr.key(0), init_params={})


def test_the_key_must_be_a_key():
    with pytest.raises(TypeError, match=r"jax.random.key\(0\)"):
        OneStep(normal, **QUICK).run(0)


def test_a_model_that_starts_where_told():
    def far(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1000))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    start = {"mu": jnp.asarray(499.0)}
    draws = run(far, jnp.full(4, 500.0), init_params=start).get_samples()
    assert abs(float(draws["mu"].mean()) - 500) < 0.3
    assert jax.tree.structure(start) == jax.tree.structure(draws)


def test_sites_of_size_zero():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("none", dist.Normal(0, 1).expand([0]).to_event(1))
        numpyro.deterministic("nothing", jnp.zeros((0, 2)))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        numpyro.sample("unseen", dist.Normal(mu, 1), obs=jnp.zeros(0))

    sampler = run(model, jnp.ones(2))
    shapes = {name: value.shape for name, value in sampler.get_samples().items()}
    assert shapes == {"mu": (200,), "none": (200, 0), "nothing": (200, 0, 2)}
    data = sampler.to_inference_data()
    assert data["posterior"]["none"].shape == (4, 50, 0)
    assert data["log_likelihood"]["unseen"].shape == (4, 50, 0)
    sampler.print_summary()


def test_a_plate_of_size_zero_is_refused():
    def model():
        numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("group", 0):
            numpyro.sample("effect", dist.Normal(0, 1))

    refuse(model, ValueError, "plate of size zero")


def test_keys_of_every_style_and_no_others():
    y, draws = jnp.ones(2), []
    for key in (jr.key(3), jr.PRNGKey(3), np.asarray(jr.PRNGKey(3))):
        sampler = OneStep(normal, **QUICK)
        sampler.run(key, y)
        draws.append(np.asarray(sampler.get_samples()["mu"]))
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[0], draws[2])
    for wrong in (jr.split(jr.key(0)), np.zeros(2), np.zeros(3, np.uint32), None):
        with pytest.raises(TypeError, match=r"jax.random.key\(0\)"):
            OneStep(normal, **QUICK).run(wrong, y)


def test_whole_numbers_of_any_type():
    sampler = OneStep(normal, **{**QUICK, "num_samples": 2e2, "pool_size": np.int64(400)})
    sampler.run(jr.key(0), jnp.ones(2))
    assert sampler.sample(jr.key(1), 1e1)["mu"].shape == (10,)
    assert sampler.sample(jr.key(1), np.int32(3))["mu"].shape == (3,)
    with pytest.raises(ValueError, match="positive number of draws"):
        sampler.sample(jr.key(1), 2.5)


def test_a_model_that_asks_for_a_key():
    def model(y):
        projection = jr.normal(numpyro.prng_key(), (3,))
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + 0 * projection, 1), obs=y)

    assert run(model, jnp.ones(3)).get_samples()["mu"].shape == (200,)


def test_a_part_of_a_plate_is_said_to_be_one():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 100))
        with numpyro.plate("n", 10, subsample_size=2) as members:
            numpyro.sample("y", dist.Normal(mu, 1), obs=y[members])

    with pytest.warns(OneStepWarning, match="'n' draws 2 of its 10 members"):
        run(model, jnp.arange(10.0))


def test_further_starts_are_new_ones_where_the_first_tries_fail():
    def model():  # three starts of four have no finite density
        x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.factor("quadrant", jnp.where(jnp.all(x > 0), 0.0, jnp.inf))

    for seed in range(4):
        target, potential, start = model_target(jr.key(seed), model, (), {})
        others = target.other_starts(jr.key(seed), potential, 3)
        starts = np.stack([start, *others])
        assert starts.shape == (4, 2)
        assert np.all(starts > 0)
        assert len(np.unique(starts[:, 0])) == 4
