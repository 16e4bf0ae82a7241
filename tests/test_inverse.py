import jax
import jax.random as jr
import numpy as np
import pytest

from numpyro_onestep.flow.inverse import invert
from tests.conftest import random_flow


@pytest.mark.parametrize("num_steps", [1, 2, 4])
@pytest.mark.parametrize(("dim", "width"), [(3, 16), (20, 8)], ids=["dense", "thin"])
def test_there_and_back(num_steps, dim, width, x64):
    flow = random_flow(dim, jr.key(0), width=width, scale=0.2)
    z = jr.normal(jr.key(1), (20, dim))
    y = jax.vmap(lambda at: flow(at, num_steps))(z)
    back = jax.vmap(lambda at, near: invert(flow, at, near, num_steps))(y, z + 0.1)
    assert np.all(back.found)
    np.testing.assert_allclose(back.z, z, atol=1e-6)


def test_a_point_out_of_reach_is_said_to_be_so():
    flow = random_flow(2, jr.key(0), scale=3.0)
    y = 1e4 * jr.normal(jr.key(1), (5, 2))
    back = jax.vmap(lambda at: invert(flow, at, at, 1))(y)
    reached = jax.vmap(lambda at: flow(at, 1))(back.z)
    close = np.max(np.abs(np.asarray(reached - y)), axis=1) < 10
    assert not np.any(np.asarray(back.found) & ~close)
