"""A PyMC model by way of its JAX log density, where PyMC is installed."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# A process of its own, since PyMC turns on 64-bit floats for the whole session.
SCRIPT = """
import numpy as np
import pymc as pm
from scipy.stats import multivariate_normal
from examples.from_pymc import run

y = np.array([1.0, 2.0, 3.0])
with pm.Model() as model:
    mu = pm.Normal("mu", 0, 2)
    scale = pm.HalfNormal("scale", 1)
    pm.Deterministic("twice", 2 * scale)
    pm.Normal("y", mu, 1, observed=y)
sampler, draws = run(model, num_samples=1000, width=16, progress_bar=False)
exact = multivariate_normal(np.zeros(3), np.eye(3) + 4).logpdf(y)
assert abs(sampler.log_evidence - exact) < 0.01
# The posterior of mu has the precision 3 + 1/4; that of scale is its prior.
assert abs(draws["mu"].mean() - 6 / 3.25) < 0.1 / 3.25**0.5
assert abs(np.sqrt(np.mean(draws["scale"] ** 2)) - 1) < 0.1
np.testing.assert_allclose(draws["twice"], 2 * draws["scale"], rtol=1e-5)
assert sampler.messages == []
"""


@pytest.mark.skipif(find_spec("pymc") is None, reason="PyMC is not installed")
def test_draws_and_evidence_of_a_pymc_model_are_its_own():
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", SCRIPT]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
