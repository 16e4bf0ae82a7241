"""What depends on constants alone, in double precision although the constants are in single.

In a session of single precision a model's arrays are in single precision.  Where such a model is
traced with 64-bit values, JAX promotes an array only where it meets one of these values.  What is
computed from arrays alone stays in single precision: the log normaliser of a Gamma distribution
whose parameters are arrays, or that of a truncated distribution with arrays as bounds.  Its error
would be the same in both precisions, so no comparison of the two could show it.  Here all that
depends on constants alone is computed in double precision, from the values that the arrays hold.

An operation that holds a program of its own (a loop or a branch), or that rests on the types
themselves (a callback, a conversion of bits), is done in the types that it was traced with.
"""

from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import numpy as np

from numpyro_onestep.target.operations import bind, called, is_jitted

_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
# These call one function.  Where all is constant its operations can be done one by one, since a
# rule for the derivative does not matter then.
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
# Parts of the names of operations that rest on the types themselves.
_TYPED = ("call", "bitcast", "random", "reduce_precision")


class Known(NamedTuple):
    """A value in the evaluation of a program."""

    value: Any
    is_constant: bool


def evaluate_precisely(jaxpr: Any, constants: list[Any], inputs: tuple) -> list[Any]:
    """Evaluate a program, and in double precision what depends on its constants alone.

    Args:
        jaxpr: the program.
        constants: the values of its constants.
        inputs: the values of its inputs.
    """
    known = [Known(v, True) for v in constants] + [Known(v, False) for v in inputs]
    return _in_own_types(_evaluate(jaxpr, known), jaxpr.outvars)


def _evaluate(jaxpr: Any, known: list[Known]) -> list[Known]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], known, strict=True))

    def read(atom):
        found = Known(atom.val, True) if isinstance(atom, jex.Literal) else values[atom]
        aval: Any = atom.aval
        is_promoted = found.is_constant and aval.dtype == _SINGLE
        return Known(_converted(found.value, _DOUBLE), True) if is_promoted else found

    for operation in jaxpr.eqns:
        outputs = _outputs(operation, [read(atom) for atom in operation.invars])
        values.update(zip(operation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _outputs(operation: Any, known: list[Known]) -> list[Known]:
    """The outputs of one operation."""
    name = operation.primitive.name
    atoms = operation.invars
    is_constant = all(one.is_constant for one in known)
    some_promoted = any(
        one.is_constant and atom.aval.dtype == _SINGLE
        for one, atom in zip(known, atoms, strict=True)
    )
    if (is_constant and name in _CALLS) or (some_promoted and is_jitted(operation)):
        params = operation.params
        inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
        return _evaluate(inner.jaxpr, [*(Known(v, True) for v in inner.consts), *known])
    is_typed = any(part in name for part in _TYPED) or any(called(operation))
    if is_constant and not is_typed:
        params = {k: _DOUBLE if _is_single(v) else v for k, v in operation.params.items()}
        values = [one.value for one in known]
    else:
        params, values = operation.params, _in_own_types(known, atoms)
    return [Known(value, is_constant) for value in bind(operation, values, params)]


def _in_own_types(known: list[Known], atoms: list[Any]) -> list[Any]:
    """The values in the types that the program was traced with."""
    pairs = zip(known, atoms, strict=True)
    return [
        _converted(one.value, _SINGLE) if atom.aval.dtype == _SINGLE else one.value
        for one, atom in pairs
    ]


def _converted(value: Any, dtype: np.dtype) -> Any:
    return jax.lax.convert_element_type(value, dtype)


def _is_single(param: Any) -> bool:
    return isinstance(param, np.dtype) and param == _SINGLE
