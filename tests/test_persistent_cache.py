"""The persistent compilation cache of JAX keeps every program of a run, if the user has one."""

import os
import subprocess
import sys

import jax
import pytest

from numpyro_onestep._util.numerics import numerics

LIMIT = "jax_persistent_cache_min_compile_time_secs"
# Compilation of this program takes milliseconds.
SCRIPT = """
import jax.numpy as jnp
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.numerics import numerics

@compiled
def doubled(x):
    return 2 * x

with numerics():
    doubled(jnp.ones(3))
"""


def test_a_program_that_compiles_fast_is_written_too(tmp_path):
    here = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    here.pop(LIMIT.upper(), None)
    subprocess.run([sys.executable, "-c", SCRIPT], env=here, check=True)
    assert any("doubled" in path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize(("folder", "limit", "inside"), [
    ("somewhere", 1.0, 0.0),
    ("somewhere", 5.0, 5.0),  # the user's own choice
    (None, 1.0, 1.0),
])  # fmt: skip
def test_the_limit_is_lifted_inside_of_a_run_only(folder, limit, inside):
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", LIMIT)}
    try:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update(LIMIT, limit)
        with numerics():
            assert getattr(jax.config, LIMIT) == inside
        assert getattr(jax.config, LIMIT) == limit
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
