"""Whether a result is to be trusted, and what to tell the user: one warning, the cause first.

A single number is no verdict.  Pareto k has no unit: a tail may be heavy and hold next to no mass,
and weights that are light say nothing of what the flow never visits.  So a result is doubted where
something is seen that would move it by an amount that matters, and the warning names the likeliest
cause of all that is seen.
"""

import warnings
from typing import Any

from numpyro_onestep.corrections.base import Corrected
from numpyro_onestep.diagnostics.doubts import doubts, missed_modes, misses_modes
from numpyro_onestep.settings import Settings
from numpyro_onestep.training.loop import TrainingResult


class OneStepWarning(UserWarning):
    """A result that may be wrong, why, and what to do."""


def check(run: Any) -> list[str]:
    """What to warn of: one sentence for the result, and one for each thing that it leaves out."""
    found = doubts(run)
    if misses_modes(run):
        found = [missed_modes(run), *found]
    messages = []
    if found:
        signs = list(dict.fromkeys(doubt.sign for doubt in found[1:]))[:4]
        also = f" (Also seen: {'; '.join(signs)}.)" if signs else ""
        messages.append(found[0].cause + also)
    if run.training.interrupted:
        messages.append(
            "Training was interrupted; the draws come from the flow as it was then. Their weights "
            "are exact all the same. Call run() again to train to the end."
        )
    flat = run.problem.flat
    if flat:
        shown = ", ".join(flat[:3]) + (f" and {len(flat) - 3} more" if len(flat) > 3 else "")
        messages.append(
            f"A flat direction: nothing depends on {shown} (unconstrained), so the posterior has "
            "no scale there. The draws there are a standard normal's and mean nothing, and the log "
            "evidence is that of the rest, which is not affected. Remove the site, fix one of "
            "several, or give it a proper prior."
        )
    for site in run.problem.target.sites:
        if site.subsample:
            some, size = site.subsample
            messages.append(
                f"The plate {site.name!r} draws {some} of its {size} members. One choice was made "
                "and kept for the whole run, so draws and evidence are those of these members "
                "alone, each counted several times. Leave subsample_size out to use all the data."
            )
    return messages


def verdict(run: Any) -> str:
    """One sentence on whether the corrected draws and the log evidence can be trusted."""
    found = doubts(run)
    missed = misses_modes(run)
    if missed or found:
        return f"do not trust: {'modes are missing' if missed else found[0].sign}"
    evidence = run.evidence
    if evidence.pareto_k > evidence.pareto_k_limit:
        share = evidence.tail_mass
        return f"usable: single draws are heavy, but their tail holds some {share:.1%} of the mass"
    return "good: the flow covers what it visits, and the weights are reliable"


def draws_line(settings: Settings, num_flow_steps: int, corrected: Corrected | None) -> str:
    """How the draws came about."""
    steps = f"{num_flow_steps} flow step{'s' if num_flow_steps > 1 else ''} each"
    if corrected is None:
        return steps
    text = f"{settings.num_samples} {corrected.line}, {steps}"
    if corrected.r_hat is not None:
        text += f"; R-hat {corrected.r_hat:.3f}, ESS {corrected.min_ess:.0f}"
    return text


def training_line(training: TrainingResult, seconds: dict[str, float]) -> str:
    """How training ended, and how long the run took."""
    total = sum(seconds.values())
    if not len(training.losses):
        return f"none: the draws are those of the fitted mixture; {total:.1f} s in all"
    if training.interrupted:
        end = "interrupted"
    elif training.converged:
        end = "converged"
    elif training.still_rising or not training.judged:
        end = "stopped at max_steps, still improving,"
    else:
        end = "stopped at max_steps, level within its noise,"
    return f"{end} after {len(training.losses)} iterations; {total:.1f} s in all"


def warn(messages: list[str], stacklevel: int) -> None:
    """Raise each message as a `OneStepWarning`."""
    for message in messages:
        warnings.warn(message, OneStepWarning, stacklevel=stacklevel + 1)
