"""The targets of the paper's suite: potentials with what is known of them exactly.

Synthetic targets carry exact draws and log Z; log Z of ManyWell is a product of one-dimensional
integrals.  Bayesian ones are the models of benchmarks.models, and the Cox process that of
benchmarks.high_dimension on the paper's 40 x 40 grid (points simulated, not the pines).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import ImproperUniform, constraints
from scipy.integrate import quad

from benchmarks.high_dimension import cox_process, cox_process_data
from benchmarks.models import POSTERIORS, Posterior


@dataclass(frozen=True)
class Target:
    """A target, and what is known of it."""

    name: str
    dim: int
    log_z: float | None
    potential: Callable | None = None
    model: Callable | None = None
    args: tuple = ()
    sample: Callable | None = None  # (generator, n) -> exact draws
    means: np.ndarray | None = None  # of a mixture's components
    weights: np.ndarray | None = None
    widths: np.ndarray | float = 1.0  # of the components; of no matter where all are equal
    wells: int = 0  # leading coordinates with two wells
    posterior: Posterior | None = None
    many_modes: bool = False


def mixture(name: str, means, scale, weights, df: float | None = None) -> Target:
    """Isotropic Gaussians, or Student t with `df` degrees of freedom in each coordinate.

    One scale for all, or one for each.
    """
    (num, d), weights = means.shape, np.asarray(weights) / np.sum(weights)
    widths = np.broadcast_to(scale, num)
    loc, log_weights = jnp.asarray(means, jnp.float32), jnp.log(jnp.asarray(weights, jnp.float32))
    scales = jnp.asarray(widths, jnp.float32)
    kernel = numpyro.distributions.Normal() if df is None else numpyro.distributions.StudentT(df)

    def potential(x):
        log_densities = kernel.log_prob((x - loc) / scales[:, None]).sum(-1) - d * jnp.log(scales)
        return -jax.nn.logsumexp(log_weights + log_densities)

    def sample(rng, n):
        size = n, d
        noise = rng.standard_normal(size) if df is None else rng.standard_t(df, size)
        which = rng.choice(num, n, p=weights)
        return means[which] + widths[which, None] * noise

    known = {"means": means, "weights": weights, "widths": widths}
    return Target(name, d, 0.0, potential, sample=sample, many_modes=True, **known)


def _well(t):
    return np.exp(-(t**4) + 6 * t**2 + 0.5 * t)


def many_well(name: str, dim: int, wells: int) -> Target:
    """Double wells in the leading coordinates, standard normals in the others."""

    def potential(x):
        first, rest = x[:wells], x[wells:]
        return jnp.sum(first**4 - 6 * first**2 - 0.5 * first) + 0.5 * jnp.sum(rest**2)

    grid = np.linspace(-4, 4, 200_001)
    cumulative = np.cumsum(_well(grid))

    def sample(rng, n):
        first = np.interp(rng.uniform(size=(n, wells)), cumulative / cumulative[-1], grid)
        return np.concatenate([first, rng.standard_normal((n, dim - wells))], axis=1)

    log_z = wells * np.log(quad(_well, -5, 5)[0]) + 0.5 * (dim - wells) * np.log(2 * np.pi)
    return Target(name, dim, float(log_z), potential, sample=sample, wells=wells, many_modes=True)


def right_share() -> float:
    """Mass of a well's right-hand side."""
    return quad(_well, 0, 5)[0] / quad(_well, -5, 5)[0]


def _funnel_potential(x):
    v, rest = x[0], x[1:]
    normal = numpyro.distributions.Normal
    return -normal(0, 3).log_prob(v) - normal(0, jnp.exp(v / 2)).log_prob(rest).sum()


def _funnel_sample(rng, n):
    v = 3 * rng.standard_normal((n, 1))
    return np.concatenate([v, np.exp(v / 2) * rng.standard_normal((n, 9))], axis=1)


def _without_prior(X, y):
    flat = ImproperUniform(constraints.real_vector, (), (X.shape[-1],))
    w = numpyro.sample("w", flat)
    numpyro.sample("y", numpyro.distributions.Bernoulli(logits=X @ w), obs=y)


def _bayesian(name: str) -> Target:
    posterior = POSTERIORS[name]
    mean, _, _ = posterior.reference()
    return Target(
        name,
        len(mean),
        posterior.log_evidence,
        model=posterior.model,
        args=posterior.args(),
        posterior=posterior,
    )


def targets() -> dict[str, Target]:
    """All of them, by name."""
    rng = np.random.default_rng(0)
    grid = np.array([[x, y] for x in (-5.0, 0.0, 5.0) for y in (-5.0, 0.0, 5.0)])
    unit = float(np.log1p(np.e))  # the modes' scale in the 40-mode mixture of the literature
    credit = POSTERIORS["credit"].args()
    found = [
        Target("funnel", 10, 0.0, _funnel_potential, sample=_funnel_sample),
        mixture("nine_modes", grid, 0.55, np.ones(9)),
        mixture("forty_modes", rng.uniform(-40, 40, (40, 2)), unit, np.ones(40)),
        mixture("forty_modes_50d", rng.uniform(-40, 40, (40, 50)), unit, np.ones(40)),
        many_well("many_well_5", 5, 5),
        many_well("many_well_32", 32, 16),
        many_well("many_well_50", 50, 25),
        mixture("student_t", rng.uniform(-10, 10, (10, 2)), 1.0, np.ones(10), df=2.0),
        *(_bayesian(name) for name in ("seeds", "sonar", "ionosphere", "credit", "cancer")),
        Target("credit_without_prior", 25, -504.5, model=_without_prior, args=credit),
        _bayesian("brownian"),
        Target("cox_process", 1600, None, model=cox_process, args=cox_process_data(40)),
    ]
    return {target.name: target for target in found}
