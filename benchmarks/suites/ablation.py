"""What the stages and losses contribute: the gap with and without each of them.

    python -m benchmarks.ablation [--posteriors eight_schools_centered seeds] [--seeds 0 1 2]
                                  [--resume]

For each variant log Z - ELBO in nats, Pareto k, and the wall time of a whole run, compilation
included.  Writes benchmarks/results/ablation.json and docs/ablation.md.
"""

import argparse
import warnings

import jax

from benchmarks.models import POSTERIORS
from benchmarks.store import DOCS, Results, machines, table_over_seeds
from numpyro_onestep import OneStep, OneStepWarning

DISTILLATION = {"num_distillation_steps": 1000}
VARIANTS = {
    "evidence stage (default)": {},
    "  without Langevin chains": {"tail_fraction": 0.0},
    "  width 64": {"width": 64},
    "  two flow steps": {"num_flow_steps": 2},
    "distillation, then evidence": DISTILLATION,
    "distillation alone": {**DISTILLATION, "elbo_weight": 0},
    "  without volume consistency": {**DISTILLATION, "elbo_weight": 0, "volume_weight": 0},
    "  without state consistency": {**DISTILLATION, "elbo_weight": 0, "state_weight": 0},
    "  without both": {
        **DISTILLATION,
        "elbo_weight": 0,
        "state_weight": 0,
        "volume_weight": 0,
    },
    "base alone": {"elbo_weight": 0},
}
COLUMNS = {"gap (nats)": ("gap", 3), "Pareto k": ("pareto_k", 2), "seconds": ("seconds", 1)}


def main() -> None:
    """Run, print, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = [name for name, posterior in POSTERIORS.items() if posterior.log_evidence is not None]
    parser.add_argument(
        "--posteriors", nargs="+", default=["eight_schools_centered", "seeds"], choices=known
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--resume", action="store_true", help="keep what is there")
    options = parser.parse_args()
    results = Results("ablation", options.resume)
    for name in options.posteriors:
        posterior = POSTERIORS[name]
        assert posterior.log_evidence is not None
        for variant, settings in VARIANTS.items():
            for seed in options.seeds:
                if results.holds(posterior=name, variant=variant, seed=seed):
                    continue
                jax.clear_caches()
                settings = {"num_flow_steps": 1, "num_samples": 1000, **settings}
                sampler = OneStep(posterior.model, progress_bar=False, **settings)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", OneStepWarning)
                    sampler.run(jax.random.key(seed), *posterior.args())
                row = {
                    "posterior": name,
                    "variant": variant,
                    "seed": seed,
                    "gap": posterior.log_evidence - sampler.elbo,
                    "pareto_k": sampler.pareto_k,
                    "seconds": sum(sampler.seconds.values()),
                }
                results.add(row)
                print(row, flush=True)
    rows = sorted(
        results.rows,
        key=lambda row: (row["posterior"], list(VARIANTS).index(row["variant"]), row["seed"]),
    )
    lines = table_over_seeds(rows, {"posterior": "posterior", "variant": "variant"}, COLUMNS, {})
    (DOCS / "ablation.md").write_text(
        "# Ablation\n\nWritten by `python -m benchmarks.ablation` on "
        f"{machines(rows)}. Gap of the one-step map (where not said otherwise) and wall time of a "
        "whole run, compilation included; 1000 iterations of distillation where there are any; "
        f"medians, and ranges over seeds.\n\n{lines}\n"
    )


if __name__ == "__main__":
    main()
