"""Running sums in place of increments: a walk whose steps are the model's own coordinates.

A walk x_t = s (e_1 + ... + e_t) with standard normal e is often written so, "not centred".  Every
datum then depends on all steps before it, and the Hessian in e is dense.  In the running sums
u_t = e_1 + ... + e_t a datum depends on one of them and a step on two: it is a series again.  The
sums are a linear change of coordinates whose determinant is one, so nothing else changes.

Which sites are such steps is found by automatic differentiation, as interactions are: in the sums
columns of the Hessian have zeros where in the steps they have none.  The steps of a slope, which is
summed once more to a level, take sums of sums.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from numpyro_onestep.structure.interactions import hessian_products, unit_vectors

# Shortest axis along which sums are tried: shorter ones have a place in the core.
_SHORTEST = 8
# Longest axis of sums of sums, which grow as the power 3/2 of the length: at this one their second
# differences, the model's coordinates, have errors of 0.001 standard deviations by rounding.
_LONGEST_TWICE = 250
# Columns of the Hessian that are looked at, most other coordinates of the axis that a sum may
# interact with, and the size below which an entry is a rounding error, relative to the diagonal.
_COLUMNS, _MOST_NEIGHBOURS, _ROUNDING = 4, 8, 1e-5


class Axis(NamedTuple):
    """An axis of a site along which sums are taken."""

    name: str  # the site's
    first: int  # its first coordinate
    shape: tuple[int, ...]
    axis: int
    order: int = 1  # how often they are taken: 0, 1 or 2

    @property
    def coordinates(self) -> slice:
        """The site's coordinates."""
        return slice(self.first, self.first + int(np.prod(self.shape)))


class RunningSums(eqx.Module):
    """The steps x of the sums u, which are taken along chains of coordinates.

    Where a chain begins x_i = u_i, otherwise x_i = u_i - u_previous(i); twice, where sums are taken
    of sums.  Other coordinates are chains of length one.
    """

    previous: Int[Any, " d"]
    begins: Bool[Any, " d"]
    twice: Bool[Any, " d"]
    along: Int[Any, " d"]  # the coordinates chain by chain
    place: Int[Any, " d"]  # the inverse of `along`

    def steps(self, sums: Float[Array, " d"]) -> Float[Array, " d"]:
        """The model's coordinates."""
        return self._steps(sums, jnp.where)

    def sums(self, steps: Float[Array, " d"]) -> Float[Array, " d"]:
        """The sums of the model's coordinates."""
        return self._sums(jnp.where(self.twice, self._sums(steps), steps))

    def sums_of_many(self, steps: Float[Any, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """The same by NumPy for any number of points, computed in double precision."""

        def once(values):
            begins = np.asarray(self.begins)[self.along]
            first = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))
            chains = values[..., self.along]
            total = np.cumsum(chains, axis=-1)
            return (total - (total - chains)[..., first])[..., self.place]

        precise = np.asarray(steps, np.float64)
        return once(np.where(self.twice, once(precise), precise)).astype(steps.dtype)

    def steps_of_many(self, sums: Float[Any, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """The steps of any number of points, by NumPy."""
        return self._steps(sums, np.where)

    def _steps(self, sums, where):
        def once(values):
            return where(self.begins, values, values - values[..., self.previous])

        first = once(sums)
        return where(self.twice, once(first), first)

    def _sums(self, values: Float[Array, " d"]) -> Float[Array, " d"]:
        def add(one, other):
            # Nothing is added across the beginning of a chain.
            begins, value = other
            return one[0] | begins, jnp.where(begins, value, one[1] + value)

        chains = jnp.asarray(self.begins)[self.along], values[self.along]
        return jax.lax.associative_scan(add, chains)[1][self.place]


class OfSums(eqx.Module):
    """A potential as a function of the sums."""

    potential: Any
    sums: RunningSums

    @property
    def num_numbers(self) -> int:
        """How many numbers an evaluation computes, about; 1 where the potential does not say."""
        return getattr(self.potential, "num_numbers", 1)

    def __call__(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """U at the steps of the sums; their determinant is one."""
        return self.potential(self.sums.steps(u))


def axes_of(shapes: dict[str, tuple[int, ...]]) -> list[Axis]:
    """All axes of sites of these shapes, of each site the last one first."""
    found, first = [], 0
    for name, shape in shapes.items():
        found += [Axis(name, first, shape, axis) for axis in reversed(range(len(shape)))]
        first += int(np.prod(shape))
    return found


def running_sums(d: int, axes: list[Axis]) -> RunningSums:
    """The sums along some axes of a vector of d coordinates."""
    previous, begins, twice = np.arange(d), np.ones(d, bool), np.zeros(d, bool)
    chains = [np.arange(0)]
    for one in axes:
        own = np.moveaxis(np.arange(d)[one.coordinates].reshape(one.shape), one.axis, -1)
        if one.order:
            previous[own[..., 1:]], begins[own[..., 1:]] = own[..., :-1], False
        twice[own] = one.order == 2
        chains.append(own.ravel())
    inside = np.concatenate(chains)
    along = np.concatenate([inside, np.setdiff1d(np.arange(d), inside)])
    indices = (v.astype(np.int32) for v in (along, np.argsort(along)))
    return RunningSums(previous.astype(np.int32), begins, twice, *indices)


def summable(
    potential: Any, start: Float[Any, " d"], axes: Iterable[Axis], rng: np.random.Generator
) -> list[Axis]:
    """Those of some axes whose coordinates are steps of a series, at most one of each site.

    Args:
        potential: U, a function of x in R^d.
        start: a point of finite density, at which the Hessian is looked at.
        axes: the axes, in the order in which they are tried.
        rng: of the columns that are looked at.
    """
    found: list[Axis] = []
    for one in axes:
        length = one.shape[one.axis]
        if length < _SHORTEST or one.name in (other.name for other in found):
            continue
        for order in (0, 1, 2)[: 3 if length <= _LONGEST_TWICE else 2]:
            tried = one._replace(order=order)
            if _is_series(potential, start, tried, rng):
                found += [tried] * bool(order)
                break
    return found


def _is_series(potential, start, axis: Axis, rng: np.random.Generator) -> bool:
    """Whether coordinates of an axis have few neighbours along it in the sums of this order."""
    d = start.size
    sums = running_sums(d, [axis])
    at = sums.sums_of_many(start)
    columns = rng.choice(np.arange(d)[axis.coordinates], _COLUMNS, replace=False)
    of_sums = OfSums(potential, sums)
    products = np.abs(hessian_products(of_sums, at, unit_vectors(columns, d)))
    own = products[np.arange(_COLUMNS), columns]
    around = products[:, axis.coordinates] > _ROUNDING * own[:, None]
    return bool(np.isfinite(products).all() and around.sum(1).max() <= 1 + _MOST_NEIGHBOURS)
