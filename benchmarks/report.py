"""Tables and pictures of what `benchmarks.posteriors` measured.

    python -m benchmarks.report

Reads benchmarks/results/posteriors.json; writes docs/posteriors.md and docs/posteriors.png.
"""

from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.methods import METHODS, NUM_DRAWS
from benchmarks.models import POSTERIORS
from benchmarks.store import DOCS, Results, machines, spread

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def rows_of(results: list[dict], posterior: str, method: str) -> list[dict]:
    """The runs of one method on one posterior that ended well."""
    wanted = posterior, method
    return [r for r in results if (r["posterior"], r["method"]) == wanted and "error" not in r]


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
            cells = [spread(rows, figure, digits) for figure, digits in columns.values()]
            warned = ""
            if method == "onestep":
                warned = f"{sum(bool(row['warnings']) for row in rows)} of {len(rows)}"
            elif method == "nuts":
                warned = f"{spread(rows, 'divergences', 0)} divergences"
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


def write() -> None:
    """The page and the picture."""
    results = Results("posteriors", resume=True).rows
    seeds = {m: sorted({r["seed"] for r in results if r["method"] == m}) for m in METHODS}
    text = f"""# Reference posteriors

Made by `python -m benchmarks.posteriors` at default settings on
{machines(results)}.
Seeds: {"; ".join(f"{m} {s}" for m, s in seeds.items() if s)}. Medians, and ranges over seeds.

![Error against time](posteriors.png)

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
    (DOCS / "posteriors.md").write_text(text)
    picture(results, DOCS / "posteriors.png")


if __name__ == "__main__":
    write()
