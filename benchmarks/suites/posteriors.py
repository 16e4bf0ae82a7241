"""Accuracy and time on the reference posteriors, beside what else a NumPyro user would pick.

    python -m benchmarks.posteriors [--posteriors seeds ...] [--methods onestep nuts iaf ...]
                                    [--seeds 0 1 2] [--resume]

Each posterior and method runs in a process of its own, seeds one after another with caches
cleared, so that every time but the warm ones includes compilation.  Results are written after
each; --resume keeps those already there.  benchmarks.report then makes tables and pictures.
"""

import argparse
import json
import subprocess
import sys
import tempfile

import jax

from benchmarks.methods import METHODS
from benchmarks.models import POSTERIORS
from benchmarks.store import ROOT, Results

LIMIT = 600  # seconds a run may take: a library that blocks for ever ends no benchmark


def measure(name: str, method: str, seed: int, warm: bool) -> dict:
    """One run, compilation included, and its errors against the reference."""
    posterior = POSTERIORS[name]
    about = {"posterior": name, "method": method, "seed": seed}
    jax.clear_caches()
    warm_key = jax.random.key(seed + 99) if warm else None
    try:
        draws, figures = METHODS[method](posterior, jax.random.key(seed), warm_key)
    except Exception as error:
        return {**about, "error": f"{type(error).__name__}: {error}"[:300]}
    figures |= {
        **about,
        **posterior.errors(draws),
    }
    if posterior.log_evidence is not None:
        for figure in ("elbo", "log_evidence"):
            if figure in figures:
                figures[f"{figure}_gap"] = posterior.log_evidence - figures[figure]
    return figures


def _child(command: list[str], limit: float) -> list[dict]:
    """The rows that a process of its own prints; those it had printed when it failed or hung."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as trouble:
        try:
            subprocess.run(
                command, cwd=ROOT, stdout=output, stderr=trouble, timeout=limit, check=True
            )
        except subprocess.SubprocessError as error:
            trouble.seek(0)
            print(f"{error}\n{trouble.read()[-2000:]}", file=sys.stderr)
        output.seek(0)
        return [json.loads(line) for line in output if line.startswith("{")]


def main() -> None:
    """Run everything asked for, or one posterior and method when called as a child."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--posteriors", nargs="+", default=list(POSTERIORS), choices=POSTERIORS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--resume", action="store_true", help="keep what is there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        for seed in options.seeds:
            warm = seed == options.seeds[0]  # once is enough
            row = measure(options.posteriors[0], options.methods[0], seed, warm)
            print(json.dumps(row), flush=True)
        return

    results = Results("posteriors", options.resume)
    # Methods one after another on each posterior: a shared machine's speed drifts over an hour.
    for name in options.posteriors:
        for method in options.methods:
            seeds = [
                seed
                for seed in options.seeds
                if not results.holds(posterior=name, method=method, seed=seed)
            ]
            if not seeds:
                continue
            command = [sys.executable, "-m", "benchmarks.posteriors", "--child"]
            command += ["--posteriors", name, "--methods", method, "--seeds", *map(str, seeds)]
            for row in _child(command, LIMIT * len(seeds)):
                results.add(row)
                text = row.get("error") or (
                    f"{row['seconds']:6.1f} s  gap {row.get('elbo_gap', float('nan')):7.3f}  "
                    f"mean {row['mean_error']:.3f}  log sd {row['log_sd_error']:.3f}  "
                    f"{'; '.join(w[:30] for w in row.get('warnings', []))}"
                )
                print(f"{name:24s}{method:11s}seed {row['seed']}  {text}", flush=True)
    from benchmarks.report import write  # matplotlib is wanted only here

    write()


if __name__ == "__main__":
    main()
