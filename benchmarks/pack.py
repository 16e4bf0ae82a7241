"""Reduce full reference draws to what the benchmarks need: data, moments and effective size.

    python -m benchmarks.pack FOLDER

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


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
