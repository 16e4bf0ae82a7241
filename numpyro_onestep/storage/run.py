"""Writing a run to a file, and reading it."""

import os
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
import numpyro

from numpyro_onestep._util.numerics import is_double, numerics
from numpyro_onestep.problem import Problem
from numpyro_onestep.result import Result
from numpyro_onestep.settings import Settings
from numpyro_onestep.storage import file
from numpyro_onestep.storage.target import CHANGED, AnotherModelError, described, restored
from numpyro_onestep.storage.tree import decoded, encoded

_COMPARED = 64  # draws that are made again, to see whether the model makes the same of them


def save(path: str | os.PathLike, settings: Settings, result: Result) -> None:
    """Write a run, as `OneStep.save` says."""
    arrays: list[np.ndarray] = []
    target = described(result.problem, arrays)
    # Deterministic sites may repeat the data; they are computed again where these are given.
    latent = replace(result, samples=result.problem.target.latents(result.samples))
    header = {
        "packages": _packages(),
        "is_double": is_double(),
        "target": target,
        "run": {"settings": encoded(settings, arrays), "result": encoded(latent, arrays)},
    }
    file.write(path, header, arrays)


def load(path: str | os.PathLike, **target: Any) -> tuple[Settings, Result]:
    """Settings and result of a run, as `OneStep.load` says.

    Args:
        path: of the file.
        **target: arguments of `storage.target.restored`.
    """
    header, arrays = file.read(path)
    written, here = header.get("packages", {}), _packages()
    try:
        if header["is_double"] != is_double():
            name = "double" if header["is_double"] else "single"
            raise ValueError(
                f"it was written in a session of {name} precision; numpyro.enable_x64("
                f"{header['is_double']}) makes this one such a session"
            )
        with numerics(double=True):  # arrays in single precision keep their type too
            settings = decoded(header["run"]["settings"], arrays)
            result = decoded(header["run"]["result"], arrays)
        problem = restored(header["target"], arrays, **target)
    except AnotherModelError as error:
        others = [f"{name} {v}" for name, v in written.items() if here.get(name) != v]
        hint = f" It was run with {', '.join(others)}, which may differ too." if others else ""
        raise ValueError(f"{error}{hint}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(path)} cannot be read: numpyro_onestep "
            f"{written.get('numpyro_onestep', '(unknown)')} wrote it, and {error}."
        ) from error
    object.__setattr__(result, "problem", problem)  # the only field that the file leaves out
    _require_same(problem, result)
    if not problem.is_without_data:
        result = replace(result, samples=problem.constrain(result.corrected.x))
    return settings, result


def _require_same(problem: Problem, result: Any) -> None:
    """Raise a ValueError unless the model makes the same values of some draws."""
    x = result.corrected.x[:_COMPARED]
    found = problem.target.continuous(problem.constrain(x))
    expected = jax.tree.map(lambda leaf: leaf[: len(x)], problem.target.continuous(result.samples))
    fine = jax.tree.structure(found) == jax.tree.structure(expected)
    fine = fine and all(
        np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-3, atol=1e-6, equal_nan=True)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )
    if not fine:
        raise ValueError(
            f"{CHANGED} Or the supports of its sites depend on its data; then give load() the "
            "arguments of the run."
        )


def _packages() -> dict[str, str]:
    return {
        "numpyro_onestep": version("numpyro_onestep"),
        "numpyro": numpyro.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
    }
