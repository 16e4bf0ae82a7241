"""What a file knows of a model: its sites, the fingerprint of its program, no data.

To evaluate its density again, a model needs its data, which are given once more when the file is
read; then its program must be the one that was run.  Without them draws can still be made: the
sites' supports nearly never depend on data, and where they do, that is found.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree
from numpyro import handlers
from numpyro.infer.util import constrain_fn

from numpyro_onestep._util.numerics import numerics
from numpyro_onestep.problem import Problem, own_arguments
from numpyro_onestep.storage.tree import decoded, encoded
from numpyro_onestep.target import FunctionTarget, ModelTarget, Outcome, Potential
from numpyro_onestep.target.potential import unraveller
from numpyro_onestep.target.targets import AbstractTarget
from numpyro_onestep.target.traced import TracedFunction, trace

_OF_ARGUMENTS = 2  # depth of an argument in the pair of arguments and keyword arguments
CHANGED = (
    "The model is not the one whose run was saved: its code, the shapes or types of its data, or a "
    "plain number that it reads, differ."
)


class AnotherModelError(ValueError):
    """The model is not the one of the file."""


def described(problem: Problem, arrays: list[np.ndarray]) -> dict[str, Any]:
    """The problem as JSON, with its arrays appended to a list.

    Raises:
        TypeError: the model has state, such as mutable sites, or values that cannot be written.
        RuntimeError: the problem came out of a file, without its data.
    """
    if problem.is_without_data:
        raise RuntimeError(
            "This sampler was read from a file without its data, and cannot be written: copy that "
            "file, or give the arguments of the run to OneStep.load(path, model, ...)."
        )
    target, potential = problem.target, problem.potential
    if isinstance(target, ModelTarget) and target.fixed:
        raise TypeError(
            "save() cannot write a model with parameters, mutable state or subsampled plates. "
            "pickle can keep such a sampler."
        )
    model = isinstance(target, ModelTarget)
    arguments = (target.args, target.kwargs) if model else ((), {})
    return {
        "kind": "model" if model else "potential_fn",
        "sites": [encoded(site, arrays) for site in target.sites],
        "prototype": encoded(target.prototype, arrays),
        "programs": _programs(potential),
        "arguments": _shapes(arguments) if any(arguments) else None,
        "is_start_given": model and target.is_start_given,
        "start": encoded(problem.start, arrays),
        "completion": encoded(potential.completion, arrays),
        "is_double": problem.is_double,
        "is_only_single": problem.is_only_single,
        "error": encoded(problem.error, arrays),
    }


def restored(
    tree: dict[str, Any],
    arrays: list[np.ndarray],
    model: Any,
    potential_fn: Any,
    args: tuple,
    kwargs: dict[str, Any],
    init_strategy: Any,
) -> Problem:
    """The problem that was described, for a model and, where they are given, its arguments.

    Raises:
        ValueError: the model is another one.
    """
    if (tree["kind"] == "model") != (potential_fn is None):
        raise AnotherModelError(f"{CHANGED} That was a {tree['kind']}.")
    start, prototype = (decoded(tree[name], arrays) for name in ("start", "prototype"))
    has_data = bool(args or kwargs) or tree["arguments"] is None
    with numerics(tree["is_double"]):
        target: AbstractTarget = FunctionTarget(prototype, function=potential_fn)
        if potential_fn is None:
            args, kwargs = own_arguments(args, kwargs)
            target = ModelTarget(
                prototype=prototype,
                sites=[decoded(site, arrays) for site in tree["sites"]],
                model=model,
                args=args,
                kwargs=kwargs,
                init_strategy=init_strategy,
                is_start_given=tree["is_start_given"],
            )
        if has_data:
            potential = _potential(target, start, tree)
        else:
            potential = _without_data(model, prototype, start, tree["arguments"])
        completion = decoded(tree["completion"], arrays)
    return Problem(
        target,
        Potential(potential.energy, potential.outcome, completion),
        start,
        is_double=tree["is_double"],
        error=decoded(tree["error"], arrays),
        is_only_single=tree["is_only_single"],
        is_without_data=not has_data,
    )


def _potential(target: AbstractTarget, start: Float[Any, " d"], tree: dict[str, Any]) -> Potential:
    """The potential of a model with its data, which must be the program that was run."""
    try:
        potential = target.potential(start.dtype)
    except Exception as error:  # whatever a model raises for sites that it does not have
        raise AnotherModelError(f"{CHANGED} It raises {type(error).__name__}: {error}") from error
    if _programs(potential) != tree["programs"]:
        raise AnotherModelError(CHANGED)
    return potential


def _programs(potential: Potential) -> list[Any]:
    """Fingerprints of the programs, and the shapes of the arrays that they take."""
    return [
        [function.program.fingerprint, [list(np.shape(v)) for v in function.captured]]
        for function in (potential.energy, potential.outcome)
    ]


def _without_data(model: Any, prototype: PyTree, start: Float[Any, " d"], shapes: Any) -> Potential:
    """A potential of no density, which constrains latent sites.

    Raises:
        ValueError: the model is another one, or the supports of its sites depend on its data.
    """
    unravel = unraveller(prototype)
    seeded = handlers.seed(model, rng_seed=0)

    def latents(x: Any, number: float) -> PyTree:
        # Made from x, the arguments have no values while the model is traced: NumPyro would check
        # them.
        args, kwargs = _filled(shapes, 0 * x[0] + number)
        values = constrain_fn(seeded, args, kwargs, unravel(x), return_deterministic=False)
        return {name: jnp.asarray(value) for name, value in values.items()}

    def outcome(number: float) -> TracedFunction:
        return trace(lambda x: Outcome(latents(x, number), {}, {}), start)

    try:
        found = outcome(0.0)
        if set(found(start).samples) != set(prototype):
            raise ValueError(f"its sites are {', '.join(found(start).samples)}")
        same = jax.tree.map(np.array_equal, found(start), outcome(1.0)(start))
    except Exception as error:  # whatever a model raises for such arguments
        raise AnotherModelError(
            f"{CHANGED} Or it cannot be traced without its data; then give load() the arguments "
            f"of the run. It raises {type(error).__name__}: {error}"
        ) from error
    if not all(jax.tree.leaves(same)):
        raise AnotherModelError(
            "The supports of the model's sites depend on its data: give load() the arguments of "
            "the run."
        )
    return Potential(trace(lambda x: jnp.sum(jnp.nan * x), start), found)


def _shapes(value: Any, depth: int = 0) -> Any:
    """Arguments as JSON: arrays and numbers by shape and type.

    A whole number, a truth value or a text that is an argument itself is written as it is, since
    shapes and branches depend on it.  What lists and dicts hold may be data.
    """
    if value is None or (depth <= _OF_ARGUMENTS and isinstance(value, (bool, int, str))):
        return {"value": value}
    if isinstance(value, (bool, int, float, np.ndarray, np.generic, jax.Array)):
        array = np.asarray(value)
        return {"shape": list(array.shape), "dtype": str(array.dtype)}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _shapes(one, depth + 1) for key, one in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_shapes(one, depth + 1) for one in value]}
    return {"unknown": type(value).__name__}


def _filled(tree: Any, number: Any) -> Any:
    """Arguments of such shapes, every number the same."""
    ((kind, value), *_) = tree.items()
    if kind == "value":
        return value
    if kind == "shape":
        return jnp.full(value, number).astype(jax.dtypes.canonicalize_dtype(tree["dtype"]))
    if kind == "dict":
        return {key: _filled(one, number) for key, one in value.items()}
    if kind in ("list", "tuple"):
        parts = [_filled(one, number) for one in value]
        return tuple(parts) if kind == "tuple" else parts
    raise ValueError(f"an argument is a {value}")
