"""What an answer is, and the quadrature that answers are found by.

An answer is a sum over points, of a grid or of a discrete structure, at each of which the judged
quantities are normal. Everything is in double precision, and nothing comes from Markov chains.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import minimize
from scipy.special import logit, logsumexp


@dataclass(frozen=True)
class Answer:
    """The truth about the quantities that are judged.

    Attributes:
        mean: of each quantity.
        sd: standard deviation of each quantity.
        kurtosis: of each quantity; it says how noisy the standard deviation of draws is.
        log_evidence: in nats. None where the density has no finite integral or it is not known.
        size: number of draws that the moments come from, where they come from draws.
        log_evidence_error: how far the log evidence is known (nats).
        is_proper: False where a site has no posterior. Any draws of it are then wrong, and a run
            has to warn of them.
    """

    mean: np.ndarray
    sd: np.ndarray
    kurtosis: np.ndarray
    log_evidence: float | None = None
    size: float = np.inf
    log_evidence_error: float = 0.0
    is_proper: bool = True


@dataclass(frozen=True)
class Known:
    """A NumPyro model with its data, and the answer to it.

    Attributes:
        name: of the posterior.
        kind: of the posterior; the page has a line for each kind.
        model: a NumPyro model.
        args: its positional arguments.
        quantities: draws as `get_samples` gives them -> what is judged (draw, quantity).
        answer: gives the truth about the quantities. It is computed once, when it is asked for.
    """

    name: str
    kind: str
    model: Callable
    args: tuple
    quantities: Callable
    answer: Callable[[], Answer]


def known(name: str, kind: str, model: Callable, args: tuple, quantities, answer) -> Known:
    """A `Known` whose answer is computed once."""
    return Known(name, kind, model, args, quantities, cache(answer))


def collect(*some: Known) -> dict[str, Known]:
    """All of these by name. No two may have the same name."""
    found = {one.name: one for one in some}
    assert len(found) == len(some), "two posteriors share a name"
    return found


def columns(*names: str) -> Callable:
    """For `Known.quantities`: these sites, in this order, each flattened.

    A name that ends in '+' stands for the logarithm of that site, one that ends in '%' for its
    logit.
    """

    def quantities(draws: dict) -> np.ndarray:
        parts = []
        for name in names:
            value = np.asarray(draws[name.rstrip("+%")], np.float64)
            if name.endswith("+"):
                value = np.log(value)
            elif name.endswith("%"):
                value = logit(value)
            parts.append(value.reshape(len(value), -1))
        return np.concatenate(parts, axis=-1)

    return quantities


def summed(log_mass, means, sds=0.0, proper: bool = True) -> Answer:
    """The answer where point j has mass exp(log_mass[j]).

    At that point the quantities are normal with `means[j]` and `sds[j]`, which is zero for the
    point's own coordinates. Where they are not normal, only the kurtosis is approximate.
    """
    log_mass = np.asarray(log_mass, np.float64)
    log_z = logsumexp(log_mass)
    weights = np.exp(log_mass - log_z)
    kept = weights > 0
    means = np.asarray(means, np.float64)
    variances = np.broadcast_to(np.asarray(sds, np.float64) ** 2, means.shape)[kept]
    weights, means = weights[kept], means[kept]
    mean = weights @ means
    apart = (means - mean) ** 2
    variance = weights @ (apart + variances)
    fourth = weights @ (apart**2 + 6 * apart * variances + 3 * variances**2)
    evidence = float(log_z) if proper else None
    return Answer(mean, np.sqrt(variance), fourth / variance**2, evidence)


def normal_answer(mean, sd, log_evidence: float | None) -> Answer:
    """The answer where every quantity is normal, or nearly."""
    mean, sd = np.atleast_1d(mean), np.atleast_1d(sd)
    mean, sd = np.broadcast_arrays(mean.astype(np.float64), sd.astype(np.float64))
    return Answer(mean, sd, np.full(mean.shape, 3.0), log_evidence)


def stacked(*quantities) -> np.ndarray:
    """Columns of a grid side by side."""
    parts = [np.asarray(q, np.float64) for q in quantities]
    return np.concatenate([p[:, None] if p.ndim == 1 else p for p in parts], axis=1)


def line(low: float, high: float, num: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Equally spaced points and their log weights.

    For an integrand that is smooth and vanishes at both ends, the error falls faster than any
    power of the spacing.
    """
    points = np.linspace(low, high, num)
    return points, np.full(num, np.log(points[1] - points[0]))


def legendre(low: float, high: float, num: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre points and their log weights: for smooth integrands cut off at the ends."""
    points, weights = np.polynomial.legendre.leggauss(num)
    half = (high - low) / 2
    return low + half * (points + 1), np.log(half * weights)


def grid(*rules) -> tuple[list[np.ndarray], np.ndarray]:
    """The product of rules: each coordinate at every point, and the points' log weights."""
    points = np.meshgrid(*(rule[0] for rule in rules), indexing="ij")
    weights = np.meshgrid(*(rule[1] for rule in rules), indexing="ij")
    return [p.ravel() for p in points], sum(w.ravel() for w in weights)


def around_mode(
    log_density: Callable, start, reach: float = 8.0, step: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Points of a grid around the mode (point, coordinate), and their log masses.

    This is for posteriors so near to a Gaussian that a grid of `reach` standard deviations covers
    them. For a Gaussian itself a step of 0.8 leaves an error of e^-31.

    Args:
        log_density: of points (point, coordinate).
        start: where the search for the mode starts.
        reach: half the width of the grid, in standard deviations.
        step: distance of neighbouring points, in standard deviations.
    """
    mode, scale_tril = gaussian_at_mode(log_density, start)
    d = len(mode)
    ticks = np.arange(-reach, reach + step / 2, step)
    standard = np.stack(np.meshgrid(*[ticks] * d, indexing="ij"), axis=-1).reshape(-1, d)
    points = mode + standard @ scale_tril.T
    log_volume = np.log(np.diag(scale_tril)).sum() + d * np.log(step)
    # Sixteen points at a time, since with many rows of data each takes much memory.
    parts = np.array_split(points, -(-len(points) // 16))
    return points, np.concatenate([log_density(part) for part in parts]) + log_volume


def gaussian_at_mode(log_density: Callable, start) -> tuple[np.ndarray, np.ndarray]:
    """The mode, and the Cholesky factor of the inverse curvature there.

    Args:
        log_density: of points (point, coordinate).
        start: where the search for the mode starts.
    """

    def energy(x):
        return -float(log_density(x[None])[0])

    mode = minimize(energy, np.asarray(start, float), method="Nelder-Mead", tol=1e-9).x
    d = len(mode)
    width = np.full(d, 1e-3)
    for _ in range(3):  # until the differences span about a standard deviation
        hessian = _hessian(energy, mode, width)
        width = 0.3 * np.sqrt(np.diag(np.linalg.inv(hessian)))
    return mode, np.linalg.cholesky(np.linalg.inv(hessian))


def _hessian(energy: Callable, at: np.ndarray, width: np.ndarray) -> np.ndarray:
    def gradient(x):
        sides = [
            (energy(x + e) - energy(x - e)) / (2 * w)
            for e, w in zip(np.diag(width), width, strict=True)
        ]
        return np.array(sides)

    rows = [
        (gradient(at + e) - gradient(at - e)) / (2 * w)
        for e, w in zip(np.diag(width), width, strict=True)
    ]
    found = np.array(rows)
    return (found + found.T) / 2


def linear_gaussian(design, y, noise: float, prior_sd) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, covariance and log evidence of coefficients N(0, prior_sd^2) given y."""
    design = np.asarray(design, np.float64)
    prior_sd = np.broadcast_to(np.asarray(prior_sd, np.float64), design.shape[1:])
    precision = design.T @ design / noise**2 + np.diag(prior_sd**-2.0)
    covariance = np.linalg.inv(precision)
    mean = covariance @ design.T @ y / noise**2
    residual = y - design @ mean
    log_z = (
        -0.5 * (residual @ residual) / noise**2
        - len(y) * np.log(noise)
        - 0.5 * len(y) * np.log(2 * np.pi)
        - 0.5 * np.sum((mean / prior_sd) ** 2)
        - np.log(prior_sd).sum()
        - 0.5 * np.linalg.slogdet(precision)[1]
    )
    return mean, covariance, float(log_z)
