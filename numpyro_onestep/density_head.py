"""The flow's density at given points, by one evaluation of a network of its own.

log q at a point needs the map's inverse: some steps of Newton's method, with a linear system each.
A second network that learns it from the map's own draws, whose densities are exact without an
inverse, needs one evaluation (F2D2: "Joint distillation for fast likelihood evaluation and sampling
in flow-based models", arXiv 2512.02636).  Its error is measured on draws that it has not seen.
Weights and evidence are never computed by it.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import stream
from numpyro_onestep.flow import FlowDistribution, StructuredMap

_WIDTH, _DEPTH = 128, 3  # of the network
_NUM_ITERATIONS, _BATCH, _LEARNING_RATE = 2000, 128, 2e-3
# One draw in four is inflated, by this factor, so that the head is right in the tails too.
_INFLATION = 1.3
_TINY = 1e-12  # below which a size has no derivative
_NUM_TESTED = 10_000  # draws on which the error is measured


class HeadError(NamedTuple):
    """How far the head is from the exact log density, on 10,000 draws of the flow (nats).

    Draws at which the map folds have no known density and are left out.
    """

    rms: float  # root of the mean square
    quantile_99: float  # 99 in 100 draws are nearer
    largest: float


class LogProbHead(eqx.Module):
    """log q(x) of a trained flow at given points, approximately and by one evaluation.

    `OneStep.fit_log_prob` makes it.  It is a pytree, and can be differentiated and used inside of
    `jax.jit` and of a NumPyro model.

    Attributes:
        error: its error on draws that it was not trained on.
    """

    distribution: FlowDistribution
    network: eqx.nn.MLP
    linear: Float[Array, " d"]
    quadratic: Float[Array, "d d"]
    error: HeadError = eqx.field(static=True)

    def log_prob(self, x: Float[Array, "*n d"], exact: bool = False) -> Float[Array, "*n"]:
        """Log densities of the flow (nats).

        Args:
            x: points of R^d, unconstrained values in the order of `ravel_pytree`.
            exact: compute them by the map's inverse, which takes longer. Default False.
        """
        if exact:
            return self.distribution.log_prob(x)
        return jnp.vectorize(self._approximate, signature="(d)->()")(x)

    def _approximate(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        y = self.distribution.preconditioner.whiten(x)
        return _plain(self.distribution, y) + _correction(self, y)


def fit_head(distribution: FlowDistribution, rng_key: PRNGKeyArray) -> LogProbHead:
    """Train a head on a flow's draws, and measure its error.

    Args:
        distribution: the trained flow.
        rng_key: a JAX random key.

    Raises:
        ValueError: the map has the model's structure, and so an inverse that costs little.
    """
    if isinstance(distribution.flow, StructuredMap):
        raise ValueError(
            "The map of this run has the model's structure, so that its inverse is computed "
            "coordinate by coordinate and takes no longer than a head would: use "
            "get_posterior().log_prob(x)."
        )
    d, dtype = distribution.dim, distribution.flow.dtype
    key = stream(rng_key, "head")
    network = eqx.nn.MLP(3 * d, "scalar", _WIDTH, _DEPTH, jax.nn.silu, key=key, dtype=dtype)
    zeros = jnp.zeros(d, dtype), jnp.zeros((d, d), dtype)
    untrained = LogProbHead(distribution, network, *zeros, HeadError(np.inf, np.inf, np.inf))
    trained = _train(untrained, stream(rng_key, "training of the head"))
    errors = np.abs(np.asarray(_errors(trained, stream(rng_key, "error of the head"))))
    errors = errors[~np.isnan(errors)] if np.isfinite(errors).any() else np.array([np.inf])
    measured = HeadError(
        float(np.sqrt(np.mean(errors**2))), float(np.quantile(errors, 0.99)), float(errors.max())
    )
    parts = trained.network, trained.linear, trained.quadratic
    return LogProbHead(distribution, *parts, measured)


def _plain(distribution: FlowDistribution, y: Float[Array, " d"]) -> Float[Array, ""]:
    """The log density of the distribution that the flow started from (nats)."""
    return distribution.base.log_density(y) - distribution.preconditioner.log_det


def _correction(head: LogProbHead, y: Float[Array, " d"]) -> Float[Array, ""]:
    """What the head adds: a quadratic function, and a network of bounded features."""
    y = y.astype(head.linear.dtype)
    features = jnp.concatenate([jnp.tanh(y / 2), 2 * y**2 / (4 + y**2), y / (1 + 0.1 * abs(y))])
    return head.network(features) + y @ head.quadratic @ y + y @ head.linear


def _miss(head: LogProbHead, z: Float[Array, " d"], unknown: float = 0.0) -> Float[Array, ""]:
    """The head's error at the image of a base draw (nats); `unknown` where the density is so."""
    distribution = head.distribution
    image = distribution.transform.image(z)
    y = distribution.preconditioner.whiten(image.x)
    exact = distribution.log_prob_at(z, image) - _plain(distribution, y)
    fine = jnp.isfinite(exact) & (image.sign > 0)
    miss = _correction(head, jnp.where(fine, y, 0.0)) - jnp.where(fine, exact, 0.0)
    return jnp.where(fine, miss, unknown)


@compiled
def _train(head: LogProbHead, rng_key: PRNGKeyArray) -> LogProbHead:
    import optax  # imported here, since it takes a tenth of the time that NumPyro does

    rates = optax.cosine_decay_schedule(_LEARNING_RATE, _NUM_ITERATIONS)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates))
    parts = head.network, head.linear, head.quadratic
    parameters, static = eqx.partition(parts, eqx.is_inexact_array)
    scale = jnp.where(jnp.arange(_BATCH) % 4 == 0, _INFLATION, 1.0)

    def with_parameters(values: Any) -> LogProbHead:
        found = eqx.combine(values, static)
        return eqx.tree_at(lambda h: (h.network, h.linear, h.quadratic), head, found)

    def step(carry, key):
        parameters, state = carry
        z = head.distribution.sample_base(key, _BATCH, scale)

        def loss(values):
            trained = with_parameters(values)
            misses, slopes = jax.vmap(jax.value_and_grad(lambda one: _miss(trained, one)))(z)
            # A draw teaches d slopes beside one value; they halve the error in tens of dimensions.
            sizes = jnp.sqrt(jnp.sum(slopes**2, axis=1) + _TINY)
            # Beyond one nat an error counts by its size, so that no single draw rules.
            return jnp.mean(optax.huber_loss(misses) + optax.huber_loss(sizes))

        gradient = jax.grad(loss)(parameters)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(parameters, updates), state), None

    carry = parameters, optimiser.init(parameters)
    (parameters, _), _ = jax.lax.scan(step, carry, jr.split(rng_key, _NUM_ITERATIONS))
    return with_parameters(parameters)


@compiled
def _errors(head: LogProbHead, rng_key: PRNGKeyArray) -> Float[Array, " n"]:
    z = head.distribution.sample_base(rng_key, _NUM_TESTED)
    return map_in_batches(lambda one: _miss(head, one, jnp.nan), z)
