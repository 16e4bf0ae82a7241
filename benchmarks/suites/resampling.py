"""What balancing makes of the resampled draws' errors, beside systematic sampling alone.

    python -m benchmarks.resampling [--dimensions 3 30 60] [--seeds 20]

Pools of 40,000 normal draws with weights of a known form, 4000 chosen.  Errors are of means over
the chosen against the pool's weighted ones, in standard deviations: root mean squares over
coordinates and seeds, and, for the bias, the mean with its standard error.
"""

import argparse
import time

import jax.random as jr
import numpy as np

from numpyro_onestep.importance.resampling import resample

POOL, NUM = 40_000, 4000
STATISTICS = {
    "x": lambda x: x,
    "x^2": np.square,
    "exp x": np.exp,
    "x > 0": lambda x: x > 0.0,
    "x > 1": lambda x: x > 1.0,
    "abs x > 3": lambda x: np.abs(x) > 3.0,
}


def errors(d: int, seed: int) -> tuple[np.ndarray, float]:
    """Of each statistic and coordinate, systematic and balanced; and the seconds of the latter."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((POOL, d))
    log_w = 0.3 * x[:, 0] - 0.05 * x[:, 0] ** 2 + 0.2 * np.sin(3 * x[:, -1])
    log_w += 0.2 * rng.standard_normal(POOL)
    log_w -= np.logaddexp.reduce(log_w)
    plain, _ = resample(jr.key(seed), log_w, NUM)
    clock = time.perf_counter()
    balanced, _ = resample(jr.key(seed), log_w, NUM, [x, x**2, np.sin(x)])
    seconds = time.perf_counter() - clock
    found = []
    for statistic in STATISTICS.values():
        values = statistic(x).astype(float)
        mean = np.exp(log_w) @ values
        sd = np.sqrt(np.exp(log_w) @ (values - mean) ** 2)
        found.append([(values[at].mean(0) - mean) / sd for at in (plain, balanced)])
    return np.array(found), seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dimensions", nargs="+", type=int, default=[3, 30, 60])
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    print("| d | mean of | systematic | balanced | bias of the latter | seconds |")
    print("|---" * 6 + "|")
    for d in options.dimensions:
        some, seconds = zip(*(errors(d, seed) for seed in range(options.seeds)), strict=True)
        of_seeds = np.array(some)
        root = np.sqrt(np.mean(of_seeds**2, axis=(0, 3)))
        means = of_seeds[:, :, 1].mean(2)
        bias, bias_error = means.mean(0), means.std(0) / options.seeds**0.5
        for i, name in enumerate(STATISTICS):
            print(
                f"| {d} | {name} | {root[i, 0]:.4f} | {root[i, 1]:.4f} | "
                f"{bias[i]:.4f} +- {bias_error[i]:.4f} | {np.mean(seconds):.2f} |"
            )


if __name__ == "__main__":
    main()
