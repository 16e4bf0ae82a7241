"""Mixtures that the paper does not have: other numbers of modes, spacings, weights and shapes.

A name says how many modes and how many dimensions.
"""

from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from benchmarks.problems.target import Target, many_well, mixture


def skewed(name: str, rng, num: int, d: int) -> Target:
    """Gaussians, each with a covariance of its own, whose weights are as 1 to 2 to 3 and so on."""
    means, weights = rng.uniform(-15, 15, (num, d)), np.arange(1, num + 1) / (num * (num + 1) / 2)
    square = rng.normal(size=(num, d, d))
    scale_tril = np.linalg.cholesky(square @ square.transpose(0, 2, 1) + 0.1 * np.eye(d))
    normals = dist.MultivariateNormal(
        jnp.asarray(means, jnp.float32), scale_tril=jnp.asarray(scale_tril, jnp.float32)
    )
    log_weights = jnp.log(jnp.asarray(weights, jnp.float32))

    def potential(x):
        return -jax.nn.logsumexp(log_weights + normals.log_prob(x))

    def sample(rng, n):
        which = rng.choice(num, n, p=weights)
        return means[which] + np.einsum(
            "nij,nj->ni", scale_tril[which], rng.standard_normal((n, d))
        )

    return Target(
        name, d, 0.0, potential, sample=sample, means=means, weights=weights, multimodal=True
    )


@cache
def targets() -> dict[str, Target]:
    """All of these mixtures, by name."""
    rng = np.random.default_rng(7)
    grid = 5.0 * np.array(list(product(range(5), repeat=2)))
    corners = 3.0 * np.array(list(product((-1, 1), repeat=6)))
    far = np.array([[0.0, 0.0], [1000.0, 0.0], [0.0, -500.0]])
    pair = np.stack([np.zeros(30), np.full(30, 4.0)])
    found = [
        mixture("uneven_16_2d", rng.uniform(-40, 40, (16, 2)), 1.0, rng.dirichlet(np.ones(16))),
        mixture("hundred_2d", rng.uniform(-60, 60, (100, 2)), 1.0, np.ones(100)),
        mixture("two_hundred_2d", rng.uniform(-100, 100, (200, 2)), 1.0, np.ones(200)),
        mixture("narrow_grid_2d", grid, 0.3, rng.uniform(0.2, 1, 25)),
        mixture("far_and_rare_2d", far, 1.0, [0.9, 0.05, 0.05]),
        skewed("skewed_6_5d", rng, 6, 5),
        mixture("student_t_6_5d", rng.uniform(-10, 10, (6, 5)), 1.0, np.ones(6), df=3.0),
        mixture("corners_6d", corners, 0.5, np.ones(64)),
        mixture("uneven_20_10d", rng.uniform(-10, 10, (20, 10)), 1.0, np.arange(1, 21)),
        mixture("uneven_12_20d", rng.uniform(-40, 40, (12, 20)), 1.0, rng.dirichlet(np.ones(12))),
        many_well("many_well_20", 20, 10),
        mixture("rare_of_two_30d", pair, 1.0, [0.97, 0.03]),
        mixture("five_100d", rng.uniform(-20, 20, (5, 100)), 1.0, np.ones(5)),
        mixture("nested_2d", np.array([[0.5, 0.0], [0.0, 0.0]]), [0.1, 5.0], [0.4, 0.6]),
        mixture("nested_20d", np.stack([np.full(20, 0.5), np.zeros(20)]), [0.5, 3.0], np.ones(2)),
        mixture(
            "widths_12_2d",
            rng.uniform(-40, 40, (12, 2)),
            np.geomspace(0.1, 5.0, 12),
            rng.dirichlet(np.ones(12)),
        ),
    ]
    return {target.name: target for target in found}
