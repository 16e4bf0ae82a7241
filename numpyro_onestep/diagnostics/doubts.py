"""Signs that speak against a result, each with its likeliest cause and a remedy."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from numpyro_onestep import limits
from numpyro_onestep._util.naming import flatten_names
from numpyro_onestep.checks.coverage import Missed
from numpyro_onestep.checks.line_scan import Scan
from numpyro_onestep.corrections.base import LARGEST_R_HAT, Corrected
from numpyro_onestep.importance.evidence import Evidence
from numpyro_onestep.result import Drawn
from numpyro_onestep.target.precision import LARGEST_GRAIN, grain
from numpyro_onestep.training.loop import TrainingResult

# Mass expected beyond the heaviest draw, as a fraction of the evidence.  It is an extrapolation, so
# above the first number it counts only where the weights are uneven as well: the ESS as a fraction
# of the draws is below the second number, or the gap in nats above the third.  Above the last
# number it counts in any case.
_TAIL_MASS, _UNEVEN_ESS, _UNEVEN_GAP, _LARGE_TAIL_MASS = 0.02, 0.6, 0.03, 0.25
# Fraction of the weight that may be lost on draws that can be chosen only once.
_CAPPED = 0.05
# ESS as a fraction of the draws below which a pool is poor.
_POOR_ESS = 0.1
# Fraction of the draws, or of the weight, that may lie at folds.  A fold counts the weight around
# it twice; this fraction moves the log evidence by a few times 0.001 nats, which is below its Monte
# Carlo error.
_NEGLIGIBLE_FOLD = 1e-3
# Nats between neighbouring floats of the size of the log density.  In a sum of many terms rounding
# makes the error larger than that, about 0.1.
_COARSE = 0.05
# Fraction of the draws whose density may be NaN.  Rounding lets a Cholesky factor fail at single
# draws now and then.
_NEGLIGIBLE_REJECTED = 1e-3
# Fraction of the training steps that may have skipped a value that is not finite.
_NEGLIGIBLE_SKIPPED = 1e-2
# Learning-rate scale below which training may have stalled.
_STANDSTILL = 0.1
# Nats between ELBO and log evidence below which training has nothing left to do.
_SMALL_GAP = 0.1
# A Pareto k just below its limit matters where the gap is larger than this (nats).
_DOUBTFUL_GAP = 0.2
# Mass that the draws may miss, over the mass they reach.  The estimate is rough, so a smaller limit
# would warn of noise.
_NEGLIGIBLE_ODDS = 0.03


class Doubt(NamedTuple):
    """One sign that speaks against a result, with its cause and a remedy."""

    sign: str  # what was seen, in a few words
    cause: str  # its cause if nothing likelier is seen, with the remedy
    rank: int  # the doubt of lowest rank comes first
    code: str  # one of `codes.CODES`


def doubts(run: Drawn) -> list[Doubt]:
    """All that speaks against the draws or the log evidence, the likeliest cause first."""
    evidence, training, corrected, scan = run.evidence, run.training, run.corrected, run.scan
    found: list[Doubt] = []
    mixture = not training.from_gaussian
    modes = _modes_remedy(run)
    if scan is not None and scan.edge and not (_is_sound(evidence) and scan.off <= 1):
        found.append(
            Doubt(
                f"the density ends in {scan.edge} where it is high",
                f"The density has an edge: in {scan.edge} it is high up to a point, and zero "
                "beyond, as that of a bound of the data is. No gradient shows an edge, so the flow "
                "cannot be trained to it. Give the site a support that ends there, as "
                f"dist.LeftTruncatedDistribution has, or: {modes}",
                0,
                "edge",
            )
        )
    if scan is not None and scan.step and not (_is_sound(evidence) and scan.off <= 1):
        found.append(
            Doubt(
                f"the density jumps in {scan.step}",
                f"The density has steps: in {scan.step} it jumps from one value to another, as at "
                "a change point between two observations. No gradient shows a step, so the flow "
                f"cannot be trained to it. Sum over the places of the step, or: {modes}",
                1,
                "step",
            )
        )
    if scan is not None and scan.off > 1:
        found.append(
            Doubt(
                f"redrawing {scan.where} from its conditional density changes the draws",
                f"The draws of {scan.where} are not those of the model: along that coordinate the "
                "density has mass in other places than the draws, in a narrow part or in another "
                f"mode. {modes}",
                3,
                "conditionals",
            )
        )
    if not math.isfinite(evidence.log_evidence):
        found.append(
            Doubt(
                "no draw has a density that is finite and not zero",
                "No draw of the flow lies where the density is finite and not zero. Give run() "
                "init_params= in a region of high density, and check the model for terms that are "
                f"not finite. {modes}",
                2,
                "no-density",
            )
        )
    scan_edge = scan is not None and scan.edge
    lost = evidence.num_not_a_number / max(evidence.num_draws, 1)
    if lost > _NEGLIGIBLE_REJECTED:
        found.append(
            Doubt(
                f"the density is not a number at {lost:.1%} of the draws",
                f"The density is not a number at {lost:.1%} of the flow's draws (in "
                f"{run.problem.start.dtype}): any mass there is missing. Check the model "
                "for overflow (exp of a wide parameter) and for matrices that are nearly "
                "singular (add to their diagonal).",
                4,
                "not-a-number",
            )
        )
    elif training.num_non_finite > _NEGLIGIBLE_SKIPPED * len(training.losses) and not scan_edge:
        found.append(
            Doubt(
                f"{training.num_non_finite} training steps met a value that is not finite",
                f"{training.num_non_finite} training steps met a value that is not finite: the "
                "flow keeps away from where it is so, and any mass there is missing. Check the "
                "model for overflow (exp of a wide parameter) and for matrices that are nearly "
                "singular (add to their diagonal).",
                4,
                "skipped-steps",
            )
        )
    if folds(evidence):
        folded = max(evidence.folded_fraction, evidence.folded_weight)
        found.append(
            Doubt(
                f"the map folds at {folded:.2%} of the draws",
                f"The map folds: its determinant is negative at {folded:.2%} of the draws or of "
                "their weight, so two draws may share a point, and neither the ELBO nor the log "
                "evidence is a bound. Take num_flow_steps=4, or a smaller learning_rate.",
                6,
                "fold",
            )
        )
    if run.num_unexplained and not _is_sound(evidence):
        found.append(
            Doubt(
                f"the structure leaves out interactions of {run.num_unexplained} coordinates",
                f"At the draws {run.num_unexplained} coordinates interact with others in a way "
                "that the structure of the map leaves out, so that the map cannot follow them. "
                "Take structure=None (up to some hundred dimensions), or name the sites that "
                "others depend on, as in structure=['mu', 'tau'].",
                5,
                "interactions",
            )
        )
    found += _tail_doubts(evidence, corrected, mixture, modes)
    if corrected.r_hat is not None:
        if not corrected.r_hat < LARGEST_R_HAT:
            found.append(
                Doubt(
                    f"R-hat of the correcting chains is {corrected.r_hat:.3f}",
                    f"R-hat of the correcting chains is {corrected.r_hat:.3f}, above "
                    f"{LARGEST_R_HAT}: they have not mixed, so the draws may be wrong. Raise "
                    "num_samples, or train longer (max_steps=).",
                    7,
                    "r-hat",
                )
            )
        if corrected.divergences:
            found.append(
                Doubt(
                    f"{corrected.divergences} transitions of the chains diverged",
                    f"{corrected.divergences} of the correcting chains' transitions diverged, so "
                    "part of the posterior may be missing. Write a constraint that is a steep "
                    "penalty as the support of a site; for a neck, train longer (max_steps=) or "
                    "take num_flow_steps=4.",
                    7,
                    "divergences",
                )
            )
    found += _grain_doubts(run)
    if evidence.resolution > _COARSE:
        found.append(
            Doubt(
                f"neighbouring floats are {evidence.resolution:.2g} nats apart",
                f"The log density is so large that neighbouring floats are "
                f"{evidence.resolution:.2g} nats apart: weights, ELBO and log evidence are known "
                "no better. Leave target_precision at 'auto', or use 64-bit floats "
                "(numpyro.enable_x64()).",
                5,
                "resolution",
            )
        )
    found += _training_doubts(training, evidence, bool(found))
    return sorted(found, key=lambda doubt: doubt.rank)


def _grain_doubts(run: Drawn) -> list[Doubt]:
    """A doubt where neighbouring floats of the draws are too far apart for the posterior."""
    apart = grain(np.asarray(run.corrected.x))
    if not apart.max() > LARGEST_GRAIN:
        return []
    name = run.problem.target.names()[int(np.argmax(apart))]
    sign = f"neighbouring floats of {name} are {apart.max():.2g} standard deviations apart"
    cause = (
        f"Single precision cannot tell the values of {name} apart: {sign}. Subtract a constant "
        "from the data, so that values are near zero; leave target_precision at 'auto', or use "
        "64-bit floats (numpyro.enable_x64())."
    )
    return [Doubt(sign, cause, 2, "grain")]


def _is_sound(evidence: Evidence) -> bool:
    """Whether the weights alone give no reason for doubt."""
    fine = math.isfinite(evidence.log_evidence) and not folds(evidence)
    return fine and not _tail_doubts(evidence)


def is_good(evidence: Evidence, scan: Scan | None = None) -> bool:
    """Whether neither the weights nor the lines through the draws give reason for doubt."""
    return _is_sound(evidence) and (scan is None or bool(scan.off <= 1))


def _tail_doubts(
    evidence: Evidence, corrected: Corrected | None = None, mixture: bool = False, modes: str = ""
) -> list[Doubt]:
    """A doubt where the tail of the weights may have mass that matters."""
    chains = corrected is not None and corrected.divergences is not None
    k, limit = evidence.pareto_k, evidence.pareto_k_limit
    gap = evidence.log_evidence - evidence.elbo
    signs = []
    uneven = evidence.ess_fraction < _UNEVEN_ESS or gap > _UNEVEN_GAP
    heavy = evidence.tail_mass > (_TAIL_MASS if uneven else _LARGE_TAIL_MASS)
    if heavy or (k > limit and evidence.ess_fraction < _POOR_ESS):
        signs.append(
            f"Pareto k is {k:.2f}, and about {min(evidence.tail_mass, 1.0):.0%} of the mass is "
            "expected beyond the heaviest draw"
        )
    elif not chains and evidence.doubtful and gap > _DOUBTFUL_GAP and k <= limit:
        signs.append(
            f"Pareto k is {k:.2f}, below {limit:.2f} by less than its standard error of "
            f"{evidence.pareto_k_std_error:.2f}, at a gap of {gap:.2f} nats"
        )
    if corrected is not None and corrected.capped_fraction > _CAPPED:
        signs.append(
            f"{corrected.capped_fraction:.1%} of the weight lies on draws too heavy to be chosen "
            "once"
        )
    if corrected is not None and corrected.change > 0:
        signs.append(
            "short Markov chains from the draws changed a standard deviation by "
            f"{math.expm1(corrected.change):.0%}"
        )
    if not signs:
        return []
    affected = "the log evidence" if chains else "the draws and the log evidence"
    if evidence.ess_fraction < _POOR_ESS and not chains and not mixture:
        # This remedy helped on a ring and with labels that swap; chains on z did not.
        cause = (
            "The flow does not fit the posterior, which may have several modes or be bent like a "
            f"ring: {'; '.join(signs)}, and the pool is worth {evidence.ess_fraction:.1%} of its "
            f"draws. So {affected} may be wrong. {modes}"
        )
        return [Doubt(signs[0], cause, 8, "poor-fit")]
    remedy = "Take correction='nuts', reparameterise the model (non-centred where groups hold few "
    remedy += "data), or compare with NUTS."
    if chains or mixture:
        remedy = "Raise pool_size=, reparameterise the model, or compare with NUTS."
    cause = (
        "The flow gives a tail or a neck of the posterior too little mass: "
        f"{'; '.join(signs)}. So {affected} may be wrong. {remedy}"
    )
    return [Doubt(signs[0], cause, 9, "tail")]


def _training_doubts(training: TrainingResult, evidence: Evidence, already: bool) -> list[Doubt]:
    """A doubt where training ended too early and a gap is left that it might have closed."""
    gap = evidence.log_evidence - evidence.elbo
    if not (already or gap > _SMALL_GAP) or training.interrupted or not len(training.losses):
        return []
    rate = training.learning_rate_scale
    # A mixture is near the target before any training.
    if rate < _STANDSTILL and (already or training.from_gaussian):
        cause = (
            "Steps that folded the map, or lost mass, were undone so often that training went on "
            f"at {rate:.1%} of its learning rate, and may have stood still where it seems to have "
            "converged. Take a smaller learning_rate or num_flow_steps=4, or "
            "reparameterise the model."
        )
        return [Doubt(f"training went on at {rate:.1%} of its rate", cause, 5, "stalled")]
    if not training.is_judged:
        cause = (
            f"Training ended after {len(training.losses)} iterations, before its convergence could "
            "be judged. Raise max_steps."
        )
        return [Doubt("training ended early", cause, 5, "short-training")]
    if training.still_rising:
        cause = (
            f"Training ended at max_steps while the ELBO was still rising (by "
            f"{training.final_rise:.3f} nats over the last quarter). Raise max_steps."
        )
        return [Doubt("the ELBO was still rising", cause, 5, "still-rising")]
    return []


def _modes_remedy(run: Drawn) -> str:
    if not run.training.from_gaussian:
        return "Compare with NUTS from several starts, or with another key."
    if run.problem.start.size > limits.MULTIMODAL:
        return "Compare with NUTS from several starts."
    return _take_multimodal(run)


def _take_multimodal(run: Drawn) -> str:
    """The remedy with what else has to change, since some settings exclude `multimodal=True`."""
    others = []
    if run.corrected.num_chains > 1:
        others.append("the default correction")
    if "distillation" in run.training.records:
        others.append("num_distillation_steps=0")
    return f"Take multimodal=True{' with ' if others else ''}{' and '.join(others)}."


def folds(evidence: Evidence) -> bool:
    """Whether the map folds at more draws, or at more of their weight, than can be neglected."""
    return max(evidence.folded_fraction, evidence.folded_weight) > _NEGLIGIBLE_FOLD


def missed(run: Drawn) -> Missed | None:
    """Modes that the draws do not reach, None where none matters.

    Around a minimum at a step of the density, the estimate of the mass, which assumes a Gaussian,
    is wrong.  It is not believed where the lines, which see steps, show nothing wrong.
    """
    if run.missed is None or run.missed.odds < _NEGLIGIBLE_ODDS:
        return None
    is_step = run.scan is not None and run.scan.step and is_good(run.evidence, run.scan)
    return None if is_step else run.missed


def missed_modes(run: Drawn, missed: Missed) -> Doubt:
    """Modes found without the flow that its draws do not reach: where, and how much they hold."""
    mass = missed.odds / (1 + missed.odds)
    modes = "a mode" if missed.num_modes == 1 else f"{missed.num_modes} modes"
    remedy = (
        _take_multimodal(run)
        if missed.where.size <= limits.MULTIMODAL
        else "Run again with init_params= there and compare the evidences, or with more data or "
        "constraints that tell the modes apart."
    )
    sentence = (
        f"Descents from scattered starts found {modes} that the draws do not reach, with about "
        f"{mass:.0%} of the mass; the heaviest at {_place(run, missed.where)}. The "
        f"draws and the evidence are those of the rest of the posterior alone. {remedy}"
    )
    return Doubt(f"{modes} without draws", sentence, -1, "missed-modes")


def _place(run: Drawn, x: Float[Any, " d"]) -> str:
    """A point by the sites in which it stands out from the draws, furthest first."""
    at = flatten_names(run.problem.constrain(x[None]))
    found = []
    for name, draws in flatten_names(run.samples).items():
        draws, value = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (draws, at[name]))
        distance = abs(value[0] - draws.mean(0)) / (draws.std(0) + 1e-30)
        index = int(np.argmax(distance))
        label = name if draws.shape[1] == 1 else f"{name}[{index}]"
        found.append((distance[index], f"{label} = {value[0, index]:.3g}"))
    found.sort(reverse=True)
    return ", ".join(text for _, text in found[:3])
