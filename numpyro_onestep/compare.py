"""Side by side with NUTS: one model and its data, every mean and standard deviation, both times."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from numpyro.diagnostics import summary
from numpyro.infer import MCMC, NUTS

from numpyro_onestep._util.naming import flatten_names, label
from numpyro_onestep.integrations.pictures import needs_matplotlib
from numpyro_onestep.sampler import OneStep
from numpyro_onestep.target.enumeration import enumerated


@dataclass(frozen=True)
class Comparison:
    """Draws of OneStep and of NUTS for one posterior.

    Attributes:
        onestep: draws by name, `(num_samples, *shape)`.
        nuts: draws by name, `(num_chains * num_samples, *shape)`.
        onestep_seconds: wall time of `OneStep.run` in seconds, compilation included.
        nuts_seconds: wall time of `MCMC.run` in seconds, compilation included.
        num_divergences: NUTS transitions that diverged.
        nuts_summary: NumPyro's summary of the NUTS draws by chain.
    """

    onestep: dict[str, np.ndarray]
    nuts: dict[str, np.ndarray]
    onestep_seconds: float
    nuts_seconds: float
    num_divergences: int
    nuts_summary: dict[str, Any]

    def select(self, sites: Sequence[str]) -> "Comparison":
        """The comparison of the named sites alone, to be printed or plotted.

        Use it where a model has hundreds of values of which few matter.  The times stay those of
        the whole runs.

        Args:
            sites: names of sites, in the order of the table.

        Raises:
            ValueError: one of `sites` is no site that was compared.

        Example:
            >>> import numpy as np
            >>> from numpyro_onestep import Comparison
            >>> draws = {"a": np.arange(4.0), "b": np.arange(4.0)}
            >>> comparison = Comparison(draws, draws, 1.0, 2.0, 0, {})
            >>> [row["name"] for row in comparison.select(["b"]).rows()]
            ['b']
        """
        unknown = [name for name in sites if name not in self.onestep]
        if unknown:
            raise ValueError(f"sites= has {unknown[0]!r}, but the sites are {list(self.onestep)}.")
        onestep = {name: self.onestep[name] for name in sites}
        return replace(self, onestep=onestep, nuts={name: self.nuts[name] for name in sites})

    def rows(self) -> list[dict[str, Any]]:
        """One row for each scalar parameter.

        Keys: `name`; `mean`, `sd` of OneStep; `nuts_mean`, `nuts_sd`; `mean_error`, the
        difference of means in NUTS standard deviations; `log_sd_error`, the difference of log
        standard deviations; `nuts_ess` and `nuts_r_hat`.
        """
        found = []
        for name, ours in self.onestep.items():
            for index in np.ndindex(ours.shape[1:]):
                a, b = ours[(slice(None), *index)], self.nuts[name][(slice(None), *index)]
                stats = self.nuts_summary.get(name)
                sd, nuts_sd = float(a.std()), float(b.std())
                known = sd > 0 and nuts_sd > 0
                found.append(
                    {
                        "name": label(name, index),
                        "mean": float(a.mean()),
                        "sd": sd,
                        "nuts_mean": float(b.mean()),
                        "nuts_sd": nuts_sd,
                        "mean_error": float(a.mean() - b.mean()) / nuts_sd if known else np.nan,
                        "log_sd_error": float(np.log(sd / nuts_sd)) if known else np.nan,
                        "nuts_ess": float(stats["n_eff"][index]) if stats else np.nan,
                        "nuts_r_hat": float(stats["r_hat"][index]) if stats else np.nan,
                    }
                )
        return found

    def __str__(self) -> str:
        header = (
            f"{'':>18s}{'mean':>10s}{'sd':>9s}{'NUTS mean':>12s}{'NUTS sd':>9s}"
            f"{'d mean/sd':>11s}{'d log sd':>10s}{'NUTS ESS':>10s}"
        )
        lines = [header]
        for row in self.rows():
            lines.append(
                f"{row['name']:>18s}{row['mean']:10.3f}{row['sd']:9.3f}{row['nuts_mean']:12.3f}"
                f"{row['nuts_sd']:9.3f}{row['mean_error']:11.3f}{row['log_sd_error']:10.3f}"
                f"{row['nuts_ess']:10.0f}"
            )
        lines.append(
            f"OneStep {self.onestep_seconds:.1f} s, NUTS {self.nuts_seconds:.1f} s "
            f"({self.num_divergences} divergences), compilation included"
        )
        return "\n".join(lines)

    def plot(self, path=None, max_panels: int = 12):
        """Marginal densities of OneStep and of NUTS, one panel for each scalar parameter.

        The figure is none of pyplot's, so that nothing has to be closed.  A notebook shows it where
        it is the last value of a cell.

        Args:
            path: where to write the picture; None (default) writes nothing.
            max_panels: largest number of panels; the first parameters are shown. Default 12.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from numpyro_onestep.integrations.figure import NotebookFigure
        except ImportError as error:
            raise needs_matplotlib("Comparison.plot") from error
        rows = [row for row in self.rows() if np.isfinite(row["mean_error"])][:max_panels]
        ours, nuts = _scalars(self.onestep), _scalars(self.nuts)
        num_columns = min(4, len(rows))
        num_rows = -(-len(rows) // num_columns)
        size = 3.2 * num_columns, 2.4 * num_rows + 0.6
        figure = NotebookFigure(figsize=size, layout="constrained")
        axes = np.ravel(figure.subplots(num_rows, num_columns, squeeze=False))
        for axis, row in zip(axes, rows, strict=False):
            name = row["name"]
            low, high = np.quantile(nuts[name], [0.001, 0.999])
            bins = np.linspace(low, high, 50)
            axis.hist(nuts[name], bins, density=True, color="0.75", label="NUTS")
            axis.hist(
                ours[name], bins, density=True, histtype="step", color="C3", lw=1.5, label="OneStep"
            )
            axis.set_title(f"{name}   d mean/sd {row['mean_error']:+.3f}", fontsize=9)
            axis.set_yticks([])
        for axis in axes[len(rows) :]:
            axis.set_axis_off()
        axes[0].legend(frameon=False, fontsize=8)
        figure.suptitle(
            f"OneStep {self.onestep_seconds:.1f} s, NUTS {self.nuts_seconds:.1f} s "
            "(compilation included)",
            fontsize=10,
        )
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def compare_with_nuts(
    sampler: OneStep,
    rng_key: PRNGKeyArray,
    *,
    num_warmup: int = 1000,
    num_samples: int = 1000,
    num_chains: int = 4,
    progress_bar: bool = False,
) -> Comparison:
    """Run NUTS on the model and data of a sampler that has run, and set the two side by side.

    Args:
        sampler: a `OneStep` after `run`.
        rng_key: a JAX random key for NUTS.
        num_warmup: warm-up transitions of each chain. Default 1000.
        num_samples: draws of each chain. Default 1000.
        num_chains: number of chains. They run as one vectorised batch unless the machine has as
            many devices. Default 4.
        progress_bar: show the progress bar of NUTS. Default False.

    Returns:
        The draws of both by name, with wall times in seconds; `print` shows a table.

    Raises:
        RuntimeError: the sampler has not run.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro_onestep import OneStep, compare_with_nuts
        >>> sampler = OneStep(potential_fn=lambda x: jnp.sum(x**2), progress_bar=False)
        >>> sampler.run(jax.random.key(0), init_params=jnp.zeros(2))
        >>> comparison = compare_with_nuts(sampler, jax.random.key(1), num_samples=200)
        >>> [row["name"] for row in comparison.rows()]
        ['x[0]', 'x[1]']
    """
    ours = sampler.get_samples()
    sites = sampler.result.problem.target.sites
    if enumerated(sites):
        # NUTS has no draws of discrete sites, so what depends on them cannot be compared.
        ours = sampler.result.problem.target.continuous(ours)
    ours = flatten_names(ours)
    args, kwargs, init_params = sampler.run_arguments
    mcmc = MCMC(
        NUTS(sampler.model, potential_fn=sampler.potential_fn, init_strategy=sampler.init_strategy),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized" if jax.local_device_count() < num_chains else "parallel",
        progress_bar=progress_bar,
    )
    if init_params is not None:
        # Of several chains MCMC takes a start for each, of a single chain the start alone.
        copies = (num_chains,) if num_chains > 1 else ()
        init_params = jax.tree.map(
            lambda leaf: jnp.broadcast_to(jnp.asarray(leaf, float), (*copies, *jnp.shape(leaf))),
            init_params,
        )
    clock = time.perf_counter()
    mcmc.run(rng_key, *args, init_params=init_params, extra_fields=("diverging",), **kwargs)
    draws = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
    seconds = time.perf_counter() - clock
    by_chain = {k: np.asarray(v) for k, v in flatten_names(draws).items()}
    return Comparison(
        onestep={k: np.asarray(v) for k, v in ours.items()},
        nuts={k: v.reshape(-1, *v.shape[2:]) for k, v in by_chain.items()},
        onestep_seconds=sum(sampler.seconds.values()),
        nuts_seconds=seconds,
        num_divergences=int(mcmc.get_extra_fields()["diverging"].sum()),
        nuts_summary=summary(by_chain),
    )


def _scalars(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        label(name, index): values[(slice(None), *index)]
        for name, values in draws.items()
        for index in np.ndindex(values.shape[1:])
    }
