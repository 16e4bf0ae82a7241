"""What other code takes from a run: distribution, map, prior, refits, density at given points."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PRNGKeyArray

from numpyro_onestep.density_head import LogProbHead, fit_head
from numpyro_onestep.diagnostics import report
from numpyro_onestep.diagnostics.codes import coded
from numpyro_onestep.flow import FlowDistribution, FlowTransform
from numpyro_onestep.prior import FlowPrior
from numpyro_onestep.readings import Readings

_LARGEST_ERROR = 0.5  # nats; with more, weights that a head gives would be off by half


class Composed(Readings):
    """The trained flow of the last run, as parts for other models and other code."""

    def get_posterior(self) -> FlowDistribution:
        """The trained flow as a NumPyro distribution on R^d, before any correction.

        Its draws are vectors `(*sample_shape, d)` in the order of `ravel_pytree`.
        """
        return self._trained().distribution

    def get_transform(self) -> FlowTransform:
        """The trained map as a NumPyro transform: base draws z to unconstrained values x."""
        return self._trained().distribution.transform

    def as_prior(self, name: str = "flow") -> FlowPrior:
        """The trained flow as a prior: call it inside of a later model for the sites' values.

        `values = prior()` is `{site: value}` for every continuous latent site, on its support, and
        records each of them as a deterministic site, which
        `print_summary(exclude_deterministic=False)` shows.  The later model's own latent site is
        the base draw z, `<name>.z`, whose image is the values: one evaluation of the map and no
        inverse, and the values have exactly the flow's density.

        So data can come in parts: log Z of the first part plus log Z of the second with this prior
        is log Z of both, as far as the flow's density is that of the first posterior (the gap).

        Args:
            name: prefix of the latent site, which differs where a model uses two such priors.

        Example:
            >>> import jax, numpyro, numpyro.distributions as dist
            >>> from numpyro_onestep import OneStep
            >>> def model(y):
            ...     mu = numpyro.sample("mu", dist.Normal(0, 10))
            ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
            >>> first = OneStep(model, num_samples=500, progress_bar=False)
            >>> first.run(jax.random.key(0), jax.numpy.array([1.0, 2.0, 3.0]))
            >>> prior = first.as_prior()
            >>> def more(y):
            ...     numpyro.sample("y", dist.Normal(prior()["mu"], 1), obs=y)
            >>> second = OneStep(more, num_samples=500, progress_bar=False)
            >>> second.run(jax.random.key(1), jax.numpy.array([4.0, 5.0]))
            >>> bool(abs(second.get_samples()["mu"].mean() - 3) < 0.1)
            True
        """
        return FlowPrior(self._trained(), name)

    def refits(
        self,
        rng_key: PRNGKeyArray,
        select: Callable[[Any], tuple[tuple, tuple]] | None = None,
        site: str | None = None,
    ) -> Any:
        """Refits without some observations, for cross-validation: an `arviz.SamplingWrapper`.

        `arviz.reloo` takes it, and `arviz.loo_kfold` of ArviZ 1.x; its own method `kfold` needs no
        ArviZ.  Each refit begins from the flow of this run.

        Args:
            rng_key: a JAX random key.
            select: takes the indices of the observations to leave out, and returns the model's
                arguments without them and its arguments with them alone. Default None: the terms of
                the likelihood are masked, which are those that `arviz.loo` weighs.
            site: the observed site, where there are several. Default None: the only one.

        Raises:
            RuntimeError: nothing was run yet.
            ValueError: there is no observed site, or several of them and no `site`.

        Example:
            >>> import jax, numpyro, numpyro.distributions as dist
            >>> from numpyro_onestep import OneStep
            >>> def model(y):
            ...     mu = numpyro.sample("mu", dist.Normal(0, 10))
            ...     numpyro.sample("y", dist.Normal(mu, 1).expand(y.shape), obs=y)
            >>> sampler = OneStep(model, num_samples=500, progress_bar=False)
            >>> sampler.run(jax.random.key(0), jax.numpy.array([1.0, 2.0, 3.0, 4.0]))
            >>> sampler.refits(jax.random.key(1)).kfold(2).pointwise.shape
            (4,)
        """
        # ArviZ is imported here, since its import takes longer than that of all else together.
        from numpyro_onestep.integrations.refit import Refits

        return Refits(self, rng_key, select, site)

    def fit_log_prob(self, rng_key: PRNGKeyArray) -> LogProbHead:
        """The flow's log density at given points, by one network evaluation (F2D2).

        `get_posterior().log_prob(x)` is exact and computes the inverse of the map for each point.
        Where that takes too long, as in the model of another NUTS, this trains a second network on
        2000 batches of the flow's own draws, whose exact densities need no inverse.  Its error on
        draws that it has not seen is `head.error`; `head.log_prob(x, exact=True)` is exact.

        Args:
            rng_key: a JAX random key.

        Returns:
            An object with `log_prob(x)`, for x of shape `(*n, d)`, and `error` (nats).

        Raises:
            RuntimeError: nothing was trained yet.
            TypeError: `rng_key` is no JAX random key.
            ValueError: the map has the model's structure, and so an inverse that costs little.

        Warns:
            OneStepWarning: the error is above 0.5 nats (root mean square).

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from numpyro_onestep import OneStep
            >>> sampler = OneStep(potential_fn=lambda x: jnp.sum(x**2), progress_bar=False)
            >>> sampler.run(jax.random.key(0), init_params=jnp.zeros(2))
            >>> head = sampler.fit_log_prob(jax.random.key(1))
            >>> bool(jnp.abs(head.log_prob(jnp.ones(2)) + 2 + jnp.log(jnp.pi)) < 0.05)
            True
        """
        with self._environment(rng_key) as key:
            head = fit_head(self._trained().distribution, key)
        if not head.error.rms <= _LARGEST_ERROR:
            message = (
                f"The head's log densities are off by {head.error.rms:.2g} nats (root mean "
                "square), since the flow's density is steep somewhere, as in a neck: use "
                "head.log_prob(x, exact=True)."
            )
            report.warn((coded(message, "head"),), stacklevel=2)
        return head
