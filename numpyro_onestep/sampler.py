"""`OneStep`: the inference class. Its results are read by `readings`, `budgets` and `pictures`."""

import os
from collections.abc import Callable
from typing import Any

from jaxtyping import PRNGKeyArray, PyTree
from numpyro.infer.initialization import init_to_uniform

from numpyro_onestep._util import progress
from numpyro_onestep._util.numerics import numerics, refuse_transformations
from numpyro_onestep._util.random import as_key
from numpyro_onestep.checkpoint.files import Files
from numpyro_onestep.checkpoint.journal import Journal
from numpyro_onestep.corrections import correction_of
from numpyro_onestep.diagnostics import report
from numpyro_onestep.given_draws.fit import Given
from numpyro_onestep.given_draws.unconstrained import given_values
from numpyro_onestep.inference import Inference
from numpyro_onestep.pictures import Pictures
from numpyro_onestep.problem import Problem, problem_of_function, problem_of_model
from numpyro_onestep.result import Trained
from numpyro_onestep.settings import Settings
from numpyro_onestep.storage import run


class OneStep(Pictures):
    """Posterior draws in one network evaluation each, with a true bound of the log evidence.

    Use it like `numpyro.infer.MCMC`: construct it with a model, call `run` with a key and the
    model's arguments, then `get_samples`.  `run` trains a one-step flow on the model's own log
    density, weighs a pool of draws by their exact density and resamples it (docs/method.md).
    A method that reads results raises a RuntimeError while there are none.

    Args:
        model: a NumPyro model. Its discrete latent sites are summed out, and drawn afterwards.
        potential_fn: instead of a model, a potential (negative log density, nats) of a pytree of
            unconstrained values; `run` then needs `init_params`.
        init_strategy: where a model starts, as for `numpyro.infer.NUTS`. Default
            `init_to_uniform`.
        warm_start: a second `run` trains the flow of the first one further, for other data of the
            same model. Where its result is doubted, a run from the beginning follows. Default
            False.
        checkpoint: path of a file to which `run` writes where it is: at most once a minute while it
            trains, and at the end of each step. The same `run`, called again after it was ended at
            any moment, goes on from there and ends in the same bits; called again after it has
            ended, it returns the result from the file. A second `run` of the same sampler has the
            file `<checkpoint>.2`, and so on. The file holds no data and no code. `distil` writes
            none. Default None.
        **settings: see `Settings` for each name, its meaning and default.

    Raises:
        ValueError: both or neither of `model` and `potential_fn`, or a setting out of range.
        OSError: the folder of `checkpoint` is not there or cannot be written.
        TypeError: an unknown setting, or a `model` or `potential_fn` that is not callable.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro_onestep import OneStep
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 10))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> sampler = OneStep(model, num_samples=500, progress_bar=False)
        >>> sampler.run(jax.random.key(0), jax.numpy.array([1.0, 2.0, 3.0]))
        >>> sampler.get_samples()["mu"].shape
        (500,)
    """

    def __init__(
        self,
        model: Callable | None = None,
        *,
        potential_fn: Callable | None = None,
        init_strategy: Callable = init_to_uniform,
        warm_start: bool = False,
        checkpoint: str | os.PathLike | None = None,
        **settings: Any,
    ):
        if (model is None) == (potential_fn is None):
            raise ValueError(
                "OneStep takes a model or a potential_fn, and exactly one of them: "
                "OneStep(model) or OneStep(potential_fn=...)."
            )
        for name, value in (("model", model), ("potential_fn", potential_fn)):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be callable, but is {type(value).__name__}.")
        self.model = model
        self.potential_fn = potential_fn
        self.init_strategy, self.warm_start = init_strategy, warm_start
        self.settings = Settings.of(**settings)
        self._correction = correction_of(self.settings.draws)
        self._last: Trained | None = None
        self._checkpoints = None if checkpoint is None else Files(checkpoint)

    def run(
        self,
        rng_key: PRNGKeyArray,
        *args: Any,
        extra_fields: tuple[str, ...] = (),
        init_params: PyTree = None,
        **kwargs: Any,
    ) -> None:
        """Train on the model's log density, then draw and weigh.

        The same key, model, arguments and settings give bit-identical draws on the same machine.
        The model is traced anew, so that a run sees the current values of all that the model reads;
        a second run with arrays of the same shapes compiles nothing.  An interrupt (Ctrl-C) ends
        the training, and the draws come from the flow as it is then.

        Args:
            rng_key: a JAX random key.
            *args: the model's arguments.
            init_params: where to start: unconstrained values of each latent site, as for
                `numpyro.infer.MCMC.run`; with `potential_fn`, a pytree of its argument's shape.
            extra_fields: not used, since `get_extra_fields` has all fields; MCMC takes it.
            **kwargs: the model's keyword arguments.

        Raises:
            TypeError: `rng_key` is no JAX random key, or the run is inside `jax.jit` or the like.
            ValueError: no latent site, a discrete latent site that cannot be summed out, no
                starting point of finite density, no `init_params` or model arguments with a
                `potential_fn`, `init_params` of wrong shape, or `multimodal` in more than 128
                dimensions; the checkpoint is that of another run (another key, model, data,
                settings or start, or other packages), or cannot be read.
            ImportError: discrete latent sites, and funsor is not installed.
            OSError: the checkpoint cannot be written.

        Warns:
            OneStepWarning: the result may be wrong; the message says why and what to do.
        """
        del extra_fields
        refuse_transformations((rng_key, args, kwargs, init_params))
        with numerics(), progress.line(self.settings.draws.progress_bar):
            key, earlier = as_key(rng_key), self._last if self.warm_start else None
            if self._checkpoints is not None:
                earlier = self._checkpoints.earlier(earlier)
            journal = Journal(self._checkpoints)
            self._infer(key, args, kwargs, init_params, previous=earlier, journal=journal)
        report.warn(self.result.messages, stacklevel=2)

    def _infer(self, key: PRNGKeyArray, args: tuple, kwargs: dict, start: PyTree, **more: Any):
        """Run the inference from a start, and keep what it finds."""

        def trace(key: PRNGKeyArray, start: PyTree) -> Problem:
            if self.potential_fn is not None:
                return problem_of_function(self.potential_fn, args, kwargs, start)
            return problem_of_model(key, self.model, args, kwargs, start, self.init_strategy)

        def keep(trained: Trained) -> None:
            self._last = trained

        inference = Inference(self.settings, self._correction, key, keep, **more)
        self._last = inference.run(trace, start)

    def distil(
        self,
        rng_key: PRNGKeyArray,
        draws: PyTree,
        *args: Any,
        num_denoising_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Distil posterior draws that are there already into a one-step sampler with an evidence.

        Use it where NUTS, SMC or nested sampling has drawn, and a log evidence, a density or more
        draws are wanted.  Afterwards all that works after `run` works.  Training starts from a
        Gaussian, from a flow trained on the noised draws where that is poor, or from a mixture
        where they are in pieces, and goes on on the model's density (docs/distil.md).  The weights
        are exact: log evidence and `get_samples` are those of the model, not of the draws.

        Chains may be autocorrelated.  What the draws miss is missed here as well, unless the checks
        find it.  `sampler.result.agreement` compares them with the sampler's own, and a warning
        says where they disagree.  With `multimodal=True` modes are looked for as in `run`.  A
        structured map, in many dimensions, takes its start and the comparison alone from the draws.

        Args:
            rng_key: a JAX random key.
            draws: `{site: (n, *shape)}` on the sites' supports, as `mcmc.get_samples()` gives them,
                in the order of the chains; sites that are not continuous and latent are left out.
                At least 50 draws, and 2 for each dimension. With `potential_fn`, a pytree of
                unconstrained values whose leaves have an axis of draws first.
            *args: the model's arguments, those of the draws.
            num_denoising_steps: iterations of denoising regression and state consistency on the
                draws, 0 for none. Default None: 400 where a Gaussian is a poor start.
            **kwargs: the model's keyword arguments.

        Raises:
            TypeError: as `run`.
            ValueError: a latent site is missing in the draws, a shape is wrong, a value is not a
                number or outside of its support, there are too few draws, or the density is zero
                at most of them; or as `run`.

        Warns:
            OneStepWarning: the result may be wrong, or the given draws disagree with it.

        Example:
            >>> import jax, numpyro, numpyro.distributions as dist
            >>> from numpyro_onestep import OneStep
            >>> def model(y):
            ...     mu = numpyro.sample("mu", dist.Normal(0, 10))
            ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
            >>> y = jax.numpy.array([1.0, 2.0, 3.0])
            >>> draws = {"mu": 1.99 + 0.577 * jax.random.normal(jax.random.key(1), (1000,))}
            >>> sampler = OneStep(model, num_samples=500, progress_bar=False)
            >>> sampler.distil(jax.random.key(0), draws, y)
            >>> round(sampler.log_evidence, 1)
            -6.6
        """
        refuse_transformations((rng_key, draws, args, kwargs))
        with numerics(), progress.line(self.settings.draws.progress_bar):
            key, strategy = as_key(rng_key), self.init_strategy
            with progress.stage("reading the draws"):
                values = given_values(key, self.model, args, kwargs, draws, strategy)
            given = Given.of(values, num_denoising_steps)
            self._infer(key, args, kwargs, given.start, given=given)
        report.warn(self.result.messages, stacklevel=2)

    def save(self, path: str | os.PathLike) -> None:
        """Write the last run to a file: draws, flow, evidence, settings, warnings, versions.

        The file holds no data and no code: a ZIP archive of JSON and NumPy arrays, whose format
        `numpyro_onestep/storage/file.py` describes.  Deterministic sites, which may repeat the
        data, are left out.  (A whole number, a truth value or a text that is an argument of the
        model is written.)  The file is written as a whole or not at all.

        Args:
            path: of the file, which is replaced if it is there.

        Raises:
            TypeError: the model has state, or values that are no arrays; pickle keeps such a
                sampler.
            RuntimeError: the sampler was itself read from a file without the model's arguments.

        Example:
            >>> import jax, jax.numpy as jnp, tempfile
            >>> from numpyro_onestep import OneStep
            >>> def potential(x):
            ...     return jnp.sum(x**2)
            >>> sampler = OneStep(potential_fn=potential, num_samples=500, progress_bar=False)
            >>> sampler.run(jax.random.key(0), init_params=jnp.zeros(2))
            >>> path = tempfile.mkdtemp() + "/run.nos"
            >>> sampler.save(path)
            >>> again = OneStep.load(path, potential_fn=potential)
            >>> again.log_evidence == sampler.log_evidence
            True
        """
        run.save(path, self.settings, self.result)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        model: Callable | None = None,
        *args: Any,
        potential_fn: Callable | None = None,
        init_strategy: Callable = init_to_uniform,
        **kwargs: Any,
    ) -> "OneStep":
        """A sampler as `save` wrote it: the same draws, and the same `sample(key, n)`, to the bit.

        Without the model's arguments all results can be read, and further draws made, of latent
        sites alone; what evaluates the model needs them (`evaluate`, `to_inference_data`, `predict`
        without arguments).  The bits are the same on the same kind of machine, with the same
        versions of the packages.  Nothing in the file is executed.

        Args:
            path: of the file.
            model: the model that was run.
            *args: its arguments in that run.
            potential_fn: instead of a model, the potential function.
            init_strategy: as in the constructor, for further runs.
            **kwargs: the model's keyword arguments.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is cut off, altered, of another kind or of a later version; the
                model is another one, or the supports of its sites depend on its data; or the
                session has another precision.
        """
        sampler = cls(model, potential_fn=potential_fn, init_strategy=init_strategy)
        sampler.settings, sampler._last = run.load(
            path,
            model=model,
            potential_fn=potential_fn,
            args=args,
            kwargs=kwargs,
            init_strategy=init_strategy,
        )
        sampler._correction = correction_of(sampler.settings.draws)
        return sampler
