"""Pictures of a run by matplotlib: its training, the tail of its weights, its evidence.

`integrations/structure_picture.py` has that of the structure.  Each function draws on given axes.
"""

import math
from typing import Any

import numpy as np

from numpyro_onestep.importance.evidence import Evidence
from numpyro_onestep.importance.interval import EvidenceInterval
from numpyro_onestep.importance.psis import tail_of, without_nan
from numpyro_onestep.result import Trained, Weighted
from numpyro_onestep.training.course import PER_POINT, medians, name_of

OURS, OTHER, THIRD = "C3", "0.6", "C0"  # colours: OneStep, what stands beside it, a third thing
# The lower limit of the ELBO's axis is this quantile of the values; the first iterations may be
# thousands of nats below.
_LOWEST_SHOWN = 0.03
_MOST_POINTS = 2000  # of the empirical tail; more cannot be told apart
# Width of the picture of the evidence (nats): bars of a thousandth would look far apart in less.
_NARROWEST_NATS = 0.01
_NUM_ERRORS = 2  # standard errors that a bar is long, to either side


def needs_matplotlib(picture: str) -> ImportError:
    """The error where a picture, named as the user calls it, cannot be drawn."""
    return ImportError(f"{picture} needs matplotlib: pip install matplotlib.")


def axes_for(picture: str, ax: Any, size: tuple[float, float] = (6.4, 4.0)) -> Any:
    """The axes given, or those of a new figure of pyplot, which a notebook shows.

    Args:
        picture: name of the method, for the message.
        ax: matplotlib axes, or None.
        size: of a new figure, in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise needs_matplotlib(picture) from error
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def sentence(ax: Any, text: str) -> Any:
    """A sentence in place of a picture."""
    ax.text(0.5, 0.5, text, ha="center", va="center", wrap=True, transform=ax.transAxes)
    ax.set_axis_off()
    return ax


def training(ax: Any, run: Trained) -> Any:
    """The ELBO over training iterations, of the map that was taken and of the others."""
    trained = run.training
    if not len(trained.losses) + len(run.trained_before) + len(run.trained_after):
        what = "fitted Gaussian" if trained.from_gaussian else "fitted mixture"
        return sentence(ax, f"Nothing was trained: the draws are those of the {what}.")
    at, values = 0, []
    for course in run.trained_before:
        at = _other_course(ax, course, at)
        values.append(course.elbos)
    if len(trained.losses):
        values.append(-trained.losses)
        at = _own_course(ax, run, at)
    for course in run.trained_after:
        at = _other_course(ax, course, at)
        values.append(course.elbos)
    if isinstance(run, Weighted) and math.isfinite(run.evidence.log_evidence):
        evidence = run.evidence
        values.append(np.array([evidence.elbo, evidence.log_evidence]))
        label = f"log evidence {evidence.log_evidence:.3f}"
        ax.axhline(evidence.log_evidence, color="0.2", lw=0.9, ls="--", label=label)
    every = np.concatenate([np.asarray(v, np.float64) for v in values])
    every = every[np.isfinite(every)]
    if every.size:
        low, high = np.quantile(every, [_LOWEST_SHOWN, 1.0])
        margin = 0.06 * (high - low) or 0.5
        ax.set_ylim(low - margin, high + margin)
    ax.set_xlim(0, 1.02 * max(at, 1))
    ax.set_xlabel("training iteration")
    ax.set_ylabel("ELBO (nats)")
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.legend(framealpha=0.85, edgecolor="none", fontsize=8, loc="lower right")
    return ax


def _own_course(ax: Any, run: Trained, at: int) -> int:
    """Draw the map that was taken, from an iteration on; returns the iteration at its end."""
    trained = run.training
    begin = at
    for stage, losses in trained.losses_by_stage.items():
        colour = OURS if stage == "evidence" else THIRD
        what = "each iteration" if stage == "evidence" else "bound in the distillation stage"
        x = at + 1 + np.arange(len(losses))
        ax.plot(x, -losses, color=colour, lw=0.5, alpha=0.35, label=what)
        middles = medians(losses)
        name = name_of(trained, run.num_flow_steps) if stage == "evidence" else None
        if name and isinstance(run, Weighted):
            name += f": ELBO {run.evidence.elbo:.3f}"
        ax.plot(at + _places(len(losses)), middles, "o-", color=colour, ms=2.5, lw=1.8, label=name)
        at += len(losses)
    last = len(list(trained.losses_by_stage.values())[-1])
    if trained.cooling_from and trained.cooling_from < last:
        where = at - last + trained.cooling_from
        label = f"learning rate falls from iteration {where - begin}"
        ax.axvline(where, color="0.2", lw=0.9, ls=":", label=label)
    if trained.interrupted:
        end = "interrupted"
    else:
        end = "converged" if trained.converged else "stopped at max_steps"
    ax.axvline(at, color=OURS, lw=1.2, label=f"{end} after {at - begin} iterations")
    return at


def _other_course(ax: Any, course: Any, at: int) -> int:
    """Draw a map that was not taken, from an iteration on; returns the iteration at its end."""
    label = f"{course.name}, not taken: ELBO {course.elbo:.3f}"
    x = at + _places(course.num_iterations)
    ax.plot(x, course.elbos, "o-", color=OTHER, ms=2.5, lw=1.8, label=label)
    ax.axvline(at + course.num_iterations, color=OTHER, lw=0.9)
    return at + course.num_iterations


def _places(num: int) -> np.ndarray:
    """The middle iteration of each hundred."""
    begins = np.arange(0, num, PER_POINT)
    return (begins + np.minimum(begins + PER_POINT, num) + 1) / 2


def weights(ax: Any, run: Weighted) -> Any:
    """The share of the pool whose weight is above w, over w, and the tail fitted by PSIS."""
    evidence, log_weight = run.evidence, without_nan(run.pool.log_weight)
    if not math.isfinite(evidence.log_evidence):
        return sentence(ax, "No weight is finite: there is no tail to show.")
    n = len(log_weight)
    relative = np.sort(log_weight - evidence.log_evidence)[::-1]
    relative = relative[np.isfinite(relative)]
    share = np.arange(1, len(relative) + 1) / n
    rows = np.arange(len(relative))
    if len(rows) > _MOST_POINTS:
        rows = np.unique(np.geomspace(1, len(rows), _MOST_POINTS).astype(int)) - 1
    # Weights of many nats are shown by their logarithms alone: exp would overflow.
    decades = np.clip(relative / math.log(10), -300, 300)
    largest = 10.0 ** decades[0]
    ax.plot(10.0 ** decades[rows], share[rows], ".", ms=3, color=OTHER, label=f"{n} weights")
    tail = tail_of(log_weight - evidence.log_evidence, evidence.pareto_k)
    low, high, floor = 10.0 ** decades[-1], largest, 0.01 / n
    if tail is not None and np.ptp(relative) > 0 and tail.scale > 0:
        from scipy.stats import genpareto

        # From the cut to where one draw in 100 n lies, which is where the mass beyond ends.
        beyond = np.geomspace(1.0, 0.01 / tail.num, 400)
        x = tail.cut + genpareto.isf(beyond, tail.shape, scale=tail.scale)
        ax.plot(
            x, beyond * tail.num / n, color=OURS, lw=1.8, label=f"fitted tail, k = {tail.shape:.2f}"
        )
        ax.axvline(tail.cut, color="0.2", lw=0.9, ls=":", label=f"largest {tail.num} weights")
        out = x >= largest
        if out.any():
            mass = f"beyond the largest weight: {_percent(evidence.tail_mass)} of the mass"
            ax.fill_between(x[out], floor, beyond[out] * tail.num / n, color=OURS, alpha=0.2)
            ax.plot([], [], color=OURS, alpha=0.3, lw=6, label=mass)
        # The body to the left of the cut takes at most half of the picture.
        high = max(high, x[-1])
        low = max(low, tail.cut**2 / high)
    else:
        ax.plot([], [], " ", label="no tail is fitted")
    ax.axvline(largest, color="0.2", lw=0.9, ls="--", label="largest weight")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(floor, 1.5)
    if 0 < low < high:
        margin = (high / low) ** 0.04
        ax.set_xlim(low / margin, high * margin)
    _plain_ticks(ax)
    k, limit = evidence.pareto_k, evidence.pareto_k_limit
    side = "above" if k > limit else "below"
    ax.set_title(f"Pareto k = {k:.2f}, {side} its limit {limit:.2f}", fontsize=10)
    ax.set_xlabel("weight w, relative to the mean weight")
    ax.set_ylabel("fraction of draws with a weight above w")
    ax.legend(framealpha=0.85, edgecolor="none", fontsize=8, loc="lower left")
    return ax


def _plain_ticks(ax: Any) -> None:
    """Ticks at round numbers, where a log axis of less than a decade would have hardly any."""
    from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

    left, right = ax.get_xlim()
    if left > 0 and right / left < 10:
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g}%" if fraction < 1 else "all"


def evidence(ax: Any, found: Evidence, interval: EvidenceInterval) -> Any:
    """ELBO, log evidence and EUBO with their standard errors, each on a line."""
    if not math.isfinite(found.log_evidence):
        return sentence(ax, "No weight is finite: there is no evidence to show.")
    rows = [
        ("ELBO", interval.lower, interval.lower_std_error, THIRD),
        ("log evidence", found.log_evidence, found.log_evidence_std_error, "0.2"),
        ("EUBO", interval.upper, interval.upper_std_error, OURS),
    ]
    is_bounded = math.isfinite(interval.upper)
    names = []
    for height, (name, value, error, colour) in enumerate(rows):
        y = len(rows) - 1 - height
        names.append(f"{name}\n{value:.3f}" if math.isfinite(value) else f"{name}\nnone")
        if math.isfinite(value):
            bar = _NUM_ERRORS * error if math.isfinite(error) else 0.0
            ax.errorbar([value], [y], xerr=[bar], fmt="o", color=colour, capsize=4, lw=1.6)
    if is_bounded:
        ax.axvspan(interval.lower, interval.upper, color="0.85", zorder=0)
        width = interval.upper - interval.lower
        label = f"[ELBO, EUBO], {width:.3g} nats wide"
        if width < 0:  # by the noise of both
            label = "ELBO and EUBO agree within their errors"
    else:
        ax.axvline(interval.lower, color="0.6", lw=0.9, zorder=0)
        label = f"no upper bound: the inverse was found at {interval.reached_fraction:.1%} of draws"
    ax.set_title(f"{label}; bars: {_NUM_ERRORS} standard errors", fontsize=10)
    ax.set_yticks([2, 1, 0], names)
    ax.set_ylim(-0.6, 2.6)
    ax.margins(x=0.12)
    left, right = ax.get_xlim()
    missing = max(_NARROWEST_NATS - (right - left), 0.0)
    ax.set_xlim(left - missing / 2, right + missing / 2)
    ax.ticklabel_format(axis="x", useOffset=False)
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlabel("nats")
    return ax
