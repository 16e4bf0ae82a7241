"""How the results of the last run are read: draws, evidence, diagnostics, tables, ArviZ data.

The names are those of `numpyro.infer.MCMC` where it has one, so that what is written for MCMC, as
`arviz.from_numpyro` is, works with a sampler too.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float, PRNGKeyArray, PyTree
from numpyro.diagnostics import print_summary
from numpyro.infer import MCMC

from numpyro_onestep._util.naming import flatten_names
from numpyro_onestep._util.numerics import numerics, refuse_transformations
from numpyro_onestep._util.random import as_key
from numpyro_onestep.diagnostics import report
from numpyro_onestep.importance.pool import Pool
from numpyro_onestep.importance.psis import without_nan
from numpyro_onestep.prediction import predict
from numpyro_onestep.result import Result, Trained
from numpyro_onestep.settings import Settings
from numpyro_onestep.structure.structure import Structure

_FEWEST_SUMMARISED = 4  # draws of a chain: NumPyro halves it, and each half needs two
_RENAMED = {"base_elbo": "initial_elbo", "folded_share": "folded_fraction"}


class Readings(MCMC):
    """What the last run found. A RuntimeError says where there are no results yet.

    To others it is an MCMC: `arviz.from_numpyro` of ArviZ 1.x takes nothing else.
    """

    model: Any
    settings: Settings
    _last: Trained | None

    def warmup(self, *args: Any, **kwargs: Any) -> None:
        """There is none: raises a NotImplementedError."""
        raise NotImplementedError("OneStep has no warmup: run() trains the flow and draws.")

    # Draws have no state from which others could follow.
    post_warmup_state: Any = None  # type: ignore
    last_state: Any = None  # type: ignore

    def transfer_states_to_host(self) -> None:
        """Do nothing: draws are on the host already."""

    def __getstate__(self) -> dict[str, Any]:
        """The attributes; MCMC would add a cache of compiled functions."""
        return vars(self).copy()

    @property
    def result(self) -> Result:
        """All results of the last run, frozen; the accessors below read single parts of it.

        Raises:
            RuntimeError: `run` was not called, or was interrupted before its draws were weighed.
        """
        run = self._trained()
        if not isinstance(run, Result):
            raise RuntimeError(
                "run() was interrupted after training, before its draws were weighed. "
                "sample(rng_key, num_samples) draws from the trained flow."
            )
        return run

    def get_samples(self, group_by_chain: bool = False) -> PyTree:
        """Equally weighted posterior draws: `{site: (num_samples, *shape)}`.

        The draws are constrained, with deterministic sites; with `potential_fn`, they are a pytree
        like `init_params`.  By default they are resampled from the pool by its smoothed weights,
        and moved by HMC rejuvenation where those are heavy-tailed (settings `correction` and
        `num_rejuvenation_steps`).

        Args:
            group_by_chain: put an axis of chains first, as MCMC does: four of `num_samples / 4`
                draws. With `"imh"`, `"nuts"` and `"pgibbs"` they are chains. Else the draws are
                independent, and the four are groups of them, whose R-hat is 1 but for noise; there
                is one group where `num_samples` is no multiple of 4. Default False.
        """
        result = self.result
        return result.by_chain(result.samples) if group_by_chain else result.samples

    def get_extra_fields(self, group_by_chain: bool = False) -> dict[str, np.ndarray]:
        """Numbers that go with each draw, `{name: (num_samples,)}`, as MCMC has them.

        `lp`, the unnormalised log density of the unconstrained draw (nats).  Unless HMC
        rejuvenation moved the draws, also `log_q`, that of the flow, and `log_weight = lp - log_q`.
        Corrections that run chains have those of their sampler.

        Args:
            group_by_chain: put an axis of chains first, as `get_samples` does. Default False.
        """
        result = self.result
        with self._environment():
            stats = {name: np.asarray(values) for name, values in result.stats.items()}
        return result.by_chain(stats) if group_by_chain else stats

    def get_weighted_samples(self) -> tuple[PyTree, Float[np.ndarray, " pool"]]:
        """All draws of the pool, `{site: (pool_size, *shape)}`, and their exact log weights.

        Nine in ten are the flow's own draws, the last tenth are inflated draws (none with
        `correction=None`).  All are weighed against the density of the mixture of both; the log of
        the mean weight estimates the log evidence.  Log weights (nats, unsmoothed) are minus
        infinity where the density is zero or not a number.
        """
        result = self.result
        return result.problem.constrain(result.pool.x), without_nan(result.pool.log_weight)

    def get_pool(self) -> Pool:
        """The pool on R^d: draws with the log densities of target, flow and pool (nats)."""
        return self.result.pool

    @contextmanager
    def _environment(self, rng_key: Any = None, needs_data: bool = False) -> Iterator[PRNGKeyArray]:
        """Work in the precision of the last run; yields the key after checking it.

        Raises:
            RuntimeError: the work `needs_data`, and the sampler was read without them.
        """
        refuse_transformations((rng_key,))
        problem = self._trained().problem
        if needs_data:
            problem.require_data()
        with numerics(problem.is_double):
            yield None if rng_key is None else as_key(rng_key)  # type: ignore

    @property
    def sampler(self) -> "Readings":
        """The sampler itself: MCMC's attribute `sampler` has the `model`, and so has this."""
        return self

    @property
    def num_chains(self) -> int:
        """Chains in `get_samples(group_by_chain=True)`."""
        return self.result.num_chains

    @property
    def num_samples(self) -> int:
        """Draws of each chain, as MCMC counts them."""
        return len(self.result.corrected.x) // self.num_chains

    @property
    def thinning(self) -> int:
        """1: every draw is kept."""
        return 1

    @property
    def _args(self) -> tuple:
        # `arviz.from_numpyro` reads the arguments by these names.
        return self.run_arguments[0]

    @property
    def _kwargs(self) -> dict[str, Any]:
        return self.run_arguments[1]

    @property
    def elbo(self) -> float:
        """Mean log weight (nats): a lower bound of the log evidence where the map is injective."""
        return self.result.evidence.elbo

    @property
    def elbo_std_error(self) -> float:
        """Monte Carlo standard error of `elbo` (nats)."""
        return self.result.evidence.elbo_std_error

    @property
    def initial_elbo(self) -> float:
        """ELBO of the fitted Gaussian or mixture that the flow started from, a rough one (nats)."""
        return float(self._trained().fit.elbo)

    @property
    def log_evidence(self) -> float:
        """Log of the mean Pareto-smoothed weight of the pool (nats)."""
        return self.result.evidence.log_evidence

    @property
    def log_evidence_std_error(self) -> float:
        """Monte Carlo standard error of `log_evidence` (nats)."""
        return self.result.evidence.log_evidence_std_error

    @property
    def pareto_k(self) -> float:
        """Shape k of the weights' tail: above about 0.7 the weights cannot be relied on."""
        return self.result.evidence.pareto_k

    @property
    def ess(self) -> float:
        """Effective number of draws in the pool, (sum w)^2 / sum w^2."""
        return self.result.evidence.ess

    @property
    def folded_fraction(self) -> float:
        """Fraction of the flow's own draws at which the map's determinant is negative."""
        return self.result.evidence.folded_fraction

    @property
    def structure(self) -> Structure | None:
        """Which coordinates depend on which in the map; None where the map is dense."""
        return self._trained().fit.structure

    @property
    def num_flow_steps(self) -> int:
        """Network evaluations that each draw takes."""
        return self._trained().num_flow_steps

    @property
    def losses(self) -> Float[np.ndarray, " iterations"]:
        """Estimated upper bound of minus the log evidence at every training iteration (nats)."""
        return self._trained().training.losses

    @property
    def losses_by_stage(self) -> dict[str, Float[np.ndarray, " iterations"]]:
        """The same for each stage of training."""
        return {**self._trained().training.losses_by_stage}

    @property
    def chunk_seconds(self) -> tuple[float, ...]:
        """Wall time of each hundred training iterations in seconds; the first compiles."""
        return self._trained().training.chunk_seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of each part of `run` in seconds, compilation included."""
        return dict(self._trained().seconds)

    @property
    def messages(self) -> list[str]:
        """What the last run warned of."""
        return list(self.result.messages)

    @property
    def run_arguments(self) -> tuple[tuple, dict[str, Any], PyTree]:
        """The model's arguments and keyword arguments, and `init_params`, of the last run."""
        problem = self._trained().problem
        problem.require_data()
        return problem.arguments

    def _trained(self) -> Trained:
        if self._last is None:
            raise RuntimeError("There are no results yet: call run(rng_key, ...) first.")
        self._last = self._last.attached()
        return self._last

    def __getattr__(self, name: str) -> Any:
        if name in _RENAMED:
            raise AttributeError(f"OneStep.{name} is now called {_RENAMED[name]}: use that name.")
        raise AttributeError(f"OneStep has no attribute {name!r}.")

    def print_summary(
        self,
        prob: float = 0.9,
        exclude_deterministic: bool = True,
        sites: Sequence[str] | None = None,
    ) -> None:
        """Print NumPyro's table of the draws, and below it evidence, diagnostics and verdict.

        Args:
            prob: mass of the highest-density interval. Default 0.9.
            exclude_deterministic: leave deterministic sites and discrete latent ones out of the
                table. Default True, as for MCMC.
            sites: names of the sites in the table, of whatever kind, where there are hundreds of
                rows. Default None: all of them.

        Raises:
            ValueError: one of `sites` is no site of the model.
        """
        result = self.result
        samples = self.get_samples(group_by_chain=True)
        if sites is not None:
            unknown = [name for name in sites if name not in samples]
            if unknown:
                raise ValueError(f"sites= has {unknown[0]!r}, but the sites are {list(samples)}.")
            samples = {name: samples[name] for name in sites}
        elif exclude_deterministic:
            samples = result.problem.target.continuous(samples)
        grouped = flatten_names(samples)
        if next(iter(grouped.values())).shape[1] >= _FEWEST_SUMMARISED:
            print_summary(grouped, prob=prob, group_by_chain=True)
        print(report.summary(result, self.settings.draws))

    def predict(self, rng_key: PRNGKeyArray, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Posterior predictive draws, `{site: (num_samples, *shape)}`, by NumPyro's Predictive.

        Every observed site is drawn anew, whatever is given as its data, for each of the posterior
        draws; so is a latent site that the model of the run did not have, such as that of a new
        group.  Discrete latent sites are drawn given the data in the arguments: without data from
        their prior, with the data of new rows so that these are classified.

        Args:
            rng_key: a JAX random key.
            *args: the model's arguments, of new rows say. Without any argument those of the run.
            **kwargs: the model's keyword arguments.

        Raises:
            ValueError: the sampler has a `potential_fn`, which observes nothing.

        Example:
            >>> import jax, numpyro, numpyro.distributions as dist
            >>> from numpyro_onestep import OneStep
            >>> def model(x, y=None):
            ...     slope = numpyro.sample("slope", dist.Normal(0, 10))
            ...     numpyro.sample("y", dist.Normal(slope * x, 1), obs=y)
            >>> sampler = OneStep(model, num_samples=500, progress_bar=False)
            >>> x = jax.numpy.arange(5.0)
            >>> sampler.run(jax.random.key(0), x, 2 * x)
            >>> sampler.predict(jax.random.key(1), jax.numpy.array([10.0, 20.0]))["y"].shape
            (500, 2)
        """
        result = self.result
        with self._environment(rng_key, needs_data=not (args or kwargs)) as key:
            return predict(result.problem, result.samples, key, args, kwargs)

    def to_inference_data(
        self,
        *,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        prior: Mapping[str, Any] | None = None,
        posterior_predictive: Mapping[str, Any] | None = None,
        predictions: Mapping[str, Any] | None = None,
        constant_data: Mapping[str, Any] | None = None,
        predictions_constant_data: Mapping[str, Any] | None = None,
        log_likelihood: bool = True,
        log_prior: bool = False,
    ):
        """The results as ArviZ data: `InferenceData` under ArviZ 0.x, `DataTree` under 1.x.

        Groups: `posterior`, with dimensions chain, draw and the plates'; `sample_stats`, with `lp`,
        the unnormalised log density of the unconstrained draw, and, unless HMC rejuvenation moved
        the draws, `log_q`, that of the flow, and `log_weight = lp - log_q` (nats); for a model
        also `log_likelihood` and `observed_data`.  Attributes: `elbo`, `log_evidence`, their
        standard errors, `pareto_k`, `ess`, times in seconds, versions.

        A plate's axis has the plate's name, and an event axis the name that the model gives it by
        `infer={"event_dims": [...]}`.  Any other axis is `<site>_dim_<axis>`, as is one whose name
        would be that of a variable, or of an axis of another size.  A deterministic site that is a
        tuple `t` becomes the variables `t.0`, `t.1`, and so on.  A site named `chain` or `draw`
        gets an underscore after its name, and a slash becomes a dot in a `DataTree`.

        Args:
            coords: values of axes, `{axis: values}`. Default: 0, 1, ...
            dims: names of the axes of variables, `{variable: names}`, instead of the model's.
            prior: draws of the prior, for the groups `prior` and, of sites that are no latent
                ones, `prior_predictive`; as are the following, they are taken by ArviZ's own
                converter, `arviz.from_numpyro`.
            posterior_predictive: draws of observed sites, as `predict` gives them.
            predictions: the same for new data.
            constant_data: covariates.
            predictions_constant_data: covariates of new data.
            log_likelihood: compute the log likelihood, for `arviz.loo`. Default True.
            log_prior: compute the log density of every latent site's own distribution, for
                power-scaling sensitivity. Default False.

        Raises:
            ValueError: `coords` or `dims` do not fit the arrays.
        """
        # ArviZ is imported here, since its import takes longer than that of all else together.
        from numpyro_onestep.integrations.arviz import Naming, from_result
        from numpyro_onestep.integrations.groups import with_groups

        result = self.result
        given = {
            "prior": prior,
            "posterior_predictive": posterior_predictive,
            "predictions": predictions,
            "constant_data": constant_data,
            "predictions_constant_data": predictions_constant_data,
        }
        given = {name: dict(value) for name, value in given.items() if value is not None}
        naming = Naming(dict(coords or {}), dict(dims or {}))
        with self._environment(needs_data=True):
            data = from_result(result, naming, log_likelihood, log_prior)
        return with_groups(data, result, given, naming) if given else data
