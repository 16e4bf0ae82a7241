"""How the defaults fare on what users bring: ten posteriors that nothing was tuned on.

    python -m benchmarks.held_out [--names held_out_garch ...] [--seeds 0 1 2] [--resume]
    python -m benchmarks.held_out --references [--names ...]

The first runs OneStep at default settings, compares with the stored references, and writes
benchmarks/results/held_out.json and docs/held_out.md. The second simulates the data (fixed seeds)
and makes the references by long NUTS, in double precision.
"""

import argparse
import time
import warnings

import jax
import numpy as np
import numpyro
from numpyro.diagnostics import summary
from numpyro.infer import MCMC, NUTS, init_to_median

from benchmarks.held_out_models import HELD_OUT, REFERENCE_MODELS, SIMULATORS
from benchmarks.models import DATA, Posterior
from benchmarks.store import DOCS, Results, machines, table_over_seeds
from numpyro_onestep import OneStep

# Beyond this and Monte Carlo noise, in sd or log sd, an error is one a user should be warned of.
TOLERANCE = 0.05
COLUMNS = {
    "seconds": ("seconds", 1),
    "mean (sd)": ("mean_error", 3),
    "log sd": ("log_sd_error", 3),
    "Pareto k": ("pareto_k", 2),
    "ESS": ("ess", 2),
}


def _nuts(posterior: Posterior, data: dict, seed: int, target: float, size: int):
    """Draws (chain, draw, parameter) of four long chains, and how many diverged."""
    model = REFERENCE_MODELS.get(posterior.name, posterior.model)
    mcmc = MCMC(
        # From the prior's medians: from uniform starts an ODE's chains may end in different modes.
        NUTS(model, target_accept_prob=target, init_strategy=init_to_median),
        num_warmup=2000,
        num_samples=size,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    arguments = (data[key] for key in posterior.data)
    mcmc.run(jax.random.key(seed), *arguments, extra_fields=("diverging",))
    draws = np.asarray(posterior.parameters(mcmc.get_samples()), np.float64)
    return draws.reshape(4, size, -1), int(mcmc.get_extra_fields()["diverging"].sum())


def make_reference(name: str) -> None:
    """Simulate the data, run NUTS, and store data, moments and how far to trust them."""
    number = list(HELD_OUT).index(name)
    data = SIMULATORS[name](np.random.default_rng(1000 + number))
    clock = time.perf_counter()
    # Where there is a model made for it, draws are cheap, and the neck's tail needs them.
    first = 20_000 if name in REFERENCE_MODELS else 5000
    for target, size in ((0.95, first), (0.995, 15_000)):
        draws, divergences = _nuts(HELD_OUT[name], data, number, target, size)
        if divergences <= 5:  # more may hide a region that smaller steps reach
            break
    figures = summary({"x": draws})["x"]  # of which the worst parameter's count
    r_hat, size = float(figures["r_hat"].max()), int(figures["n_eff"].min())
    print(
        f"{name:28s}d {draws.shape[-1]:3d}  r-hat {r_hat:.4f}  effective size {size:6d}  "
        f"divergences {divergences} at {target}  {time.perf_counter() - clock:.0f} s",
        flush=True,
    )
    if not r_hat < 1.01:
        raise SystemExit(f"{name}: r-hat {r_hat:.3f}; the chains are too short for a reference.")
    np.savez_compressed(
        DATA / f"{name}.npz",
        mean=draws.mean((0, 1)),
        sd=draws.std((0, 1)),
        effective_size=size,
        r_hat=r_hat,
        divergences=divergences,
        **{f"data_{key}": value for key, value in data.items()},
    )


def measure(name: str, seed: int) -> dict:
    """One run at default settings, compilation included, and its errors."""
    posterior = HELD_OUT[name]
    jax.clear_caches()
    sampler = OneStep(posterior.model, progress_bar=False)
    clock = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are recorded below
        sampler.run(jax.random.key(seed), *posterior.args())
    draws = jax.block_until_ready(sampler.get_samples())
    seconds = time.perf_counter() - clock
    mean, _, size = posterior.reference()
    # Of a mean; also of a log sd, where it leaves room for tails heavier than a Gaussian's.
    noise = np.sqrt(1 / sampler.settings.num_samples + 1 / size)
    errors = posterior.errors(draws)
    wrong = not max(errors.values()) < TOLERANCE + 3 * noise
    return {
        "posterior": name,
        "seed": seed,
        "dimension": len(mean),
        "seconds": seconds,
        **errors,
        "elbo": sampler.elbo,
        "log_evidence": sampler.log_evidence,
        "pareto_k": sampler.pareto_k,
        "ess": sampler.ess / sampler.settings.num_pool,
        "iterations": len(sampler.losses),
        "warnings": sampler.messages,
        "wrong": wrong,
        "wrong_and_silent": wrong and not sampler.messages,
    }


def main() -> None:
    """Make the references, or run OneStep and print one line a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--names", nargs="+", default=list(HELD_OUT), choices=HELD_OUT)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--resume", action="store_true", help="keep what is there")
    parser.add_argument("--references", action="store_true")
    options = parser.parse_args()
    if options.references:
        numpyro.enable_x64()
        for name in options.names:
            make_reference(name)
        return
    results = Results("held_out", options.resume)
    for name in options.names:
        for seed in options.seeds:
            if results.holds(posterior=name, seed=seed):
                continue
            results.add(row := measure(name, seed))
            print(
                f"{name:28s}seed {seed}  d {row['dimension']:3d}  {row['seconds']:6.1f} s  "
                f"mean {row['mean_error']:.3f}  log sd {row['log_sd_error']:.3f}  "
                f"ELBO {row['elbo']:.3f}  log Z {row['log_evidence']:.3f}  "
                f"k {row['pareto_k']:.2f}  ESS {row['ess']:.2f}  {row['iterations']} iterations"
                + ("  WRONG" if row["wrong"] else "")
                + (" AND SILENT" if row["wrong_and_silent"] else ""),
                flush=True,
            )
            for message in row["warnings"]:
                print(f"    {message}", flush=True)
    rows = sorted(results.rows, key=lambda row: list(HELD_OUT).index(row["posterior"]))
    counts = {"wrong": "wrong", "warned": "warnings", "wrong and silent": "wrong_and_silent"}
    lines = table_over_seeds(rows, {"model": "posterior", "d": "dimension"}, COLUMNS, counts)
    (DOCS / "held_out.md").write_text(
        "# Ten models that the defaults were not chosen on\n\nWritten by "
        f"`python -m benchmarks.held_out` on {machines(rows)}. OneStep at default settings, "
        "compilation included; medians, and ranges over seeds. Errors are the largest over "
        f"parameters, against long runs of NUTS; a run is wrong where one is above {TOLERANCE} "
        f"plus three Monte Carlo errors.\n\n{lines}\n"
    )


if __name__ == "__main__":
    main()
