"""Tables and pictures of what `benchmarks.posteriors` measured.

    python -m benchmarks.report

Reads benchmarks/results/posteriors.json; writes docs/posteriors.md and docs/posteriors.png.
"""

import json
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.methods import METHODS, NUM_DRAWS
from benchmarks.models import POSTERIORS
from benchmarks.posteriors import OUTPUT, ROOT, described, machine

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TABLE = "docs/posteriors.md"
PICTURE = "docs/posteriors.png"


def rows_of(results: list[dict], posterior: str, method: str) -> list[dict]:
    """The runs of one method on one posterior that ended well."""
    wanted = posterior, method
    return [r for r in results if (r["posterior"], r["method"]) == wanted and "error" not in r]


def shown(rows: list[dict], figure: str, digits: int) -> str:
    """Median, and the range where there is one."""
    values = [row[figure] for row in rows if figure in row]
    if not values:
        return ""
    median, low, high = (f"{v:.{digits}f}" for v in (np.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low} to {high})"


def accuracy(results: list[dict]) -> str:
    """One row a posterior and method."""
    columns = {
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
    lines = [
        f"| posterior | method | {' | '.join(columns)} | warned |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for name in POSTERIORS:
        for method in METHODS:
            rows = rows_of(results, name, method)
            failed = [r for r in results if (r["posterior"], r["method"]) == (name, method)]
            if not failed:
                continue
            cells = [shown(rows, figure, digits) for figure, digits in columns.values()]
            warned = ""
            if method == "onestep":
                warned = f"{sum(bool(row['warnings']) for row in rows)} of {len(rows)}"
            elif method == "nuts":
                warned = f"{shown(rows, 'divergences', 0)} divergences"
            if len(rows) < len(failed):
                warned += f" failed {len(failed) - len(rows)} of {len(failed)}"
            lines.append(f"| {name} | {method} | {' | '.join(cells)} | {warned} |")
    return "\n".join(lines)


def seconds_to_reach(row: dict, elbo: float) -> float:
    """Time until a run of OneStep had an ELBO, compilation included.

    The base's where that is enough; else until the first hundred iterations whose mean reaches it,
    before any cooling.
    """
    parts = row["seconds_by_part"]
    spent = parts["initialisation"] + parts["base"]
    if row["base_elbo"] >= elbo:
        return spent
    if row["num_flow_steps"] > 1:  # what an attempt with one step took before
        spent += parts["training"] - sum(row["chunk_seconds"]) + parts["draws"]
    for reached, seconds in zip(row["chunk_elbos"], row["chunk_seconds"], strict=True):
        spent += seconds
        if reached >= elbo:
            return spent
    return np.inf


def targets(results: list[dict]) -> str:
    """Time beside NUTS, and time and ELBO beside AutoIAFNormal, medians; and how many are won."""
    lines = [
        "| posterior | OneStep (s) | NUTS (s) | AutoIAFNormal (s) | ELBO over AutoIAFNormal's | "
        "time / NUTS | to AutoIAFNormal's ELBO (s) | over its time |",
        "|---" * 8 + "|",
    ]
    no_slower = half = both = 0
    for name in POSTERIORS:
        groups = {m: rows_of(results, name, m) for m in ("onestep", "nuts", "iaf")}
        if not all(groups.values()):
            continue
        both += 1
        seconds = {m: np.median([r["seconds"] for r in rows]) for m, rows in groups.items()}
        goal = np.median([r["elbo"] for r in groups["iaf"]])
        ahead = np.median([r["elbo"] for r in groups["onestep"]]) - goal
        reached = np.median([seconds_to_reach(r, goal) for r in groups["onestep"]])
        no_slower += seconds["onestep"] <= seconds["nuts"]
        half += reached <= 0.5 * seconds["iaf"]
        lines.append(
            f"| {name} | {seconds['onestep']:.1f} | {seconds['nuts']:.1f} | {seconds['iaf']:.1f} | "
            f"{ahead:+.3f} | {seconds['onestep'] / seconds['nuts']:.2f} | {reached:.1f} | "
            f"{reached / seconds['iaf']:.2f} |"
        )
    lines += [
        "",
        f"No slower than NUTS on {no_slower} of {both}. At AutoIAFNormal's ELBO in at most half "
        f"its time on {half} of {both} (the time until the base has it where that is enough, else "
        "until a hundred iterations of training have it on average).",
    ]
    return "\n".join(lines)


def picture(results: list[dict], path: Path) -> None:
    """Accuracy against time, one panel a posterior, one point a run."""
    colours = dict(zip(METHODS, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    markers = dict(zip(METHODS, "o^sDvP", strict=True))
    figure, axes = plt.subplots(3, 6, figsize=(18, 8.5), sharex=True)
    for axis, name in zip(axes.flat, POSTERIORS, strict=False):
        for method in METHODS:
            rows = rows_of(results, name, method)
            if not rows:
                continue
            error = [max(r["mean_error"], r["log_sd_error"]) for r in rows]
            axis.scatter(
                [r["seconds"] for r in rows],
                error,
                color=colours[method],
                marker=markers[method],
                label=method,
                alpha=0.8,
            )
        num = len(POSTERIORS[name].reference()[0])
        # The largest of 2d deviates of 4000 exact draws, about.
        noise = np.sqrt(2 * np.log(2 * num)) / np.sqrt(NUM_DRAWS)
        axis.axhline(noise, color="grey", linestyle="--", linewidth=1)
        axis.set(title=f"{name} (d = {num})", xscale="log", yscale="log")
        axis.set_xticks([5, 10, 20, 40], labels=["5", "10", "20", "40"], minor=False)
        axis.xaxis.set_minor_formatter("")
    for axis in axes[:, 0]:
        axis.set_ylabel("largest error of mean (sd) or log sd")
    for axis in axes.flat[len(POSTERIORS) :]:
        axis.axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center")
    figure.supxlabel("seconds, compilation included; dashed: the noise of 4000 exact draws")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def held_out_page(rows: list[dict]) -> None:
    """What `benchmarks.held_out` measured, as docs/held_out.md."""
    columns = {
        "seconds": ("seconds", 1),
        "mean (sd)": ("mean_error", 3),
        "log sd": ("log_sd_error", 3),
        "Pareto k": ("pareto_k", 2),
        "ESS": ("ess", 2),
    }
    lines = [f"| model | d | {' | '.join(columns)} | wrong | warned | wrong and silent |"]
    lines.append("|---" * (len(columns) + 5) + "|")
    for name in dict.fromkeys(row["posterior"] for row in rows):
        some = [row for row in rows if row["posterior"] == name]
        cells = [shown(some, figure, digits) for figure, digits in columns.values()]
        counts = [
            f"{sum(bool(row[figure]) for row in some)} of {len(some)}"
            for figure in ("wrong", "warnings", "wrong_and_silent")
        ]
        label = name.removeprefix("held_out_").replace("_", " ")
        lines.append(f"| {label} | {some[0]['dimension']} | {' | '.join(cells + counts)} |")
    (ROOT / "docs" / "held_out.md").write_text(
        f"""# Ten models that the defaults were not chosen on

Written by `python -m benchmarks.held_out` on
{described(machine())}.
OneStep at default settings, compilation included; median, and
the range over {len({row["seed"] for row in rows})} seeds. Errors are the largest over parameters,
against long runs of NUTS; a run is wrong where one is above 0.05 plus three Monte Carlo errors.

{chr(10).join(lines)}
"""
    )


def write(source: Path) -> None:
    """The page and the picture."""
    stored = json.loads(source.read_text())
    results, about = stored["results"], stored["about"]
    seeds = {m: sorted({r["seed"] for r in results if r["method"] == m}) for m in METHODS}
    text = f"""# Reference posteriors

Made by `python -m benchmarks.posteriors` at default settings on
{described(about)}.
Seeds: {"; ".join(f"{m} {s}" for m, s in seeds.items() if s)}. Medians, and ranges over seeds.

![Error against time]({Path(PICTURE).name})

## Beside NUTS and AutoIAFNormal

NUTS: 4 chains of 1000 + 1000, vectorised. Guides: 5000 steps of 32 particles, Adam at 5e-3, and
4000 draws. OneStep: training, a weighed pool of 40000 and 4000 corrected draws. All with
compilation.

{targets(results)}

## Accuracy

seconds: with compilation; warm: a second run in the process; gap = log Z - ELBO, log Z error = log
Z - estimate, where log Z is known; mean and log sd: largest error of any parameter against the
reference (4000 exact draws would show about 0.04); ESS: share of the pool; draws/s: once trained.
The funnel's parameters are v and arcsinh(x): the plain sd of x, whose fourth moment is
astronomical, cannot be compared by 4000 draws.

{accuracy(results)}
"""
    (ROOT / TABLE).write_text(text)
    picture(results, ROOT / PICTURE)


if __name__ == "__main__":
    write(OUTPUT)
