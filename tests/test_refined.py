"""Draws of more steps than one: parareal iterations, and the one-step defect."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_onestep import OneStep, OneStepWarning
from numpyro_onestep.flow.parareal import TOLERANCE, num_blocks, parareal
from tests.conftest import QUICK, random_flow


@pytest.fixture(scope="module")
def distilled():
    """A bent target, and a flow that is trained for every step budget, if not for long."""

    def banana(x):
        return 0.5 * x[0] ** 2 + 0.5 * ((x[1] - 0.5 * x[0] ** 2) / 0.5) ** 2

    settings = QUICK | {"num_distillation_steps": 200, "elbo_weight": 0.0}
    sampler = OneStep(potential_fn=banana, **settings)
    with pytest.warns(OneStepWarning):  # after so short a training the weights are uneven
        sampler.run(jr.key(0), init_params=jnp.zeros(2))
    return sampler


@pytest.mark.parametrize("num_steps", [2, 8, 16])
def test_parareal_is_the_serial_map(num_steps, x64):
    flow = random_flow(3, jr.key(0), scale=0.1)
    z = jr.normal(jr.key(1), (50, 3))
    serial = jax.vmap(lambda z: flow(z, num_steps))(z)

    def refined(tolerance):
        return jax.jit(jax.vmap(lambda z: parareal(flow, z, num_steps, tolerance)))(z)

    exact, near = refined(0.0), refined(TOLERANCE)
    np.testing.assert_allclose(exact.y, serial, rtol=1e-12, atol=1e-12)
    assert np.all(exact.num_evaluations == num_steps)
    # The last change bounds what is left: iterations converge faster than geometrically.
    assert np.all(abs(near.y - serial).max(1) < TOLERANCE)
    assert np.all(near.num_evaluations <= num_steps)
    if num_steps >= 8:
        # Iteration p ends after p (k / B) + B - p evaluations, and two suffice for some draw.
        blocks = num_blocks(num_steps)
        allowed = [p * (num_steps // blocks) + blocks - p for p in range(1, blocks + 1)]
        assert set(np.unique(near.num_evaluations)) <= set(allowed)
        assert near.num_evaluations.min() <= allowed[1] < num_steps


@pytest.mark.slow
def test_refined_samples_are_those_of_the_steps_one_after_the_other(distilled):
    one = distilled.sample(jr.key(1), 500)
    serial = distilled.sample(jr.key(1), 500, 16)
    refined = distilled.sample(jr.key(1), 500, 16, parallel=True)
    whiten = jax.vmap(distilled.get_posterior().preconditioner.whiten)
    assert float(abs(whiten(serial) - whiten(refined)).max()) < TOLERANCE
    assert float(abs(whiten(serial) - whiten(one)).max()) > TOLERANCE
    np.testing.assert_array_equal(one, distilled.sample(jr.key(1), 500, 1))


@pytest.mark.slow
def test_the_one_step_defect_is_the_distance_of_two_maps(distilled):
    pool, posterior = distilled.get_pool(), distilled.get_posterior()
    whiten = jax.vmap(posterior.preconditioner.whiten)
    ends = [whiten(posterior.with_steps(k).transform(jnp.asarray(pool.z))) for k in (1, 4)]
    defect = distilled.one_step_defect(4)
    np.testing.assert_allclose(defect, jnp.linalg.norm(ends[0] - ends[1], axis=1), atol=1e-4)
    np.testing.assert_array_equal(distilled.one_step_defect(1), 0.0)


@pytest.mark.slow
def test_what_cannot_be_refined_says_so(distilled, schools):
    with pytest.raises(ValueError, match="must divide"):
        distilled.sample(jr.key(0), 10, 3)
    with pytest.warns(OneStepWarning, match="trained for num_flow_steps=1"):
        schools.sample(jr.key(0), 10, 4)
