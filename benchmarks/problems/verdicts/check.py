"""Compares the known answers with importance sampling, as a second opinion on each.

    python -m benchmarks.problems.verdicts.check [--names gumbel ...] [--draws 100000]

It takes NumPyro's own density of each model, in double precision, and draws from a multivariate
Student t distribution that is fitted to it by tempering, from the prior's draws on. Nothing is
shared with the quadrature. Where such a distribution does not fit (in many dimensions), or where
the integral is infinite, it says so and checks nothing. In the narrow neck of a centred hierarchy
it misses mass; there the same model's other parameterisation is the check. Models without data are
checked by drawing from them.

It prints one line for each model: by how many standard errors the two differ in the log evidence,
and at most in any mean and any standard deviation.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from numpyro.infer import Predictive
from numpyro.infer.util import constrain_fn, initialize_model, potential_energy, unconstrain_fn
from scipy.linalg import solve_triangular
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp

from benchmarks.problems.verdicts import KNOWN
from benchmarks.problems.verdicts.answers import Known

_FEWEST = 1000  # effective draws that an opinion needs
_DEGREES = 4.0  # of freedom of the Student t distribution
_MOST_BYTES = 2**28  # that one batch of log densities may take
_MOST_TERMS = 200_000_000  # number of draws times number of data, which bounds the time
# Tempering goes on to a power at which this share of the draws is still effective.
_EFFECTIVE_SHARE = 0.05


class Target:
    """A model's log density on R^d, and its sites at points there."""

    def __init__(self, one: Known):
        self.one = one
        args = tuple(jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in one.args)
        info = initialize_model(jax.random.key(0), one.model, model_args=args)
        self.like, self.unravel = ravel_pytree(info.param_info.z)
        seeded = numpyro.handlers.seed(one.model, 0)
        size = max((np.size(a) for a in one.args), default=1)
        batch = max(1, min(2000, _MOST_BYTES // (8 * size)))

        def log_density(x):
            return -potential_energy(seeded, args, {}, self.unravel(x))

        def sites(x):
            return constrain_fn(seeded, args, {}, self.unravel(x), return_deterministic=True)

        def flat(draws):
            inner = unconstrain_fn(seeded, args, {}, draws)
            return ravel_pytree({name: inner[name] for name in info.param_info.z})[0]

        self.log_density = jax.jit(lambda x: jax.lax.map(log_density, x, batch_size=batch))
        self.sites = jax.jit(lambda x: jax.lax.map(sites, x, batch_size=batch))
        self._flat, self._args = flat, args

    def starts(self, num: int) -> np.ndarray:
        """Draws from the prior, or from a wide normal where the prior has none."""
        try:
            draws = Predictive(self.one.model, num_samples=num)(jax.random.key(1), *self._args)
            latent = {name: draws[name] for name in self.unravel(self.like)}
            x = np.asarray(jax.vmap(self._flat)(latent))
        except (NotImplementedError, KeyError):
            x = 3 * np.random.default_rng(0).standard_normal((num, self.like.size))
        return x[np.isfinite(x).all(-1)]


class Student:
    """A multivariate Student t distribution.

    SciPy's own takes a covariance whose scales are 1e7 apart for singular.
    """

    def __init__(self, mean, covariance):
        scale = np.sqrt(np.diag(covariance))
        correlation = covariance / scale[:, None] / scale
        self.mean = mean
        self.scale_tril = scale[:, None] * np.linalg.cholesky(correlation)

    def draw(self, rng, num: int):
        """Points (num, d) and their log densities."""
        d = len(self.mean)
        z = rng.standard_normal((num, d))
        z /= np.sqrt(rng.chisquare(_DEGREES, (num, 1)) / _DEGREES)
        x = self.mean + z @ self.scale_tril.T
        return x, self.log_density(x)

    def log_density(self, x):
        """Log densities of points."""
        d = len(self.mean)
        z = solve_triangular(self.scale_tril, (x - self.mean).T, lower=True)
        constant = gammaln((_DEGREES + d) / 2) - gammaln(_DEGREES / 2)
        constant -= 0.5 * d * np.log(_DEGREES * np.pi)
        constant -= np.log(np.diag(self.scale_tril)).sum()
        return constant - (_DEGREES + d) / 2 * np.log1p((z**2).sum(0) / _DEGREES)


def effective_size(log_weight) -> float:
    """Number of independent draws that weighted ones are worth, (sum w)^2 / sum w^2."""
    return float(np.exp(2 * logsumexp(log_weight) - logsumexp(2 * log_weight)))


def _moments(x, log_weight):
    weight = np.exp(log_weight - logsumexp(log_weight))
    mean = weight @ x
    covariance = (weight[:, None] * (x - mean)).T @ (x - mean)
    return mean, covariance + 1e-14 * np.diag(np.diag(covariance))


def opinion(one: Known, num: int):
    """Log evidence, moments and their standard errors, and the effective number of draws."""
    target, rng = Target(one), np.random.default_rng(7)
    starts = target.starts(2000)
    mean, covariance = _moments(starts, np.zeros(len(starts)))
    first = Student(mean, covariance)
    power, after = 0.0, 0
    while after < 4:
        size = num if after == 3 else min(num, 20_000)
        x, log_q = Student(mean, covariance).draw(rng, size)
        log_target = np.asarray(target.log_density(jnp.asarray(x)))
        log_target = np.where(np.isfinite(log_target), log_target, -1e300)
        log_first = first.log_density(x)

        def tempered(beta, ends=(log_first, log_target), log_q=log_q):
            return (1 - beta) * ends[0] + beta * ends[1] - log_q

        def excess(beta, tempered=tempered, size=size):
            return effective_size(tempered(beta)) - _EFFECTIVE_SHARE * size

        if power == 1:
            after += 1
        elif excess(1.0) > 0:
            power = 1.0
        elif excess(power) > 0:
            power = brentq(excess, power, 1.0, xtol=1e-15)
        else:
            return None
        mean, covariance = _moments(x, tempered(power))
    log_weight = tempered(1.0)
    kept = log_weight > log_weight.max() - 40
    values = np.asarray(one.quantities(target.sites(jnp.asarray(x[kept]))), np.float64)
    weight = np.exp(log_weight[kept] - logsumexp(log_weight))
    centre = weight @ values
    apart = values - centre
    sd = np.sqrt(weight @ apart**2)
    mean_error = np.sqrt((weight**2) @ apart**2) / sd
    sd_error = np.sqrt((weight**2) @ ((apart / sd) ** 2 - 1) ** 2) / 2
    ess = effective_size(log_weight)
    log_z = logsumexp(log_weight) - np.log(num)
    return log_z, np.sqrt(1 / ess - 1 / num), centre, sd, mean_error, sd_error, ess


def check(one: Known, num: int) -> str:
    """By how many standard errors the two differ, in one line."""
    answer = one.answer()
    num = max(_FEWEST * 2, min(num, _MOST_TERMS // max((np.size(a) for a in one.args), default=1)))
    if one.kind == "no data":
        draws = Predictive(one.model, num_samples=num)(jax.random.key(1))
        values = np.asarray(one.quantities(draws), np.float64)
        means = np.abs(values.mean(0) - answer.mean) / answer.sd * np.sqrt(num)
        sds = np.abs(np.log(values.std(0) / answer.sd)) * np.sqrt(4 * num / (answer.kurtosis - 1))
        return f"means {means.max():5.1f}  sds {sds.max():5.1f} standard errors, exact draws"
    if answer.log_evidence is None:
        return "not checked: the integral is infinite"
    found = opinion(one, num)
    if found is None or found[-1] < _FEWEST:
        return "not checked: importance sampling is no good here"
    log_z, error, mean, sd, mean_error, sd_error, ess = found
    means = np.abs(mean - answer.mean) / answer.sd / mean_error
    sds = np.abs(np.log(sd / answer.sd)) / sd_error
    evidence = abs(log_z - answer.log_evidence) / error
    return (
        f"log Z {answer.log_evidence:.4f}, here {log_z:.4f} +- {error:.4f}: {evidence:5.1f}  "
        f"means {means.max():5.1f}  sds {sds.max():5.1f} standard errors, ESS {ess:.0f}"
    )


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--names", nargs="+", default=list(KNOWN), choices=KNOWN, metavar="NAME")
    parser.add_argument("--draws", type=int, default=100_000)
    options = parser.parse_args()
    numpyro.enable_x64()
    for name in options.names:
        print(f"{name:34s}{check(KNOWN[name], options.draws)}", flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
