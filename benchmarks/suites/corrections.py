"""Corrections where one step is not enough, beside plain NUTS: R-hat, divergences, errors.

    python -m benchmarks.corrections [--posteriors funnel ...] [--methods NUTS nuts] [--seeds 0 1 2]
                                     [--resume]

On Neal's funnel, a horseshoe regression and the centred eight schools, where plain NUTS (4 chains
of 1000 + 1000 at its default target acceptance) meets divergences.  Writes docs/corrections.md.
"""

import argparse
import itertools
import time
import warnings

import jax
import jax.random as jr
import numpy as np

from benchmarks.methods import plain_nuts
from benchmarks.models import POSTERIORS, Posterior
from benchmarks.store import DOCS, Results, machines, table
from numpyro_onestep import OneStep
from numpyro_onestep.corrections.base import mixing

NAMES = ("funnel", "horseshoe", "eight_schools_centered")
COLUMNS = {
    "posterior": ("posterior", None),
    "method": ("method", None),
    "seed": ("seed", None),
    "R-hat": ("r_hat", 4),
    "smallest ESS": ("min_ess", 0),
    "divergences": ("divergences", 0),
    "mean error (sd)": ("mean_error", 3),
    "log sd error": ("log_sd_error", 3),
    "warned": ("warned", None),
    "seconds": ("seconds", 1),
}


def run_nuts(posterior: Posterior, key) -> dict:
    """NumPyro's NUTS on the model itself."""
    mcmc = plain_nuts(posterior.model)
    mcmc.run(key, *posterior.args(), extra_fields=("diverging",))
    latent = mcmc.get_samples(group_by_chain=True)
    flat = [np.asarray(values).reshape(4, 1000, -1) for values in latent.values()]
    r_hat, min_ess = mixing(np.concatenate(flat, axis=-1))
    divergences = int(mcmc.get_extra_fields()["diverging"].sum())
    return {
        "draws": mcmc.get_samples(),
        "r_hat": r_hat,
        "min_ess": min_ess,
        "divergences": divergences,
    }


def corrected(posterior: Posterior, key, correction: str | None) -> dict:
    """OneStep with a correction."""
    sampler = OneStep(posterior.model, correction=correction, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether there were any is in the table
        sampler.run(key, *posterior.args())
    run = sampler._last
    assert run is not None
    assert run.corrected is not None
    return {
        "draws": sampler.get_samples(),
        "r_hat": run.corrected.r_hat,
        "min_ess": run.corrected.min_ess,
        "divergences": run.corrected.divergences,
        "warned": "yes" if sampler.messages else "no",
    }


METHODS = {
    "NUTS": run_nuts,
    "nuts": lambda *args: corrected(*args, "nuts"),
    "imh": lambda *args: corrected(*args, "imh"),
    "psis": lambda *args: corrected(*args, "psis"),
    "None": lambda *args: corrected(*args, None),
}


def main() -> None:
    """Run and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--posteriors", nargs="+", default=list(NAMES), choices=POSTERIORS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--resume", action="store_true", help="keep what is there")
    options = parser.parse_args()
    results = Results("corrections", options.resume)
    for name in options.posteriors:
        posterior = POSTERIORS[name]
        for method, seed in itertools.product(options.methods, options.seeds):
            label = method if method == "NUTS" else f"OneStep, correction={method}"
            if results.holds(posterior=name, method=label, seed=seed):
                continue
            jax.clear_caches()
            clock = time.perf_counter()
            figures = METHODS[method](posterior, jr.key(seed))
            errors = posterior.errors(figures.pop("draws"))
            seconds = time.perf_counter() - clock
            row = {
                "posterior": name,
                "method": label,
                "seed": seed,
                **figures,
                **errors,
                "seconds": seconds,
            }
            results.add(row)
            print(row, flush=True)
    rows = sorted(results.rows, key=lambda row: list(POSTERIORS).index(row["posterior"]))
    (DOCS / "corrections.md").write_text(
        "# Corrections\n\nWritten by `python -m benchmarks.corrections` on "
        f"{machines(rows)}. NUTS: 4 chains of 1000 + 1000 on the model, target acceptance "
        "0.8. Errors are the largest over parameters, against the stored reference. Seconds "
        f"include compilation and training.\n\n{table(rows, COLUMNS)}\n"
    )


if __name__ == "__main__":
    main()
