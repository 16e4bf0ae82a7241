"""The reference posteriors: seventeen models whose moments are known from long runs.

To add one: write its model here, add a line to `POSTERIORS`, and make ``data/<name>.npz`` with
``benchmarks.problems.pack``. benchmarks/README.md says it step by step.
"""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from benchmarks.problems.posterior import Posterior, columns


def _regression(beta_prior, sigma_prior, design):
    def model(y, *covariates):
        features = design(*covariates)
        beta = numpyro.sample("beta", beta_prior(features.shape[-1]))
        sigma = numpyro.sample("sigma", sigma_prior)
        numpyro.sample("y", dist.Normal(features @ beta, sigma), obs=y)

    return model


def _flat(size):
    return dist.ImproperUniform(dist.constraints.real_vector, (), (size,))


def _flat_positive():
    return dist.ImproperUniform(dist.constraints.positive, (), ())


def _beta_sigma(sites):
    return jnp.concatenate([sites["beta"], sites["sigma"][:, None]], axis=-1)


def autoregression(y):
    """An autoregression of order five with wide priors (posteriordb's arK-arK)."""
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([5]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    lagged = jnp.stack([y[5 - k : y.shape[0] - k] for k in range(1, 6)], axis=-1)
    numpyro.sample("y", dist.Normal(alpha + lagged @ beta, sigma), obs=y[5:])


def eight_schools(y, sigma):
    """Eight schools, non-centred."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        theta_trans = numpyro.sample("theta_trans", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * theta_trans)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_centered(y, sigma):
    """Eight schools, centred: theta, mu and tau have the same posterior as in the other form."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def gaussian_mixture(y):
    """Two ordered normal components, the assignment summed out."""
    # As in Stan, the prior is the density of two independent normals, restricted to ordered pairs.
    # It lacks the factor 2! that would make its integral one, which leaves the posterior the same.
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,)))
    numpyro.factor("mu_prior", dist.Normal(0, 2).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5, 5))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def gaussian_process(x, y):
    """Gaussian process regression. The diagonal has sigma added to it as it is, not squared."""
    rho = numpyro.sample("rho", dist.Gamma(25, 4))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    kernel = alpha**2 * jnp.exp(-((x[:, None] - x[None]) ** 2) / (2 * rho**2))
    covariance = kernel + sigma * jnp.eye(x.shape[0])
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(x.shape[0]), covariance), obs=y)


def seeds(R, N, X1, X2):
    """Random-effects logistic regression on seed germination."""
    a_0 = numpyro.sample("a_0", dist.Normal(0, 10))
    a_1 = numpyro.sample("a_1", dist.Normal(0, 10))
    a_2 = numpyro.sample("a_2", dist.Normal(0, 10))
    a_12 = numpyro.sample("a_12", dist.Normal(0, 10))
    tau = numpyro.sample("tau", dist.Gamma(0.01, 0.01))
    with numpyro.plate("plates", 21):
        b = numpyro.sample("b", dist.Normal(0, 1 / jnp.sqrt(tau)))
        logits = a_0 + a_1 * X1 + a_2 * X2 + a_12 * X1 * X2 + b
        numpyro.sample("R", dist.Binomial(N, logits=logits), obs=R)


def _logistic(scale):
    def model(X, y):
        w = numpyro.sample("w", dist.Normal(0, scale).expand([X.shape[-1]]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=X @ w), obs=y)

    return model


def brownian(y):
    """Brownian motion with unknown scales, the middle ten observations missing."""
    innovation = numpyro.sample("inn", dist.LogNormal(0, 2))
    noise = numpyro.sample("obsn", dist.LogNormal(0, 2))
    x = 0.0
    for t in range(30):
        x = numpyro.sample(f"x{t:02d}", dist.Normal(x, innovation))
        if not 10 <= t < 20:
            numpyro.sample(f"y{t:02d}", dist.Normal(x, noise), obs=y[t])


def funnel():
    """Neal's funnel in ten dimensions; its log evidence is 0."""
    v = numpyro.sample("v", dist.Normal(0, 3))
    numpyro.sample("x", dist.Normal(0, jnp.exp(v / 2)).expand([9]).to_event(1))


def _funnel_parameters(sites):
    # The fourth moment of x is so large that 4000 draws do not determine its standard deviation.
    # They do determine that of arcsinh(x), which stands in its place.
    return jnp.concatenate([sites["v"][:, None], jnp.arcsinh(sites["x"])], axis=-1)


def horseshoe(X, y):
    """A linear regression with a horseshoe prior, non-centred."""
    tau = numpyro.sample("tau", dist.HalfCauchy(1))
    lam = numpyro.sample("lam", dist.HalfCauchy(1).expand([X.shape[1]]).to_event(1))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    beta = numpyro.deterministic("beta", tau * lam * z)
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def _nes_design(real_ideo, race_adj, age, educ1, gender, income):
    ages = [age == 2, age == 3, age == 4]
    features = [jnp.ones(len(age)), real_ideo, race_adj, *ages, educ1, gender, income]
    return jnp.stack([jnp.asarray(f, float) for f in features], axis=-1)


def _mesquite(weight, *covariates):
    *sizes, group = covariates
    features = [jnp.ones(len(weight)), *(jnp.log(size) for size in sizes), group]
    beta = numpyro.sample("beta", _flat(7))
    sigma = numpyro.sample("sigma", _flat_positive())
    design = jnp.stack([jnp.asarray(f, float) for f in features], axis=-1)
    numpyro.sample("y", dist.Normal(design @ beta, sigma), obs=jnp.log(weight))


_kidiq = _regression(
    _flat, dist.HalfCauchy(2.5), lambda iq: jnp.stack([jnp.ones_like(iq), iq], axis=-1)
)
_nes = _regression(_flat, _flat_positive(), _nes_design)
_blr = _regression(
    lambda size: dist.Normal(0, 10).expand([size]).to_event(1), dist.HalfNormal(10), lambda X: X
)
_schools = columns("theta", "mu", "tau")
_brownian_sites = ("inn+", "obsn+", *(f"x{t:02d}" for t in range(30)))

POSTERIORS = {
    p.name: p
    for p in (
        Posterior("arK", autoregression, ("y",), columns("alpha", "beta", "sigma")),
        Posterior("blr", _blr, ("y", "X"), _beta_sigma),
        Posterior(
            "nes",
            _nes,
            ("partyid7", "real_ideo", "race_adj", "age_discrete", "educ1", "gender", "income"),
            _beta_sigma,
        ),
        Posterior(
            "mesquite",
            _mesquite,
            (
                "weight",
                "diam1",
                "diam2",
                "canopy_height",
                "total_height",
                "density",
                "group",
            ),
            _beta_sigma,
        ),
        Posterior("kidscore", _kidiq, ("kid_score", "mom_iq"), _beta_sigma),
        Posterior("gauss_mix", gaussian_mixture, ("y",), columns("mu", "sigma", "theta")),
        Posterior("gp_regr", gaussian_process, ("x", "y"), columns("rho", "alpha", "sigma")),
        Posterior("eight_schools", eight_schools, ("y", "sigma"), _schools, -31.31),
        Posterior(
            "eight_schools_centered", eight_schools_centered, ("y", "sigma"), _schools, -31.31
        ),
        Posterior(
            "seeds",
            seeds,
            ("R", "N", "X1", "X2"),
            columns("a_0", "a_1", "a_12", "a_2", "b", "tau+"),
            -73.432,
        ),
        Posterior("ionosphere", _logistic(1.0), ("X", "y"), columns("w"), -111.604),
        Posterior("sonar", _logistic(1.0), ("X", "y"), columns("w"), -108.368),
        Posterior("credit", _logistic(10.0), ("X", "y"), columns("w"), -585.096),
        Posterior("cancer", _logistic(10.0), ("X", "y"), columns("w"), -77.57),
        Posterior("funnel", funnel, (), _funnel_parameters, 0.0),
        Posterior("horseshoe", horseshoe, ("X", "y"), columns("beta", "tau+", "lam+", "sigma+")),
        Posterior("brownian", brownian, ("y",), columns(*_brownian_sites), 1.17),
    )
}
