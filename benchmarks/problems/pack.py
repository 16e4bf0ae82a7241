"""Makes the files in ``benchmarks/problems/data``: a model's data, and moments to compare with.

    python -m benchmarks.problems.pack draws FOLDER [NAME ...]    from stored reference draws
    python -m benchmarks.problems.pack nuts NAME DATA.npz         by long runs of NUTS
    python -m benchmarks.problems.pack held_out [NAME ...]        simulated, and by long NUTS
    python -m benchmarks.problems.pack simulated                  the funnel and the horseshoe

Every file holds `mean`, `sd` (one value for each parameter) and `effective_size` (how many
independent draws they are worth), and the arguments of the model as `data_<argument>`.

For `draws`, FOLDER holds one ``.npz`` for each name in `SOURCES`, with ``draws`` (chain, draw,
parameter) or ``draws_unconstrained`` (draw, parameter), whose columns are those of
`Posterior.parameters`, and with the model's data as ``data_<argument>``. For `nuts`, NAME is one of
`POSTERIORS`, and DATA.npz holds the arguments of its model under their own names.

Runs of NUTS are in double precision and take minutes. They stop with an error where R-hat is above
1.01, and print how many transitions have diverged.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
import numpyro
from numpyro.diagnostics import effective_sample_size, gelman_rubin, summary
from numpyro.infer import MCMC, NUTS, init_to_median

from benchmarks.problems.held_out import HELD_OUT, REFERENCE_MODELS, SIMULATORS
from benchmarks.problems.posterior import DATA, Posterior
from benchmarks.problems.reference_posteriors import POSTERIORS, horseshoe

# The file of stored draws that each posterior's reference was made of.
SOURCES = {
    "arK": "arK-arK",
    "blr": "sblri-blr",
    "nes": "nes1972-nes",
    "mesquite": "mesquite-logmesquite",
    "kidscore": "kidiq-kidscore_momiq",
    "gauss_mix": "low_dim_gauss_mix-low_dim_gauss_mix",
    "gp_regr": "gp_pois_regr-gp_regr",
    "eight_schools": "eight_schools-eight_schools_noncentered",
    "eight_schools_centered": "eight_schools-eight_schools_noncentered",
    **{name: name for name in ("seeds", "ionosphere", "sonar", "credit", "cancer", "brownian")},
}
LARGEST_R_HAT = 1.01
# With more divergent transitions than that, the chains may lack a region that smaller steps reach.
MOST_DIVERGENCES = 5


def pack_draws(folder: Path, name: str) -> None:
    """A reference from stored draws."""
    stored = np.load(folder / f"{SOURCES[name]}.npz")
    key = "draws" if "draws" in stored else "draws_unconstrained"
    draws = stored[key].astype(np.float64)
    draws = draws.reshape(-1, draws.shape[-1])
    data = {k: stored[k] for k in stored.files if k.startswith("data_") and stored[k].ndim}
    np.savez_compressed(
        DATA / f"{name}.npz",
        mean=draws.mean(0),
        sd=draws.std(0),
        # Every reference was thinned until its draws were close to independent.
        effective_size=len(draws),
        **data,
    )


def _nuts(posterior: Posterior, data: dict, seed: int, target: float, size: int):
    """Draws (chain, draw, parameter) of four long chains, and how many transitions diverged."""
    model = REFERENCE_MODELS.get(posterior.name, posterior.model)
    mcmc = MCMC(
        # From the prior's medians: from uniform starts the chains of a differential equation's
        # parameters may end in different modes.
        NUTS(model, target_accept_prob=target, init_strategy=init_to_median),
        num_warmup=2000,
        num_samples=size,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    arguments = (data[key] for key in posterior.data)
    mcmc.run(jax.random.key(seed), *arguments, extra_fields=("diverging",))
    draws = np.asarray(posterior.parameters(mcmc.get_samples()), np.float64)
    return draws.reshape(4, size, -1), int(mcmc.get_extra_fields()["diverging"].sum())


def pack_nuts(posterior: Posterior, data: dict, seed: int) -> None:
    """A reference by long runs of NUTS, and how far it can be trusted."""
    name = posterior.name
    clock = time.perf_counter()
    # Where there is a model made for NUTS, draws are cheap, and the tail of its neck needs many.
    first = 20_000 if name in REFERENCE_MODELS else 5000
    for target, size in ((0.95, first), (0.995, 15_000)):
        draws, divergences = _nuts(posterior, data, seed, target, size)
        if divergences <= MOST_DIVERGENCES:
            break
    figures = summary({"x": draws})["x"]
    r_hat, size = float(figures["r_hat"].max()), int(figures["n_eff"].min())
    print(
        f"{name:28s}d {draws.shape[-1]:3d}  r-hat {r_hat:.4f}  effective size {size:6d}  "
        f"divergences {divergences} at {target}  {time.perf_counter() - clock:.0f} s",
        flush=True,
    )
    if not r_hat < LARGEST_R_HAT:
        raise SystemExit(f"{name}: r-hat {r_hat:.3f}; the chains are too short for a reference.")
    np.savez_compressed(
        DATA / f"{name}.npz",
        mean=draws.mean((0, 1)),
        sd=draws.std((0, 1)),
        effective_size=size,
        r_hat=r_hat,
        divergences=divergences,
        **{f"data_{key}": value for key, value in data.items()},
    )


def pack_held_out(name: str) -> None:
    """Data simulated from a fixed seed, and a reference by NUTS."""
    number = list(HELD_OUT).index(name)
    pack_nuts(HELD_OUT[name], SIMULATORS[name](np.random.default_rng(1000 + number)), number)


def pack_funnel() -> None:
    """The moments of ten million exact draws."""
    rng = np.random.default_rng(0)
    v = rng.normal(0, 3, 10**7)
    x = np.arcsinh(rng.normal(size=10**7) * np.exp(v / 2))
    # The nine x all have the same distribution, which is symmetric about zero.
    mean, sd = np.r_[0.0, np.zeros(9)], np.r_[3.0, np.full(9, x.std())]
    np.savez_compressed(DATA / "funnel.npz", mean=mean, sd=sd, effective_size=10**7)


def pack_horseshoe() -> None:
    """Simulated data, and the moments of long NUTS chains with small steps and deep trees."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 12))
    y = X[:, :3] @ np.array([2.0, -1.5, 1.0]) + rng.normal(size=60)
    kernel = NUTS(horseshoe, target_accept_prob=0.99, max_tree_depth=12)
    mcmc = MCMC(
        kernel, num_warmup=2000, num_samples=10_000, num_chains=4, chain_method="vectorized"
    )
    mcmc.run(jax.random.key(0), X, y, extra_fields=("diverging",))
    draws = np.asarray(POSTERIORS["horseshoe"].parameters(mcmc.get_samples()))
    chains = draws.reshape(4, 10_000, -1)
    size = int(effective_sample_size(chains).min())
    r_hat, diverging = gelman_rubin(chains).max(), mcmc.get_extra_fields()["diverging"].sum()
    print(f"horseshoe: r-hat {r_hat:.4f}, {diverging} divergences, effective size {size}")
    np.savez_compressed(
        DATA / "horseshoe.npz",
        mean=draws.mean(0),
        sd=draws.std(0),
        effective_size=size,
        data_X=X,
        data_y=y,
    )


def main() -> None:
    """Make the files that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.problems.pack")
    kinds = parser.add_subparsers(dest="kind", required=True)
    draws = kinds.add_parser("draws", help="from stored reference draws")
    draws.add_argument("folder", type=Path)
    draws.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(SOURCES)}")
    nuts = kinds.add_parser("nuts", help="a reference posterior by long runs of NUTS")
    nuts.add_argument("name", choices=POSTERIORS, metavar="NAME")
    nuts.add_argument("data", type=Path, metavar="DATA.npz", help="the model's arguments")
    nuts.add_argument("--seed", type=int, default=0)
    held_out = kinds.add_parser("held_out", help="held-out models: simulated, and by long NUTS")
    held_out.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(HELD_OUT)}")
    kinds.add_parser("simulated", help="the funnel and the horseshoe")
    options = parser.parse_args()
    for name in getattr(options, "names", ()):
        known = SOURCES if options.kind == "draws" else HELD_OUT
        if name not in known:
            parser.error(f"unknown name {name}: there are {', '.join(known)}")
    if options.kind == "draws":
        for name in options.names or SOURCES:
            pack_draws(options.folder, name)
        return
    numpyro.enable_x64()
    if options.kind == "nuts":
        stored = np.load(options.data)
        posterior = POSTERIORS[options.name]
        pack_nuts(posterior, {key: stored[key] for key in posterior.data}, options.seed)
    elif options.kind == "held_out":
        for name in options.names or HELD_OUT:
            pack_held_out(name)
    else:
        pack_funnel()
        pack_horseshoe()


if __name__ == "__main__":
    main()
