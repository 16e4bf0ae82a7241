"""What a run leaves behind, whole or interrupted."""

from dataclasses import FrozenInstanceError

import jax.random as jr
import numpy as np
import pytest

from numpyro_onestep import OneStep, OneStepWarning
from numpyro_onestep.importance import pool
from numpyro_onestep.training import loop
from tests.conftest import EFFECT, EIGHT_SCHOOLS_LOG_EVIDENCE, STD_ERROR, eight_schools

QUICK = {"num_samples": 300, "pool_size": 1000, "width": 16, "progress_bar": False}


def test_an_interrupt_leaves_a_usable_sampler(monkeypatch):
    def interrupting(text):
        if text.startswith("300/"):
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.progress, "detail", interrupting)
    sampler = OneStep(eight_schools, **QUICK)
    with pytest.warns(OneStepWarning, match="interrupted"):
        sampler.run(jr.key(0), STD_ERROR, y=EFFECT)
    assert len(sampler.losses) == 300
    assert sampler.get_samples()["theta"].shape == (300, 8)
    assert sampler.sample(jr.key(1), 10)["theta"].shape == (10, 8)
    assert sampler.elbo > EIGHT_SCHOOLS_LOG_EVIDENCE - 1


def test_an_interrupt_while_weighing_leaves_the_trained_flow(monkeypatch):
    def interrupting(*args, **kwargs):
        raise KeyboardInterrupt

    sampler = OneStep(eight_schools, **QUICK)
    with monkeypatch.context() as patched:
        patched.setattr(pool, "draw_pool", interrupting)
        with pytest.raises(KeyboardInterrupt):
            sampler.run(jr.key(0), STD_ERROR, y=EFFECT)
    assert len(sampler.losses) > 0
    assert sampler.seconds["training"] > 0
    assert sampler.sample(jr.key(1), 10)["theta"].shape == (10, 8)
    assert np.isfinite(sampler.evaluate(jr.key(1), 1, 500).elbo)
    assert sampler.get_posterior().event_shape == (10,)
    with pytest.raises(RuntimeError, match="before its draws were weighed"):
        sampler.get_samples()


def test_the_result_is_frozen(schools):
    with pytest.raises(FrozenInstanceError):
        schools.result.messages = ()
    assert schools.result.evidence.elbo == schools.elbo
    assert list(schools.losses_by_stage) == ["evidence"]
    assert len(schools.chunk_seconds) == -(-len(schools.losses) // 100)
    assert len(schools.get_pool().x) == 40_000
