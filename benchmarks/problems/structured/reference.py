"""Makes references for the posteriors whose answers nobody knows, by long runs.

    python -m benchmarks.problems.structured.reference [areas_36 ...] [--draws 5000]

Moments are those of four long chains of NUTS, of the form that it samples best. Up to 512
dimensions the log evidence is found by importance sampling, which has moments of its own: the
command prints by how many standard errors the two differ. Both are in double precision. Each
posterior has a file ``benchmarks/problems/data/structured_<posterior>.json``.
"""

import argparse
import json
import time
from typing import Any

import jax
import numpy as np
import numpyro
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_median

from benchmarks.problems.pack import LARGEST_R_HAT
from benchmarks.problems.structured import STRUCTURED
from benchmarks.problems.structured.base import Structured, reference_file
from benchmarks.problems.structured.importance import by_importance
from benchmarks.store import machine

# The form of each posterior that NUTS samples best.
FORMS = {
    "rasch_100x30": "centred",
    "rasch_2000x50": "centred",
    "volatility_300": "noncentred",
    "volatility_2427": "noncentred",
    "imputation_68": "centred",
    "areas_36": "centred",
}
MOST_DIMENSIONS = 512  # in which each draw's matrices are still cheap
_CHAINS = 4


def long_nuts(problem: Structured, num: int, warmup: int) -> dict[str, Any]:
    """Moments of long chains, and how far they can be trusted."""
    mcmc = MCMC(
        NUTS(problem.model, target_accept_prob=0.9, init_strategy=init_to_median),
        num_warmup=warmup,
        num_samples=num,
        num_chains=_CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), *problem.args(), extra_fields=("diverging",))
    draws = mcmc.get_samples()
    mean, sd, _ = problem.moments(draws)
    r_hat, size = 1.0, np.inf
    for _, part in problem.blocks(draws):
        chains = part.reshape(_CHAINS, num, -1)
        r_hat = max(r_hat, float(np.max(gelman_rubin(chains))))
        size = min(size, float(np.min(effective_sample_size(chains))))
    return {
        "mean": mean,
        "sd": sd,
        "effective_size": int(size),
        "r_hat": r_hat,
        "divergences": int(mcmc.get_extra_fields()["diverging"].sum()),
    }


def make(posterior: str, num: int, warmup: int, num_importance: int) -> None:
    """Write the reference of one posterior."""
    clock = time.perf_counter()
    problem = STRUCTURED[f"{posterior}_{FORMS[posterior]}"]
    found = long_nuts(problem, num, warmup)
    text = (
        f"{posterior:18s}r-hat {found['r_hat']:.4f}  effective size {found['effective_size']}  "
        f"divergences {found['divergences']}"
    )
    if not found["r_hat"] < LARGEST_R_HAT:
        raise SystemExit(f"{text}\nThe chains are too short for a reference: raise --draws.")
    found |= {"log_evidence": None, "log_evidence_error": None}
    if len(found["mean"]) <= MOST_DIMENSIONS:
        other = by_importance(problem, num_importance)
        found |= {name: other[name] for name in ("log_evidence", "log_evidence_error")}
        # Draws of NUTS whose tails are a little heavier than a normal's have this error of an sd.
        own = np.sqrt(1 / found["effective_size"])
        apart = np.abs(found["mean"] - other["mean"]) / found["sd"]
        apart /= np.hypot(own, other["mean_error"])
        ratio = np.abs(np.log(found["sd"] / other["sd"])) / np.hypot(own, other["log_sd_error"])
        text += (
            f"  log Z {other['log_evidence']:.3f} +- {other['log_evidence_error']:.3f}, ESS "
            f"{other['ess']:.0f}; means {apart.max():.1f}, sds {ratio.max():.1f} standard errors"
        )
    print(f"{text}  {time.perf_counter() - clock:.0f} s", flush=True)
    rounded = {
        name: [float(f"{x:.6g}") for x in value] if isinstance(value, np.ndarray) else value
        for name, value in found.items()
    }
    file = reference_file(posterior)
    file.write_text(json.dumps({**rounded, "machine": machine()}) + "\n")


def main() -> None:
    """Make the references that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FORMS)}")
    parser.add_argument("--draws", type=int, default=5000, help="of each of four chains")
    parser.add_argument("--warmup", type=int, default=2000)
    parser.add_argument("--importance", type=int, default=20_000, help="draws for the evidence")
    options = parser.parse_args()
    for name in options.names:
        if name not in FORMS:
            parser.error(f"unknown name {name}: there are {', '.join(FORMS)}")
    numpyro.enable_x64()
    for name in options.names or FORMS:
        make(name, options.draws, options.warmup, options.importance)
        jax.clear_caches()


if __name__ == "__main__":
    main()
