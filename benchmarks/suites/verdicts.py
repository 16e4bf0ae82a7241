"""How often the package is wrong in silence, and how often it warns of a result that is right.

    python -m benchmarks.verdicts [--names gumbel ...] [--half a] [--seeds 0 1 2] [--resume]
                                  [--pools DIR]

Runs OneStep at default settings on posteriors whose answers are known by quadrature, conjugacy or
enumeration, on models without data, on the reference and held-out posteriors, and with
many_modes=True on mixtures. Writes benchmarks/results/verdicts.json and docs/verdicts.md.

Each kind of posterior is split in two halves: rules for warnings are chosen on a, and what they
are worth is reported on b. With --pools, each run also leaves its pool's log weights in DIR, for
trying other rules without running anything again.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.held_out_models import HELD_OUT
from benchmarks.mixtures import targets
from benchmarks.models import POSTERIORS, Posterior
from benchmarks.paper_targets import Target
from benchmarks.store import Results
from benchmarks.verdict_answers import Answer, stacked
from benchmarks.verdict_models import KNOWN
from benchmarks.verdict_report import line_of_rates, write
from numpyro_onestep import OneStep

# A result is wrong where an error exceeds its limit and four of its own Monte Carlo errors: a
# tenth of a standard deviation of a mean and 15% of a standard deviation are what a reader of a
# summary would act on, and so small an error of the evidence (nats) changes no comparison.
LARGEST_MEAN_ERROR, LARGEST_LOG_SD_ERROR, LARGEST_EVIDENCE_ERROR = 0.1, 0.15, 0.05
NUM_NOISE = 4.0
# Of draws with heavier tails than that (a share below 0.005, say), 4000 tell no spread.
_MOST_KURTOSIS = 200.0
# Draws whose logarithm single precision cannot hold, a share of all, are left out.
_NEGLIGIBLE_NON_FINITE = 1e-3
# How far the published log evidences of the reference posteriors are known (nats).
_PUBLISHED_ERROR = 0.03
_EXACT_DRAWS = 100_000


@dataclass(frozen=True)
class Case:
    """One posterior: how to run it, what is judged, and the truth of that."""

    name: str
    kind: str
    sampler: Callable[[], OneStep]
    args: Callable[[], tuple]
    quantities: Callable
    answer: Callable[[], Answer]
    start: np.ndarray | None = None


def _of_reference(kind: str, posterior: Posterior) -> Case:
    def answer() -> Answer:
        mean, sd, size = posterior.reference()
        exact = posterior.log_evidence in (None, 0.0)
        error = 0.0 if exact else _PUBLISHED_ERROR
        unknown = np.full(len(mean), np.nan)
        return Answer(mean, sd, unknown, posterior.log_evidence, size, error)

    def quantities(draws):
        return np.asarray(posterior.parameters(draws), np.float64)

    sampler = partial(OneStep, posterior.model, progress_bar=False)
    return Case(posterior.name, kind, sampler, posterior.args, quantities, answer)


def _of_mixture(target: Target) -> Case:
    """Coordinates, and the share of each mode: of exact draws, since modes overlap."""

    def quantities(draws) -> np.ndarray:
        x = np.asarray(draws, np.float64)
        if target.means is None:
            return stacked(x, x[:, : target.wells] > 0)
        nearest = np.full(len(x), 0)
        least = np.full(len(x), np.inf)
        widths = np.broadcast_to(target.widths, len(target.means))
        for index, (mean, width) in enumerate(zip(target.means, widths, strict=True)):
            apart = ((x - mean) ** 2).sum(-1) / width**2 + 2 * target.dim * np.log(width)
            nearest = np.where(apart < least, index, nearest)
            least = np.minimum(apart, least)
        return stacked(x, nearest[:, None] == np.arange(len(target.means)))

    def answer() -> Answer:
        assert target.sample is not None
        exact = quantities(target.sample(np.random.default_rng(123), _EXACT_DRAWS))
        mean, sd = exact.mean(0), exact.std(0)
        kurtosis = (((exact - mean) / sd) ** 4).mean(0)
        return Answer(mean, sd, kurtosis, target.log_z, _EXACT_DRAWS)

    sampler = partial(OneStep, potential_fn=target.potential, many_modes=True, progress_bar=False)
    start = np.full(target.dim, 0.1)
    return Case(target.name, "mixtures", sampler, tuple, quantities, answer, start)


def cases() -> dict[str, Case]:
    """All of them, by name."""
    found = [
        Case(
            one.name,
            one.kind,
            partial(OneStep, one.model, progress_bar=False),
            lambda one=one: one.args,
            one.quantities,
            one.answer,
        )
        for one in KNOWN.values()
    ]
    found += [_of_reference("reference posteriors", p) for p in POSTERIORS.values()]
    found += [_of_reference("held out", p) for p in HELD_OUT.values()]
    found += [_of_mixture(target) for target in targets().values()]
    by_name = {case.name: case for case in found}
    assert len(by_name) == len(found)
    return by_name


def halves(known: dict[str, Case]) -> dict[str, str]:
    """Half a or b of each posterior: by its name's hash, and every kind is split evenly."""

    def digest(text: str) -> str:
        return sha256(text.encode()).hexdigest()

    found = {}
    for kind in sorted({case.kind for case in known.values()}):
        names = sorted((name for name in known if known[name].kind == kind), key=digest)
        first = int(digest(kind), 16) % 2
        found |= {name: "ab"[(index + first) % 2] for index, name in enumerate(names)}
    return found


def judge(case: Case, sampler: OneStep) -> dict:
    """Errors of a run, and in which of them it is wrong."""
    answer = case.answer()
    values = np.asarray(case.quantities(sampler.get_samples()), np.float64)
    finite = np.isfinite(values).all(-1)
    values = values[finite]
    noise = np.sqrt(1 / max(len(values), 1) + 1 / answer.size)
    mean, sd = values.mean(0), values.std(0)
    with np.errstate(all="ignore"):
        own = (((values - mean) / sd) ** 4).mean(0)
        kurtosis = np.where(np.isnan(answer.kurtosis), own, answer.kurtosis)
        mean_error = np.abs(mean - answer.mean) / answer.sd
        log_sd_error = np.abs(np.log(sd / answer.sd))
    sd_limit = LARGEST_LOG_SD_ERROR + NUM_NOISE * noise * np.sqrt((kurtosis - 1) / 4)
    told = ~(kurtosis > _MOST_KURTOSIS)
    wrong_in = []
    if np.mean(~finite) > _NEGLIGIBLE_NON_FINITE:
        wrong_in.append("draws that are not finite")
    if not np.all(mean_error <= LARGEST_MEAN_ERROR + NUM_NOISE * noise):
        wrong_in.append("mean")
    if not np.all((log_sd_error <= sd_limit)[told]):
        wrong_in.append("sd")
    if not answer.is_proper:
        wrong_in.append("draws of no posterior")
    evidence_error = None
    if answer.log_evidence is not None:
        evidence_error = sampler.log_evidence - answer.log_evidence
        noise = sampler.log_evidence_std_error + answer.log_evidence_error
        if not abs(evidence_error) <= LARGEST_EVIDENCE_ERROR + NUM_NOISE * noise:
            wrong_in.append("log evidence")
    return {
        "dimension": len(answer.mean),
        "mean_error": float(mean_error.max()),
        "log_sd_error": float(log_sd_error[told].max(initial=0.0)),
        "log_evidence_error": evidence_error,
        "wrong_in": wrong_in,
    }


def measure(case: Case, seed: int, pools: Path | None = None) -> dict:
    """One run at default settings, compilation included."""
    row = {"posterior": case.name, "kind": case.kind, "seed": seed}
    clock = time.perf_counter()
    try:
        sampler = case.sampler()
        start = None if case.start is None else jnp.asarray(case.start, jnp.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are recorded below
            sampler.run(jax.random.key(seed), *case.args(), init_params=start)
        seconds = time.perf_counter() - clock
        row |= judge(case, sampler)
    except Exception as error:  # whatever a run ends with is a result of its own
        nothing = {"wrong": False, "warned": False, "silent": False, "false_alarm": False}
        seconds = time.perf_counter() - clock
        return {**row, "failed": f"{type(error).__name__}: {error}", "seconds": seconds, **nothing}
    if pools is not None:
        save_pool(sampler, pools / f"{case.name}-{seed}.npz")
    wrong, warned = bool(row["wrong_in"]), bool(sampler.messages)
    return {
        **row,
        "elbo": sampler.elbo,
        "elbo_std_error": sampler.elbo_std_error,
        "log_evidence": sampler.log_evidence,
        "log_evidence_std_error": sampler.log_evidence_std_error,
        "pareto_k": sampler.pareto_k,
        "ess": sampler.ess / sampler.settings.num_pool,
        "num_flow_steps": sampler.num_flow_steps,
        "messages": sampler.messages,
        "seconds": seconds,
        "failed": "",
        "wrong": wrong,
        "warned": warned,
        "silent": wrong and not warned,
        "false_alarm": warned and not wrong,
    }


def save_pool(sampler: OneStep, path: Path) -> None:
    """The pool's log weights, and what they are made of where the package still keeps that."""
    figures = {"log_weight": sampler.get_weighted_samples()[1]}
    pool = getattr(getattr(sampler, "_last", None), "pool", None)
    for name in ("own", "log_density", "log_q"):
        if hasattr(pool, name):
            figures[name] = getattr(pool, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        **{
            name: np.asarray(value, bool if name == "own" else np.float64)
            for name, value in figures.items()
        },
    )


def shown(row: dict) -> str:
    """A line about one run."""
    start = f"{row['posterior']:32s} seed {row['seed']}  {row['seconds']:6.1f} s  "
    if row["failed"]:
        return f"{start}FAILED: {row['failed']}"
    evidence = row["log_evidence_error"]
    verdict = ("WRONG in " + ", ".join(row["wrong_in"])) if row["wrong"] else "right"
    return (
        f"{start}mean {row['mean_error']:.3f}  log sd {row['log_sd_error']:.3f}  log Z "
        + ("-" if evidence is None else f"{evidence:+.3f}")
        + f"  gap {row['log_evidence'] - row['elbo']:.3f}  k {row['pareto_k']:.2f}  "
        f"ESS {row['ess']:.2f}  {verdict}{', warned' if row['warned'] else ''}"
        + ("  SILENT" if row["silent"] else "")
        + ("  FALSE ALARM" if row["false_alarm"] else "")
    )


def main() -> None:
    """Run, print one line a run and both rates, and write the page."""
    known = cases()
    half = halves(known)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--names", nargs="+", default=list(known), choices=known, metavar="NAME")
    parser.add_argument("--half", choices=("a", "b"), help="only this half of every kind")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--resume", action="store_true", help="keep what is there")
    parser.add_argument("--pools", type=Path, metavar="DIR", help="where to keep log weights")
    options = parser.parse_args()
    results = Results("verdicts", options.resume)
    for name in options.names:
        if options.half not in (None, half[name]):
            continue
        for seed in options.seeds:
            if results.holds(posterior=name, seed=seed):
                continue
            row = {**measure(known[name], seed, options.pools), "half": half[name]}
            results.add(row)
            print(shown(row), flush=True)
            for message in row.get("messages", ()):
                print(f"    {message}", flush=True)
        jax.clear_caches()  # so that memory does not grow with the number of posteriors
    rows = sorted(results.rows, key=lambda row: list(known).index(row["posterior"]))
    print(line_of_rates(rows))
    limits = LARGEST_MEAN_ERROR, LARGEST_LOG_SD_ERROR, LARGEST_EVIDENCE_ERROR, NUM_NOISE
    write(rows, limits)


if __name__ == "__main__":
    main()
