"""A trained flow as the prior of a later model."""

from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpyro.distributions import constraints

from numpyro_onestep._util.numerics import is_double
from numpyro_onestep.flow.base_distribution import AbstractBaseDistribution
from numpyro_onestep.result import Trained
from numpyro_onestep.target import ModelTarget
from numpyro_onestep.target.enumeration import enumerated


class Base(dist.Distribution):
    """The flow's base distribution as a distribution of NumPyro's, with events of `(d,)`.

    Args:
        base: the base distribution.
        like: an array of the length and type of its draws.
    """

    support: Any = constraints.real_vector
    is_flow_base = True  # by which the trace of a model knows such a site
    pytree_data_fields = ("base", "like")

    def __init__(self, base: AbstractBaseDistribution, like: Float[Array, " d"]):
        self.base, self.like = base, like
        super().__init__((), jnp.shape(like))

    def sample(self, key: PRNGKeyArray | None, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draws of shape `(*sample_shape, d)`."""
        assert key is not None
        num = 1
        for size in sample_shape:
            num *= size
        return self.base.sample(key, num, self.like).reshape(*sample_shape, self.like.size)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Log densities of points `(*n, d)` (nats)."""
        return jnp.vectorize(self.base.log_density, signature="(d)->()")(value)


class FlowPrior:
    """The posterior of a run as a prior, to be called inside of a NumPyro model.

    Args:
        trained: the trained flow and its target.
        name: prefix of the latent site, the base draw.
    """

    def __init__(self, trained: Trained, name: str):
        self._trained, self.name = trained, name

    def __call__(self) -> PyTree:
        """Values of all latent sites on their supports, or the pytree of a `potential_fn`.

        Raises:
            RuntimeError: the target is in double precision, and the session is not.
        """
        trained = self._trained = self._trained.attached()
        problem, distribution = trained.problem, trained.distribution
        if problem.is_double and not is_double():
            raise RuntimeError(
                "The run whose posterior is this prior evaluated its target in float64. Call "
                "numpyro.enable_x64() at the start of the script, or run it with "
                "target_precision='single'."
            )
        like = jnp.zeros(distribution.dim, distribution.flow.dtype)
        z: Any = numpyro.sample(f"{self.name}.z", Base(distribution.base, like))
        # The target was traced for its own type, in whichever precision the later model is traced.
        x = distribution.transform.move(z).astype(problem.start.dtype)
        samples, target = problem.potential.constrain(x), problem.target
        if not isinstance(target, ModelTarget):
            return samples
        bases = {site.name for site in target.sites if site.is_flow_base}
        # Where the first model has such a prior itself, the values of that are deterministic sites.
        known = samples if bases else target.continuous(samples)
        others = bases | {site.name for site in enumerated(target.sites)}
        values = {site: value for site, value in known.items() if site not in others}
        for site, value in values.items():
            numpyro.deterministic(site, value)
        return values
