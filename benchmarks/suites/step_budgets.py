"""The exact-volume ELBO at every step budget, after the distillation stage alone.

    python -m benchmarks.step_budgets [--posteriors seeds ...] [--seeds 0 1 2] [--iterations 2000]
                                      [--resume]

Path loss, state and volume consistency, no ELBO stage: one network, evaluated at k = 1, 2, 4, 8
and 16 steps by the exact volume of each k-step map.  Writes benchmarks/results/step_budgets.json
and docs/step_budgets.md.
"""

import argparse
import warnings

import jax

from benchmarks.models import POSTERIORS
from benchmarks.store import DOCS, Results, machines, table
from numpyro_onestep import OneStep, OneStepWarning

BUDGETS = (1, 2, 4, 8, 16)
COLUMNS = {
    "posterior": ("posterior", None),
    "seed": ("seed", None),
    **{f"k = {k}": (f"gap_{k}", 3) for k in BUDGETS},
    "spread": ("spread", 3),
    "seconds": ("seconds", 1),
}


def main() -> None:
    """Run, print, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--posteriors", nargs="+", default=["seeds"], choices=POSTERIORS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--resume", action="store_true", help="keep what is there")
    options = parser.parse_args()
    results = Results("step_budgets", options.resume)
    for name in options.posteriors:
        posterior = POSTERIORS[name]
        for seed in options.seeds:
            if results.holds(posterior=name, seed=seed, iterations=options.iterations):
                continue
            sampler = OneStep(
                posterior.model,
                num_distillation_steps=options.iterations,
                elbo_weight=0,
                num_samples=1000,
                progress_bar=False,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OneStepWarning)
                sampler.run(jax.random.key(seed), *posterior.args())
            gaps = {}
            for k in BUDGETS:
                evidence = sampler.evaluate(jax.random.key(100 + seed), k)
                log_z = posterior.log_evidence
                log_z = evidence.log_evidence if log_z is None else log_z
                gaps[f"gap_{k}"] = log_z - evidence.elbo
            row = {
                "posterior": name,
                "seed": seed,
                "iterations": options.iterations,
                **gaps,
                "spread": max(gaps.values()) - min(gaps.values()),
                "seconds": sum(sampler.seconds.values()),
            }
            results.add(row)
            print(row, flush=True)
    rows = sorted(results.rows, key=lambda row: (row["posterior"], row["seed"]))
    (DOCS / "step_budgets.md").write_text(
        "# The same evidence at any step budget\n\nWritten by `python -m benchmarks.step_budgets` "
        f"on {machines(rows)}. Path loss and both consistencies alone, {rows[0]['iterations']} "
        "iterations, no evidence stage: log Z - ELBO in nats by the exact volume of the k-step "
        f"map of one network.\n\n{table(rows, COLUMNS)}\n"
    )


if __name__ == "__main__":
    main()
