"""What comes after a run: ArviZ, prediction, comparison of models, more data.

    python examples/after_a_run.py

docs/after_a_run.md explains it.  The picture is written next to this file.
"""

import sys
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from numpyro_onestep import OneStep

PICTURE = Path(__file__).with_name("after_a_run.png")
EFFECTS = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
SCHOOLS = list("ABCDEFGH")


def partly_pooled(errors, effects=None):
    """Eight schools, each with an effect of its own."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(errors)):
        unit = numpyro.sample("unit", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * unit)
        numpyro.sample("effect", dist.Normal(theta, errors), obs=effects)


def pooled(errors, effects=None):
    """All schools have the same effect."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("school", len(errors)):
        numpyro.sample("effect", dist.Normal(mu, errors), obs=effects)


def main() -> None:
    """Run both models on the data, and show what can be done with them."""
    samplers, data = {}, {}
    for model in (partly_pooled, pooled):
        sampler = OneStep(model, progress_bar=False)
        sampler.run(jax.random.key(0), ERRORS, EFFECTS)
        samplers[model.__name__] = sampler
        data[model.__name__] = sampler.to_inference_data(
            coords={"school": SCHOOLS},
            posterior_predictive=sampler.predict(jax.random.key(1)),
            log_prior=True,
        )
        print(f"{model.__name__}: log evidence {sampler.log_evidence:.2f}")

    print("\nSummary\n", az.summary(data["partly_pooled"], var_names=["mu", "tau"]))
    print("\nLeave-one-out\n", az.compare(data))
    if hasattr(az, "psense_summary"):  # ArviZ 1.x
        sensitivity = az.psense_summary(data["partly_pooled"], var_names=["mu", "tau"])
        print("\nPower-scaling sensitivity\n", sensitivity)

    # A ninth school, of which nothing is known but its standard error.
    ninth = samplers["partly_pooled"].predict(jax.random.key(2), jnp.array([12.0]))["effect"]
    print(f"\nA ninth school: {ninth.mean():.1f} +- {ninth.std():.1f}")

    # Data in two parts: the posterior of the first is the prior of the second.
    first = OneStep(pooled, progress_bar=False)
    first.run(jax.random.key(3), ERRORS[:4], EFFECTS[:4])
    prior = first.as_prior()

    def second_half(errors, effects):
        mu = prior()["mu"]
        with numpyro.plate("school", len(errors)):
            numpyro.sample("effect", dist.Normal(mu, errors), obs=effects)

    second = OneStep(second_half, progress_bar=False)
    second.run(jax.random.key(4), ERRORS[4:], EFFECTS[4:])
    both = first.log_evidence + second.log_evidence
    print(f"Log evidence in two parts: {both:.3f}; at once: {samplers['pooled'].log_evidence:.3f}")

    if hasattr(az, "plot_ppc_dist"):  # ArviZ 1.x
        az.plot_ppc_dist(data["partly_pooled"]).savefig(PICTURE)
    else:
        az.plot_ppc(data["partly_pooled"], num_pp_samples=200).figure.savefig(PICTURE)
    print(f"Picture: {PICTURE.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
