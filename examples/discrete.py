"""Discrete latent sites: the labels of a mixture, and the states of a hidden Markov model.

    python examples/discrete.py

docs/discrete.md explains it.  It needs the package funsor.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

from numpyro_onestep import OneStep


def mixture(y):
    """Two groups; to which of them a row belongs is not known."""
    weight = numpyro.sample("weight", dist.Dirichlet(jnp.ones(2)))
    mean = numpyro.sample("mean", dist.Normal(jnp.array([-2.0, 2.0]), 1).to_event(1))
    with numpyro.plate("row", len(y)):
        label = numpyro.sample("label", dist.Categorical(weight))
        numpyro.sample("y", dist.Normal(mean[label], 1), obs=y)


def hidden_markov(y):
    """A series that changes between a quiet and a busy state."""
    stay = numpyro.sample("stay", dist.Beta(9, 1).expand([2]).to_event(1))
    level = numpyro.sample("level", dist.Normal(jnp.array([0.0, 3.0]), 1).to_event(1))
    move = jnp.stack([jnp.array([stay[0], 1 - stay[0]]), jnp.array([1 - stay[1], stay[1]])])

    def step(before, y_now):
        state = numpyro.sample("state", dist.Categorical(move[before]))
        numpyro.sample("y", dist.Normal(level[state], 1), obs=y_now)
        return state, None

    scan(step, 0, y)


def main() -> None:
    """Run both models on made data, and show how often the true labels and states are found."""
    rng = np.random.default_rng(0)
    labels = rng.random(100) < 0.4
    y = jnp.asarray(np.where(labels, 2.0, -2.0) + rng.normal(size=100))
    sampler = OneStep(mixture, progress_bar=False)
    sampler.run(jax.random.key(0), y)
    sampler.print_summary()
    found = sampler.get_samples()["label"].mean(axis=0) > 0.5
    print(f"{np.mean(found == labels):.0%} of the labels are found")
    new = jnp.array([-1.0, 0.0, 1.0])
    chance = sampler.predict(jax.random.key(1), new)["label"].mean(axis=0)
    print("new rows at -1, 0, 1 belong to the second group with probability", np.round(chance, 2))

    states = np.cumsum(rng.random(150) < 0.06) % 2
    y = jnp.asarray(3.0 * states + rng.normal(size=150))
    sampler = OneStep(hidden_markov, progress_bar=False)
    sampler.run(jax.random.key(0), y)
    sampler.print_summary()
    found = sampler.get_samples()["state"].mean(axis=0) > 0.5
    print(f"{np.mean(found == states):.0%} of the states are found")


if __name__ == "__main__":
    main()
