"""Pictures of the last run: its training, weights, evidence and structure, by matplotlib."""

from typing import Any

from jaxtyping import PRNGKeyArray

from numpyro_onestep.budgets import StepBudgets
from numpyro_onestep.integrations import pictures, structure_picture


class Pictures(StepBudgets):
    """A picture is drawn on the axes given as `ax`, or on those of a new figure of pyplot.

    Each returns the axes.  An ImportError says where matplotlib is missing, and a RuntimeError
    where there are no results yet.
    """

    def plot_training(self, ax: Any = None) -> Any:
        """The ELBO (nats) over training iterations, and where training stopped.

        The thin line is the estimate of each iteration, from one batch of draws, the thick one the
        median of each hundred.  Lines mark where the learning rate began to fall, and where
        training ended.  Where several maps were trained one after the other, all are shown, those
        that were not taken in grey.

        Args:
            ax: matplotlib axes. Default None: those of a new figure.

        Returns:
            The axes.

        Raises:
            RuntimeError: nothing was trained yet.
            ImportError: matplotlib is not installed.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from numpyro_onestep import OneStep
            >>> sampler = OneStep(potential_fn=lambda x: jnp.sum(x**2), progress_bar=False)
            >>> sampler.run(jax.random.key(0), init_params=jnp.zeros(2))
            >>> sampler.plot_training().get_ylabel()
            'ELBO (nats)'
        """
        trained = self._trained()
        return pictures.training(pictures.axes_for("OneStep.plot_training", ax), trained)

    def plot_weights(self, ax: Any = None) -> Any:
        """The tail of the pool's importance weights, and the one that PSIS fits, on log scales.

        Over a weight w, in units of the mean weight, stands the fraction of the draws of the pool
        whose weight is above w.  The line is the generalised Pareto distribution of shape k, with
        the scale by which `result.evidence.tail_mass` is found: the mass expected beyond the
        largest weight, which is shaded.

        Args:
            ax: matplotlib axes. Default None: those of a new figure.

        Returns:
            The axes.

        Raises:
            RuntimeError: nothing was run yet.
            ImportError: matplotlib is not installed.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from numpyro_onestep import OneStep
            >>> def potential(x):
            ...     return jnp.sum(x**2) + 0.1 * jnp.sum(x**4)
            >>> sampler = OneStep(potential_fn=potential, progress_bar=False)
            >>> sampler.run(jax.random.key(0), init_params=jnp.zeros(2))
            >>> sampler.plot_weights().get_xscale()
            'log'
        """
        result = self.result
        return pictures.weights(pictures.axes_for("OneStep.plot_weights", ax), result)

    def plot_evidence(
        self, rng_key: PRNGKeyArray, ax: Any = None, num_rejuvenation_steps: int = 100
    ) -> Any:
        """ELBO, log evidence and EUBO (nats): the log evidence between its bounds.

        The bars are two Monte Carlo standard errors long, to either side.

        Args:
            rng_key: a JAX random key, for `evidence_interval`.
            ax: matplotlib axes. Default None: those of a new figure.
            num_rejuvenation_steps: as for `evidence_interval`. Default 100.

        Returns:
            The axes.

        Raises:
            RuntimeError: nothing was run yet, or the sampler was read without its data.
            ImportError: matplotlib is not installed.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from numpyro_onestep import OneStep
            >>> sampler = OneStep(potential_fn=lambda x: jnp.sum(x**2), progress_bar=False)
            >>> sampler.run(jax.random.key(0), init_params=jnp.zeros(2))
            >>> [text.get_text().split()[0] for text in
            ...  sampler.plot_evidence(jax.random.key(1)).get_yticklabels()]
            ['ELBO', 'log', 'EUBO']
        """
        found = self.result.evidence
        ax = pictures.axes_for("OneStep.plot_evidence", ax, (6.4, 2.6))
        return pictures.evidence(ax, found, self.evidence_interval(rng_key, num_rejuvenation_steps))

    def plot_structure(self, ax: Any = None) -> Any:
        """Which coordinates depend on which in the map, as a matrix: the `structure`.

        The globals come first, then block by block what depends on them; within a block the
        coordinates are ordered so that a series is a band.  Coordinates that do not interact
        may be joined by the elimination, since the map makes one from the other.  With more than
        300 coordinates a cell stands for several of them.

        Args:
            ax: matplotlib axes. Default None: those of a new figure.

        Returns:
            The axes.

        Raises:
            RuntimeError: nothing was trained yet.
            ImportError: matplotlib is not installed.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from numpyro_onestep import OneStep
            >>> sampler = OneStep(potential_fn=lambda x: jnp.sum(x**2), progress_bar=False)
            >>> sampler.run(jax.random.key(0), init_params=jnp.zeros(2))
            >>> sampler.plot_structure().get_title()
            'dense map of 2 coordinates'
        """
        trained = self._trained()
        ax = pictures.axes_for("OneStep.plot_structure", ax, (5.0, 5.4))
        return structure_picture.structure(ax, trained)
