"""Reduce full reference draws to what the benchmarks need: data, moments and effective size.

    python -m benchmarks.pack FOLDER        the posteriors with stored reference draws
    python -m benchmarks.pack --simulated   the funnel and the horseshoe, made here

FOLDER holds one ``.npz`` a posterior with ``draws`` (chain, draw, parameter; constrained) or
``draws_unconstrained`` (draw, parameter), and the model's data as ``data_*``.
"""

import sys
from pathlib import Path

import numpy as np

from benchmarks.models import DATA

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


def pack(folder: Path) -> None:
    """Write ``data/<name>.npz`` for every posterior that has reference draws."""
    DATA.mkdir(exist_ok=True)
    for name, source in SOURCES.items():
        stored = np.load(folder / f"{source}.npz")
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


def pack_funnel() -> None:
    """The moments of ten million exact draws."""
    rng = np.random.default_rng(0)
    v = rng.normal(0, 3, 10**7)
    x = np.arcsinh(rng.normal(size=10**7) * np.exp(v / 2))
    # The nine x are alike, and symmetric.
    mean, sd = np.r_[0.0, np.zeros(9)], np.r_[3.0, np.full(9, x.std())]
    np.savez_compressed(DATA / "funnel.npz", mean=mean, sd=sd, effective_size=10**7)


def pack_horseshoe() -> None:
    """Simulated data, and the moments of long NUTS chains."""
    import jax
    import numpyro
    from numpyro.diagnostics import effective_sample_size, gelman_rubin
    from numpyro.infer import MCMC, NUTS

    from benchmarks.models import POSTERIORS, horseshoe

    numpyro.enable_x64()
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


if __name__ == "__main__":
    if sys.argv[1] == "--simulated":
        pack_funnel()
        pack_horseshoe()
    else:
        pack(Path(sys.argv[1]))
