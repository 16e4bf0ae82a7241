"""The paper's suite: evidence from both sides, modes and distances, at several step budgets.

    python -m benchmarks paper [--targets forty_modes ...] [--budgets 1 2 4]

For each target, budget k and seed there is one run of OneStep(num_flow_steps=k), with
multimodal=True where the target has several modes. Beside the exact weights stands what the paper
would have reported: the weight of its deterministic flow by the trace of each step's Jacobian, from
one Hutchinson probe.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.problems.paper import targets
from benchmarks.problems.target import right_share
from benchmarks.store import Row, Store, machines
from benchmarks.suites.base import Suite, add_names
from benchmarks.target_figures import NUM, measure, table_by_target, with_errors

# The best log Z or ELBO published for other samplers, and what the paper itself lists
# (docs/method.md).
PUBLISHED = {
    "seeds": ("-73.4", "-44.35"),
    "sonar": ("-108.4 to -108.8", "-50.58"),
    "ionosphere": ("-111.6", "-86.68"),
    "credit": ("-585.1", ""),
    "credit_without_prior": ("-504.5", "-501.7"),
    "cancer": ("-78", ""),
    "brownian": ("1.0 to 1.2", "-11.37"),
}
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
# Two headings differ only in a space at the end, which no reader sees.
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


class Paper(Suite):
    """The paper's targets at several step budgets."""

    name = "paper"
    page = "paper.md"
    summary = "the paper's targets: evidence from both sides, modes, distances, step budgets"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which targets, and how many flow steps."""
        add_names(parser, "--targets", targets())
        parser.add_argument("--budgets", nargs="+", type=int, default=[1, 2, 4])

    def run(self, options: Namespace, store: Store) -> Iterator[Row]:
        """One run for each target, budget and seed."""
        for name, num_steps, seed in product(options.targets, options.budgets, options.seeds):
            if not store.holds(target=name, k=num_steps, seed=seed):
                yield measure(targets()[name], num_steps, seed)

    def line(self, row: Row) -> str:
        """All figures, rounded, without the long lists."""
        shown = {
            key: round(value, 3) if isinstance(value, float) else value
            for key, value in row.items()
            if key not in ("points", "seconds_by_part")
        }
        return json.dumps(shown, default=float)

    def report(self, rows: list[Row], docs: Path) -> None:
        """Tables of the evidence and of the modes, a picture, and the published figures."""
        rows = with_errors(rows, targets())
        exact = [row for row in rows if "distance" in row]
        share_error = np.sqrt(right_share() / (1 - right_share()) / NUM)
        text = f"""# The paper's suite

Written by `{self.command}` on
{machines(rows)}.
Median, and the range over seeds where there are several. Each
row is a run of its own: steps is `num_flow_steps`, the network evaluations a draw; seconds include
compilation, exploration and training. `multimodal=True` on the mixtures, the wells and the Student
t mixture; all else is default.

## Evidence

Gap and errors are in nats. EUBO is the upper bound E_p[log w] by exact draws where there are some,
else by `evidence_interval`. "Paper's weight" is h times the trace of a step's Jacobian from one
Hutchinson probe in place of the log-determinant, averaged over the same draws: what it reports
above the exact ELBO of the same map.

{table_by_target(rows, EVIDENCE)}

## Modes and distances

Shares of modes are of the 4000 corrected draws and, beside them, of the flow's own, uncorrected.
The larger of a well's two sides holds {right_share():.3f}; errors are shares of a side's weight,
of which 4000 exact draws have {share_error:.3f} on the smaller side (one standard deviation);
beside them the same of all 40,000 weighed draws. Distance is the sliced 2-Wasserstein distance to
4000 exact draws (200 directions); two sets of exact draws lie as far apart as the last column says.

{table_by_target(exact, MODES)}

![Draws of the flow on the two-dimensional targets](paper.png)

One-step draws of the flow itself, uncorrected, seed 0; crosses are the centres of the modes.

## Published figures

Log Z or the best ELBO published for other samplers, and what a public results page lists for the
paper's method. Where the latter lies above log Z it is no bound.

{_published(row["target"] for row in rows)}
"""
        (docs / self.page).write_text(text)
        flat = [row for row in rows if "points" in row and row["k"] == 1 and row["seed"] == 0]
        if flat:
            _picture(flat, docs / "paper.png")


def _published(names: Iterable[str]) -> str:
    lines = ["| target | other samplers | the paper's method, as listed |", "|---|---|---|"]
    for name in dict.fromkeys(names):
        if name in PUBLISHED:
            lines.append(f"| {name} | {' | '.join(PUBLISHED[name])} |")
    return "\n".join(lines)


def _picture(rows: list[Row], path: Path) -> None:
    """A panel for each two-dimensional target."""
    # Imported here, since a run does not need Matplotlib.
    from benchmarks.plots import hide_rest, panel_grid, plt

    figure, axes = panel_grid(len(rows), 6, 4.2, 4)
    hide_rest(axes, len(rows))
    for axis, row in zip(axes.flat, rows, strict=False):
        means = targets()[row["target"]].means
        assert means is not None
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
    figure.savefig(path, dpi=110)
    plt.close(figure)
