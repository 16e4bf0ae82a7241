"""A run sees what is there when it runs, wherever a model reads it from, and nothing older."""

import copy
import gc
import pickle
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

from numpyro_onestep import OneStep
from numpyro_onestep._util import compilation
from tests.conftest import CompilationCounter

QUICK = {
    "num_samples": 400,
    "pool_size": 1000,
    "max_steps": 200,
    "width": 16,
    "progress_bar": False,
}
pytestmark = pytest.mark.filterwarnings("ignore::numpyro_onestep.OneStepWarning")
Y = np.array([1.0, 2.0, 3.0], np.float32)
# The posterior mean is 0.997 times the data's: 400 draws know it to 0.03 or so.
LATER = 10.0


def normal(y):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def mean(model, *args) -> float:
    sampler = OneStep(model, **QUICK)
    sampler.run(jr.key(0), *args)
    return float(sampler.get_samples()["mu"].mean())


@dataclass
class Model:
    y: Any

    def __call__(self):
        normal(self.y)


class Plain:
    def __init__(self, y):
        self.y = y

    def __call__(self):
        normal(self.y)

    def method(self):
        normal(self.y)


def unconditioned():
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    numpyro.sample("y", dist.Normal(mu, 1).expand([3]))


def _attribute(make, call=lambda model: model):
    def case():
        model = make(jnp.asarray(Y))

        def change():
            model.y = jnp.asarray(Y + LATER)

        return call(model), (), change

    return case


def _held(make):
    """A container of the data that the model holds, changed in place."""

    def case():
        held = {"y": jnp.asarray(Y)}
        model, args = make(held)
        return model, args, lambda: held.update(y=jnp.asarray(Y + LATER))

    return case


def _in_place():
    y = Y.copy()

    def change():
        y[:] += LATER

    return (lambda: normal(y)), (), change


def _argument_in_place():
    y = Y.copy()

    def change():
        y[:] += LATER

    return normal, (y,), change


CASES = {
    "closure": _held(lambda held: (lambda: normal(held["y"]), ())),
    "partial": _held(lambda held: (partial(lambda d: normal(d["y"]), held), ())),
    "condition": _held(lambda held: (handlers.condition(unconditioned, data=held), ())),
    "function": _held(lambda held: (lambda give: normal(give()), (lambda: held["y"],))),
    "dictionary": _held(lambda held: (lambda d: normal(d["y"]), (held,))),
    "callable": _attribute(Plain),
    "method": _attribute(Plain, lambda model: model.method),
    "dataclass": _attribute(Model),
    "numpy": _in_place,
    "argument": _argument_in_place,
}


@pytest.mark.parametrize("name", CASES)
def test_a_second_run_sees_data_that_have_changed_and_compiles_nothing(name):
    model, args, change = CASES[name]()
    assert abs(mean(model, *args) - 2) < 0.15
    change()
    counter = CompilationCounter()
    assert abs(mean(model, *args) - 2 - LATER) < 0.15
    assert counter.count == 0


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_a_potential_is_that_of_the_values_it_closes_over_now(wrap):
    def run(y):
        sampler = OneStep(potential_fn=wrap(lambda x: 0.5 * jnp.sum((x - y) ** 2)), **QUICK)
        sampler.run(jr.key(0), init_params=jnp.zeros(()))
        return float(sampler.get_samples().mean())

    first, later = jnp.asarray(Y), jnp.asarray(Y + LATER)  # NumPy adds: JAX would compile that
    assert abs(run(first) - 2) < 0.15
    counter = CompilationCounter()
    assert abs(run(later) - 2 - LATER) < 0.15
    assert counter.count == 0


def test_models_that_differ_in_their_sites_names_alone_are_not_confused():
    def model_of(first, second):
        def model(y):
            mu = numpyro.sample(first, dist.Normal(0, 10))
            numpyro.deterministic(second, 2 * mu)
            numpyro.sample(first + second, dist.Normal(mu, 1), obs=y)

        return model

    for first, second in (("a", "b"), ("c", "d")):
        sampler = OneStep(model_of(first, second), **QUICK)
        sampler.run(jr.key(0), Y)
        assert set(sampler.get_samples()) == {first, second}
        assert set(sampler.to_inference_data()["log_likelihood"].data_vars) == {first + second}


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"a": x}, lambda x: (x,)])
def test_potentials_of_one_text_return_each_its_own_pytree(wrap):
    start = wrap(jnp.zeros(2))
    sampler = OneStep(potential_fn=lambda x: 0.5 * jnp.sum(jax.tree.leaves(x)[0] ** 2), **QUICK)
    sampler.run(jr.key(0), init_params=start)
    assert jax.tree.structure(sampler.get_samples()) == jax.tree.structure(start)


def test_plain_numbers_are_part_of_the_program():
    assert abs(mean(lambda n: normal(jnp.full(3, n)), 1.0) - 1) < 0.15
    assert abs(mean(lambda n: normal(jnp.full(3, n)), 11.0) - 11) < 0.15


@pytest.mark.slow
def test_what_a_callback_closes_over_is_not_forgotten():
    def model_of(y):
        def square(mu):
            return np.float32(((mu - y) ** 2).sum())

        @jax.custom_jvp
        def distance(mu):
            shape = jax.ShapeDtypeStruct((), jnp.float32)
            return jax.pure_callback(square, shape, mu, vmap_method="sequential")

        @distance.defjvp
        def _(primals, tangents):
            return distance(*primals), tangents[0] * 2 * (3 * primals[0] - y.sum())

        def model():
            mu = numpyro.sample("mu", dist.Normal(0, 10))
            numpyro.factor("likelihood", -0.5 * distance(mu))

        return model

    assert abs(mean(model_of(Y)) - 2) < 0.15
    assert abs(mean(model_of(Y + np.float32(LATER))) - 2 - LATER) < 0.15


def test_the_data_of_a_run_stay_its_own():
    y = Y.copy()
    sampler = OneStep(lambda: normal(y), **QUICK)
    sampler.run(jr.key(0))
    y[:] += LATER
    data = sampler.to_inference_data()
    np.testing.assert_array_equal(data["observed_data"]["y"], Y)
    mu = np.asarray(sampler.get_samples(group_by_chain=True)["mu"])[..., None]
    expected = -0.5 * (Y - mu) ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(data["log_likelihood"]["y"], expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def ran():
    sampler = OneStep(normal, **QUICK)
    sampler.run(jr.key(0), Y)
    return sampler


@pytest.mark.parametrize(
    "again",
    [
        lambda s: pickle.loads(pickle.dumps(s)),
        lambda s: pickle.loads(cloudpickle.dumps(s)),
        copy.deepcopy,
    ],
)
def test_a_sampler_that_has_run_can_be_copied(again, ran):
    other = again(ran)
    np.testing.assert_array_equal(other.get_samples()["mu"], ran.get_samples()["mu"])
    ours, theirs = (s.sample(jr.key(1), 5)["mu"] for s in (ran, other))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert other.elbo == ran.elbo
    assert other.to_inference_data()["log_likelihood"]["y"].shape == (4, 100, 3)


def test_two_threads_may_run_a_sampler_each():
    samplers = [OneStep(Plain(Y + shift) if shift else normal, **QUICK) for shift in range(4)]
    errors = []

    def run(index):
        try:
            samplers[index].run(jr.key(index), *(() if index else (Y,)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for index, sampler in enumerate(samplers):
        assert abs(float(sampler.get_samples()["mu"].mean()) - 2 - index) < 0.15


def test_a_run_inside_a_transformation_says_what_to_do():
    def run(key, y):
        OneStep(normal, **QUICK).run(key, y)
        return y

    def closed_over(y):
        OneStep(lambda: normal(y), **QUICK).run(jr.key(0))
        return y

    y = jnp.asarray(Y)
    for call in (
        lambda: jax.jit(run)(jr.key(0), y),
        lambda: jax.vmap(run, (None, 0))(jr.key(0), jnp.ones((2, 3))),
        lambda: jax.vmap(closed_over)(jnp.ones((2, 3))),
        lambda: jax.jit(lambda: run(jr.key(0), y))(),
    ):
        with pytest.raises(TypeError, match="outside of it"):
            call()


def test_strict_promotion_of_types_and_ranks_changes_nothing():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert abs(mean(normal, jnp.asarray(Y)) - 2) < 0.15
        sampler = OneStep(normal, **QUICK)
        sampler.run(jr.key(0), jnp.asarray(Y))
        sampler.sample(jr.key(1), 10)
        sampler.to_inference_data()
        sampler.evaluate(jr.key(1), 1, 100)
        sampler.evidence_interval(jr.key(1), 2)


def test_programs_of_models_long_gone_are_let_go(monkeypatch):
    # A process has memory maps for some thousand programs, and ends where it has none left.
    monkeypatch.setattr(compilation, "_MOST_PROGRAMS", 2)

    @compilation.compiled
    def times(x, number):
        return number * x

    def num_programs():
        gc.collect()
        return len(jax.devices()[0].client.live_executables())

    compilation.make_room_for("one target")
    for number in range(4):
        times(jnp.ones(3), number)
    before = num_programs()
    compilation.make_room_for("one target")
    assert num_programs() == before
    compilation.make_room_for("another")
    assert num_programs() <= before - 4
    np.testing.assert_array_equal(times(jnp.ones(3), 2), 2 * np.ones(3))


def test_other_settings_of_the_draws_compile_nothing():
    settings = {"max_steps": 200, "width": 16}
    first = OneStep(normal, progress_bar=False, **settings)
    first.run(jr.key(0), Y)
    first.sample(jr.key(1), 10)
    counter = CompilationCounter()
    for changed in ({"num_samples": 1000}, {"num_samples": 137}, {"learning_rate": 1e-3}):
        sampler = OneStep(normal, progress_bar=True, **settings | changed)
        sampler.run(jr.key(0), Y)
        sampler.sample(jr.key(1), 77)
    assert counter.count == 0
    assert len(sampler.get_samples()["mu"]) == 4000
