"""Answers by quadrature over the few globals, everything else integrated by hand.

Two kinds of latent values can be integrated for every value of the globals: groups of a linear
mixed model, by their sufficient statistics, and paths of random walks, by the Kalman filter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.problems.verdicts.answers import Answer, around_mode

# Points of the grid whose share of the mass is smaller are left out of the moments, which they
# would change by less than that, and whose cost is that of all groups for each point.
_NEGLIGIBLE = 1e-9


def log_half_normal(log_scale: np.ndarray, width: float) -> np.ndarray:
    """Log density of log x where x is half-normal."""
    return stats.halfnorm.logpdf(np.exp(log_scale), scale=width) + log_scale


@dataclass(frozen=True)
class Marginal:
    """A posterior of a few globals, all other sites being integrated by hand.

    Attributes:
        coordinates: the sites of these globals, '+' for the logarithm.
        log_density: of points (point, coordinate), the data's included (nats).
        conditional: means and variances (quantity,) of all quantities given one point. They are
            taken for normal there; where they are not, only the kurtosis is approximate.
        start: where the search for the mode starts.
        reach: half the width of the grid about the mode, in standard deviations.
        step: distance of its neighbouring points, in standard deviations.
    """

    coordinates: tuple[str, ...]
    log_density: Callable
    conditional: Callable
    start: Sequence[float]
    reach: float = 8.0
    step: float = 0.5

    def answer(self) -> Answer:
        """The truth about all quantities, by quadrature."""
        points, log_mass = around_mode(self.log_density, self.start, self.reach, self.step)
        return moments_over(points, log_mass, self.conditional)


def moments_over(points: np.ndarray, log_mass: np.ndarray, conditional: Callable) -> Answer:
    """The answer where point j has mass exp(log_mass[j]); see `Marginal`."""
    top = log_mass.max()
    shares = np.exp(log_mass - top)
    total = shares.sum()
    shares /= total
    # Moments are taken about a value near the mean, so that no digits are lost.
    centre = conditional(points[np.argmax(log_mass)])[0]
    raw = np.zeros((4, len(centre)))
    for index in np.flatnonzero(shares > _NEGLIGIBLE):
        mean, variance = conditional(points[index])
        m = mean - centre
        powers = (m, m**2 + variance, m**3 + 3 * m * variance)
        raw += shares[index] * np.array([*powers, m**4 + 6 * m**2 * variance + 3 * variance**2])
    raw /= shares[shares > _NEGLIGIBLE].sum()
    first, second, third, fourth = raw
    variance = second - first**2
    fourth = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    log_z = float(top + np.log(total))
    return Answer(centre + first, np.sqrt(variance), fourth / variance**2, log_z)


class MixedModel:
    """Rows y = X b + W u + noise, where every group has its own u.

    Noise is normal with standard deviation sigma, b normal about zero with known standard
    deviations and u normal about zero with the standard deviations `scales`.

    Args:
        effects: W (row, k).
        covariates: X (row, p).
        y: (row,).
        group: of each row.
        prior_sd: of b (p,).
    """

    def __init__(self, effects, covariates, y, group, prior_sd):
        self.k, num = effects.shape[1], group.max() + 1
        self.num_rows, self.prior_sd = len(y), np.asarray(prior_sd, np.float64)
        rows = np.column_stack([effects, covariates, y]).astype(np.float64)
        self.gram = np.zeros((num, rows.shape[1], rows.shape[1]))
        np.add.at(self.gram, group, rows[:, :, None] * rows[:, None])
        # Groups with the same W'W have the same covariance given the globals: they are summed
        # once, so that sixty thousand groups of one design cost as much as one.
        square, self.right = self.gram[:, : self.k, : self.k], self.gram[:, : self.k, self.k :]
        key = np.column_stack([np.bincount(group), square.reshape(num, -1)])
        designs, self.design = np.unique(key, axis=0, return_inverse=True)
        self.sizes, self.squares = designs[:, 0], designs[:, 1:].reshape(-1, self.k, self.k)
        self.counts = np.bincount(self.design)
        members = (self.right[self.design == each] for each in range(len(designs)))
        self.crossed = np.stack([np.einsum("gia,gjb->ijab", m, m) for m in members])
        self.total = self.gram[:, self.k :, self.k :].sum(0)

    def _factors(self, scales: np.ndarray, sigma: float):
        """Covariance of u given b for each design, and log-determinant of a group's rows."""
        precision = self.squares / sigma**2 + np.diag(scales**-2.0)
        log_det = 2 * self.sizes * np.log(sigma) + 2 * np.log(scales).sum()
        return np.linalg.inv(precision), log_det + np.linalg.slogdet(precision)[1]

    def _of_b(self, scales: np.ndarray, sigma: float):
        """Covariance and mean of b, and the log likelihood with b and u integrated out."""
        covariance, log_det = self._factors(scales, sigma)
        total = self.total / sigma**2
        total = total - np.einsum("cij,cijab->ab", covariance, self.crossed) / sigma**4
        precision = total[:-1, :-1] + np.diag(self.prior_sd**-2.0)
        of_b = np.linalg.inv(precision)
        mean = of_b @ total[:-1, -1]
        log_z = -0.5 * (self.num_rows * np.log(2 * np.pi) + self.counts @ log_det + total[-1, -1])
        log_z += 0.5 * mean @ total[:-1, -1] - 0.5 * np.linalg.slogdet(precision)[1]
        return of_b, mean, log_z - np.log(self.prior_sd).sum(), covariance

    def log_likelihood(self, scales: np.ndarray, sigma: float) -> float:
        """Of y given the standard deviations, b and u integrated out (nats)."""
        return self._of_b(scales, sigma)[2]

    def conditional(self, scales, sigma, of_b: np.ndarray, of_u: np.ndarray):
        """Means and variances, given the standard deviations, of b and of linear functions.

        Args:
            scales: standard deviations of u.
            sigma: of the noise.
            of_b: C (group, function, p), or without the first axis where all groups agree.
            of_u: F (function, k). The functions of a group are C b + F u.

        Returns:
            Of b (p,), then of the functions (group, function), flattened.
        """
        covariance, mean, _, of_class = self._of_b(scales, sigma)
        own = of_class[self.design] if len(of_class) > 1 else of_class
        shrunk = of_u @ own
        gain = shrunk @ self.right / sigma**2  # (group, function, p + 1)
        rest = of_b - gain[..., :-1]
        values = gain[..., -1] + rest @ mean
        variances = np.einsum("...rk,rk->...r", shrunk, of_u)
        variances = variances + ((rest @ covariance) * rest).sum(-1)
        variances = np.broadcast_to(variances, values.shape)
        means = np.concatenate([mean, values.ravel()])
        return means, np.concatenate([np.diag(covariance), variances.ravel()])


class Walks:
    """Random walks of a few coefficients, observed through noise.

    Row t of a unit is y_t = loading_t . state_t + noise, and the state moves by independent normal
    steps between rows. A row that is NaN in all units is not observed.

    Args:
        y: (unit, time). Units share standard deviations, and have a path each.
        loading: (time, k).
    """

    def __init__(self, y, loading):
        self.y, self.loading = np.asarray(y, np.float64), np.asarray(loading, np.float64)

    def filter(self, first_mean, first_sd, steps, noise, keep: bool = False):
        """Log likelihood (point,) by the Kalman filter, for several points of the globals.

        Args:
            first_mean: of the state at the first row (point, k).
            first_sd: its standard deviations (point, k).
            steps: standard deviations of steps (point, k).
            noise: (point,).
            keep: return the filtered means and covariances of every row, too.
        """
        units, k = len(self.y), self.loading.shape[1]
        identity = np.eye(k)
        mean = np.repeat(first_mean[:, None], units, axis=1)  # (point, unit, k)
        covariance = first_sd[:, :, None] ** 2 * identity
        moved = steps[:, :, None] ** 2 * identity
        log_z, path = np.zeros(len(noise)), []
        for t, (loading, y) in enumerate(zip(self.loading, self.y.T, strict=True)):
            if t:
                covariance = covariance + moved
            if not np.isnan(y).all():
                along = covariance @ loading  # (point, k)
                variance = along @ loading + noise**2
                apart = y - mean @ loading  # (point, unit)
                log_z -= 0.5 * (apart**2).sum(1) / variance
                log_z -= 0.5 * units * np.log(2 * np.pi * variance)
                gain = along / variance[:, None]
                mean = mean + apart[..., None] * gain[:, None]
                covariance = covariance - gain[:, :, None] * along[:, None]
            if keep:
                path.append((mean, covariance))
        return (log_z, path) if keep else log_z

    def smooth(self, first_mean, first_sd, steps, noise):
        """Means (unit, time, k) and variances (time, k) of states given all rows, at one point."""
        one = (np.atleast_2d(first_mean), np.atleast_2d(first_sd), np.atleast_2d(steps))
        _, path = self.filter(*one, np.atleast_1d(noise), keep=True)
        moved = np.diag(np.atleast_1d(steps) ** 2.0)
        mean, covariance = (each[0] for each in path[-1])
        means, variances = [mean], [np.diag(covariance)]
        for filtered_mean, filtered in reversed(path[:-1]):
            before = filtered[0]
            predicted = before + moved
            gain = np.linalg.solve(predicted, before).T
            mean = filtered_mean[0] + (mean - filtered_mean[0]) @ gain.T
            covariance = before + gain @ (covariance - predicted) @ gain.T
            means.append(mean)
            variances.append(np.diag(covariance))
        return np.stack(means[::-1], axis=1), np.stack(variances[::-1])
