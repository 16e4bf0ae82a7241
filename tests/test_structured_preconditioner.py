"""The preconditioner of a structured map: it is undone, and its products are those of matrices."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.test_structured_map import STRUCTURES, random_preconditioner


def test_the_preconditioner_is_undone_and_its_products_are_those_of_matrices(x64):
    structure, gaussian = STRUCTURES["any"], random_preconditioner("any")
    assert structure is not None
    d = len(structure.order)
    rng = np.random.default_rng(1)
    y, v = (jnp.asarray(rng.standard_normal(d)) for _ in range(2))
    np.testing.assert_allclose(gaussian.whiten(gaussian.unwhiten(y)), y, rtol=1e-9)
    full = jax.jacfwd(gaussian.unwhiten)(y)
    sign, log_det = jnp.linalg.slogdet(full)
    assert sign == (1 if is_even(structure.order) else -1)
    np.testing.assert_allclose(gaussian.log_det, log_det, rtol=1e-10)
    np.testing.assert_allclose(gaussian.matrix(), full, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gaussian.unwhiten(y), gaussian.loc + full @ y, rtol=1e-10)
    covariance = full @ full.T
    np.testing.assert_allclose(gaussian.times_covariance(v), covariance @ v, rtol=1e-10)
    expected = jnp.linalg.solve(covariance, v)
    np.testing.assert_allclose(gaussian.times_precision(v), expected, rtol=1e-7)
    moved = gaussian.moved(v)
    np.testing.assert_allclose(moved.unwhiten(y), gaussian.unwhiten(y) + v, rtol=1e-10)
    # y is in the order of the structure: the core first, each coordinate scaled by its own.
    g = structure.num_core
    first = full[structure.order[:g], :g]
    np.testing.assert_allclose(first, gaussian.core_tril, rtol=1e-9)
    assert np.count_nonzero(full) == np.count_nonzero(first) + d - g


def is_even(order) -> bool:
    """Whether a permutation is even: its matrix's determinant is one."""
    return bool(np.linalg.det(np.eye(len(order))[order]) > 0)
