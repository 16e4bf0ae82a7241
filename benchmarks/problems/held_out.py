"""The held-out models: ten everyday posteriors, and how their data are simulated.

The package's defaults were not chosen on them. ``benchmarks.problems.pack --held-out`` simulates
the data from fixed seeds and makes the references by long runs of NUTS.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import OrderedTransform

from benchmarks.problems.posterior import Posterior

sample: Callable[..., Any] = numpyro.sample  # its declared type has no indexing, no arithmetic
ODE_STEPS = 10  # Runge-Kutta steps between two observations


def _columns(*names: str, **supports: Any) -> Callable:
    """For `Posterior.parameters`: sites in this order, on the scale on which NumPyro samples them.

    A name that ends in '+' is that of a positive site; a keyword gives any other support.
    """
    real, positive = constraints.real, constraints.positive
    plain = {name.rstrip("+"): positive if name[-1] == "+" else real for name in names}

    def parameters(sites):
        parts = []
        for name, support in (plain | supports).items():
            value = biject_to(support).inv(sites[name])
            parts.append(value.reshape(value.shape[0], -1))
        return jnp.concatenate(parts, axis=-1)

    return parameters


def collinear(y, X):
    """Linear regression whose columns come in pairs that are nearly the same."""
    beta = sample("beta", dist.Normal(0, 10).expand([X.shape[1]]).to_event(1))
    sigma = sample("sigma", dist.HalfNormal(2))
    sample("y", dist.Normal(X @ beta, sigma), obs=y)


def logistic(y, X):
    """Logistic regression with collinear columns and an interaction among them."""
    beta = sample("beta", dist.Normal(0, 2.5).expand([X.shape[1]]).to_event(1))
    sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def local_level(y):
    """A random walk seen through noise, non-centred."""
    start = sample("start", dist.Normal(0, 5))
    step = sample("step", dist.HalfNormal(1))
    noise = sample("noise", dist.HalfNormal(1))
    z = sample("z", dist.Normal(0, 1).expand([y.shape[0]]).to_event(1))
    sample("y", dist.Normal(start + step * jnp.cumsum(z), noise), obs=y)


def local_level_integrated(y):
    """The same posterior with z integrated out, for the reference.

    Where the noise goes to zero the posterior of z has a narrow neck that NUTS does not enter.
    """
    start = sample("start", dist.Normal(0, 5))
    step = sample("step", dist.HalfNormal(1))
    noise = sample("noise", dist.HalfNormal(1))
    size = y.shape[0]
    walk = step * jnp.tril(jnp.ones((size, size)))
    covariance = walk @ walk.T + noise**2 * jnp.eye(size)
    sample("y", dist.MultivariateNormal(start * jnp.ones(size), covariance), obs=y)
    # Matheron's rule: a draw of z from the prior, corrected by its misfit to the data, is a draw of
    # z given the data.
    prior = sample("prior", dist.Normal(0, 1).expand([2, size]).to_event(2))
    gap = y - start - walk @ prior[0] - noise * prior[1]
    numpyro.deterministic("z", prior[0] + walk.T @ jnp.linalg.solve(covariance, gap))


def garch(y):
    """A stationary GARCH(1, 1). The shares are alpha, beta, and what is missing to one."""
    mean = sample("mean", dist.Normal(0, 1))
    omega = sample("omega", dist.HalfNormal(1))
    shares = sample("shares", dist.Dirichlet(jnp.array([1.0, 2.0, 1.0])))
    residuals = y - mean

    def step(variance, residual):
        return omega + shares[0] * residual**2 + shares[1] * variance, variance

    # The first variance is that of the data. The stationary variance would go to infinity where
    # alpha + beta goes to one.
    _, variances = lax.scan(step, jnp.var(y), residuals)
    sample("y", dist.Normal(mean, jnp.sqrt(variances)), obs=y)


def _lotka_volterra_path(rates, start, size):
    """Logarithms of both populations at times 1 to size, by the Runge-Kutta method of order four.

    It works on the logarithms, so that no population becomes negative.
    """
    birth, predation, death, growth = rates
    h = 1 / ODE_STEPS

    def slope(state):
        prey, predator = jnp.exp(state)
        return jnp.stack([birth - predation * predator, growth * prey - death])

    def step(state, _):
        k1 = slope(state)
        k2 = slope(state + h / 2 * k1)
        k3 = slope(state + h / 2 * k2)
        k4 = slope(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return state, state

    _, path = lax.scan(step, jnp.log(start), None, length=size * ODE_STEPS)
    return path[ODE_STEPS - 1 :: ODE_STEPS]


def lotka_volterra(y):
    """Predator and prey, both observed with lognormal noise."""
    centre = jnp.log(jnp.array([0.7, 0.03, 0.7, 0.03]))
    rates = sample("rates", dist.LogNormal(centre, 0.5).to_event(1))
    start = sample("start", dist.LogNormal(jnp.log(10.0), 1).expand([2]).to_event(1))
    sigma = sample("sigma", dist.LogNormal(-1, 1).expand([2]).to_event(1))
    path = _lotka_volterra_path(rates, start, y.shape[0])
    sample("y", dist.LogNormal(path, sigma), obs=y)


def poisson_gp(x, y):
    """Counts whose log rate is a Gaussian process, non-centred by its Cholesky factor."""
    intercept = sample("intercept", dist.Normal(0, 2))
    length = sample("length", dist.InverseGamma(5, 8))
    amplitude = sample("amplitude", dist.HalfNormal(1))
    z = sample("z", dist.Normal(0, 1).expand([x.shape[0]]).to_event(1))
    correlation = jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2)
    # With so much added to the diagonal, single precision can factorise the matrix at every length
    # that the prior allows.
    factor = jnp.linalg.cholesky(correlation + 1e-4 * jnp.eye(x.shape[0]))
    sample("y", dist.Poisson(jnp.exp(intercept + amplitude * factor @ z)), obs=y)


def negative_binomial(y, X, group):
    """Overdispersed counts in ten groups, random intercepts non-centred."""
    beta = sample("beta", dist.Normal(0, 2).expand([X.shape[1]]).to_event(1))
    tau = sample("tau", dist.HalfNormal(1))
    concentration = sample("concentration", dist.Gamma(2, 0.2))
    z = sample("z", dist.Normal(0, 1).expand([10]).to_event(1))
    rate = jnp.exp(X @ beta + tau * z[group])
    sample("y", dist.NegativeBinomial2(rate, concentration), obs=y)


def volatility(y):
    """Stochastic volatility: the log variance is an AR(1), non-centred."""
    mu = sample("mu", dist.Normal(0, 2))
    half = sample("half", dist.Beta(20, 1.5))  # (1 + phi) / 2
    sigma = sample("sigma", dist.HalfNormal(0.5))
    z = sample("z", dist.Normal(0, 1).expand([y.shape[0]]).to_event(1))
    phi = 2 * half - 1

    def step(h, innovation):
        h = phi * h + sigma * innovation
        return h, h

    first = sigma * z[0] / jnp.sqrt(4 * half * (1 - half))  # 1 - phi**2 without cancellation
    _, rest = lax.scan(step, first, z[1:])
    h = mu + jnp.concatenate([first[None], rest])
    sample("y", dist.Normal(0, jnp.exp(h / 2)), obs=y)


def item_response(y):
    """Two-parameter logistic item response; rows are people, columns items."""
    people, items = y.shape
    ability = sample("ability", dist.Normal(0, 1).expand([people]).to_event(1))
    difficulty = sample("difficulty", dist.Normal(0, 1.5).expand([items]).to_event(1))
    slope = sample("slope", dist.LogNormal(0, 0.5).expand([items]).to_event(1))
    sample("y", dist.Bernoulli(logits=slope * (ability[:, None] - difficulty)), obs=y)


def ordinal(y, X):
    """Proportional odds with five categories."""
    beta = sample("beta", dist.Normal(0, 2).expand([X.shape[1]]).to_event(1))
    base = dist.Normal(0, 2).expand([4]).to_event(1)
    cut = sample("cut", dist.TransformedDistribution(base, OrderedTransform()))
    sample("y", dist.OrderedLogistic(X @ beta, cut), obs=y)


def _pairs(rng, size, count, correlation):
    """Standard normal columns in pairs: the two of a pair stand side by side and are correlated."""
    shared = rng.normal(size=(size, count))
    twin = correlation * shared + np.sqrt(1 - correlation**2) * rng.normal(size=(size, count))
    return np.stack([shared, twin], axis=-1).reshape(size, -1)


def _make_collinear(rng):
    X = np.column_stack([np.ones(60), _pairs(rng, 60, 4, 0.99)])
    return {"y": X @ rng.normal(0, 1, X.shape[1]) + rng.normal(0, 1, 60), "X": X}


def _make_logistic(rng):
    columns = _pairs(rng, 200, 2, 0.97)
    group = rng.integers(0, 2, 200)
    product = columns[:, 0] * columns[:, 2]
    X = np.column_stack([np.ones(200), columns, group, product, rng.normal(size=200)])
    logits = X @ np.array([-0.5, 1.0, -0.3, 0.5, 0.5, 0.8, 0.7, 0.0])
    return {"y": rng.binomial(1, 1 / (1 + np.exp(-logits))), "X": X}


def _make_local_level(rng):
    return {"y": 2 + np.cumsum(rng.normal(0, 0.3, 40)) + rng.normal(0, 0.5, 40)}


def _make_garch(rng):
    y, variance = [], 1.0
    for _ in range(200):
        residual = np.sqrt(variance) * rng.normal()
        y.append(0.1 + residual)
        variance = 0.1 + 0.15 * residual**2 + 0.75 * variance
    return {"y": np.array(y)}


def _make_lotka_volterra(rng):
    rates = jnp.array([0.55, 0.028, 0.80, 0.024])
    path = np.asarray(_lotka_volterra_path(rates, jnp.array([30.0, 6.0]), 20))
    return {"y": np.exp(path + rng.normal(0, 0.25, path.shape))}


def _make_poisson_gp(rng):
    x = np.linspace(0, 10, 25)
    return {"x": x, "y": rng.poisson(np.exp(1.2 + np.sin(x) + 0.1 * x))}


def _make_negative_binomial(rng):
    group = np.repeat(np.arange(10), 12)
    X = np.column_stack([np.ones(120), rng.normal(size=(120, 2))])
    rate = np.exp(X @ np.array([1.0, 0.5, -0.3]) + rng.normal(0, 0.5, 10)[group])
    return {"y": rng.negative_binomial(3, 3 / (3 + rate)), "X": X, "group": group}


def _make_volatility(rng):
    h = [rng.normal(0, 0.3 / np.sqrt(1 - 0.95**2))]
    for _ in range(49):
        h.append(0.95 * h[-1] + 0.3 * rng.normal())
    return {"y": np.exp((np.array(h) - 0.5) / 2) * rng.normal(size=50)}


def _make_item_response(rng):
    logits = rng.lognormal(0, 0.4, 6) * (rng.normal(size=(20, 1)) - np.linspace(-1.5, 1.5, 6))
    return {"y": rng.binomial(1, 1 / (1 + np.exp(-logits)))}


def _make_ordinal(rng):
    X = rng.normal(size=(150, 3))
    latent = X @ np.array([1.0, -0.5, 0.2]) + rng.logistic(size=150)
    return {"y": np.searchsorted([-2.0, -0.5, 0.5, 2.5], latent), "X": X}


# The model, the function that simulates its data, and the columns of its reference.
_TABLE: tuple[tuple[Callable, Callable, Callable], ...] = (
    (collinear, _make_collinear, _columns("beta", "sigma+")),
    (logistic, _make_logistic, _columns("beta")),
    (local_level, _make_local_level, _columns("start", "step+", "noise+", "z")),
    (garch, _make_garch, _columns("mean", "omega+", shares=constraints.simplex)),
    (lotka_volterra, _make_lotka_volterra, _columns("rates+", "start+", "sigma+")),
    (poisson_gp, _make_poisson_gp, _columns("intercept", "length+", "amplitude+", "z")),
    (negative_binomial, _make_negative_binomial, _columns("beta", "tau+", "concentration+", "z")),
    (volatility, _make_volatility, _columns("mu", "sigma+", "z", half=constraints.unit_interval)),
    (item_response, _make_item_response, _columns("ability", "difficulty", "slope+")),
    (ordinal, _make_ordinal, _columns("beta", cut=constraints.ordered_vector)),
)
HELD_OUT: dict[str, Posterior] = {}
SIMULATORS: dict[str, Callable] = {}
# Where another form of the model is the one that NUTS samples well.
REFERENCE_MODELS = {"held_out_local_level": local_level_integrated}
for _model, _simulator, _parameters in _TABLE:
    _name = f"held_out_{_model.__name__}"
    HELD_OUT[_name] = Posterior(_name, _model, tuple(signature(_model).parameters), _parameters)
    SIMULATORS[_name] = _simulator
