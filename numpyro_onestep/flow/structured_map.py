"""The structured one-step map: the core by the dense map, then the nodes level by level.

Its Jacobian is triangular in blocks, so that the log volume is the core's plus a sum over nodes.
And as each node's z is a function of its own value and of values made before, the score of the
image needs no levels: it is computed for all nodes at once.
"""

from dataclasses import replace
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep.flow.conditional import Conditional, Moved, SharedNetwork
from numpyro_onestep.flow.flow_map import AbstractFlowMap, FlowMap, Score, Volume


class StructuredMap(AbstractFlowMap):
    """The map z -> y, both in the order of the structure.

    Args:
        core: the dense map of the core; its number of steps is that of the whole map.
        nodes: the maps of the other coordinates.
        ends: where each level ends, counted in nodes.
    """

    core: FlowMap
    nodes: Conditional
    ends: tuple[int, ...] = eqx.field(static=True)

    @property
    def dtype(self):
        """The type of the parameters."""
        return self.core.dtype

    @property
    def num_core(self) -> int:
        """Size of the core."""
        return self.nodes.sees_core.shape[1]

    @property
    def numbers_per_draw(self) -> int:
        """How many numbers it takes, roughly, to compute the volume at a draw."""
        network = self.nodes.network
        each = 8 + (0 if network is None else 4 * len(network.bias))
        return self.core.numbers_per_draw + each * len(self.nodes.parents)

    def with_network(self, width: int, rng_key: PRNGKeyArray) -> "StructuredMap":
        """The same map with a network that the nodes share, which does nothing before training."""
        n, p = self.nodes.parents.shape
        network = SharedNetwork(n, self.num_core, p, width, rng_key, self.dtype)
        return replace(self, nodes=replace(self.nodes, network=network))

    def schedule(self, num_steps: int):
        """The core's times and step sizes."""
        return self.core.schedule(num_steps)

    def __call__(self, z: Float[Array, " d"], num_steps: int = 1) -> Float[Array, " d"]:
        """The image of z."""
        g = self.num_core
        core = self.core(z[:g], num_steps)
        return jnp.concatenate([core, self._levels(z[g:], core).y])

    def volume(self, z: Float[Array, " d"], num_steps: int = 1) -> Volume:
        """The image of z, with the exact log|det dy/dz|."""
        g = self.num_core
        core, log_det, sign = self.core.volume(z[:g], num_steps)
        nodes = self._levels(z[g:], core)
        y = jnp.concatenate([core, nodes.y])
        return Volume(y, log_det + jnp.sum(nodes.log_slope), sign)

    def score(
        self,
        z: Float[Array, " d"],
        score: Float[Array, " d"],
        num_steps: int = 1,
        image: Float[Array, " d"] | None = None,
    ) -> Score:
        """The image of z, and the score of its distribution there, from the score at z.

        With log q(y) = sum_i [ log n(z_i) - log slope_i ], z_i a function of y_i and of its
        features, the gradient in y_i is c_i = (d log q / d z_i) / slope_i, and the gradient in a
        feature is that of -log slope_i less c_i times that of the map.
        """
        g = self.num_core
        of_core = self.core.score(z[:g], score[:g], num_steps)
        nodes = self._levels(z[g:], of_core.y).y if image is None else image[g:]

        def both(z, core, nodes):
            moved = self.nodes(z, core, nodes, slice(None))
            return moved.y, moved.log_slope

        (_, log_slope), pull_back = jax.vjp(both, z[g:], of_core.y, nodes)
        zero, one = jnp.zeros_like(nodes), jnp.ones_like(nodes)
        in_z, *in_features = pull_back((zero, -one))
        along = (score[g:] + in_z) * jnp.exp(-log_slope)
        _, *in_map = pull_back((along, zero))
        in_core, in_nodes = (a - b for a, b in zip(in_features, in_map, strict=True))
        return Score(
            jnp.concatenate([of_core.y, nodes]),
            jnp.concatenate([of_core.score + in_core, along + in_nodes]),
            of_core.log_det + jnp.sum(log_slope),
            of_core.sign,
        )

    def _levels(self, z: Float[Array, " n"], core: Float[Array, " g"]) -> Moved:
        """All nodes, one level after the other."""
        made: list[Moved] = []
        values = jnp.zeros(0, z.dtype)
        for begin, end in pairwise((0, *self.ends)):
            rows = slice(begin, end)
            made.append(self.nodes(z[rows], core, values, rows))
            values = jnp.concatenate([values, made[-1].y])
        return Moved(*(jnp.concatenate(parts) for parts in zip(*made, strict=True)))
