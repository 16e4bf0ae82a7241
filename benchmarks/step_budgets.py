"""The exact-volume ELBO at every step budget, after the distillation stage alone.

    python -m benchmarks.step_budgets [--posterior seeds] [--seeds 0 1 2] [--iterations 2000]

Path loss, state and volume consistency, no ELBO stage: one network, evaluated at k = 1, 2, 4, 8
and 16 steps by the exact volume of each k-step map.
"""

import argparse
import warnings

import jax

from benchmarks.models import POSTERIORS
from numpyro_onestep import OneStep, OneStepWarning

BUDGETS = (1, 2, 4, 8, 16)


def main() -> None:
    """Print one row a seed: the gap log Z - ELBO at each k, in nats."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--posterior", default="seeds", choices=POSTERIORS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=2000)
    options = parser.parse_args()
    posterior = POSTERIORS[options.posterior]
    print("| seed | " + " | ".join(f"k = {k}" for k in BUDGETS) + " | spread | seconds |")
    print("|---" * (len(BUDGETS) + 3) + "|")
    for seed in options.seeds:
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
        gaps = []
        for k in BUDGETS:
            evidence = sampler.evaluate(jax.random.key(100 + seed), k)
            log_z = posterior.log_evidence
            log_z = evidence.log_evidence if log_z is None else log_z
            gaps.append(log_z - evidence.elbo)
        row = " | ".join(f"{gap:.3f}" for gap in gaps)
        seconds = sum(sampler.seconds.values())
        print(f"| {seed} | {row} | {max(gaps) - min(gaps):.3f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
