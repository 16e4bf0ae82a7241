"""What a method is, and what all methods need."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import jax

from benchmarks.problems.posterior import Posterior

# Posterior draws that every method makes.
NUM_DRAWS = 4000


class Method(Protocol):
    """A function that draws from a posterior.

    Args:
        posterior: what to draw from: `posterior.model` with the arguments `posterior.args()`.
        key: a JAX random key.
        warm_key: the key of a second run in the same process, which compiles nothing and whose wall
            time is the figure `seconds_warm`. None leaves it out.

    Returns:
        The draws, about `NUM_DRAWS` of them, as {site: (draw, *shape)} with the model's own sites,
        deterministic ones included; and figures, of valid JSON. The suite adds the errors against
        the reference. The page shows these figures where a method has them:

        - `seconds`: wall time of the run, compilation included. Every method must give it.
        - `seconds_warm`: wall time of the second run.
        - `elbo`, `log_evidence`: bound and estimate of the log evidence (nats).
        - `pareto_k`, `ess`: of importance weights; the latter as a share of their number.
        - `draws_per_second`: further draws, once trained.
        - `warnings`: a list of what the method warned of. The page counts the runs that warned.
        - `divergences`: how many transitions of Markov chains have diverged.

    Raises:
        Exception: any; the row then has the figure `error`, and the page counts the failed runs.
    """

    def __call__(
        self, posterior: Posterior, key: Any, warm_key: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Draw."""
        ...


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    """A function's result, waited for, and the seconds until it was there."""
    clock = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - clock
