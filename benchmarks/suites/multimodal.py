"""Models of several modes as statisticians meet them: shares of modes by symmetry, beside NUTS.

    python -m benchmarks.many_modes [--models label_switching ...] [--seeds 0 1 2] [--resume]

The labels of a mixture's components can be permuted, and a product's factors can both change sign,
so the mass of each mode is known.  Beside OneStep with and without many_modes=True stand NUTS
(4 chains of 1000 + 1000) and the tempered particles alone, with four times the usual number.
Writes docs/many_modes.md.
"""

import argparse
import itertools
import time
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.initialization import init_to_uniform

from benchmarks.methods import plain_nuts
from benchmarks.store import DOCS, Results, machines, table
from numpyro_onestep import OneStep
from numpyro_onestep.initialise.best_fit import fit_base
from numpyro_onestep.multimodal.tempered_smc import explore
from numpyro_onestep.target import model_target

COLUMNS = {
    "model": ("model", None),
    "method": ("method", None),
    "seed": ("seed", None),
    "modes": ("modes", None),
    "TV of their shares": ("tv", 3),
    "log evidence": ("log_evidence", 3),
    "warned": ("warned", None),
    "seconds": ("seconds", 1),
}


def label_switching(y):
    """Three normals of equal weight and unknown means, in no order: six modes."""
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([3]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.ones(3) / 3), dist.Normal(mu, sigma))
    numpyro.sample("y", mixture, obs=y)


def sign_ambiguity(x, y):
    """A product of two coefficients: both may change sign."""
    a = numpyro.sample("a", dist.Normal(0, 2))
    b = numpyro.sample("b", dist.Normal(0, 2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    numpyro.sample("y", dist.Normal(a * b * x, sigma), obs=y)


def labelling(draws) -> np.ndarray:
    """Which of the six orders a draw's means are in."""
    orders = list(itertools.permutations(range(3)))
    return np.array([orders.index(tuple(row)) for row in np.argsort(draws["mu"], axis=1)])


def models() -> dict[str, tuple[Callable, tuple, Callable, int]]:
    """Model, arguments, the mode of each draw, and how many modes of equal mass there are."""
    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(loc, 1.0, 40) for loc in (-5.0, 0.0, 6.0)])
    x = np.linspace(-1, 1, 40)
    product = 3.0 * x + 0.5 * rng.standard_normal(40)
    return {
        "label_switching": (label_switching, (y,), labelling, 6),
        "sign_ambiguity": (
            sign_ambiguity,
            (x, product),
            lambda draws: (np.asarray(draws["a"]) > 0).astype(int),
            2,
        ),
    }


def run_onestep(model, args, key, many_modes: bool):
    """Corrected draws, log evidence, and whether it warned."""
    sampler = OneStep(model, many_modes=many_modes, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler.run(key, *args)
    return sampler.get_samples(), sampler.log_evidence, "yes" if sampler.messages else "no"


def run_nuts(model, args, key):
    """Four chains."""
    mcmc = plain_nuts(model)
    mcmc.run(key, *args)
    return mcmc.get_samples(), None, ""


def run_particles(model, args, key):
    """The tempered particles without a flow."""
    key_start, key_base, key_explore = jr.split(key, 3)
    _, potential, start = model_target(key_start, model, args, {}, None, init_to_uniform)
    base = fit_base(potential, start, key_base).base
    population = explore(potential, start, base, key_explore, num_particles=16_000)
    return jax.vmap(potential.constrain)(population.x), population.log_evidence, ""


METHODS = {
    "OneStep(many_modes=True)": lambda *args: run_onestep(*args, True),
    "OneStep": lambda *args: run_onestep(*args, False),
    "NUTS": run_nuts,
    "tempered particles": run_particles,
}


def main() -> None:
    """Run and write the page."""
    known = models()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(known), choices=known)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--resume", action="store_true", help="keep what is there")
    options = parser.parse_args()
    results = Results("many_modes", options.resume)
    for name in options.models:
        model, args, mode_of, num_modes = known[name]
        for (method, function), seed in itertools.product(METHODS.items(), options.seeds):
            if results.holds(model=name, method=method, seed=seed):
                continue
            jax.clear_caches()
            clock = time.perf_counter()
            draws, log_evidence, warned = function(model, args, jr.key(seed))
            draws = jax.tree.map(np.asarray, draws)
            seconds = time.perf_counter() - clock
            counts = np.bincount(mode_of(draws), minlength=num_modes)
            shares = counts / counts.sum()
            row = {
                "model": name,
                "method": method,
                "seed": seed,
                "modes": f"{np.sum(shares > 0)} of {num_modes}",
                "tv": 0.5 * np.abs(shares - 1 / num_modes).sum(),
                "log_evidence": log_evidence,
                "warned": warned,
                "seconds": seconds,
            }
            results.add(row)
            print(row, flush=True)
    order = [*known, *METHODS]
    rows = sorted(
        results.rows, key=lambda row: [order.index(row[key]) for key in ("model", "method")]
    )
    (DOCS / "many_modes.md").write_text(
        "# Models of several modes\n\nWritten by `python -m benchmarks.many_modes` on "
        f"{machines(rows)}. "
        "All modes of a model have the same mass, by symmetry; TV is the total variation between "
        "that and the shares of 4000 draws (16,000 particles). Seconds include compilation.\n\n"
        f"{table(rows, COLUMNS)}\n"
    )


if __name__ == "__main__":
    main()
