"""The targets of the paper's suite.

The Bayesian ones are reference posteriors, and the Cox process is that of the high-dimensional
problems on the paper's 40 x 40 grid. Its points are simulated; they are not the pines that the
paper has.
"""

from functools import cache

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks.problems.high_dimension import cox_process, cox_process_data
from benchmarks.problems.reference_posteriors import POSTERIORS
from benchmarks.problems.target import Target, many_well, mixture


def _funnel_potential(x):
    v, rest = x[0], x[1:]
    return -dist.Normal(0, 3).log_prob(v) - dist.Normal(0, jnp.exp(v / 2)).log_prob(rest).sum()


def _funnel_sample(rng, n):
    v = 3 * rng.standard_normal((n, 1))
    return np.concatenate([v, np.exp(v / 2) * rng.standard_normal((n, 9))], axis=1)


def _without_prior(X, y):
    flat = dist.ImproperUniform(dist.constraints.real_vector, (), (X.shape[-1],))
    w = numpyro.sample("w", flat)
    numpyro.sample("y", dist.Bernoulli(logits=X @ w), obs=y)


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


@cache
def targets() -> dict[str, Target]:
    """All of the paper's targets, by name."""
    rng = np.random.default_rng(0)
    grid = np.array([[x, y] for x in (-5.0, 0.0, 5.0) for y in (-5.0, 0.0, 5.0)])
    unit = float(np.log1p(np.e))  # the scale that the literature's mixture of forty modes has
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
