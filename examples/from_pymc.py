"""A PyMC or a Bambi model: draws and evidence, from the model's log density in JAX.

    pip install pymc bambi
    python examples/from_pymc.py

docs/pymc.md explains it.
"""

from typing import Any

import jax
import numpy as np
import pymc as pm
from pymc.sampling.jax import get_jaxified_graph, get_jaxified_logp

from numpyro_onestep import OneStep

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def run(model: pm.Model, seed: int = 0, **settings: Any) -> tuple[OneStep, dict[str, np.ndarray]]:
    """Run OneStep on a PyMC model.

    Args:
        model: the model; all its free variables must be continuous.
        seed: of the run.
        **settings: those of `OneStep`.

    Returns:
        The sampler, whose draws are unconstrained, and the draws of the model's variables on
        their supports, deterministic ones included: `{name: (num_samples, *shape)}`.
    """
    log_density = get_jaxified_logp(model)  # log Jacobians of the transforms included
    names = [variable.name for variable in model.value_vars]

    def potential(values):
        return -log_density([values[name] for name in names])

    sampler = OneStep(potential_fn=potential, **settings)
    start = model.initial_point()
    sampler.run(jax.random.key(seed), init_params={name: start[name] for name in names})
    return sampler, constrained(model, sampler.get_samples())


def constrained(model: pm.Model, draws: dict[str, Any]) -> dict[str, np.ndarray]:
    """Unconstrained draws as the model's own variables, and its deterministic ones."""
    wanted = [*model.free_RVs, *model.deterministics]
    graph = get_jaxified_graph(
        inputs=model.value_vars,
        outputs=model.replace_rvs_by_values(wanted),
    )
    values = jax.vmap(graph)(*(draws[variable.name] for variable in model.value_vars))
    return {v.name: np.asarray(value) for v, value in zip(wanted, values, strict=True)}


def eight_schools() -> pm.Model:
    """The effects of coaching in eight schools, partly pooled."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        unit = pm.Normal("unit", 0, 1, shape=8)
        theta = pm.Deterministic("theta", mu + tau * unit)
        pm.Normal("effect", theta, ERRORS, observed=EFFECTS)
    return model


def print_table(draws: dict[str, np.ndarray]) -> None:
    """Mean and standard deviation of every variable."""
    for name, values in draws.items():
        mean, sd = (np.round(f(values, axis=0), 2) for f in (np.mean, np.std))
        print(f"{name:>12s}  mean {mean}\n{'':>12s}    sd {sd}")


def main() -> None:
    """Run eight schools in PyMC, and a regression in Bambi where that is installed."""
    sampler, draws = run(eight_schools())
    print_table(draws)
    print(f"log evidence {sampler.log_evidence:.2f} +- {sampler.log_evidence_std_error:.3f} nats")
    print(f"warnings {sampler.messages}")

    try:
        import bambi
        import pandas
    except ImportError:
        return
    x = np.linspace(-1, 1, 20)
    y = 1 + 2 * x + np.random.default_rng(0).normal(size=20)
    line = bambi.Model("y ~ x", pandas.DataFrame({"x": x, "y": y}))
    line.build()
    sampler, draws = run(line.backend.model)
    print_table({name: draws[name] for name in ("Intercept", "x", "sigma")})
    print(f"log evidence {sampler.log_evidence:.2f} +- {sampler.log_evidence_std_error:.3f} nats")


if __name__ == "__main__":
    main()
