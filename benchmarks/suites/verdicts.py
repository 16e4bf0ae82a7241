"""How often the package is wrong in silence, and how often it warns of a result that is right.

    python -m benchmarks verdicts [--names gumbel ...] [--half a] [--pools DIR]

OneStep runs at default settings on posteriors whose answers are known by quadrature, conjugacy or
enumeration, on models without data, on the reference and held-out posteriors, and with
multimodal=True on mixtures.

Each kind of posterior is split in two halves: rules for warnings are chosen on half a, and what
they are worth is reported on half b. With --pools, each run also leaves the log weights of its pool
in DIR, so that other rules can be tried without running anything again.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.methods.onestep import fit, weight_figures
from benchmarks.problems.verdicts.cases import Case, cases, halves
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.tables import in_order, table, table_over_seeds
from numpyro_onestep import OneStep

# A result is wrong where an error exceeds its limit and four of its own Monte Carlo errors. A tenth
# of a standard deviation of a mean, and 15% of a standard deviation, are what a reader of a summary
# would act on, and so small an error of the evidence (nats) changes no comparison.
LARGEST_MEAN_ERROR, LARGEST_LOG_SD_ERROR, LARGEST_EVIDENCE_ERROR = 0.1, 0.15, 0.05
NUM_NOISE = 4.0
# Where the kurtosis is larger (that of a probability below 0.005, say), 4000 draws do not determine
# the standard deviation, which is then not judged.
MOST_KURTOSIS = 200.0
# Up to this share of the draws may be infinite, because single precision cannot hold a logarithm.
NEGLIGIBLE_NON_FINITE = 1e-3
COLUMNS = {
    "seconds": ("seconds", 1),
    "mean (sd)": ("mean_error", 3),
    "log sd": ("log_sd_error", 3),
    "log Z error": ("log_evidence_error", 3),
    "Pareto k": ("pareto_k", 2),
    "ESS": ("ess", 2),
}
COUNTS = {"wrong": "wrong", "warned": "warned", "silent": "silent", "false alarm": "false_alarm"}
RATES = {
    "": ("of", None),
    "posteriors": ("posteriors", None),
    "runs": ("runs", None),
    "wrong": ("wrong", None),
    "of these silent": ("silent", None),
    "right": ("right", None),
    "of these warned": ("false_alarm", None),
    "failed": ("failed", None),
}
HALVES = {"a": "chosen on", "b": "reported on"}


def judge(case: Case, sampler: OneStep) -> Row:
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
    judged = ~(kurtosis > MOST_KURTOSIS)
    wrong_in = []
    if np.mean(~finite) > NEGLIGIBLE_NON_FINITE:
        wrong_in.append("draws that are not finite")
    if not np.all(mean_error <= LARGEST_MEAN_ERROR + NUM_NOISE * noise):
        wrong_in.append("mean")
    if not np.all((log_sd_error <= sd_limit)[judged]):
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
        "log_sd_error": float(log_sd_error[judged].max(initial=0.0)),
        "log_evidence_error": evidence_error,
        "wrong_in": wrong_in,
    }


def measure(case: Case, seed: int, pools: Path | None = None) -> Row:
    """One run at default settings, compilation included."""
    row = {"posterior": case.name, "kind": case.kind, "seed": seed}
    clock = time.perf_counter()
    try:
        start = None if case.start is None else jnp.asarray(case.start, jnp.float32)
        key = jax.random.key(seed)
        sampler, _ = fit(key, case.args(), init_params=start, **case.target)
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
        **weight_figures(sampler),
        "elbo_std_error": sampler.elbo_std_error,
        "log_evidence_std_error": sampler.log_evidence_std_error,
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
    """Keep the pool's log weights, and what they are made of."""
    pool = sampler.get_pool()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        log_weight=np.asarray(sampler.get_weighted_samples()[1], np.float64),
        own=np.asarray(pool.own, bool),
        log_density=np.asarray(pool.log_density, np.float64),
        log_q=np.asarray(pool.log_q, np.float64),
    )


class Verdicts(Suite):
    """Right or wrong, warned or silent, on every posterior with a known answer."""

    name = "verdicts"
    page = "verdicts.md"
    summary = "how often warnings are missing or vain, on posteriors with known answers"

    @cached_property
    def _cases(self) -> dict[str, Case]:
        return cases()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which posteriors, and where to keep pools."""
        add_names(parser, "--names", self._cases)
        parser.add_argument("--half", choices=HALVES, help="only this half of every kind")
        parser.add_argument("--pools", type=Path, metavar="DIR", help="where to keep log weights")

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """One run for each posterior and seed."""
        half = halves(self._cases)
        # A new posterior may change the halves of others. Those that have rows keep theirs.
        half |= {row["posterior"]: row["half"] for row in store.rows}
        for name in options.names:
            if options.half not in (None, half[name]):
                continue
            for seed in options.seeds:
                if not store.holds(posterior=name, seed=seed):
                    row = measure(self._cases[name], seed, options.pools)
                    yield {**row, "half": half[name]}
            jax.clear_caches()  # otherwise memory grows with the number of posteriors

    def line(self, row: Row) -> str:
        """The errors and the verdict, and below them the warnings."""
        start = f"{row['posterior']:32s} seed {row['seed']}  {row['seconds']:6.1f} s  "
        if row["failed"]:
            return f"{start}FAILED: {row['failed']}"
        evidence = row["log_evidence_error"]
        verdict = ("WRONG in " + ", ".join(row["wrong_in"])) if row["wrong"] else "right"
        first = (
            f"{start}mean {row['mean_error']:.3f}  log sd {row['log_sd_error']:.3f}  log Z "
            + ("-" if evidence is None else f"{evidence:+.3f}")
            + f"  gap {row['log_evidence'] - row['elbo']:.3f}  k {row['pareto_k']:.2f}  "
            f"ESS {row['ess']:.2f}  {verdict}{', warned' if row['warned'] else ''}"
            + ("  SILENT" if row["silent"] else "")
            + ("  FALSE ALARM" if row["false_alarm"] else "")
        )
        return "\n    ".join([first, *row["messages"]])

    def report(self, rows: list[Row], docs: Path) -> None:
        """Both rates, of all posteriors and of each kind, and a line for each posterior."""
        rows = in_order(rows, posterior=self._cases)
        print(_line_of_rates(rows))
        lines = [_rates("all", rows)]
        for half, name in HALVES.items():
            lines.append(_rates(name, [row for row in rows if row["half"] == half]))
        for kind in dict.fromkeys(row["kind"] for row in rows):
            lines.append(_rates(kind, [row for row in rows if row["kind"] == kind]))
        by = {"posterior": "posterior", "kind": "kind", "half": "half", "q": "dimension"}
        named = [row | {"half": HALVES[row["half"]]} for row in rows]
        ended = [row for row in named if not row["failed"]]
        failed = [row for row in named if row["failed"]]
        text = (
            f"# How far the warnings can be trusted\n\nWritten by `{self.command}` on "
            f"{machines(rows)}. OneStep at default settings (`multimodal=True` on the mixtures), "
            "compilation included. The answers are known by quadrature, conjugacy, enumeration or "
            "because there are no data; those of the reference and held-out posteriors are long "
            "runs of NUTS. A run is wrong where a mean is off by more than "
            f"{LARGEST_MEAN_ERROR} sd, a log sd by more than {LARGEST_LOG_SD_ERROR}, or the log "
            f"evidence by more than {LARGEST_EVIDENCE_ERROR} nats, {NUM_NOISE:.0f} Monte Carlo "
            "errors added to each. It is a silent failure if it is wrong and did not warn, a "
            "false alarm if it is right and did. Half of every kind was there to choose the rules "
            f"for warnings on; what these are worth, the other half says.\n\n{table(lines, RATES)}"
            "\n\n## Each posterior\n\nThe largest errors over the q quantities judged; medians, "
            f"and ranges over seeds.\n\n{table_over_seeds(ended, by, COLUMNS, COUNTS)}\n"
        )
        if failed:
            text += "\n## Runs that raised an error\n\n" + "\n".join(
                f"- {row['posterior']}, seed {row['seed']}: {row['failed'].splitlines()[0]}"
                for row in failed
            )
            text += "\n"
        (docs / self.page).write_text(text)


def _rates(of: str, rows: list[Row]) -> Row:
    """How many runs are wrong, and silent; right, and warned."""
    ended = [row for row in rows if not row["failed"]]
    wrong = sum(row["wrong"] for row in ended)
    return {
        "of": of,
        "posteriors": len({row["posterior"] for row in rows}),
        "runs": len(ended),
        "wrong": wrong,
        "silent": _share(sum(row["silent"] for row in ended), wrong),
        "right": len(ended) - wrong,
        "false_alarm": _share(sum(row["false_alarm"] for row in ended), len(ended) - wrong),
        "failed": len(rows) - len(ended),
    }


def _share(some: int, of: int) -> str:
    return f"{some} ({some / of:.0%})" if of else "0"


def _line_of_rates(rows: list[Row]) -> str:
    """Both rates in a sentence or two."""
    figures = _rates("", rows)
    return (
        f"{figures['runs']} runs on {figures['posteriors']} posteriors. Silent failures: "
        f"{figures['silent']} of {figures['wrong']} that are wrong. False alarms: "
        f"{figures['false_alarm']} of {figures['right']} that are right. "
        f"Failed: {figures['failed']}."
    )
