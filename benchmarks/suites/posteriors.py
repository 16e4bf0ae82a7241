"""Accuracy and time on the reference posteriors, beside what else a NumPyro user would pick.

    python -m benchmarks posteriors [--posteriors seeds ...] [--methods onestep nuts iaf ...]

Each posterior and method runs in a process of its own, seeds one after another with all caches
cleared, so that every time includes compilation but those that are called warm. A second run in
the same process, which gives the warm times, is made at the first seed only.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from benchmarks.isolated import rows_of
from benchmarks.methods import METHODS
from benchmarks.methods.base import NUM_DRAWS
from benchmarks.problems.reference_posteriors import POSTERIORS
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.tables import spread, table

LIMIT = 600  # seconds that a run may take, so that a library that blocks for ever is ended
COLUMNS = {
    "seconds": ("seconds", 1),
    "warm": ("seconds_warm", 1),
    "gap (nats)": ("elbo_gap", 3),
    "log Z error": ("log_evidence_gap", 3),
    "mean (sd)": ("mean_error", 3),
    "log sd": ("log_sd_error", 3),
    "Pareto k": ("pareto_k", 2),
    "ESS": ("ess", 2),
    "draws/s": ("draws_per_second", 0),
}


def measure(posterior: str, method: str, seed: int, warm: bool) -> Row:
    """One run, compilation included, and its errors against the reference."""
    known = POSTERIORS[posterior]
    identity = {"posterior": posterior, "method": method, "seed": seed}
    jax.clear_caches()
    warm_key = jax.random.key(seed + 99) if warm else None
    try:
        draws, figures = METHODS[method](known, jax.random.key(seed), warm_key)
    except Exception as error:
        return {**identity, "error": f"{type(error).__name__}: {error}"[:300]}
    figures |= {**identity, **known.errors(draws)}
    if known.log_evidence is not None:
        for figure in ("elbo", "log_evidence"):
            if figure in figures:
                figures[f"{figure}_gap"] = known.log_evidence - figures[figure]
    return figures


class Posteriors(Suite):
    """All methods on all reference posteriors."""

    name = "posteriors"
    page = "posteriors.md"
    summary = "accuracy and time on the reference posteriors, beside NUTS, autoguides, Pathfinder"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which posteriors and which methods."""
        add_names(parser, "--posteriors", POSTERIORS)
        add_names(parser, "--methods", METHODS)

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """All methods on one posterior, then on the next: a machine's speed drifts over an hour."""
        for name in options.posteriors:
            for method in options.methods:
                jobs = [
                    {
                        "posterior": name,
                        "method": method,
                        "seed": seed,
                        "warm": seed == options.seeds[0],
                    }
                    for seed in options.seeds
                    if not store.holds(posterior=name, method=method, seed=seed)
                ]
                if jobs:
                    yield from rows_of(measure, jobs, LIMIT * len(jobs))

    def line(self, row: Row) -> str:
        """Time and errors."""
        text = row.get("error") or (
            f"{row['seconds']:6.1f} s  gap {row.get('elbo_gap', float('nan')):7.3f}  "
            f"mean {row['mean_error']:.3f}  log sd {row['log_sd_error']:.3f}  "
            f"{'; '.join(message[:30] for message in row.get('warnings', []))}"
        )
        return f"{row['posterior']:24s}{row['method']:14s}seed {row['seed']}  {text}"

    def report(self, rows: list[Row], docs: Path) -> None:
        """A table beside NUTS and AutoIAFNormal, a table of everything, and a picture."""
        seeds = {m: sorted({r["seed"] for r in rows if r["method"] == m}) for m in METHODS}
        text = f"""# Reference posteriors

Made by `{self.command}` at default settings on
{machines(rows)}.
Seeds: {"; ".join(f"{m} {s}" for m, s in seeds.items() if s)}. Medians, and ranges over seeds.

![Error against time](posteriors.png)

## Beside NUTS and AutoIAFNormal

NUTS: 4 chains of 1000 + 1000, vectorised. Guides: 5000 steps of 32 particles, Adam at 5e-3, and
4000 draws. OneStep: training, a weighed pool of 40000 and 4000 corrected draws. All with
compilation.

{_goals(rows)}

## Accuracy

seconds: with compilation; warm: a second run in the process; gap = log Z - ELBO, log Z error = log
Z - estimate, where log Z is known; mean and log sd: largest error of any parameter against the
reference (4000 exact draws would show about 0.04); ESS: share of the pool; draws/s: once trained.
The funnel's parameters are v and arcsinh(x): the plain sd of x, whose fourth moment is
astronomical, cannot be compared by 4000 draws.

{_accuracy(rows)}
"""
        (docs / self.page).write_text(text)
        _picture(rows, docs / "posteriors.png")


def _good_rows(rows: list[Row], posterior: str, method: str) -> list[Row]:
    """The runs of one method on one posterior that ended well."""
    wanted = posterior, method
    return [r for r in rows if (r["posterior"], r["method"]) == wanted and "error" not in r]


def _accuracy(rows: list[Row]) -> str:
    """A table with one line for each posterior and method."""
    lines = []
    for name in POSTERIORS:
        for method in METHODS:
            good = _good_rows(rows, name, method)
            num = sum((r["posterior"], r["method"]) == (name, method) for r in rows)
            if not num:
                continue
            line = {heading: spread(good, *what) for heading, what in COLUMNS.items()}
            line |= {"posterior": name, "method": method, "warned": _warned(good, num)}
            lines.append(line)
    headings = ("posterior", "method", *COLUMNS, "warned")
    return table(lines, {heading: (heading, None) for heading in headings})


def _warned(good: list[Row], num: int) -> str:
    """What the runs said of themselves, and how many of them raised an error."""
    text = ""
    if any("warnings" in row for row in good):
        text = f"{sum(bool(row['warnings']) for row in good)} of {len(good)}"
    elif any("divergences" in row for row in good):
        text = f"{spread(good, 'divergences', 0)} divergences"
    if len(good) < num:
        text += f" failed {num - len(good)} of {num}"
    return text.strip()


def _seconds_to_reach(row: Row, elbo: float) -> float:
    """Time until a run of OneStep had an ELBO, compilation included.

    That of the Gaussian base where it is enough; else until the first hundred iterations whose mean
    reaches it, before the learning rate is lowered.
    """
    parts = row["seconds_by_part"]
    spent = parts["initialisation"] + parts.get("preconditioner", parts.get("base"))
    if row["base_elbo"] >= elbo:
        return spent
    if row["num_flow_steps"] > 1:  # an attempt with one step came before, and took time too
        spent += parts["training"] - sum(row["chunk_seconds"]) + parts["draws"]
    for reached, seconds in zip(row["chunk_elbos"], row["chunk_seconds"], strict=True):
        spent += seconds
        if reached >= elbo:
            return spent
    return np.inf


def _goals(rows: list[Row]) -> str:
    """Time beside NUTS, time and ELBO beside AutoIAFNormal, and on how many OneStep is ahead."""
    lines = [
        "| posterior | OneStep (s) | NUTS (s) | AutoIAFNormal (s) | ELBO over AutoIAFNormal's | "
        "time / NUTS | to AutoIAFNormal's ELBO (s) | over its time |",
        "|---" * 8 + "|",
    ]
    no_slower = half = num = 0
    for name in POSTERIORS:
        groups = {m: _good_rows(rows, name, m) for m in ("onestep", "nuts", "iaf")}
        if not all(groups.values()):
            continue
        num += 1
        seconds = {m: np.median([r["seconds"] for r in some]) for m, some in groups.items()}
        goal = np.median([r["elbo"] for r in groups["iaf"]])
        ahead = np.median([r["elbo"] for r in groups["onestep"]]) - goal
        reached = np.median([_seconds_to_reach(r, goal) for r in groups["onestep"]])
        no_slower += seconds["onestep"] <= seconds["nuts"]
        half += reached <= 0.5 * seconds["iaf"]
        lines.append(
            f"| {name} | {seconds['onestep']:.1f} | {seconds['nuts']:.1f} | {seconds['iaf']:.1f} | "
            f"{ahead:+.3f} | {seconds['onestep'] / seconds['nuts']:.2f} | {reached:.1f} | "
            f"{reached / seconds['iaf']:.2f} |"
        )
    lines += [
        "",
        f"No slower than NUTS on {no_slower} of {num}. At AutoIAFNormal's ELBO in at most half "
        f"its time on {half} of {num} (the time until the base has it where that is enough, else "
        "until a hundred iterations of training have it on average).",
    ]
    return "\n".join(lines)


def _picture(rows: list[Row], path: Path) -> None:
    """Error against time: a panel for each posterior, a colour for each method, a point a run."""
    # Imported here, since a run does not need Matplotlib.
    from benchmarks.plots import hide_rest, panel_grid, plt, styles

    style = styles(METHODS)

    names = [name for name in POSTERIORS if any(row["posterior"] == name for row in rows)]
    # One panel more than posteriors, for the legend.
    figure, axes = panel_grid(len(names) + 1, 6, 3, 8.5 / 3, sharex=True)
    handles = {}
    for axis, name in zip(axes.flat, names, strict=False):
        for method in METHODS:
            good = _good_rows(rows, name, method)
            if not good:
                continue
            seconds = [r["seconds"] for r in good]
            error = [max(r["mean_error"], r["log_sd_error"]) for r in good]
            points = axis.scatter(seconds, error, label=method, alpha=0.8, **style[method])
            handles.setdefault(method, points)
        num = len(POSTERIORS[name].reference()[0])
        # About the largest of 2d errors of 4000 exact draws, each in standard deviations.
        noise = np.sqrt(2 * np.log(2 * num)) / np.sqrt(NUM_DRAWS)
        axis.axhline(noise, color="grey", linestyle="--", linewidth=1)
        axis.set(title=f"{name} (d = {num})", xscale="log", yscale="log")
        axis.set_xticks([5, 10, 20, 40], labels=["5", "10", "20", "40"], minor=False)
        axis.xaxis.set_minor_formatter("")
    for axis in axes[:, 0]:
        axis.set_ylabel("largest error of mean (sd) or log sd")
    hide_rest(axes, len(names))
    ordered = [method for method in METHODS if method in handles]
    axes.flat[-1].legend([handles[method] for method in ordered], ordered, loc="center")
    figure.supxlabel("seconds, compilation included; dashed: the noise of 4000 exact draws")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
