"""The target's potential on R^d, and what a point of R^d means to its user."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from numpyro_onestep.target.completion import Completion
from numpyro_onestep.target.traced import TracedFunction, trace


class Outcome(NamedTuple):
    """What a point of R^d stands for."""

    samples: PyTree  # sites on their supports, deterministic ones included, or a pytree
    log_likelihood: dict[str, Any]  # of each observed site, nats
    observed: dict[str, Any]  # the observed values


class Potential(eqx.Module):
    """U(x) = -log of the unnormalised target density, for x in R^d (nats).

    A pytree whose leaves are the arrays that the target depends on.  A compiled function that
    takes a potential is compiled again only where the shapes of these arrays change.
    """

    energy: TracedFunction
    outcome: TracedFunction
    completion: Completion | None = None  # added to U in coordinates in which it has no scale

    @classmethod
    def of(
        cls, energy: Any, outcome: Any, like: Float[Any, " d"], precise: bool = False
    ) -> "Potential":
        """The potential that is traced from functions of x in R^d.

        Args:
            energy: U, a function of x.
            outcome: a function from x to its `Outcome`, or None where x stands for itself.
            like: an array of the length and type of x.
            precise: what depends on arrays of single precision alone is computed in double.
        """
        meaning = (lambda x: Outcome(x, {}, {})) if outcome is None else outcome

        def real_energy(x):
            # A model whose terms are all integers has an integer potential.
            return jnp.asarray(energy(x), x.dtype)

        return cls(
            trace(real_energy, like, differentiable=True, precise=precise),
            trace(meaning, like, precise=precise),
        )

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """U(x)."""
        energy = self.energy(x)
        return energy if self.completion is None else energy + self.completion(x)

    @property
    def num_numbers(self) -> int:
        """How many numbers an evaluation computes, about."""
        return self.energy.num_numbers

    @property
    def num_operations(self) -> int:
        """How many operations, one after the other, an evaluation takes, about."""
        return self.energy.num_operations

    def constrain(self, x: Float[Array, " d"]) -> PyTree:
        """The draw x as its user knows it: sites on their supports, or a pytree."""
        return self.outcome(x).samples

    @property
    def is_detached(self) -> bool:
        """Whether it came out of a pickle and cannot be evaluated until it is `attached`."""
        return self.energy.program.is_detached

    def attached(self, again: "Potential") -> "Potential":
        """This potential with its own arrays and the programs of the target traced again.

        Raises:
            RuntimeError: the target has changed since.
        """
        mine, theirs = (
            [(f.program.fingerprint, jax.tree.map(np.shape, f.captured)) for f in functions]
            for functions in ((self.energy, self.outcome), (again.energy, again.outcome))
        )
        if mine != theirs:
            raise RuntimeError(
                "The model is no longer the one that was run: its code, or a plain number that it "
                "reads, has changed since. The draws and the evidence of that run are still here; "
                "for further draws call run() again."
            )
        pairs = ((self.energy, again.energy), (self.outcome, again.outcome))
        energy, outcome = (TracedFunction(old.captured, new.program) for old, new in pairs)
        return Potential(energy, outcome, self.completion)


def unraveller(prototype: PyTree):
    """The function from vectors to pytrees of the prototype's shapes.

    Values take the vector's own type, in double precision too.
    """
    leaves, tree = jax.tree.flatten(prototype)
    shapes = [np.shape(leaf) for leaf in leaves]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes], dtype=int)

    def unravel(x):
        parts = jnp.split(x, ends[:-1]) if leaves else []
        return jax.tree.unflatten(tree, [p.reshape(s) for p, s in zip(parts, shapes, strict=True)])

    return unravel


def ravel(values: PyTree) -> Float[Array, " d"]:
    """A pytree of values as one vector."""
    return ravel_pytree(values)[0]
