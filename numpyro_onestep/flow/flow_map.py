"""The deterministic flow: one step, the k-step map, its Jacobian and its log-determinant.

One Euler step of the probability-flow ODE from time tau to tau - h is
    Phi(y) = y + h r(y, tau, h),
and the k-step map composes k of them from time T to 0.  With k = 1 a draw costs one evaluation.
"""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Volume(NamedTuple):
    """The image y of a point, and the map's change of volume at that point."""

    y: Float[Array, " d"]
    log_det: Float[Array, ""]
    sign: Float[Array, ""]


class Score(NamedTuple):
    """The image y of a point, the score of the image's distribution at y, and the volume."""

    y: Float[Array, " d"]
    score: Float[Array, " d"]
    log_det: Float[Array, ""]
    sign: Float[Array, ""]


class AbstractFlowMap(eqx.Module):
    """A map of R^d with exact volume, scores and draws, for each number of steps k."""

    @property
    @abc.abstractmethod
    def dtype(self) -> Any:
        """The type of the parameters."""

    @property
    @abc.abstractmethod
    def numbers_per_draw(self) -> int:
        """How many numbers it takes, roughly, to compute the volume at a draw."""

    @abc.abstractmethod
    def schedule(self, num_steps: int) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """Times and sizes of the k steps, from T down to 0; an error where k is not possible."""

    @abc.abstractmethod
    def __call__(self, z: Float[Array, " d"], num_steps: int = 1) -> Float[Array, " d"]:
        """The image of a base draw z, in whitened coordinates."""

    @abc.abstractmethod
    def volume(self, z: Float[Array, " d"], num_steps: int = 1) -> Volume:
        """The image of z, with the exact log|det dy/dz|."""

    @abc.abstractmethod
    def score(
        self,
        z: Float[Array, " d"],
        score: Float[Array, " d"],
        num_steps: int = 1,
        image: Float[Array, " d"] | None = None,
    ) -> Score:
        """The image of z, and the score of its distribution there, from the score at z.

        `image` is the image of z where it is known already.
        """


class FlowMap(AbstractFlowMap):
    """The dense k-step map, for every k that divides the grid.

    Args:
        network: the residual velocity.
        times: the grid of the noise schedule, K + 1 times from 0 to T.
    """

    network: Any  # a ResidualVelocity, or a module with its methods
    times: tuple[float, ...] = eqx.field(static=True)

    @property
    def num_grid_steps(self) -> int:
        """K, the number of intervals of the grid."""
        return len(self.times) - 1

    @property
    def dtype(self):
        """The type of the network's numbers."""
        return self.network.last.weight.dtype

    @property
    def numbers_per_draw(self) -> int:
        """How many numbers it takes, roughly, to compute the volume at a draw."""
        d = self.network.first.in_features
        return 4 * d * (self.network.width + d)

    def step(
        self, y: Float[Array, " d"], tau: Float[Array, ""], step_size: Float[Array, ""]
    ) -> Float[Array, " d"]:
        """Phi(y) = y + h r(y, tau, h)."""
        return y + step_size * self.network(y, tau, step_size)

    def schedule(self, num_steps: int) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """Times and sizes of the k steps, from T down to 0.

        Raises:
            ValueError: k does not divide the grid.
        """
        if num_steps < 1 or self.num_grid_steps % num_steps:
            raise ValueError(
                f"num_steps={num_steps} must divide the grid's {self.num_grid_steps} steps."
            )
        times = np.asarray(self.times)[:: -(self.num_grid_steps // num_steps)]
        return jnp.asarray(times[:-1], self.dtype), jnp.asarray(times[:-1] - times[1:], self.dtype)

    def __call__(self, z: Float[Array, " d"], num_steps: int = 1) -> Float[Array, " d"]:
        """The k-step map Phi_k(z), from a base draw z to whitened coordinates."""
        taus, sizes = self.schedule(num_steps)
        if num_steps == 1:
            return self.step(z, taus[0], sizes[0])
        y, _ = jax.lax.scan(lambda y, at: (self.step(y, *at), None), z, (taus, sizes))
        return y

    def jacobian(self, z: Float[Array, " d"], num_steps: int = 1) -> Float[Array, "d d"]:
        """dPhi_k / dz of the whole map: the product over its steps."""
        taus, sizes = self.schedule(num_steps)
        if num_steps == 1:
            return self.network.step_jacobian(z, taus[0], sizes[0]).dense()

        def advance(carry, at):
            y, jacobian = carry
            step = self.network.step_jacobian(y, *at).dense()
            return (self.step(y, *at), step @ jacobian), None

        start = z, jnp.eye(z.size, dtype=z.dtype)
        (_, jacobian), _ = jax.lax.scan(advance, start, (taus, sizes))
        return jacobian

    def step_volume(
        self, y: Float[Array, " d"], tau: Float[Array, ""], step_size: Float[Array, ""]
    ) -> Volume:
        """One step Phi(y), with its log|det(I + h dr/dy)|."""
        sign, log_det = self.network.step_jacobian(y, tau, step_size).slogdet()
        return Volume(self.step(y, tau, step_size), log_det, sign)

    def volume(self, z: Float[Array, " d"], num_steps: int = 1) -> Volume:
        """The k-step map with its exact log|det dPhi_k / dz|, the sum over its steps."""
        taus, sizes = self.schedule(num_steps)
        if num_steps == 1:
            return self.step_volume(z, taus[0], sizes[0])

        def advance(carry, at):
            new = self.step_volume(carry.y, *at)
            return Volume(new.y, carry.log_det + new.log_det, carry.sign * new.sign), None

        zero = jnp.zeros((), z.dtype)
        total, _ = jax.lax.scan(advance, Volume(z, zero, zero + 1), (taus, sizes))
        return total

    def score(
        self,
        z: Float[Array, " d"],
        score: Float[Array, " d"],
        num_steps: int = 1,
        image: Float[Array, " d"] | None = None,
    ) -> Score:
        """The image of z, and the score of its distribution there, from the score at z.

        Each step turns the score into J^-T (score - grad log|det J|).
        """

        def advance(carry, at):
            y, score, log_det, sign = carry

            def parts(y):
                jacobian = self.network.step_jacobian(y, *at)
                return (jacobian.diagonal, jacobian.rows), jacobian

            _, pull_back, jacobian = jax.vjp(parts, y, has_aux=True)
            known = jacobian.factorise()
            (gradient,) = pull_back(jacobian.log_det_gradient(known))
            score = jacobian.solve_transposed(known, score - gradient)
            return Score(self.step(y, *at), score, log_det + known.log_det, sign * known.sign), None

        taus, sizes = self.schedule(num_steps)
        one = jnp.ones((), z.dtype)
        carry = Score(z, score, 0 * one, one)
        if num_steps == 1:
            return advance(carry, (taus[0], sizes[0]))[0]
        return jax.lax.scan(advance, carry, (taus, sizes))[0]


def uniform_grid(horizon: float, num_steps: int) -> tuple[float, ...]:
    """The times 0 to T in equal intervals of tau."""
    return tuple(float(t) for t in np.linspace(0.0, horizon, num_steps + 1))
