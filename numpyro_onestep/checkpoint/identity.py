"""What a run is known by: two runs of one identity give the same bits.

A run is a function of its key, model, data, settings and start, of the run before it where it is a
warm start, and of the packages and the machine that compute it.  Data are known by a hash of their
values, so that the file holds none.
"""

import hashlib
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_onestep._util.numerics import is_double
from numpyro_onestep.problem import Problem
from numpyro_onestep.result import Trained
from numpyro_onestep.settings import Settings
from numpyro_onestep.storage.tree import encoded
from numpyro_onestep.target import ModelTarget

_WITHOUT_EFFECT = {"progress_bar"}  # settings that change no result
_PACKAGES = "numpyro_onestep", "numpyro", "jax", "jaxlib", "equinox", "optax", "numpy", "scipy"
_OF_JAX = "jax_default_matmul_precision", "jax_threefry_partitionable"  # they change results
# What each part of an identity is called in a message.
_WORDS = {
    "key": "the random key",
    "settings": "the settings",
    "model": "the model (its code, a plain number that it reads, shapes or types of its data)",
    "data": "the data (the values of the arrays that the model reads)",
    "start": "the starting point (init_params or init_strategy)",
    "earlier": "the earlier run, from whose flow a warm start begins",
    "environment": "the packages or the machine",
}


def identity_of(
    problem: Problem, rng_key: PRNGKeyArray, settings: Settings, earlier: Trained | None
) -> dict[str, Any]:
    """The identity of a run as JSON.

    Args:
        problem: the target, as it was traced first.
        rng_key: the key of the run.
        settings: all settings of the sampler.
        earlier: the run that a warm start begins from, or None.
    """
    functions = problem.potential.energy, problem.potential.outcome
    target = problem.target
    given = (target.args, target.kwargs) if isinstance(target, ModelTarget) else ()
    return {
        "key": [str(jr.key_impl(rng_key)), _hash_of(rng_key)],
        "settings": _plain(settings),
        "model": [function.program.fingerprint for function in functions],
        # The program has the data in its own precision; the arguments have them in theirs.
        "data": _hash_of([[function.captured for function in functions], given]),
        "start": _hash_of(problem.start),
        "earlier": None if earlier is None else _hash_of_flow(earlier),
        "environment": _environment(),
    }


def difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What differs between two identities, in words; an empty text where nothing does."""
    differ = [name for name in _WORDS if there.get(name) != here[name]]
    if len(differ) > 1 and "start" in differ:
        differ.remove("start")  # it depends on key, model and data
    return "; ".join(
        _WORDS[name] + _in_detail(there.get(name), here[name])
        if isinstance(here[name], dict)
        else _WORDS[name]
        for name in differ
    )


def _in_detail(there: Any, here: dict[str, Any]) -> str:
    there = there if isinstance(there, dict) else {}
    differ = [name for name in here if there.get(name) != here[name]]
    found = [f"{name} is {there.get(name)!r} there and {here[name]!r} here" for name in differ]
    return f" ({', '.join(found)})"


def _plain(settings: Settings) -> dict[str, Any]:
    """The settings that matter, by name, as they are after they were written as JSON."""
    given = {name: value for group in asdict(settings).values() for name, value in group.items()}
    structure = given["structure"]
    if structure is not None and not isinstance(structure, str):
        given["structure"] = sorted(structure)
    used = {name: value for name, value in given.items() if name not in _WITHOUT_EFFECT}
    return json.loads(json.dumps(used, default=repr))


def _environment() -> dict[str, Any]:
    device = f"{jax.default_backend()} {jax.devices()[0].device_kind} {platform.machine()}"
    return {
        **{name: version(name) for name in _PACKAGES},
        **{name: str(getattr(jax.config, name, None)) for name in _OF_JAX},
        "device": device,
        "precision": "double" if is_double() else "single",
    }


def _hash_of_flow(run: Trained) -> str:
    arrays: list[np.ndarray] = []
    tree = encoded([run.fit, run.training.flow, run.num_flow_steps], arrays)
    return _hash_of([json.dumps(tree), arrays])


def _hash_of(tree: Any) -> str:
    """SHA-256 of the arrays, numbers and texts in a pytree; other objects count by their places."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jr.key_data(leaf)
        if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
            array = np.asarray(leaf)
            found.update(f"{array.dtype.str}{array.shape}".encode())
            kind = array.dtype.kind
            found.update(repr(array.tolist()).encode() if kind == "O" else array.tobytes())
        elif isinstance(leaf, (bool, int, float, complex, str, bytes)):
            found.update(repr(leaf).encode())
        else:
            found.update(b"?")
    return found.hexdigest()
