"""Table and picture of what `benchmarks.paper` measured.

    python -m benchmarks.paper_report

Reads benchmarks/results/paper.json; writes docs/paper.md and docs/paper.png.
"""

import matplotlib
import numpy as np

from benchmarks.paper import NUM, PUBLISHED
from benchmarks.paper_targets import right_share, targets
from benchmarks.store import DOCS, Results, machines, table_over_seeds

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EVIDENCE = {
    "log Z": ("log_z", 3),
    "ELBO gap": ("gap", 3),
    "log evidence error": ("error", 3),
    "EUBO - log Z": ("above", 3),
    "paper's weight overstates by": ("published_excess", 3),
    "k": ("pareto_k", 2),
    "ESS": ("ess", 2),
    "seconds": ("seconds", 0),
}
MODES = {
    "modes": ("modes", 0),
    "TV of weights": ("tv", 3),
    "of the flow's own": ("tv_own", 3),
    "worst side of a well": ("well_error", 3),
    "of the weighed pool": ("well_error_pool", 3),
    "mean over sides": ("well_error_mean", 3),
    "distance": ("distance", 3),
    "of the flow's own ": ("distance_own", 3),
    "between exact sets": ("distance_exact", 3),
}


def by_target(rows: list[dict], columns: dict) -> str:
    """One line a target and budget."""
    by = {"target": "target", "d": "dim", "steps": "k"}
    return table_over_seeds(rows, by, columns, {"warned": "warnings"})


def ordered(rows: list[dict], order: list[str]) -> list[dict]:
    """By target, budget and seed, with what follows from a known log Z."""
    for row in rows:
        if row["log_z"] is None:
            row.pop("log_z")
            continue
        row["gap"] = row["log_z"] - row["elbo"]
        row["error"] = row["log_evidence"] - row["log_z"]
        upper = row.get("eubo", row.get("upper"))
        if upper is not None:
            row["above"] = upper - row["log_z"]
    return sorted(rows, key=lambda row: (order.index(row["target"]), row["k"], row["seed"]))


def write() -> None:
    """The page and its picture."""
    rows = ordered(Results("paper", resume=True).rows, list(targets()))
    exact = [row for row in rows if "distance" in row]
    names = dict.fromkeys(row["target"] for row in rows)
    lines = [f"| {n} | {PUBLISHED[n][0]} | {PUBLISHED[n][1]} |" for n in names if n in PUBLISHED]
    published = "\n".join(
        ["| target | other samplers | the paper's method, as listed |", "|---|---|---|", *lines]
    )
    share_error = np.sqrt(right_share() / (1 - right_share()) / NUM)
    text = f"""# The paper's suite

Written by `python -m benchmarks.paper` on
{machines(rows)}.
Median, and the range over seeds where there are several. Each
row is a run of its own: steps is `num_flow_steps`, the network evaluations a draw; seconds include
compilation, exploration and training. `many_modes=True` on the mixtures, the wells and the Student
t mixture; all else is default.

## Evidence

Gap and errors are in nats. EUBO is the upper bound E_p[log w] by exact draws where there are some,
else by `evidence_interval`. "Paper's weight" is h times the trace of a step's Jacobian from one
Hutchinson probe in place of the log-determinant, averaged over the same draws: what it reports
above the exact ELBO of the same map.

{by_target(rows, EVIDENCE)}

## Modes and distances

Shares of modes are of the 4000 corrected draws and, beside them, of the flow's own, uncorrected.
The larger of a well's two sides holds {right_share():.3f}; errors are shares of a side's weight,
of which 4000 exact draws have {share_error:.3f} on the smaller side (one standard deviation);
beside them the same of all 40,000 weighed draws. Distance is the sliced 2-Wasserstein distance to
4000 exact draws (200 directions); two sets of exact draws lie as far apart as the last column says.

{by_target(exact, MODES)}

![Draws of the flow on the two-dimensional targets](paper.png)

One-step draws of the flow itself, uncorrected, seed 0; crosses are the centres of the modes.

## Published figures

Log Z or the best ELBO published for other samplers, and what a public results page lists for the
paper's method. Where the latter lies above log Z it is no bound.

{published}
"""
    (DOCS / "paper.md").write_text(text)
    picture([row for row in rows if "points" in row and row["k"] == 1 and row["seed"] == 0])


def picture(rows: list[dict]) -> None:
    """One panel a two-dimensional target."""
    if not rows:
        return
    known = targets()
    figure, axes = plt.subplots(1, len(rows), figsize=(4.2 * len(rows), 4), squeeze=False)
    for axis, row in zip(axes[0], rows, strict=True):
        means = known[row["target"]].means
        points = np.array(row["points"])
        axis.scatter(*points.T, s=4, alpha=0.5, color="tab:blue", linewidths=0)
        axis.scatter(*means.T, s=25, marker="+", color="tab:red", linewidths=1)
        margin = 0.15 * np.ptp(means, axis=0)
        axis.set_xlim(means[:, 0].min() - margin[0], means[:, 0].max() + margin[0])
        axis.set_ylim(means[:, 1].min() - margin[1], means[:, 1].max() + margin[1])
        axis.set_title(f"{row['target'].replace('_', ' ')}: {row['modes_own']} of {len(means)}")
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(DOCS / "paper.png", dpi=110)


if __name__ == "__main__":
    write()
