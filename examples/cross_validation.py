"""Cross-validation of a hierarchy of homes in counties, by refits that begin from the full flow.

    python examples/cross_validation.py

The model is that of the radon data (Gelman and Hill, 2007): measurements in homes, on one of two
floors, in counties of unequal size.  The data are simulated, with three homes that do not fit.
docs/after_a_run.md explains the calls.
"""

import time
import warnings

import arviz as az
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

from numpyro_onestep import OneStep

COUNTIES, HOMES = 30, 240


def varying_intercepts(county, floor, radon=None):
    """Log radon: a level for each county, and a difference between the floors."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    beta = numpyro.sample("beta", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    with numpyro.plate("county", COUNTIES):
        unit = numpyro.sample("unit", dist.Normal(0, 1))
    level = mu + tau * unit
    with numpyro.plate("home", len(county)):
        mean = level[county] + beta * floor
        numpyro.sample("radon", dist.Normal(mean, sigma), obs=radon)


def simulated(seed: int = 0):
    """Counties of unequal size, and three homes far from all others."""
    rng = np.random.default_rng(seed)
    county = rng.choice(COUNTIES, HOMES, p=rng.dirichlet(np.ones(COUNTIES)))
    floor = rng.binomial(1, 0.2, HOMES).astype(np.float32)
    level = 1.4 + 0.3 * rng.standard_normal(COUNTIES)
    radon = level[county] - 0.7 * floor + 0.7 * rng.standard_normal(HOMES)
    radon[:3] += [6.0, -6.0, 8.0]
    return county, floor, radon.astype(np.float32)


def main(seed: int = 0) -> None:
    """Fit once; leave out single homes where that is needed, then a quarter of them at a time."""
    warnings.filterwarnings("ignore", category=UserWarning, module="arviz")
    data = simulated(seed)
    sampler = OneStep(varying_intercepts, progress_bar=False)
    sampler.run(jax.random.key(seed), *data)
    inference_data = sampler.to_inference_data()

    # Weights where they suffice, and a refit for each home where they do not.
    refits = sampler.refits(jax.random.key(seed + 1))
    by_weights = az.loo(inference_data, pointwise=True)
    print(az.reloo(refits, loo_orig=by_weights))

    # Four folds, by refits that begin from the flow of all data, and by runs from the beginning.
    begin = time.perf_counter()
    warm = refits.kfold(4)
    seconds_warm = time.perf_counter() - begin
    if hasattr(az, "loo_kfold"):  # ArviZ 1.x
        print(az.loo_kfold(inference_data, refits, k=4))
    begin, folds = time.perf_counter(), refits.folds(4)
    cold = np.empty(HOMES)
    for number in range(4):
        left_out = folds == number
        again = OneStep(varying_intercepts, progress_bar=False)
        again.run(jax.random.key(seed + 2), *(column[~left_out] for column in data))
        found = numpyro.infer.util.log_likelihood(
            varying_intercepts, again.get_samples(), *(column[left_out] for column in data)
        )
        cold[left_out] = jax.nn.logsumexp(found["radon"], axis=0) - np.log(len(found["radon"]))
    seconds_cold = time.perf_counter() - begin
    print(f"Four folds, warm: elpd {warm.elpd:.2f} +- {warm.se:.2f}, {seconds_warm:.1f} s")
    print(f"Four folds, cold: elpd {cold.sum():.2f}, {seconds_cold:.1f} s")
    print(f"Largest difference of a home: {abs(warm.pointwise - cold).max():.3f} nats")


if __name__ == "__main__":
    main()
