"""Eight schools: draws, ELBO and log evidence in one run, side by side with NUTS.

    python examples/eight_schools.py [--output eight_schools.png]

The log evidence of this model is known to be -31.31.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from numpyro_onestep import OneStep, compare_with_nuts

EFFECT = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
STD_ERROR = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(sigma, y=None):
    """Effects of coaching in eight schools, partially pooled; non-centred."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        standardised = numpyro.sample("standardised", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * standardised)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def main() -> None:
    """Run OneStep and NUTS, print both, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    output = parser.parse_args().output

    sampler = OneStep(eight_schools)
    sampler.run(jax.random.key(0), STD_ERROR, y=EFFECT)
    sampler.print_summary()

    print("Running NUTS, 4 chains of 1000 + 1000, for comparison ...")
    comparison = compare_with_nuts(sampler, jax.random.key(1))
    print(comparison)
    comparison.plot(output)
    print(f"Wrote {output}")


if __name__ == "__main__":
    main()
