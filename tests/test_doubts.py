"""Every kind of warning, each from the one thing that it warns of.

The results are those of eight schools, which nothing speaks against, with one thing changed: what
provokes it in a run is tested where that can be had in little time.
"""

import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_onestep.checks.coverage import Missed
from numpyro_onestep.checks.line_scan import Scan
from numpyro_onestep.diagnostics.doubts import doubts
from numpyro_onestep.diagnostics.report import check, summary, verdict
from numpyro_onestep.problem import Problem
from numpyro_onestep.settings import Settings

MODES = "Take multimodal=True."
SEVERAL_STARTS = "Compare with NUTS from several starts"
TAIL = "The flow gives a tail or a neck of the posterior too little mass: "


def evidence(result, **changes):
    """With another evidence, whose Pareto k is the same on every processor."""
    weighted = result.weighted
    changed = weighted.evidence._replace(**{"pareto_k": 0.34, **changes})
    return replace(result, weighted=weighted._replace(evidence=changed))


def scan(result, **changes):
    fine = Scan(0.1, "mu", None, None)
    return replace(result, scan=fine._replace(**changes))


def corrected(result, **changes):
    return replace(result, corrected=replace(result.corrected, **changes))


def chains(result, **changes):
    """As if the draws came from Markov chains that have mixed."""
    fine = {"r_hat": 1.001, "min_ess": 3000.0, "acceptance": 0.8, "divergences": 0}
    return corrected(result, **{**fine, **changes})


def training(result, **changes):
    return replace(result, training=replace(result.training, **changes))


def problem(result, **changes):
    return replace(result, problem=replace(result.problem, **changes))


def of_length(result, num):
    """The records of a training of so many iterations, which differ between processors."""
    records = result.training.records["evidence"]
    return {"evidence": records._replace(loss=np.resize(np.asarray(records.loss), num))}


def in_many_dimensions(result):
    """As if the target had more than tempered SMC can explore."""
    return problem(result, start=np.zeros(200, np.float32))


def from_mixture(result):
    return training(result, from_gaussian=False)


def distilled(result):
    """As if a distillation stage came before the evidence stage."""
    records = result.training.records
    return training(result, records={"distillation": records["evidence"], **records})


def with_gap(result, gap):
    """The ELBO so many nats below the log evidence; on its own that is no reason to doubt."""
    return evidence(result, elbo=result.evidence.log_evidence - gap)


def missed(result, num_modes=1, odds=1.0, d=10):
    """A mode at which mu is 40, and more of them that hold less; mu is the first coordinate."""
    where = jnp.zeros(d).at[0].set(40.0)
    return replace(result, missed=Missed(num_modes, odds, where))


def only(result) -> str:
    """The one message that there is, and the verdict that agrees with it."""
    messages = check(result)
    assert len(messages) == 1
    assert verdict(result).startswith("do not trust: ")
    assert f"WARNING: {messages[0]}" in summary(
        replace(result, messages=messages), Settings.of().draws
    )
    return messages[0]


def test_nothing_speaks_against_a_good_result(schools):
    assert check(schools.result) == ()
    assert verdict(schools.result).startswith("good: ")


def uneven(result, **changes):
    """Weights that are uneven, beside what is changed."""
    return evidence(result, ess=0.3 * result.evidence.num_draws, **changes)


# Name, what is changed, how the message begins, and the remedy in it.
CASES = {
    "an edge": (
        lambda r: scan(uneven(r, tail_mass=0.1), edge="tau"),
        "The density has an edge: in tau it is high up to a point, and zero beyond",
        "Give the site a support that ends there, as dist.LeftTruncatedDistribution has, or: "
        + MODES,
    ),
    "an edge beside chains, which exclude a mixture": (
        lambda r: corrected(scan(uneven(r, tail_mass=0.1), edge="tau"), num_chains=4),
        "The density has an edge: in tau",
        "or: Take multimodal=True with the default correction.",
    ),
    "an edge after a distillation, which excludes it too": (
        lambda r: distilled(scan(uneven(r, tail_mass=0.1), edge="tau")),
        "The density has an edge: in tau",
        "or: Take multimodal=True with num_distillation_steps=0.",
    ),
    "a mode that was missed beside both": (
        lambda r: distilled(corrected(missed(r), num_chains=4)),
        "Descents from scattered starts found a mode",
        "Take multimodal=True with the default correction and num_distillation_steps=0.",
    ),
    "a step": (
        lambda r: scan(uneven(r, tail_mass=0.1), step="tau"),
        "The density has steps: in tau it jumps from one value to another",
        f"Sum over the places of the step, or: {MODES}",
    ),
    "an edge beside draws that lines change": (
        lambda r: scan(r, edge="tau", off=1.5),
        "The density has an edge: in tau",
        MODES,
    ),
    "lines that change the draws": (
        lambda r: scan(r, off=1.1, where="standardised[3]"),
        "The draws of standardised[3] are not those of the model: along that coordinate",
        MODES,
    ),
    "the same of a mixture": (
        lambda r: from_mixture(scan(r, off=1.1)),
        "The draws of mu are not those of the model",
        f"{SEVERAL_STARTS}, or with another key.",
    ),
    "the same in many dimensions": (
        lambda r: in_many_dimensions(scan(r, off=1.1)),
        "The draws of mu are not those of the model",
        f"{SEVERAL_STARTS}.",
    ),
    "no draw of finite density": (
        lambda r: evidence(r, elbo=-math.inf, log_evidence=-math.inf, ess=0.0, pareto_k=math.inf),
        "No draw of the flow lies where the density is finite and not zero.",
        "Give run() init_params= in a region of high density",
    ),
    "draws whose density is not a number": (
        lambda r: evidence(r, num_not_a_number=400),
        "The density is not a number at 1.0% of the flow's draws (in float32)",
        "Check the model for overflow",
    ),
    "training steps that were not finite": (
        lambda r: training(r, records=broken_at(r, 150)),
        "150 training steps met a value that is not finite: the flow keeps away",
        "Check the model for overflow",
    ),
    "folds": (
        lambda r: evidence(r, folded_fraction=0.02),
        "The map folds: its determinant is negative at 2.00% of the draws",
        "Take num_flow_steps=4, or a smaller learning_rate.",
    ),
    "folds that hold weight": (
        lambda r: evidence(r, folded_weight=0.02),
        "The map folds: its determinant is negative at 2.00% of the draws",
        "Take num_flow_steps=4, or a smaller learning_rate.",
    ),
    "a tail of uneven weights": (
        lambda r: uneven(r, pareto_k=0.8, tail_mass=0.03),
        f"{TAIL}Pareto k is 0.80, and about 3% of the mass is expected beyond the heaviest draw. "
        "So the draws and the log evidence may be wrong.",
        "Take correction='nuts', reparameterise the model",
    ),
    "a tail at a gap": (
        lambda r: evidence(with_gap(r, 0.05), tail_mass=0.03),
        f"{TAIL}Pareto k is 0.34, and about 3% of the mass",
        "Take correction='nuts', reparameterise the model",
    ),
    "a large tail of even weights": (
        lambda r: evidence(r, tail_mass=0.3),
        f"{TAIL}Pareto k is 0.34, and about 30% of the mass",
        "or compare with NUTS.",
    ),
    "a tail beyond the chains of NUTS": (
        lambda r: chains(uneven(r, tail_mass=0.03)),
        f"{TAIL}Pareto k is 0.34, and about 3% of the mass is expected beyond the heaviest draw. "
        "So the log evidence may be wrong.",
        "Raise pool_size=, reparameterise the model, or compare with NUTS.",
    ),
    "a tail of a mixture": (
        lambda r: from_mixture(uneven(r, tail_mass=0.03)),
        f"{TAIL}Pareto k is 0.34",
        "Raise pool_size=, reparameterise the model, or compare with NUTS.",
    ),
    # The standard error is (1 + k) / sqrt(3 sqrt(40,000)) = 0.07.
    "Pareto k just below its limit at a gap": (
        lambda r: evidence(with_gap(r, 0.3), pareto_k=0.66),
        f"{TAIL}Pareto k is 0.66, below 0.70 by less than its standard error of 0.07, at a gap of "
        "0.30 nats.",
        "Take correction='nuts', reparameterise the model",
    ),
    "draws too heavy to be chosen once": (
        lambda r: corrected(r, capped_fraction=0.07),
        f"{TAIL}7.0% of the weight lies on draws too heavy to be chosen once.",
        "Take correction='nuts', reparameterise the model",
    ),
    "chains that change the draws": (
        lambda r: corrected(r, change=math.log(1.12)),
        f"{TAIL}short Markov chains from the draws changed a standard deviation by 12%.",
        "Take correction='nuts', reparameterise the model",
    ),
    "a flow that does not fit": (
        lambda r: evidence(r, ess=0.05 * 40_000, tail_mass=0.1),
        "The flow does not fit the posterior, which may have several modes or be bent like a "
        "ring: Pareto k is 0.34, and about 10% of the mass is expected beyond the heaviest draw, "
        "and the pool is worth 5.0% of its draws.",
        MODES,
    ),
    "a flow that does not fit, by Pareto k": (
        lambda r: evidence(r, ess=0.05 * 40_000, pareto_k=1.2),
        "The flow does not fit the posterior",
        MODES,
    ),
    "chains that have not mixed": (
        lambda r: chains(r, r_hat=1.05),
        "R-hat of the correcting chains is 1.050, above 1.01: they have not mixed",
        "Raise num_samples, or train longer (max_steps=).",
    ),
    "chains without an R-hat": (
        lambda r: chains(r, r_hat=math.nan),
        "R-hat of the correcting chains is nan, above 1.01",
        "Raise num_samples",
    ),
    "divergences": (
        lambda r: chains(r, divergences=3),
        "3 of the correcting chains' transitions diverged",
        "Write a constraint that is a steep penalty as the support of a site; for a neck, train "
        "longer (max_steps=) or take num_flow_steps=4.",
    ),
    "draws whose floats are too far apart": (
        # mu is at three million now, where floats are 0.25 apart: a fourteenth of its deviation.
        lambda r: corrected(r, x=np.float32(r.corrected.x + 3e6 * (np.arange(10) == 0))),
        "Single precision cannot tell the values of mu apart: neighbouring floats of mu are 0.07",
        "Subtract a constant from the data",
    ),
    "a log density too large for its floats": (
        lambda r: evidence(r, resolution=0.25),
        "The log density is so large that neighbouring floats are 0.25 nats apart",
        "Leave target_precision at 'auto', or use 64-bit floats (numpyro.enable_x64()).",
    ),
    "training that stood still": (
        lambda r: training(with_gap(r, 0.15), learning_rate_scale=0.05),
        "Steps that folded the map, or lost mass, were undone so often that training went on at "
        "5.0% of its learning rate",
        "Take a smaller learning_rate or num_flow_steps=4",
    ),
    "training that ended early": (
        lambda r: training(with_gap(r, 0.15), is_judged=False, records=of_length(r, 1500)),
        "Training ended after 1500 iterations, before its convergence could be judged.",
        "Raise max_steps.",
    ),
    "an ELBO that was still rising": (
        lambda r: training(with_gap(r, 0.15), still_rising=True, final_rise=0.0321),
        "Training ended at max_steps while the ELBO was still rising (by 0.032 nats over the last "
        "quarter).",
        "Raise max_steps.",
    ),
    "a mode that was missed": (
        lambda r: missed(r, odds=1 / 3),
        "Descents from scattered starts found a mode that the draws do not reach, with about 25% "
        "of the mass; the heaviest at mu = 40",
        MODES,
    ),
    "several of them": (
        lambda r: missed(r, num_modes=3, odds=3.0),
        "Descents from scattered starts found 3 modes that the draws do not reach, with about 75% "
        "of the mass; the heaviest at mu = 40",
        MODES,
    ),
}


def broken_at(result, num):
    """The records of training with so many iterations that met something not finite."""
    records = result.training.records["evidence"]
    non_finite = np.arange(len(np.asarray(records.loss))) < num
    return {"evidence": records._replace(non_finite=non_finite.astype(float))}


@pytest.mark.parametrize("name", CASES)
def test_one_thing_gives_one_message_with_its_cause_first_and_its_remedy(name, schools):
    change, cause, remedy = CASES[name]
    message = only(change(schools.result))
    assert message.startswith(cause)
    assert remedy in message


# What is too little to be warned of, each just below what is above.
FINE = {
    "an edge around which the flow was trained": lambda r: scan(r, edge="tau"),
    "a step around which the flow was trained": lambda r: scan(r, step="tau"),
    "noise of the lines": lambda r: scan(r, off=0.99),
    "too few draws for lines": lambda r: replace(r, scan=None),
    "a single draw that is not a number": lambda r: evidence(r, num_not_a_number=40),
    "a few steps that were not finite": lambda r: training(r, records=broken_at(r, 15)),
    "single folds": lambda r: evidence(r, folded_fraction=0.0009, folded_weight=0.0009),
    "a tail of even weights": lambda r: evidence(r, tail_mass=0.2),
    "a small tail of uneven weights": lambda r: uneven(r, tail_mass=0.019),
    "a large Pareto k of a tail without mass": lambda r: evidence(r, pareto_k=1.5),
    "Pareto k just below its limit": lambda r: evidence(with_gap(r, 0.19), pareto_k=0.66),
    "weight on few heavy draws": lambda r: corrected(r, capped_fraction=0.04),
    "chains that have mixed": lambda r: chains(r, r_hat=1.009),
    "floats of a large log density": lambda r: evidence(r, resolution=0.04),
    "a gap that training need not close": lambda r: training(
        with_gap(r, 0.09), learning_rate_scale=0.05, is_judged=False, still_rising=True
    ),
    "a rate of a tenth": lambda r: training(with_gap(r, 0.15), learning_rate_scale=0.11),
    "a low rate of a mixture": lambda r: from_mixture(
        training(with_gap(r, 0.15), learning_rate_scale=0.05)
    ),
    "a mode of next to no mass": lambda r: missed(r, odds=0.029),
    "the step of a density that lines do not mind": lambda r: scan(missed(r), step="tau"),
}


@pytest.mark.parametrize("name", FINE)
def test_what_does_not_matter_is_not_warned_of(name, schools):
    result = FINE[name](schools.result)
    assert check(result) == ()
    assert not verdict(result).startswith("do not trust")


def test_a_large_pareto_k_without_mass_is_called_usable(schools):
    result = evidence(schools.result, pareto_k=1.5, tail_mass=0.013)
    assert verdict(result).startswith("usable: single draws are heavy")
    assert "1.3% of the mass" in verdict(result)


def test_the_likeliest_cause_comes_first_and_the_others_are_listed(schools):
    result = evidence(schools.result, folded_fraction=0.02, resolution=0.25, tail_mass=0.3)
    result = scan(chains(result, r_hat=1.2, divergences=5), off=2.0, edge="tau")
    message = only(missed(result))
    assert verdict(result).startswith("do not trust: the density ends in tau")
    assert verdict(missed(result)) == "do not trust: modes are missing"
    assert message.startswith("Descents from scattered starts found a mode")
    # Four at most, in the order of their ranks.
    seen = message.split("(Also seen: ")[1]
    assert seen == (
        "the density ends in tau where it is high; redrawing mu from its conditional density "
        "changes the draws; neighbouring floats are 0.25 nats apart; the map folds at 2.00% of "
        "the draws.) [missed-modes]"
    )
    assert len(doubts(result)) == 7


def test_training_is_named_as_the_cause_of_what_else_is_seen(schools):
    # At no gap it would say nothing of itself.
    heavy = uneven(schools.result, pareto_k=0.8, tail_mass=0.03)
    message = only(training(heavy, is_judged=False))
    assert message.startswith("Training ended after 1500 iterations, before")
    assert "(Also seen: Pareto k is 0.80, and about 3% of the mass" in message
    # A mixture that was trained at a low rate does have to account for a tail.
    message = only(from_mixture(training(heavy, learning_rate_scale=0.05)))
    assert message.startswith("Steps that folded the map")


def test_a_missed_mode_in_many_dimensions_is_looked_at_from_there(schools):
    # Those who explore no more can start there.
    class Many(Problem):
        def constrain(self, x):
            return {"mu": x[:, 0], "x": x[:, 1:]}

    samples = {"mu": np.random.default_rng(0).normal(size=100), "x": np.zeros((100, 199))}
    result = missed(
        replace(schools.result, problem=Many(**vars(schools.result.problem)), samples=samples),
        d=200,
    )
    message = only(result)
    assert message.startswith("Descents from scattered starts found a mode")
    assert "Run again with init_params= there and compare the evidences" in message
    assert "multimodal" not in message
