"""Writing a run to a file, and reading it."""

import os
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import numpyro

from numpyro_onestep._util.numerics import numerics
from numpyro_onestep.result import Result
from numpyro_onestep.settings import Settings
from numpyro_onestep.storage import file
from numpyro_onestep.storage.target import described, restored
from numpyro_onestep.storage.tree import decoded, encoded


def save(path: str | os.PathLike, settings: Settings, result: Result, version: str) -> None:
    """Write a run, as `OneStep.save` says."""
    arrays: list[np.ndarray] = []
    header = {
        "packages": {
            "numpyro_onestep": version,
            "numpyro": numpyro.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
        },
        "target": described(result.problem, arrays),
        "run": {"settings": encoded(settings, arrays), "result": encoded(result, arrays)},
    }
    file.write(path, header, arrays)


def load(path: str | os.PathLike, **target: Any) -> tuple[Settings, Result]:
    """Settings and result of a run, as `OneStep.load` says.

    Args:
        path: of the file.
        **target: arguments of `storage.target.restored`.
    """
    header, arrays = file.read(path)
    try:
        with numerics(double=True):  # arrays in single precision keep their type too
            settings = decoded(header["run"]["settings"], arrays)
            result = decoded(header["run"]["result"], arrays)
        problem = header["target"]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        wrote = header.get("packages", {}).get("numpyro_onestep", "an unknown version")
        raise ValueError(
            f"{os.fspath(path)} cannot be read: numpyro_onestep {wrote} wrote it, and {error}."
        ) from error
    object.__setattr__(result, "problem", restored(problem, arrays, **target))
    return settings, replace(result)
