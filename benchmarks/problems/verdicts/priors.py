"""Thirty-one models without data: the log evidence is 0, and the distribution of draws is known.

Sites are judged through transforms whose distribution is known: a site's distribution function
given the sites before it is uniform, a standardised normal is standard normal. Scales are judged by
their logarithms, since these show whether the draws lack a narrow neck.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import stats
from scipy.special import polygamma

from benchmarks.problems.verdicts.answers import Answer, collect, known

KIND = "no data"
_LOG_HALF_NORMAL = -(np.euler_gamma + np.log(2)) / 2, np.pi / np.sqrt(8)
# Mean, standard deviation and kurtosis of each distribution.
LAWS = {
    "uniform": (0.5, np.sqrt(1 / 12), 1.8),
    "normal": (0.0, 1.0, 3.0),
    "log half normal": (*_LOG_HALF_NORMAL, 3 + polygamma(3, 0.5) / polygamma(1, 0.5) ** 2),
    "log half Cauchy": (0.0, np.pi / 2, 5.0),
}
_POINTS = 0.5 * np.arange(12)
_KERNEL = np.exp(-0.5 * (_POINTS[:, None] - _POINTS) ** 2)


def prior(name: str, model, *pieces):
    """A model that is judged in pieces: number of quantities, their distribution, and a function.

    The function gives the quantities from the draws; the distribution is one of `LAWS`.
    """

    def quantities(draws: dict) -> np.ndarray:
        double = {site: np.asarray(value, np.float64) for site, value in draws.items()}
        values = [function(double) for _, _, function in pieces]
        return np.concatenate([value.reshape(len(value), -1) for value in values], axis=-1)

    def answer() -> Answer:
        figures = np.concatenate([np.tile(LAWS[law], (count, 1)) for count, law, _ in pieces])
        return Answer(*figures.T, 0.0)

    return known(name, KIND, model, (), quantities, answer)


def simple(name: str, distribution, cdf, count: int = 1):
    """Independent coordinates of one distribution, through its distribution function."""

    def model():
        wide = distribution.expand([count]).to_event(1) if count > 1 else distribution
        numpyro.sample("x", wide)

    return prior(name, model, (count, "uniform", lambda draws: cdf(draws["x"])))


def standardised(name: str, model, count: int, function):
    """A model whose quantities are all standard normal."""
    return prior(name, model, (count, "normal", function))


def _scales(scales):
    def model():
        numpyro.sample("x", dist.Normal(0, jnp.array(scales)).to_event(1))

    return model


def _correlated():
    covariance = 0.01 * jnp.eye(10) + 0.99
    numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(10), covariance))


def _uncorrelated(draws) -> np.ndarray:
    scale_tril = np.linalg.cholesky(0.01 * np.eye(10) + 0.99)
    return np.linalg.solve(scale_tril, draws["x"].T).T


def _dirichlet(concentration, count):
    def model():
        numpyro.sample("p", dist.Dirichlet(jnp.full(count, concentration)))

    return model


def _sticks(concentration, count):
    """Each share of a simplex as a fraction of itself and those after it.

    That fraction has a beta distribution, by whose distribution function it is judged.
    """

    def function(draws) -> np.ndarray:
        p = draws["p"]
        rest = np.cumsum(p[:, ::-1], axis=-1)[:, ::-1]
        others = concentration * np.arange(count - 1, 0, -1)
        return stats.beta.cdf(p[:, :-1] / rest[:, :-1], concentration, others)

    return count - 1, "uniform", function


def _correlations(of, shape: float, dimension: int):
    """Correlations below the diagonal, each of which has a beta distribution on (-1, 1)."""
    below = np.tril_indices(dimension, -1)

    def function(draws) -> np.ndarray:
        matrix = of(draws)
        scale = np.sqrt(np.diagonal(matrix, axis1=1, axis2=2))
        matrix = matrix / scale[:, :, None] / scale[:, None]
        return stats.beta.cdf((1 + matrix[:, *below]) / 2, shape, shape)

    return len(below[0]), "uniform", function


def _lkj(dimension, concentration):
    def model():
        numpyro.sample("corr", dist.LKJ(dimension, concentration))

    return model


def _lkj_cholesky():
    numpyro.sample("factor", dist.LKJCholesky(5, 2.0))


def _squared(draws) -> np.ndarray:
    return draws["factor"] @ draws["factor"].transpose(0, 2, 1)


def _wishart():
    numpyro.sample("precision", dist.Wishart(6.0, jnp.eye(3)))


def _wishart_variances(draws) -> np.ndarray:
    return stats.chi2.cdf(np.diagonal(draws["precision"], axis1=1, axis2=2), 6)


def _hierarchy(prior_tau, count, centred=True):
    def model():
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", prior_tau)
        if centred:
            numpyro.sample("theta", dist.Normal(mu, tau).expand([count]).to_event(1))
        else:
            z = numpyro.sample("z", dist.Normal(0, 1).expand([count]).to_event(1))
            numpyro.deterministic("theta", mu + tau * z)

    return model


def _hierarchy_pieces(count, law, scale):
    return (
        (1, "normal", lambda draws: draws["mu"] / 5),
        (1, law, lambda draws: np.log(draws["tau"] / scale)),
        (
            count,
            "normal",
            lambda draws: (draws["theta"] - draws["mu"][:, None]) / draws["tau"][:, None],
        ),
    )


def _path():
    x = 0.0
    for t in range(20):
        x = numpyro.sample(f"x{t:02d}", dist.Normal(0.9 * x, 1.0))


def _path_steps(draws) -> np.ndarray:
    x = np.stack([draws[f"x{t:02d}"] for t in range(20)], axis=-1)
    return np.diff(x, axis=-1, prepend=0) + 0.1 * np.pad(x, ((0, 0), (1, 0)))[:, :-1]


def _walk():
    numpyro.sample("x", dist.GaussianRandomWalk(1.0, num_steps=100))


def _funnel(sd, count):
    def model():
        v = numpyro.sample("v", dist.Normal(0, sd))
        numpyro.sample("x", dist.Normal(0, jnp.exp(v / 2)).expand([count]).to_event(1))

    return model


def _funnel_pieces(sd, count):
    return (
        (1, "normal", lambda draws: draws["v"] / sd),
        (count, "normal", lambda draws: draws["x"] * np.exp(-draws["v"] / 2)[:, None]),
    )


def _horseshoe():
    tau = numpyro.sample("tau", dist.HalfCauchy(1))
    lam = numpyro.sample("lam", dist.HalfCauchy(1).expand([4]).to_event(1))
    numpyro.sample("beta", dist.Normal(0, tau * lam).to_event(1))


def _horseshoe_noncentred():
    tau = numpyro.sample("tau", dist.HalfCauchy(1))
    lam = numpyro.sample("lam", dist.HalfCauchy(1).expand([4]).to_event(1))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([4]).to_event(1))
    numpyro.deterministic("beta", tau * lam * z)


_HORSESHOE = (
    (1, "log half Cauchy", lambda draws: np.log(draws["tau"])),
    (4, "log half Cauchy", lambda draws: np.log(draws["lam"])),
    (4, "normal", lambda draws: draws["beta"] / (draws["tau"][:, None] * draws["lam"])),
)


def _chain():
    a = numpyro.sample("a", dist.Uniform(0.0, 1.0))
    b = numpyro.sample("b", dist.Uniform(0.0, a))
    numpyro.sample("c", dist.Uniform(0.0, b))


def _chain_shares(draws) -> np.ndarray:
    a, b, c = draws["a"], draws["b"], draws["c"]
    return np.stack([a, b / a, c / b], axis=-1)


def _ordered():
    normals = dist.Normal(0, 1).expand([4]).to_event(1)
    ordered = dist.transforms.OrderedTransform()
    numpyro.sample("x", dist.TransformedDistribution(normals, ordered))


def _unordered(draws) -> np.ndarray:
    x = draws["x"]
    return np.concatenate([x[:, :1], np.log(np.diff(x, axis=-1))], axis=-1)


def _process():
    amplitude = numpyro.sample("amplitude", dist.HalfNormal(1))
    covariance = amplitude**2 * _KERNEL + 1e-3 * jnp.eye(12)
    numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(12), covariance))


def _process_coefficients(draws) -> np.ndarray:
    values, vectors = np.linalg.eigh(_KERNEL)
    variances = draws["amplitude"][:, None] ** 2 * values + 1e-3
    return (draws["f"] @ vectors) / np.sqrt(variances)


def _mixed():
    numpyro.sample("a", dist.Gumbel(1.0, 2.0))
    numpyro.sample("b", dist.Weibull(2.0, 0.7))
    numpyro.sample("c", dist.Logistic(0.0, 3.0))
    numpyro.sample("d", dist.Beta(0.5, 0.5))
    numpyro.sample("e", dist.Beta(2.0, 30.0))


def _mixed_cdfs(draws) -> np.ndarray:
    laws = {
        "a": stats.gumbel_r(1.0, 2.0),
        "b": stats.weibull_min(0.7, scale=2.0),
        "c": stats.logistic(0.0, 3.0),
        "d": stats.beta(0.5, 0.5),
        "e": stats.beta(2.0, 30.0),
    }
    return np.stack([law.cdf(draws[name]) for name, law in laws.items()], axis=-1)


def _models():
    spread = np.geomspace(1e-8, 1e6, 8)
    half_normal, half_cauchy = dist.HalfNormal(2), dist.HalfCauchy(1)
    eight = _hierarchy_pieces(8, "log half normal", 2.0)
    cauchy_eight = _hierarchy_pieces(8, "log half Cauchy", 1.0)
    thirty = _hierarchy_pieces(30, "log half normal", 2.0)

    def simplex(name, *about):
        return prior(name, _dirichlet(*about), _sticks(*about))

    def correlation(draws):
        return draws["corr"]

    wishart = (
        (3, "uniform", _wishart_variances),
        _correlations(lambda draws: draws["precision"], 2.5, 3),
    )
    process = (
        (1, "log half normal", lambda draws: np.log(draws["amplitude"])),
        (12, "normal", _process_coefficients),
    )
    return [
        simple("prior_cauchy", dist.Cauchy(0, 1), stats.cauchy.cdf),
        simple("prior_half_cauchy", dist.HalfCauchy(2), stats.halfcauchy(0, 2).cdf, 3),
        simple("prior_student_3", dist.StudentT(3.0), stats.t(3.0).cdf, 5),
        simple("prior_log_normal", dist.LogNormal(0, 2), stats.lognorm(2).cdf, 2),
        simple("prior_inverse_gamma", dist.InverseGamma(1.0, 1.0), stats.invgamma(1.0).cdf),
        simple("prior_pareto", dist.Pareto(1.0, 1.0), stats.pareto(1.0).cdf),
        simple("prior_gamma_0.2", dist.Gamma(0.2, 1.0), stats.gamma(0.2).cdf),
        simple("prior_laplace", dist.Laplace(0, 1), stats.laplace.cdf, 10),
        prior("prior_mixed", _mixed, (5, "uniform", _mixed_cdfs)),
        simplex("prior_simplex_5", 1.0, 5),
        simplex("prior_simplex_20", 0.5, 20),
        simplex("prior_simplex_sharp", 1000.0, 4),
        prior("prior_lkj_2", _lkj(2, 1.0), _correlations(correlation, 1.0, 2)),
        prior("prior_lkj_10", _lkj(10, 1.0), _correlations(correlation, 5.0, 10)),
        prior("prior_lkj_cholesky_5", _lkj_cholesky, _correlations(_squared, 3.5, 5)),
        prior("prior_wishart_3", _wishart, *wishart),
        standardised("prior_correlated_10", _correlated, 10, _uncorrelated),
        standardised("prior_tiny", _scales([1e-8] * 3), 3, lambda draws: draws["x"] / 1e-8),
        standardised("prior_scales", _scales(spread), 8, lambda draws: draws["x"] / spread),
        prior("prior_hierarchy_8", _hierarchy(half_normal, 8), *eight),
        prior("prior_hierarchy_30", _hierarchy(half_normal, 30), *thirty),
        prior("prior_hierarchy_cauchy", _hierarchy(half_cauchy, 8), *cauchy_eight),
        prior("prior_hierarchy_noncentred", _hierarchy(half_normal, 8, False), *eight),
        standardised("prior_path", _path, 20, _path_steps),
        standardised("prior_walk_100", _walk, 100, lambda draws: np.diff(draws["x"], prepend=0)),
        prior("prior_funnel_5", _funnel(1.5, 4), *_funnel_pieces(1.5, 4)),
        prior("prior_horseshoe", _horseshoe, *_HORSESHOE),
        prior("prior_horseshoe_noncentred", _horseshoe_noncentred, *_HORSESHOE),
        prior("prior_chain", _chain, (3, "uniform", _chain_shares)),
        standardised("prior_ordered", _ordered, 4, _unordered),
        prior("prior_process", _process, *process),
    ]


PRIORS = collect(*_models())
assert len(PRIORS) == 31
