import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_onestep.flow.inverse import invert
from tests.conftest import random_flow

# They depend on no version.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("num_steps", [1, 2, 4])
@pytest.mark.parametrize(("dim", "width"), [(3, 16), (20, 8)], ids=["dense", "thin"])
def test_there_and_back(num_steps, dim, width, x64):
    flow = random_flow(dim, jr.key(0), width=width, scale=0.2)
    z = jr.normal(jr.key(1), (20, dim))
    y = jax.vmap(lambda at: flow(at, num_steps))(z)
    back = jax.vmap(lambda at, near: invert(flow, at, near, num_steps))(y, z + 0.1)
    assert np.all(back.found)
    np.testing.assert_allclose(back.z, z, atol=1e-6)


def folding_flow(dim):
    """In the first coordinate z + 2 z tanh(z / 2), all others as they are.

    Far out that is 3 z on the right and -z on the left, so it has a least value: the map folds.
    """
    flow = random_flow(dim, jr.key(0), width=2)
    first = jnp.zeros((2, dim)).at[:, 0].set(jnp.array([1.0, -1.0]))
    # u tanh(u / 2) is silu(u) + silu(-u); the step multiplies them by its length over sqrt(width).
    last = jnp.zeros((2 * dim, 2)).at[dim].set(2 * 2**0.5 / flow.times[-1])

    def parts(flow):
        network = flow.network
        return [
            *(network.first.weight, network.first.bias, network.last.weight, network.last.bias),
            *(network.modulation[1].weight, network.modulation[1].bias),
        ]

    zeros = [jnp.zeros_like(part) for part in parts(flow)]
    zeros[0], zeros[2] = first, last
    return eqx.tree_at(parts, flow, zeros)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 5], ids=["dense", "thin"])
def test_a_point_out_of_reach_is_said_to_be_so(dim):
    flow = folding_flow(dim)
    lines = jnp.zeros((20_001, dim)).at[:, 0].set(jnp.linspace(-100, 100, 20_001))
    image = jax.vmap(flow)(lines)[:, 0]
    at = lines[:, 0]
    np.testing.assert_allclose(image, at + 2 * at * np.tanh(at / 2), rtol=1e-5, atol=1e-4)
    # Further out than the line goes the map is above 99.
    least = image.min()
    assert -0.3 < least < -0.2
    starts = lines[::1000]

    @jax.jit
    def from_everywhere(value):
        y = jnp.zeros(dim).at[0].set(value)
        back = jax.vmap(lambda near: invert(flow, y, near))(starts)
        return back.found, jax.vmap(flow)(back.z) - y

    # In single precision a point counts as there within 3000 * 1.2e-7 * 1.3 = 0.0005.
    for miss in (0.002, 0.1, 1.0, 100.0, 1e4):
        assert not np.any(from_everywhere(least - miss)[0])
    for value in (0.0, 0.5, 2.0, 30.0):
        found, error = from_everywhere(value)
        assert np.mean(found) > 0.4  # a start on the way to the fold may end in it
        np.testing.assert_allclose(error[found], 0, atol=0.0004 * (1 + value))


@pytest.mark.slow
def test_a_point_that_two_lead_to_comes_back_to_the_one_nearby(x64):
    flow = folding_flow(1)
    for z in (-4.0, -1.5, 0.5, 3.0):  # it folds at -0.5 or so
        z = jnp.full(1, z)
        back = invert(flow, flow(z), z + 0.1)
        assert back.found
        np.testing.assert_allclose(back.z, z, atol=1e-6)
