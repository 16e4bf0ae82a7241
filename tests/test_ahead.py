"""What a first run compiles ahead in another thread is what it comes to: nothing is compiled twice.

Where an argument had another shape, type or static value ahead than in use, the run would be right
all the same, and take seconds longer.
"""

import logging
import re
from collections import defaultdict

import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_onestep import OneStep
from numpyro_onestep.importance import pool
from numpyro_onestep.initialise import best_fit
from numpyro_onestep.multimodal import modes
from numpyro_onestep.training import loop
from tests.conftest import QUICK

pytestmark = pytest.mark.filterwarnings("ignore::numpyro_onestep.OneStepWarning")

PROGRAMS = {
    "run_chunk": loop.run_chunk,
    "initial_state": loop.initial_state,
    "_sample_base": pool._sample_base,
    "_weigh": pool._weigh,
    "_matched": best_fit._matched,
    "_descents": modes._descents,
}


ALL = ["run_chunk", "_sample_base", "_weigh", "_matched"]


@pytest.fixture(scope="module", autouse=True)
def no_other_programs():
    """Where other tests have left many programs, a run would drop them all, and the counts err."""
    jax.clear_caches()


def normal(y):
    mu = numpyro.sample("mu", dist.Normal(0, 2).expand(y.shape[1:]).to_event(1))
    numpyro.sample("y", dist.Normal(mu, 1).to_event(1), obs=y)


def threads_of_compilations(caplog):
    """For each program, the thread of each time that XLA has compiled it."""
    found = defaultdict(list)
    for record in caplog.records:
        name = re.match(r"Finished XLA compilation of (?:jit\()?(\w+)", record.getMessage())
        if name:
            found[name[1]].append(record.threadName)
    return found


def num_kept(name):
    return PROGRAMS[name]._cache._cache_size()


@pytest.mark.parametrize(
    ("d", "settings", "ahead", "later"),
    [
        # No other test has such a model, so that nothing of it is compiled before.
        (3, {}, ALL, ["initial_state"]),
        pytest.param(4, {"num_flow_steps": 2}, ALL, [], marks=pytest.mark.slow),
        # A large pool, of which no whole tenth can be inflated.
        pytest.param(
            *(7, {"num_samples": 7001, "pool_size": 70_001}, ALL, []), marks=pytest.mark.slow
        ),
        pytest.param(5, {"correction": None}, ALL, [], marks=pytest.mark.slow),
        # Its base distribution is not known until particles have looked for modes.
        pytest.param(
            *(6, {"multimodal": True}, ["_matched", "_descents"], ["run_chunk", "_weigh"]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_first_run_compiles_each_program_once_and_ahead(d, settings, ahead, later, caplog):
    before = {name: num_kept(name) for name in PROGRAMS}
    sampler = OneStep(normal, **{**QUICK, "width": 11, **settings})
    with caplog.at_level(logging.DEBUG, logger="jax._src.dispatch"):
        sampler.run(jr.key(0), jnp.ones((7, d)))
    threads = threads_of_compilations(caplog)
    for name in ahead + later:
        assert len(threads[name]) == 1, name
    for name in ahead:
        assert num_kept(name) == before[name] + 1, name
        assert threads[name][0].startswith("compile"), name
