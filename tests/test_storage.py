"""A run in a file: the same bits in another process, no data, no code, clear errors."""

import copy
import json
import pickle
import subprocess
import sys
import warnings
import zipfile

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_onestep import OneStep
from tests.conftest import EFFECT, QUICK, STD_ERROR, eight_schools


@pytest.fixture(scope="module")
def path(schools, tmp_path_factory):
    path = tmp_path_factory.mktemp("storage") / "schools.nos"
    schools.save(path)
    return path


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_file_gives_the_run_back_with_the_arguments(schools, path):
    again = OneStep.load(path, eight_schools, STD_ERROR, EFFECT)
    equal(again.get_samples(), schools.get_samples())
    equal(again.get_weighted_samples(), schools.get_weighted_samples())
    equal(again.sample(jr.key(3), 100), schools.sample(jr.key(3), 100))
    assert again.result.evidence == schools.result.evidence
    assert again.settings == schools.settings
    assert again.messages == schools.messages
    assert again.evaluate(jr.key(1), 1) == schools.evaluate(jr.key(1), 1)
    equal(again.predict(jr.key(2)), schools.predict(jr.key(2)))
    x = jnp.asarray(schools.get_pool().x[:3])
    equal(again.get_posterior().log_prob(x), schools.get_posterior().log_prob(x))


def test_a_file_without_the_arguments_gives_results_and_draws_of_latent_sites(schools, path):
    again = OneStep.load(path, eight_schools)
    latents = {name: v for name, v in schools.get_samples().items() if name != "theta"}
    equal(again.get_samples(), latents)
    equal(again.get_extra_fields(), schools.get_extra_fields())
    draws, expected = again.sample(jr.key(3), 100), schools.sample(jr.key(3), 100)
    assert set(draws) == {"mu", "tau", "standardised"}
    equal(draws, {name: expected[name] for name in draws})
    again.print_summary()
    for needs_data in (
        again.to_inference_data,
        lambda: again.predict(jr.key(0)),
        lambda: again.evaluate(jr.key(0), 1),
    ):
        with pytest.raises(RuntimeError, match=r"without its data: give the arguments"):
            needs_data()
    assert again.predict(jr.key(0), STD_ERROR)["y"].shape == (4000, 8)
    with pytest.raises(RuntimeError, match="copy that file"):
        again.save(path)
    kept = pickle.loads(pickle.dumps(again))
    equal(kept.get_samples(), latents)
    with pytest.raises(RuntimeError, match="read the file again"):
        kept.sample(jr.key(3), 10)


def test_another_process_makes_the_same_draws(schools, path):
    code = (
        "import sys, jax.random as jr, numpy as np\n"
        "from numpyro_onestep import OneStep\n"
        "from tests.conftest import eight_schools\n"
        "draws = OneStep.load(sys.argv[1], eight_schools).sample(jr.key(3), 100)\n"
        "sys.stdout.write(np.asarray(draws['standardised']).tobytes().hex())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout
    expected = schools.sample(jr.key(3), 100)["standardised"]
    assert found == np.asarray(expected).tobytes().hex()


def test_a_file_holds_no_data(path):
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read("header.json"))
        assert header["format"] == "numpyro_onestep run"
        args, kwargs = header["target"]["arguments"]["tuple"]
        leaves = [*args["tuple"], *kwargs["dict"].values()]
        assert leaves == [{"shape": [8], "dtype": "float32"}] * 2
        for name in archive.namelist():
            assert np.asarray(EFFECT).tobytes() not in archive.read(name)


def test_files_that_are_cut_off_altered_or_foreign_are_refused(path, tmp_path):
    whole = path.read_bytes()
    bad = tmp_path / "bad.nos"
    for content in (whole[: len(whole) // 2], b"", b"\x80\x04N."):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.nos cannot be read: it is no file of OneStep"):
            OneStep.load(bad, eight_schools)
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="no file of OneStep"):
        OneStep.load(tmp_path / "foreign.npz", eight_schools)
    with pytest.raises(FileNotFoundError):
        OneStep.load(tmp_path / "nothing.nos", eight_schools)

    def rewritten(change):
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(bad, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name == "header.json":
                    header = json.loads(content)
                    change(header)
                    content = json.dumps(header).encode()
                new.writestr(name, content)

    rewritten(lambda header: header["run"]["result"]["fields"].update(num_flow_steps=2))
    with pytest.raises(ValueError, match="it was altered after it was written"):
        OneStep.load(bad, eight_schools)
    rewritten(lambda header: header.update(version=2))
    with pytest.raises(ValueError, match="its format is version 2, and this package reads 1"):
        OneStep.load(bad, eight_schools)


def other_sites(sigma, y=None):
    location = numpyro.sample("location", dist.Normal(0, 5))
    numpyro.sample("y", dist.Normal(location, sigma), obs=y)


def other_prior(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 6))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(sigma)):
        unit = numpyro.sample("standardised", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * unit)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def test_another_model_is_refused(path):
    with pytest.raises(ValueError, match="The model is not the one whose run was saved"):
        OneStep.load(path, other_sites)
    for model in (other_sites, other_prior):
        with pytest.raises(ValueError, match="The model is not the one whose run was saved"):
            OneStep.load(path, model, STD_ERROR, EFFECT)
    with pytest.raises(ValueError, match="The model is not the one whose run was saved"):
        OneStep.load(path, eight_schools, STD_ERROR[:5], EFFECT[:5])
    with pytest.raises(ValueError, match="That was a model"):
        OneStep.load(path, potential_fn=lambda x: jnp.sum(x**2))


def masked(y, sizes):
    numpyro.deterministic("data", jnp.asarray(y))
    scale = numpyro.sample("scale", dist.Uniform(0, 10 * jnp.std(y)))
    numpyro.sample("y", dist.Normal(sum(sizes), scale), obs=y)


@pytest.mark.slow
def test_data_in_deterministic_sites_and_lists_stay_out(tmp_path):
    y = np.array([1.25, 2.5, 7.75], np.float32)
    sampler = quietly(OneStep(masked, **QUICK), y, [31337, 2])
    sampler.save(tmp_path / "run.nos")
    with zipfile.ZipFile(tmp_path / "run.nos") as archive:
        assert b"31337" not in archive.read("header.json")
        for name in archive.namelist():
            assert y.tobytes() not in archive.read(name)
    with pytest.raises(ValueError, match="then give load\\(\\) the arguments"):
        OneStep.load(tmp_path / "run.nos", masked)
    again = OneStep.load(tmp_path / "run.nos", masked, y, [31337, 2])
    equal(again.get_samples(), sampler.get_samples())


def wider(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.Normal(0, 5))
    with numpyro.plate("school", len(sigma)):
        unit = numpyro.sample("standardised", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + tau * unit, sigma), obs=y)


def scaled(y):
    scale = numpyro.sample("scale", dist.Uniform(0, 10 * jnp.std(y)))
    numpyro.sample("y", dist.Normal(0, scale), obs=y)


def test_another_support_is_seen_without_data(path, tmp_path):
    y = np.array([1.25, 2.5, 7.75], np.float32)
    quietly(OneStep(scaled, **QUICK), y).save(tmp_path / "run.nos")
    with pytest.raises(ValueError, match=r"supports of .* sites depend on its data"):
        OneStep.load(tmp_path / "run.nos", scaled)
    with pytest.raises(ValueError, match="The model is not the one whose run was saved"):
        OneStep.load(path, wider)


def quietly(sampler, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the flow is hardly trained
        sampler.run(jr.key(0), *args, **kwargs)
    return sampler


def two_groups(counts, num):
    with numpyro.plate("group", num):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        numpyro.sample("counts", dist.Poisson(rate), obs=counts)


def bounded(upper):
    numpyro.sample("x", dist.Uniform(0.0, upper))


def potential(values):
    return jnp.sum(values["a"] ** 2) + jnp.sum(values["b"][0] ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["imh", "nuts", None])
def test_every_correction_and_structure_can_be_kept(correction, tmp_path):
    settings = QUICK | {"correction": correction, "structure": ["mu"]}

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 3))
        with numpyro.plate("group", len(y)):
            value = numpyro.sample("value", dist.Normal(mu, 1))
            numpyro.sample("y", dist.Normal(value, 1), obs=y)

    sampler = quietly(OneStep(model, **settings), np.arange(12.0))
    assert sampler.structure is not None
    sampler.save(tmp_path / "run.nos")
    again = OneStep.load(tmp_path / "run.nos", model)
    equal(again.get_samples(), sampler.get_samples())
    equal(again.sample(jr.key(1), 20), sampler.sample(jr.key(1), 20))
    assert str(again.structure) == str(sampler.structure)


@pytest.mark.slow
def test_a_model_of_other_arguments_and_a_function_can_be_kept(tmp_path):
    sampler = quietly(OneStep(two_groups, **QUICK), np.array([1, 4]), num=2)
    sampler.save(tmp_path / "run.nos")
    again = OneStep.load(tmp_path / "run.nos", two_groups)
    equal(again.sample(jr.key(1), 20), sampler.sample(jr.key(1), 20))
    start = {"a": jnp.zeros(2), "b": [jnp.zeros(3)]}
    sampler = quietly(OneStep(potential_fn=potential, **QUICK), init_params=start)
    sampler.save(tmp_path / "run.nos")
    again = OneStep.load(tmp_path / "run.nos", potential_fn=potential)
    equal(again.get_samples(), sampler.get_samples())
    equal(again.evaluate(jr.key(1), 1), sampler.evaluate(jr.key(1), 1))


@pytest.mark.slow
def test_supports_that_depend_on_data_need_them(tmp_path):
    sampler = quietly(OneStep(bounded, **QUICK), 3.0)
    sampler.save(tmp_path / "run.nos")
    with pytest.raises(ValueError, match="supports of the model's sites depend on its data"):
        OneStep.load(tmp_path / "run.nos", bounded)
    again = OneStep.load(tmp_path / "run.nos", bounded, 3.0)
    equal(again.sample(jr.key(1), 20), sampler.sample(jr.key(1), 20))


def test_a_copy_makes_the_same_draws(schools):
    equal(copy.deepcopy(schools).sample(jr.key(1), 20), schools.sample(jr.key(1), 20))


def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path):
    fresh = OneStep(eight_schools)
    with pytest.raises(RuntimeError, match="call run"):
        fresh.save(tmp_path / "run.nos")
    assert list(tmp_path.iterdir()) == []
