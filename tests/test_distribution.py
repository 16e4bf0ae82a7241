"""The trained flow as NumPyro knows distributions and transforms."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS

from numpyro_onestep import FlowDistribution, FlowTransform, OneStep
from numpyro_onestep.flow.base_distribution import STANDARD_NORMAL, normal_mixture
from numpyro_onestep.flow.gaussian import GaussianPreconditioner
from tests.conftest import QUICK, random_flow

# They depend on no version.
pytestmark = pytest.mark.slow

DIM = 3
MIXTURE = normal_mixture(
    np.log([0.3, 0.7]), np.array([[-2.0, 0, 0], [1.0, 1, 0]]), np.stack([np.eye(3)] * 2), np.float32
)


def bent(num_steps=1, base=STANDARD_NORMAL, width=16, scale=0.2) -> FlowDistribution:
    """A distribution far from its preconditioner's Gaussian."""
    flow = random_flow(DIM, jr.key(0), width=width, num_grid_steps=4, scale=scale)
    tril = jnp.tril(jr.normal(jr.key(1), (DIM, DIM)), -1) + jnp.diag(jnp.array([0.1, 1.0, 7.0]))
    gaussian = GaussianPreconditioner(jnp.array([5.0, -2.0, 0.0]), tril)
    return FlowDistribution(flow, gaussian, base, num_steps)


@pytest.mark.parametrize("sample_shape", [(), (4,), (2, 3)])
def test_shapes_and_support_are_as_numpyro_wants_them(x64, sample_shape):
    q = bent()
    assert isinstance(q, dist.Distribution)
    assert (q.batch_shape, q.event_shape, q.support) == ((), (DIM,), constraints.real_vector)
    x = q.sample(jr.key(0), sample_shape)
    assert x.shape == q.shape(sample_shape) == (*sample_shape, DIM)
    assert q.log_prob(x).shape == sample_shape
    expanded = q.expand([2])
    assert expanded.sample(jr.key(0), sample_shape).shape == (*sample_shape, 2, DIM)
    assert expanded.log_prob(expanded.sample(jr.key(0))).shape == (2,)
    assert expanded.to_event(1).event_shape == (2, DIM)


@pytest.mark.parametrize("base", [STANDARD_NORMAL, MIXTURE], ids=["normal", "mixture"])
@pytest.mark.parametrize(("num_steps", "width"), [(1, 16), (4, 16), (1, 2)])
def test_the_density_is_that_of_the_map_by_its_full_jacobian(x64, num_steps, width, base):
    q = bent(num_steps, base, width, scale=0.1 if width > DIM else 0.03)  # no folds
    x, log_q = q.sample_and_log_prob(jr.key(0), (20,))
    z = q.sample_base(jr.key(0), 20)
    assert (jax.vmap(q.transform.image)(z).sign > 0).all()
    np.testing.assert_allclose(q.transform(z), x, rtol=1e-12)
    full = jax.vmap(jax.jacrev(q.transform))(z)
    expected = jax.vmap(q.base.log_density)(z) - jnp.linalg.slogdet(full)[1]
    np.testing.assert_allclose(log_q, expected, rtol=1e-9)
    # The same by the inverse, and by what `sample_with_intermediates` keeps.
    np.testing.assert_allclose(q.log_prob(x), log_q, atol=1e-6)
    again, kept = q.sample_with_intermediates(jr.key(0), (20,))
    np.testing.assert_allclose(q.log_prob(again, kept), log_q, rtol=1e-12)


def test_the_density_integrates_to_one(x64):
    flow = random_flow(1, jr.key(0), scale=0.1)
    q = FlowDistribution(flow, GaussianPreconditioner(jnp.ones(1), 2 * jnp.eye(1)))
    grid = jnp.linspace(-25, 27, 4001)
    density = jnp.exp(jax.jit(q.log_prob)(grid[:, None]))
    assert np.all(np.isfinite(density))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_density_can_be_differentiated_in_the_point_and_in_the_parameters(x64, num_steps):
    q = bent(num_steps, scale=0.1)
    x, step = q.sample(jr.key(3)), 1e-4
    both = jax.jit(jax.vmap(jax.value_and_grad(q.log_prob)))
    after, before = both(x + step * jnp.eye(DIM)), both(x - step * jnp.eye(DIM))
    slopes, bends = ((a - b) / (2 * step) for a, b in zip(after, before, strict=True))
    np.testing.assert_allclose(both(x[None])[1][0], slopes, rtol=1e-4, atol=1e-5)
    hessian = jax.jit(jax.hessian(q.log_prob))(x)
    np.testing.assert_allclose(hessian, bends, rtol=1e-3, atol=1e-4)

    @jax.jit
    def shifted(by):
        bias = q.flow.network.last.bias
        flow = jax.tree.map(lambda leaf: leaf + by if leaf is bias else leaf, q.flow)
        return q.with_flow(flow).log_prob(x)

    slope = (shifted(step) - shifted(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(shifted)(0.0), slope, rtol=1e-4, atol=1e-5)


def test_a_point_found_where_the_map_folds_has_no_known_density(x64):
    # Along the line this map turns back, so that several z lead to one x.
    flow = random_flow(1, jr.key(1), scale=10.0)
    q = FlowDistribution(flow, GaussianPreconditioner(jnp.zeros(1), jnp.eye(1)))
    images = jax.vmap(q.transform.image)(jnp.linspace(-4, 4, 201)[:, None])
    z, found = q.transform.invert(images.x)
    back = jax.vmap(q.transform.image)(z)
    np.testing.assert_allclose(back.x[found], images.x[found], rtol=1e-6, atol=1e-6)
    known = np.asarray(found & (back.sign > 0))
    assert 0 < known.sum() < len(known)
    np.testing.assert_array_equal(np.isfinite(q.log_prob(images.x)), known)


def test_it_goes_through_jax_as_a_pytree(x64):
    q, x = bent(), jnp.ones((5, DIM))
    expected = q.log_prob(x)
    leaves, tree = jax.tree.flatten(q)
    again = jax.tree.unflatten(tree, leaves)
    inside = jax.jit(lambda q, x: q.log_prob(x))(again, x)
    np.testing.assert_allclose(inside, expected, rtol=1e-9)
    two = jax.tree.map(lambda *v: jnp.stack(v), q, bent(scale=0.1))
    each = jax.jit(jax.vmap(lambda q: q.log_prob(x)))(two)
    np.testing.assert_allclose(each[0], expected, rtol=1e-9)


def test_the_transform_is_undone_and_knows_its_volume(x64):
    transform = bent(4).transform
    assert isinstance(transform, FlowTransform)
    z = jr.normal(jr.key(0), (2, 5, DIM))
    x, kept = transform.call_with_intermediates(z)
    np.testing.assert_allclose(transform(z), x, rtol=1e-12)
    np.testing.assert_allclose(transform.inv(x), z, atol=1e-6)
    volume = transform.log_abs_det_jacobian(z, x)
    np.testing.assert_allclose(transform.log_abs_det_jacobian(z, x, kept), volume, rtol=1e-12)
    full = jax.vmap(jax.vmap(jax.jacfwd(transform)))(z)
    np.testing.assert_allclose(volume, jnp.linalg.slogdet(full)[1], rtol=1e-9)
    assert transform == bent(4).transform
    assert transform != bent(1).transform


def test_a_sampler_gives_its_posterior_and_transform(schools):
    q = schools.get_posterior()
    x, log_q = q.sample_and_log_prob(jr.key(0), (2000,))
    # E_q[log gamma - log q] is the ELBO.
    log_weight = -jax.lax.map(schools.result.problem.potential, x, batch_size=500) - log_q
    error = float(log_weight.std()) / 2000**0.5
    assert abs(float(log_weight.mean()) - schools.elbo) < 4 * (error + schools.elbo_std_error)
    z = q.sample_base(jr.key(0), 2000)
    np.testing.assert_allclose(schools.get_transform()(z), x, rtol=1e-5, atol=1e-5)
    # In single precision the inverse is as good as rounding lets it be.
    np.testing.assert_allclose(q.log_prob(x[:200]), log_q[:200], atol=2e-3)


@pytest.mark.slow
def test_nuts_on_the_distribution_as_a_site_has_its_moments():
    target = dist.MultivariateNormal(jnp.array([1.0, -1.0]), jnp.array([[1.0, 0.5], [0.5, 2.0]]))
    sampler = OneStep(potential_fn=lambda x: -target.log_prob(x), **QUICK)
    sampler.run(jr.key(0), init_params=jnp.zeros(2))
    q = sampler.get_posterior()

    def model():
        numpyro.sample("x", q)

    mcmc = MCMC(NUTS(model), num_warmup=100, num_samples=500, progress_bar=False)
    mcmc.run(jr.key(1))
    x = np.asarray(mcmc.get_samples()["x"])
    # An effective size of at least 100, in either coordinate.
    assert np.all(abs(x.mean(0) - [1, -1]) < 4 * np.sqrt(np.array([1, 2]) / 100))
    drawn = handlers.trace(handlers.seed(model, 0)).get_trace()["x"]["value"]
    assert drawn.shape == (2,)
