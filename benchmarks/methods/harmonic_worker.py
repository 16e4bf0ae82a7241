"""The learned harmonic mean, by the package `harmonic`, in an interpreter that has it installed.

    python benchmarks/methods/harmonic_worker.py DRAWS.npz SEED

`harmonic` is no dependency of this project, so the suite `distil` runs this file with another
Python, and nothing here imports from the project. DRAWS.npz holds `x` (chain, draw, coordinate) and
`log_density` (chain, draw). The settings are those of the package's own examples: real NVP on
standardised draws, half of the chains for training, temperature 0.8.
"""

import contextlib
import json
import sys
import time

import harmonic
import jax
import numpy as np

EPOCHS = 30


def main() -> None:
    """Print the log evidence, its error bars and the seconds, as JSON."""
    path, seed = sys.argv[1], int(sys.argv[2])
    stored = np.load(path)
    x, log_density = stored["x"].astype(np.float64), stored["log_density"].astype(np.float64)
    clock = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        chains = harmonic.Chains(x.shape[2])
        chains.add_chains_3d(x, log_density)
        fitted, judged = harmonic.utils.split_data(chains, training_proportion=0.5)
        model = harmonic.model.RealNVPModel(x.shape[2], standardize=True, temperature=0.8)
        model.fit(fitted.samples, epochs=EPOCHS, key=jax.random.PRNGKey(seed))
        evidence = harmonic.Evidence(judged.nchains, model)
        evidence.add_chains(judged)
        lower, upper = evidence.compute_ln_inv_evidence_errors()
    row = {
        "log_evidence": float(-evidence.ln_evidence_inv),
        "std_error": float(0.5 * (abs(lower) + abs(upper))),
        "seconds": time.perf_counter() - clock,
        "version": getattr(harmonic, "__version__", ""),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
