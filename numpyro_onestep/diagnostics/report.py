"""The verdict on a result, its warnings and its summary.

A single number is no verdict.  Pareto k has no unit: a heavy tail may have nearly no mass, and
light weights do not show what the flow never visits.  So a result is doubted where a sign is seen
that would change it by an amount that matters.  One warning names the likeliest cause of all signs
first.
"""

import warnings

from numpyro_onestep.corrections.base import Corrected
from numpyro_onestep.diagnostics.codes import coded
from numpyro_onestep.diagnostics.disagreement import disagreements
from numpyro_onestep.diagnostics.doubts import doubts, missed, missed_modes
from numpyro_onestep.result import Drawn, Result
from numpyro_onestep.settings import DrawSettings
from numpyro_onestep.training.loop import TrainingResult


class OneStepWarning(UserWarning):
    """A warning that a result may be wrong; it says why and what to do.

    It ends with its code in brackets (`diagnostics/codes.py`, docs/warnings).
    """


def check(run: Drawn) -> tuple[str, ...]:
    """The warnings: one for the result if it may be wrong, one for each thing it leaves out."""
    found, modes = doubts(run), missed(run)
    if modes is not None:
        found = [missed_modes(run, modes), *found]
    messages = []
    if found:
        signs = list(dict.fromkeys(doubt.sign for doubt in found[1:]))[:4]
        also = f" (Also seen: {'; '.join(signs)}.)" if signs else ""
        messages.append(coded(found[0].cause + also, found[0].code))
    if run.training.interrupted:
        message = (
            "Training was interrupted; the draws come from the flow as it was then. Their weights "
            "are exact all the same. Call run() again to train to the end."
        )
        messages.append(coded(message, "interrupted"))
    messages += [coded(message, "given-draws") for message in disagreements(run)]
    flat = run.problem.flat
    if flat:
        shown = ", ".join(flat[:3]) + (f" and {len(flat) - 3} more" if len(flat) > 3 else "")
        message = (
            f"A flat direction: nothing depends on {shown} (unconstrained), so the posterior has "
            "no scale there. The draws there are a standard normal's and mean nothing, and the log "
            "evidence is that of the rest, which is not affected. Remove the site, fix one of "
            "several, or give it a proper prior."
        )
        messages.append(coded(message, "flat"))
    for site in run.problem.target.sites:
        if site.subsample:
            some, size = site.subsample
            message = (
                f"The plate {site.name!r} draws {some} of its {size} members. One choice was made "
                "and kept for the whole run, so draws and evidence are those of these members "
                "alone, each counted several times. Leave subsample_size out to use all the data."
            )
            messages.append(coded(message, "subsample"))
    return tuple(messages)


def verdict(run: Drawn) -> str:
    """One sentence on whether the corrected draws and the log evidence can be trusted."""
    found = doubts(run)
    if missed(run) is not None:
        return "do not trust: modes are missing"
    if found:
        return f"do not trust: {found[0].sign}"
    evidence = run.evidence
    if evidence.pareto_k > evidence.pareto_k_limit:
        mass = evidence.tail_mass
        return f"usable: single draws are heavy, but their tail holds some {mass:.1%} of the mass"
    return "good: the flow covers what it visits, and the weights are reliable"


def summary(run: Result, settings: DrawSettings) -> str:
    """Evidence, diagnostics, verdict and warnings of a run, each on a line."""
    evidence = run.evidence
    log_evidence, error = evidence.log_evidence, evidence.log_evidence_std_error
    rows = [
        ("ELBO", f"{evidence.elbo:.3f} +- {evidence.elbo_std_error:.3f} nats"),
        ("log evidence", f"{log_evidence:.3f} +- {error:.3f} nats"),
        ("Pareto k", f"{evidence.pareto_k:.2f} (limit {evidence.pareto_k_limit:.2f})"),
        ("", verdict(run)),
        ("ESS of weights", f"{evidence.ess:.0f} of {evidence.num_draws} draws"),
        ("map folds at", f"{evidence.folded_fraction:.2%} of draws"),
        ("target in", run.problem.line),
        ("structure", str(run.fit.structure or "dense")),
        ("draws", _draws_line(settings, run.num_flow_steps, run.corrected)),
        ("training", _training_line(run.training, run.seconds)),
    ]
    if run.agreement is not None:
        upper, error = run.agreement.upper, run.agreement.upper_std_error
        rows.append(("upper estimate", f"{upper:.3f} +- {error:.3f} nats, by given draws"))
    if evidence.num_non_finite:
        rows.append(("left out", f"{evidence.num_non_finite} draws without a finite density"))
    lines = [f"{name:>16s}  {value}" for name, value in rows]
    return "\n".join([*lines, *(f"WARNING: {message}" for message in run.messages), ""])


def _draws_line(settings: DrawSettings, num_flow_steps: int, corrected: Corrected) -> str:
    """How the draws came about."""
    steps = f"{num_flow_steps} flow step{'s' if num_flow_steps > 1 else ''} each"
    text = f"{settings.num_samples} {corrected.line}, {steps}"
    if corrected.r_hat is not None:
        text += f"; R-hat {corrected.r_hat:.3f}, ESS {corrected.min_ess:.0f}"
    return text


def _training_line(training: TrainingResult, seconds: dict[str, float]) -> str:
    """How training ended, and how long the run took."""
    total = sum(seconds.values())
    if not len(training.losses):
        what = "fitted mixture" if not training.from_gaussian else "fit it would start from"
        return f"none: the draws are those of the {what}; {total:.1f} s in all"
    if training.interrupted:
        end = "interrupted"
    elif training.converged:
        end = "converged"
    elif training.still_rising or not training.is_judged:
        end = "stopped at max_steps, still improving,"
    else:
        end = "stopped at max_steps, level within its noise,"
    return f"{end} after {len(training.losses)} iterations; {total:.1f} s in all"


def warn(messages: tuple[str, ...], stacklevel: int) -> None:
    """Raise each message as a `OneStepWarning`."""
    for message in messages:
        warnings.warn(message, OneStepWarning, stacklevel=stacklevel + 1)
