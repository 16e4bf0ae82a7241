import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numpyro_onestep.flow import FlowMap, ResidualVelocity, uniform_grid
from tests.conftest import random_flow


@pytest.mark.parametrize("num_steps", [1, 2, 4, 16])
@pytest.mark.parametrize("dim", [1, 3, 8, 24])  # 24 is more than the network's width, 16
def test_log_det_agrees_with_the_full_jacobian_of_the_whole_map(x64, dim, num_steps):
    flow = random_flow(dim, jr.key(dim))

    @jax.jit
    @jax.vmap
    def both(z):
        full = jax.jacrev(lambda at: flow(at, num_steps))(z)
        ours = flow.volume(z, num_steps), flow.jacobian(z, num_steps)
        return *ours, flow(z, num_steps), full, jnp.linalg.slogdet(full)

    volume, jacobian, y, full, expected = both(jr.normal(jr.key(1), (5, dim)))
    np.testing.assert_allclose(volume.log_det, expected.logabsdet, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(volume.sign, expected.sign)
    np.testing.assert_allclose(volume.y, y, rtol=1e-12)
    np.testing.assert_allclose(jacobian, full, atol=1e-10)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_determinant_is_negative_where_the_map_turns_back_and_only_there(x64, num_steps):
    flow = random_flow(1, jr.key(1), scale=10.0)
    volume = jax.vmap(lambda z: flow.volume(z, num_steps))(jnp.linspace(-4, 4, 20_001)[:, None])
    sign = np.asarray(volume.sign)
    both = sign[:-1] == sign[1:]  # between two points of different sign it may run either way
    assert both.mean() > 0.99
    np.testing.assert_array_equal(np.sign(np.diff(volume.y[:, 0]))[both], sign[1:][both])
    # There is something to see: a fair part of the line of either kind.
    assert 0.05 < (sign < 0).mean() < 0.95


@pytest.mark.parametrize("num_steps", [1, 4])
def test_an_untrained_flow_is_the_identity(num_steps):
    network = ResidualVelocity(4, 8, 3.0, jr.key(0), jnp.float32)
    flow = FlowMap(network, uniform_grid(3.0, 4))
    z = jr.normal(jr.key(1), (4,))
    y, log_det, sign = flow.volume(z, num_steps)
    np.testing.assert_array_equal(y, z)
    assert (log_det, sign) == (0, 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([1, 2, 4, 8, 16]))
def test_steps_of_the_schedule_lead_from_the_horizon_to_zero(seed, num_steps):
    flow = random_flow(2, jr.key(seed))
    taus, sizes = flow.schedule(num_steps)
    assert len(taus) == num_steps
    assert taus[0] == 3.0
    np.testing.assert_allclose(taus[1:], (taus - sizes)[:-1], atol=1e-6)
    np.testing.assert_allclose(sizes.sum(), 3.0, rtol=1e-6)


def test_a_number_of_steps_that_does_not_divide_the_grid_is_refused():
    with pytest.raises(ValueError, match="must divide the grid's 16 steps"):
        random_flow(2, jr.key(0))(jnp.zeros(2), 3)
