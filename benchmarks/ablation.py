"""What the stages and losses contribute: the gap with and without each of them.

    python -m benchmarks.ablation [--posteriors eight_schools_centered seeds] [--seeds 0 1 2]

Prints a Markdown table: median (range) over seeds of log Z - ELBO in nats, of Pareto k, and of the
wall time of a whole run, compilation included.
"""

import argparse
import warnings

import jax
import numpy as np

from benchmarks.models import POSTERIORS
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [name for name, posterior in POSTERIORS.items() if posterior.log_evidence is not None]
    parser.add_argument(
        "--posteriors", nargs="+", default=["eight_schools_centered", "seeds"], choices=known
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    print("| posterior | variant | gap (nats) | Pareto k | seconds |\n|---|---|---|---|---|")
    for name in options.posteriors:
        posterior = POSTERIORS[name]
        assert posterior.log_evidence is not None
        for variant, settings in VARIANTS.items():
            gaps, tails, seconds = [], [], []
            for seed in options.seeds:
                jax.clear_caches()
                settings = {"num_flow_steps": 1, "num_samples": 1000, **settings}
                sampler = OneStep(posterior.model, progress_bar=False, **settings)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", OneStepWarning)
                    sampler.run(jax.random.key(seed), *posterior.args())
                gaps.append(posterior.log_evidence - sampler.elbo)
                tails.append(sampler.pareto_k)
                seconds.append(sum(sampler.seconds.values()))
            cells = _shown(gaps, 3), _shown(tails, 2), _shown(seconds, 1)
            print(f"| {name} | {variant} | {' | '.join(cells)} |", flush=True)


def _shown(values: list[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{np.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
