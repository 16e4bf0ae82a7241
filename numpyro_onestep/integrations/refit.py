"""Cross-validation by refits that begin from the flow of all data, for ArviZ and without it.

A refit leaves out terms of the likelihood: the pointwise log likelihoods that `arviz.loo` weighs by
importance are masked, the model is otherwise as it was, and so are its coordinates.  So a refit
goes on from the flow of all data, and it compiles nothing that the refit before it has compiled.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray
from numpyro.infer.util import log_likelihood
from numpyro.primitives import Messenger
from xarray import Dataset, DataTree

from numpyro_onestep._util.numerics import numerics
from numpyro_onestep._util.random import as_key, numpy_generator, stream
from numpyro_onestep.integrations.arviz import arviz, is_tree, pointwise_likelihood
from numpyro_onestep.result import Result
from numpyro_onestep.target.enumeration import enumerated

_VARIABLE = "left_out_likelihood"  # in the ArviZ data of a refit
# Arguments of the model without some observations, and arguments that have these alone.
Select = Callable[[Any], tuple[tuple, tuple]]


class Part(NamedTuple):
    """Which data are fitted and which are left out."""

    left_out: tuple[np.ndarray, ...]  # one array of indices for each axis of the observed site
    fitted_arguments: tuple | None  # of the model; None where the likelihood is masked
    left_out_arguments: tuple | None


class Fitted(NamedTuple):
    """A sampler that has run on a part of the data."""

    sampler: Any
    part: Part


class KFold(NamedTuple):
    """Expected log predictive density by k-fold cross-validation (nats)."""

    elpd: float
    se: float  # standard error, from the scatter of the observations
    pointwise: Float[np.ndarray, "*shape"]  # of each observation, in the shape of the site


class _LeaveOut(Messenger):
    """Mask the likelihood of one observed site."""

    def __init__(self, site: str, keep: Any):
        super().__init__()
        self.site, self.keep = site, keep

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and msg["name"] == self.site and msg["is_observed"]:
            msg["fn"] = msg["fn"].mask(self.keep)


class _Masked:
    """A model that takes, before its own arguments, which observations to keep."""

    def __init__(self, model: Callable, site: str):
        self.model, self.site = model, site

    def __call__(self, keep: Any, /, *args: Any, **kwargs: Any) -> Any:
        with _LeaveOut(self.site, keep):
            return self.model(*args, **kwargs)


class Refits(arviz().SamplingWrapper):
    """Refits of a model without some of its observations: an `arviz.SamplingWrapper`.

    `arviz.reloo(refits, ...)` takes it under both generations of ArviZ, and
    `arviz.loo_kfold(data, refits, k=...)` under 1.x; `kfold` needs no ArviZ.  Every refit begins
    from the flow of all data (`warm_start`), whatever was left out before.

    Args:
        sampler: a sampler that has run on all data.
        rng_key: a JAX random key.
        select: how data are left out, where masking the likelihood is not what is meant (say, since
            covariates are standardised). It takes the indices of the observations, and returns the
            model's arguments without them and the arguments with them alone. The latent sites must
            be the same. Default None: terms of the likelihood are masked.
        site: the observed site whose observations are left out. Default None: the only one.
        data: the sampler's ArviZ data. Default None: they are made.

    Raises:
        RuntimeError: the sampler has not run.
        ValueError: it has a `potential_fn`, no observed site, several of them and no `site`, or one
            that is a single number; or discrete latent sites with `select`, or on which several
            observations depend.
    """

    def __init__(
        self,
        sampler: Any,
        rng_key: PRNGKeyArray,
        select: Select | None = None,
        site: str | None = None,
        data: Any = None,
    ):
        result: Result = sampler.result
        found = self._likelihood(result, result.corrected.x[:1])
        if len(found) == 0:
            raise ValueError("There is no observed site, so that there is nothing to leave out.")
        if site is None and len(found) > 1:
            raise ValueError(f"Say whose observations are left out: site= one of {sorted(found)}.")
        self.site = next(iter(found)) if site is None else site
        if self.site not in found:
            raise ValueError(f"site={site!r} is none of the observed sites {sorted(found)}.")
        self.shape = found[self.site].shape[1:]
        if len(self.shape) == 0:
            raise ValueError(f"The site {self.site!r} is one observation: no data would remain.")
        target: Any = result.problem.target
        has_labels = bool(enumerated(target.sites))
        if has_labels and target.needs_drawn_values(self.site):
            raise ValueError(
                f"The log likelihood of {self.site!r} is known at drawn values of the discrete "
                "sites only, which were drawn with the observations that a refit leaves out. Sum "
                "these sites out by hand (numpyro.distributions.MixtureSameFamily, numpyro.factor)."
            )
        if select is not None and has_labels:
            raise ValueError(
                "The model has discrete latent sites, and a refit would draw those of other rows: "
                "leave select= out, and the likelihood is masked."
            )
        data = sampler.to_inference_data() if data is None else data
        super().__init__(sampler.model, idata_orig=data)
        self.sampler, self.select, self.rng_key = sampler, select, as_key(rng_key)

    def sel_observations(self, idx: Any) -> tuple[Part, Part]:
        """The part of the data without some observations, as ArviZ asks for it.

        Args:
            idx: for a site of one axis, the indices of the observations; for one of several axes,
                one index for each axis, or `{axis: coordinate}`.

        Returns:
            The part, twice: ArviZ passes one of them to `sample`, the other to `log_likelihood__i`.
        """
        if isinstance(idx, dict):
            places = self.idata_orig["log_likelihood"]
            idx = [int(np.flatnonzero(places[dim].values == at)[0]) for dim, at in idx.items()]
        idx = np.atleast_1d(np.asarray(idx, int))
        part = self._without((idx,) if len(self.shape) == 1 else tuple(idx[:, None]))
        return part, part

    def sample(self, modified_observed_data: Part) -> Fitted:
        """A sampler that has run on a part of the data."""
        part = modified_observed_data
        name = f"without {[indices.tolist() for indices in part.left_out]}"
        again, key = copy.copy(self.sampler), stream(self.rng_key, name)
        again.warm_start, again._checkpoints = True, None
        if part.fitted_arguments is not None:
            again.run(key, *part.fitted_arguments)
        else:
            args, kwargs, _ = self.sampler.run_arguments
            keep = np.ones(self.shape, bool)
            keep[part.left_out] = False
            again.model = _Masked(self.sampler.model, self.site)
            again.run(key, keep, *args, **kwargs)
        return Fitted(again, part)

    def get_inference_data(self, fitted_model: Fitted) -> Any:
        """ArviZ data of a refit; its log likelihood is that of what was left out."""
        fit = fitted_model.sampler
        data = fit.to_inference_data(log_likelihood=False)
        by_chain = fit.result.by_chain(self.left_out_likelihood(fitted_model))
        group = Dataset({_VARIABLE: (("chain", "draw", "left_out"), by_chain)})
        if is_tree():
            data["log_likelihood"] = DataTree(group)
        else:
            data.add_groups({"log_likelihood": group})
        return data

    def log_likelihood__i(self, excluded_obs: Part, idata__i: Any) -> Any:
        """The log likelihood of what was left out, at every draw of the refit."""
        del excluded_obs  # `get_inference_data` knows it too
        return idata__i["log_likelihood"][_VARIABLE]

    def left_out_likelihood(self, fitted: Fitted) -> Float[np.ndarray, "draws n"]:
        """Log likelihoods of what was left out, at every draw of a refit, from the model (nats)."""
        fit, part = fitted
        if part.left_out_arguments is None:
            # The coordinates are those of the run on all data, whose model has every likelihood.
            values = self._likelihood(self.sampler.result, fit.result.corrected.x)[self.site]
            return values[(slice(None), *part.left_out)]
        draws = fit.result.problem.target.latents(fit.get_samples())
        found = log_likelihood(self.sampler.model, draws, *part.left_out_arguments)
        return np.asarray(found[self.site]).reshape(len(next(iter(draws.values()))), -1)

    def kfold(self, folds: int | Sequence[int] | Int[np.ndarray, " n"] = 10) -> KFold:
        """Expected log predictive density by exact k-fold cross-validation.

        Args:
            folds: how many folds of random observations; or, for each observation in the order of
                the flattened site, the number of its fold. Default 10.
        """
        size = int(np.prod(self.shape))
        numbers = self.folds(folds) if isinstance(folds, int) else np.asarray(folds)
        if numbers.shape != (size,):
            raise ValueError(f"folds has {numbers.size} numbers for {size} observations.")
        pointwise = np.empty(self.shape)
        for number in np.unique(numbers):
            left_out = np.unravel_index(np.flatnonzero(numbers == number), self.shape)
            fitted = self.sample(self._without(left_out))
            values = self.left_out_likelihood(fitted).astype(np.float64)
            pointwise[left_out] = np.logaddexp.reduce(values, axis=0) - np.log(len(values))
        return KFold(float(pointwise.sum()), float(pointwise.std(ddof=1) * size**0.5), pointwise)

    def folds(self, num: int) -> Int[np.ndarray, " n"]:
        """For each observation, in the order of the flattened site, a fold: random, equally large.

        Args:
            num: how many folds.

        Raises:
            ValueError: fewer than two, or more than there are observations.
        """
        size = int(np.prod(self.shape))
        if not 2 <= num <= size:
            raise ValueError(f"{num} folds are not possible: it must be from 2 to {size}.")
        rng = numpy_generator(stream(self.rng_key, "folds"))
        return rng.permutation(np.arange(size) % num)

    def _without(self, left_out: tuple[np.ndarray, ...]) -> Part:
        if self.select is None:
            return Part(left_out, None, None)
        fitted, scored = self.select(left_out[0] if len(left_out) == 1 else left_out)
        return Part(left_out, tuple(fitted), tuple(scored))

    @staticmethod
    def _likelihood(result: Result, x: Float[np.ndarray, "n d"]) -> dict[str, np.ndarray]:
        """Pointwise log likelihoods of a run's data, at draws of the same coordinates (nats)."""
        result.problem.require_data()
        with numerics(result.problem.is_double):
            return pointwise_likelihood(result.problem.potential, x)
