"""The page of `benchmarks.verdicts`: rates of silent failures and of false alarms."""

from benchmarks.store import DOCS, machines, table, table_over_seeds

COLUMNS = {
    "seconds": ("seconds", 1),
    "mean (sd)": ("mean_error", 3),
    "log sd": ("log_sd_error", 3),
    "log Z error": ("log_evidence_error", 3),
    "Pareto k": ("pareto_k", 2),
    "ESS": ("ess", 2),
}
COUNTS = {"wrong": "wrong", "warned": "warned", "silent": "silent", "false alarm": "false_alarm"}
HEADING = {
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


def rates(of: str, rows: list[dict]) -> dict:
    """How many runs are wrong, and silent; right, and warned."""
    run = [row for row in rows if not row["failed"]]
    wrong = sum(row["wrong"] for row in run)
    return {
        "of": of,
        "posteriors": len({row["posterior"] for row in rows}),
        "runs": len(run),
        "wrong": wrong,
        "silent": _share(sum(row["silent"] for row in run), wrong),
        "right": len(run) - wrong,
        "false_alarm": _share(sum(row["false_alarm"] for row in run), len(run) - wrong),
        "failed": len(rows) - len(run),
    }


def _share(some: int, of: int) -> str:
    return f"{some} ({some / of:.0%})" if of else "0"


def line_of_rates(rows: list[dict]) -> str:
    """Both rates in a sentence or two."""
    figures = rates("", rows)
    return (
        f"{figures['runs']} runs on {figures['posteriors']} posteriors. Silent failures: "
        f"{figures['silent']} of {figures['wrong']} that are wrong. False alarms: "
        f"{figures['false_alarm']} of {figures['right']} that are right. "
        f"Failed: {figures['failed']}."
    )


def write(rows: list[dict], limits: tuple[float, float, float, float]) -> None:
    """Write docs/verdicts.md."""
    mean, log_sd, evidence, noise = limits
    lines = [rates("all", rows)]
    for half, name in HALVES.items():
        lines.append(rates(name, [row for row in rows if row["half"] == half]))
    for kind in dict.fromkeys(row["kind"] for row in rows):
        lines.append(rates(kind, [row for row in rows if row["kind"] == kind]))
    # Where the evidence is not known there is nothing to take a median of.
    known = [
        {key: value for key, value in row.items() if value is not None}
        | {"half": HALVES[row["half"]]}
        for row in rows
    ]
    by = {"posterior": "posterior", "kind": "kind", "half": "half", "q": "dimension"}
    run = [row for row in known if not row["failed"]]
    failed = [row for row in known if row["failed"]]
    text = (
        "# How far the warnings can be trusted\n\nWritten by `python -m benchmarks.verdicts` on "
        f"{machines(rows)}. OneStep at default settings (`many_modes=True` on the mixtures), "
        "compilation included. The answers are known by quadrature, conjugacy, enumeration or "
        "because there are no data; those of the reference and held-out posteriors are long runs "
        f"of NUTS. A run is wrong where a mean is off by more than {mean} sd, a log sd by more "
        f"than {log_sd}, or the log evidence by more than {evidence} nats, {noise:.0f} Monte "
        "Carlo errors added to each. It is a silent failure if it is wrong and did not warn, a "
        "false alarm if it is right and did. Half of every kind was there to choose the rules "
        f"for warnings on; what these are worth, the other half says.\n\n{table(lines, HEADING)}"
        "\n\n## Each posterior\n\nThe largest errors over the q quantities judged; medians, and "
        f"ranges over seeds.\n\n{table_over_seeds(run, by, COLUMNS, COUNTS)}\n"
    )
    if failed:
        text += "\n## Runs that raised an error\n\n" + "\n".join(
            f"- {row['posterior']}, seed {row['seed']}: {row['failed'].splitlines()[0]}"
            for row in failed
        )
        text += "\n"
    (DOCS / "verdicts.md").write_text(text)
