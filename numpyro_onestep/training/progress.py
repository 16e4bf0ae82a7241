"""Where a training is after a chunk, and who is told of it: all that it takes to go on from there.

The state of training is kept as its arrays alone.  Their order is that of `jax.tree.leaves`, and an
untrained state of the same training has the structure around them.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_onestep.training.stages import Records, Stage
from numpyro_onestep.training.stopping import Judgement


@dataclass(frozen=True)
class Place:
    """The end of a chunk.

    Attributes:
        stage: the stage of training.
        done: iterations of this stage so far.
        num_constant: iterations of this stage at a constant learning rate, in all.
        num_cooling: iterations in which the learning rate falls, in all.
        state: the arrays of the state.
        safe: those of the state at the start of the last accepted chunk.
        num_safe: accepted chunks before that one.
        accepted: losses of the accepted chunks of this stage.
        chunks: the records of every chunk, by stage.
        chunk_seconds: wall time of every chunk in seconds.
        num_undone: chunks that were undone.
        judgement: the last one, of whether training may end.
    """

    stage: Stage
    done: int
    num_constant: int
    num_cooling: int
    state: tuple[Any, ...]
    safe: tuple[Any, ...]
    num_safe: int
    accepted: tuple[Any, ...]
    chunks: dict[Stage, tuple[Records, ...]]
    chunk_seconds: tuple[float, ...]
    num_undone: int
    judgement: Judgement | None


@runtime_checkable
class Recorder(Protocol):
    """Who keeps the place that a training has reached, so that it can go on from there."""

    def last_place(self) -> Place | None:
        """The place to go on from; None for a training that begins."""

    def reached(self, place: Place, now: bool = False) -> None:
        """Keep this place: `now`, or whenever it is time."""


def arrays_of(state: Any) -> tuple[Any, ...]:
    """The arrays of a state of training."""
    return tuple(jax.tree.leaves(state))


def with_arrays(like: Any, arrays: tuple[Any, ...]) -> Any:
    """A state of the same structure with other arrays.

    Raises:
        ValueError: their shapes or types are not those of the state.
    """
    expected, found = (
        [(np.shape(v), jnp.result_type(v)) for v in leaves] for leaves in (arrays_of(like), arrays)
    )
    if expected != found:
        raise ValueError("The training that was recorded is one of another flow.")
    return jax.tree.unflatten(jax.tree.structure(like), arrays)
