"""BlackJAX's multi-path Pathfinder."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.internals import unconstrained
from benchmarks.methods.base import NUM_DRAWS, timed
from benchmarks.problems.posterior import Posterior

NUM_PATHS = 8


def run(posterior: Posterior, key: Any, warm_key: Any) -> tuple[dict, dict]:
    """Pathfinder, as `Method` says: 8 paths of 1000 draws, 4000 of them chosen by their weights.

    There is no second run.
    """
    del warm_key
    import blackjax  # here, since the package does not depend on it

    def run(key):
        potential, start = unconstrained(posterior.model, posterior.args(), key)
        algorithm = blackjax.multipathfinder(lambda x: -potential(x))
        starts = jax.random.uniform(key, (NUM_PATHS, start.size), start.dtype, -2, 2)

        # One path at a time: all eight in one compiled call block for ever on two cores.
        @jax.jit
        def path(key, start):
            return algorithm.init(key, start[None], 1000)[0]

        paths = [
            jax.block_until_ready(path(jax.random.fold_in(key, i), at))
            for i, at in enumerate(starts)
        ]
        state = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *paths)
        return jax.vmap(potential.constrain)(algorithm.sample(key, state, NUM_DRAWS))

    draws, seconds = timed(run, key)
    if not all(bool(jnp.all(jnp.isfinite(v))) for v in draws.values()):
        raise FloatingPointError("Pathfinder's draws are not finite")
    return draws, {"seconds": seconds}
