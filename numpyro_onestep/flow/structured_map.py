"""The structured one-step map: the core by the dense map, then the nodes level by level.

Its Jacobian is triangular in blocks, so that the log volume is the core's plus a sum over nodes.
And as each node's z is a function of its own value and of values made before, the score of the
image needs no levels: it is computed for all nodes at once.
"""

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep.flow.conditional import Conditional, Moved, SharedNetwork
from numpyro_onestep.flow.flow_map import AbstractFlowMap, FlowMap, Score, Volume
from numpyro_onestep.flow.levels import values_of_nodes


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
        return len(self.nodes.sees_core)

    @property
    def numbers_per_draw(self) -> int:
        """How many numbers it takes, roughly, to compute the volume at a draw."""
        network = self.nodes.network
        each = 8 + (0 if network is None else 4 * len(network.bias))
        return self.core.numbers_per_draw + each * self.nodes.parents.shape[1]

    def with_network(self, width: int, rng_key: PRNGKeyArray) -> "StructuredMap":
        """The same map with a network that the nodes share, which does nothing before training."""
        p, n = self.nodes.parents.shape
        network = SharedNetwork(n, self.num_core, p, width, rng_key, self.dtype)
        return replace(self, nodes=replace(self.nodes, network=network))

    def moved(
        self, z: Float[Array, " n"], core: Float[Array, " g"], nodes: Float[Array, " n"]
    ) -> Moved:
        """Values and slopes of all nodes at once, where the values of their parents are known."""
        every = slice(None)
        return self.nodes(z, core, self.nodes.values_around(nodes, every), every)

    def schedule(self, num_steps: int):
        """The core's times and step sizes."""
        return self.core.schedule(num_steps)

    def __call__(self, z: Float[Array, " d"], num_steps: int = 1) -> Float[Array, " d"]:
        """The image of z."""
        g = self.num_core
        core = self.core(z[:g], num_steps)
        return jnp.concatenate([core, values_of_nodes(self.nodes, z[g:], core, self.ends)])

    def volume(self, z: Float[Array, " d"], num_steps: int = 1) -> Volume:
        """The image of z, with the exact log|det dy/dz|."""
        g = self.num_core
        core, log_det, sign = self.core.volume(z[:g], num_steps)
        nodes = values_of_nodes(self.nodes, z[g:], core, self.ends)
        log_slope = self.moved(z[g:], core, nodes).log_slope
        return Volume(jnp.concatenate([core, nodes]), log_det + jnp.sum(log_slope), sign)

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
        if image is None:
            nodes = values_of_nodes(self.nodes, z[g:], of_core.y, self.ends)
        else:
            nodes = image[g:]
        log_slope, along_z = jax.vjp(lambda z: self.moved(z, of_core.y, nodes).log_slope, z[g:])
        one = jnp.ones_like(nodes)
        (in_z,) = along_z(-one)
        along = (score[g:] + in_z) * jnp.exp(-log_slope)
        _, pull_back = jax.vjp(partial(self.moved, z[g:]), of_core.y, nodes)
        in_core, in_nodes = pull_back(Moved(-along, -one))
        return Score(
            jnp.concatenate([of_core.y, nodes]),
            jnp.concatenate([of_core.score + in_core, along + in_nodes]),
            of_core.log_det + jnp.sum(log_slope),
            of_core.sign,
        )
