"""What to tell the user: warnings with cause and remedy, and a verdict in plain words."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import PyTree

from numpyro_onestep.corrections.corrected import LARGEST_R_HAT, Corrected
from numpyro_onestep.coverage import Missed
from numpyro_onestep.evidence import NEGLIGIBLE_GAP, Evidence
from numpyro_onestep.exploration import MOST_DIMENSIONS
from numpyro_onestep.inference_data import flatten_names
from numpyro_onestep.settings import Settings
from numpyro_onestep.training import TrainingResult

# Up to this k the weights' mean converges as if their variance were finite.
GOOD_PARETO_K = 0.5
# A fold counts the weight around it twice: this much of it moves the log evidence by a few times
# 0.001 nats, below its Monte Carlo error.
_NEGLIGIBLE_FOLD = 1e-3
# The log density may be known to this (nats): with the rounding of its sum that is some 0.1.
_COARSE = 0.05
# Draws without a finite density, a share of all, and training steps that met one (of 32 draws):
# single ones are what single precision makes of a Cholesky factor now and then.
_NEGLIGIBLE_REJECTED = 1e-3
_NEGLIGIBLE_SKIPPED = 1e-2
# Weights worth this share of their number are even but for a few: what those stand for is narrow or
# far out.
_EVEN = 0.9
# Training that had to go on at less than this share of its learning rate may have stalled.
_STANDSTILL = 0.1
_SMALL_GAP = 0.05  # nats: a mixture that was so near had no need to move

# Mass that the draws may miss, over the mass they see: roughly estimated, so not too small.
_NEGLIGIBLE_ODDS = 0.03


class OneStepWarning(UserWarning):
    """A result that may be wrong, why, and what to do."""


def verdict(evidence: Evidence) -> str:
    """One sentence on whether the corrected draws and the log evidence can be trusted."""
    k, limit = evidence.pareto_k, evidence.pareto_k_limit
    if k > limit:
        return "do not trust: the flow misses part of the posterior's tails"
    if k > GOOD_PARETO_K:
        return "usable: weights are heavy-tailed, but smoothing handles them"
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
    if training.interrupted:
        end = "interrupted"
    elif training.converged:
        end = "converged"
    elif training.still_rising or not training.judged:
        end = "stopped at max_steps, still improving,"
    else:
        end = "stopped at max_steps, level within its noise,"
    total = sum(seconds.values())
    return f"{end} after {len(training.losses)} iterations; {total:.1f} s in all"


def folds(evidence: Evidence) -> bool:
    """Whether the map folds at more draws, or at more of their weight, than can be neglected."""
    return max(evidence.folded_share, evidence.folded_weight) > _NEGLIGIBLE_FOLD


def check(
    evidence: Evidence,
    training: TrainingResult,
    base_elbo: float,
    corrected: Corrected,
) -> list[str]:
    """Everything that speaks against a result, as sentences with a remedy."""
    found = []
    k, limit = evidence.pareto_k, evidence.pareto_k_limit
    gap = evidence.log_evidence - evidence.elbo
    # Chains of NUTS owe the weights no more than their starts.
    chains = corrected.divergences is not None
    affected = "the log evidence" if chains else "the corrected draws and the log evidence"
    if not math.isfinite(base_elbo):
        found.append(
            "No Gaussian base with a finite ELBO was found, so training began far from the "
            "posterior. Give run() init_params= in a region of high density, or rescale the data."
        )
    if not k <= limit:
        even = evidence.ess / evidence.num_draws
        heavy = "a few draws carry the weights"
        if even > _EVEN:
            heavy = f"a few draws are too heavy, though the pool is worth {even:.0%} of its size"
        found.append(
            f"Pareto k is {k:.2f}, above {limit:.2f}: {heavy}, so "
            f"{affected} may be wrong. Train longer (max_steps=), widen the network (width=), take "
            "num_flow_steps=4, correction='nuts', reparameterise the model, or compare with NUTS."
        )
    elif not chains and evidence.doubtful and gap > NEGLIGIBLE_GAP:
        found.append(
            f"Pareto k is {k:.2f}, below {limit:.2f} by less than its standard error of "
            f"{evidence.pareto_k_std_error:.2f}: a narrow tail or neck of the posterior may be "
            "missing from the draws. Compare with NUTS where tails matter, reparameterise the "
            "model, or take num_flow_steps=4."
        )
    if corrected.capped_share > 0.01:
        found.append(
            f"{corrected.capped_share:.1%} of the posterior's weight lies on draws too heavy to be "
            "chosen once, so the corrected draws lean towards the flow's own. Raise pool_size, or "
            "train longer (max_steps=)."
        )
    if corrected.shift > 0:
        found.append(
            "Short Markov chains from the corrected draws changed a standard deviation by "
            f"{math.expm1(corrected.shift):.0%}: the flow gives part of the posterior too little "
            "mass. The draws returned are where the chains ended; they may lack some of it still, "
            "and so may the log evidence. Raise num_moves, reparameterise the model, or compare "
            "with NUTS."
        )
    if corrected.r_hat is not None and not corrected.r_hat < LARGEST_R_HAT:
        found.append(
            f"R-hat of the correcting chains is {corrected.r_hat:.3f}, above {LARGEST_R_HAT}: "
            "they have not mixed, so the draws may be wrong. Raise num_samples, or train longer "
            "(max_steps=)."
        )
    if corrected.divergences:
        found.append(
            f"{corrected.divergences} of the correcting chains' transitions diverged, so part of "
            "the posterior may be missing. Train longer (max_steps=), or take num_flow_steps=4."
        )
    if folds(evidence):
        folded = max(evidence.folded_share, evidence.folded_weight)
        found.append(
            f"The map folds: its determinant is negative at {folded:.2%} of the draws or of their "
            "weight, so two draws may share a point, and neither the ELBO nor the log evidence is "
            "a bound. Take num_flow_steps=4, or a smaller learning_rate."
        )
    if evidence.resolution > _COARSE:
        found.append(
            f"The log density is so large that neighbouring floats are {evidence.resolution:.2g} "
            "nats apart: weights, ELBO and log evidence are known no better. Use 64-bit floats "
            "(numpyro.enable_x64())."
        )
    if evidence.num_non_finite > _NEGLIGIBLE_REJECTED * evidence.num_draws:
        found.append(
            f"{evidence.num_non_finite} of the flow's draws have a density of zero or "
            "one that is not a number: they are left out of the ELBO, and any mass there is "
            "missing. Check the model for overflow (exp of a wide parameter), or use 64-bit "
            "floats (numpyro.enable_x64())."
        )
    if training.num_non_finite > _NEGLIGIBLE_SKIPPED * len(training.losses):
        found.append(
            f"{training.num_non_finite} training steps met a value that is not finite: the flow "
            "keeps away from where it is so, and any mass there is missing. Check the model for "
            "overflow, or use 64-bit floats (numpyro.enable_x64())."
        )
    if training.interrupted:
        found.append(
            "Training was interrupted; the draws come from the flow as it was then. Their weights "
            "are exact all the same. Call run() again to train to the end."
        )
    elif not training.judged:
        found.append(
            f"Training ended after {len(training.losses)} iterations, before its convergence could "
            "be judged. Raise max_steps."
        )
    elif training.still_rising:
        found.append(
            f"Training ended at max_steps while the ELBO was still rising (by "
            f"{training.final_rise:.3f} nats over the last quarter). Raise max_steps."
        )
    if training.pace < _STANDSTILL and not (training.num_undone and gap < _SMALL_GAP):
        found.append(
            "Steps that folded the map, or lost mass, were undone so often that training went on "
            f"at {training.pace:.1%} of its learning rate, and may have stood still where it seems "
            "to have converged. Take a smaller learning_rate or num_flow_steps=4, or "
            "reparameterise the model."
        )
    return found


def check_coverage(missed: Missed | None, samples: PyTree, constrain: Callable) -> list[str]:
    """Modes found without the flow that its draws do not reach: where, and how much they hold."""
    if missed is None or missed.odds < _NEGLIGIBLE_ODDS:
        return []
    share = missed.odds / (1 + missed.odds)
    modes = "a mode" if missed.num_modes == 1 else f"{missed.num_modes} modes"
    remedy = (
        "Take many_modes=True."
        if missed.where.size <= MOST_DIMENSIONS
        else "Run again with init_params= there and compare the evidences, or with more data or "
        "constraints that tell the modes apart."
    )
    return [
        f"Descents from scattered starts found {modes} that the draws do not reach, with about "
        f"{share:.0%} of the mass; the heaviest at {_place(missed.where, samples, constrain)}. The "
        f"draws and the evidence are those of the rest of the posterior alone. {remedy}"
    ]


def _place(x: Any, samples: PyTree, constrain: Callable) -> str:
    """A point by the sites in which it stands out from the draws, furthest first."""
    at = flatten_names(constrain(x[None]))
    found = []
    for name, draws in flatten_names(samples).items():
        draws, value = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (draws, at[name]))
        distance = abs(value[0] - draws.mean(0)) / (draws.std(0) + 1e-30)
        index = int(np.argmax(distance))
        label = name if draws.shape[1] == 1 else f"{name}[{index}]"
        found.append((distance[index], f"{label} = {value[0, index]:.3g}"))
    found.sort(reverse=True)
    return ", ".join(text for _, text in found[:3])


def warn(messages: list[str], stacklevel: int) -> None:
    """Raise each message as a `OneStepWarning`."""
    for message in messages:
        warnings.warn(message, OneStepWarning, stacklevel=stacklevel + 1)
