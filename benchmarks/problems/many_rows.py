"""A logistic regression of 200,000 rows, whose posterior is normal to a hundredth of its width."""

from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

_ROWS, _COLUMNS, _NEWTON_STEPS = 200_000, 10, 20
_PRIOR_SD = 2.5


def logistic(X, y):
    """A logistic regression with an intercept, which is the last coefficient."""
    w: Any = numpyro.sample("w", dist.Normal(0, _PRIOR_SD).expand([X.shape[1] + 1]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=X @ w[:-1] + w[-1]), obs=y)


class ManyRows:
    """It can be used as a `Posterior`; its data are simulated and not stored.

    With so many rows the posterior differs from its normal approximation at the mode by about
    1 / sqrt(200,000) of a standard deviation, far less than 4000 draws show.
    """

    name = "many_rows"
    log_evidence = None
    model = staticmethod(logistic)

    def args(self) -> tuple[np.ndarray, np.ndarray]:
        """The design and the outcomes."""
        return _data()

    def errors(self, draws: dict) -> dict[str, float]:
        """Largest error of a coefficient's mean, in standard deviations, and of a log sd."""
        mean, sd = _reference()
        values = np.asarray(jnp.asarray(draws["w"]), np.float64)
        return {
            "mean_error": float(np.abs((values.mean(0) - mean) / sd).max()),
            "log_sd_error": float(np.abs(np.log(values.std(0) / sd)).max()),
        }


@cache
def _data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    design = rng.standard_normal((_ROWS, _COLUMNS)).astype(np.float32)
    logits = design @ (0.5 * rng.standard_normal(_COLUMNS)) + 0.3
    return design, (rng.random(_ROWS) < 1 / (1 + np.exp(-logits))).astype(np.float32)


@cache
def _reference() -> tuple[np.ndarray, np.ndarray]:
    """The mode, by Newton's method in double precision, and the scales of the curvature there."""
    design, y = (np.asarray(part, np.float64) for part in _data())
    design = np.concatenate([design, np.ones((len(design), 1))], axis=1)
    w = np.zeros(design.shape[1])
    curvature = np.eye(len(w))
    for _ in range(_NEWTON_STEPS):
        fitted = 1 / (1 + np.exp(-design @ w))
        curvature = (design.T * (fitted * (1 - fitted))) @ design
        curvature += np.eye(len(w)) / _PRIOR_SD**2
        w = w - np.linalg.solve(curvature, design.T @ (fitted - y) + w / _PRIOR_SD**2)
    return w, np.sqrt(np.diag(np.linalg.inv(curvature)))
