"""A function as a program of its own, with the arrays that it closes over as inputs.

A model reads more than its arguments: globals of a notebook, attributes of an object, values that a
`functools.partial` or `handlers.condition` holds.  Compiled code that kept old values of these
would return the posterior of old data.  So every run traces the model anew, which takes
milliseconds.  Every array that the trace meets becomes an input of the compiled code.  The rest is
the program's text, and this text is the key by which compiled code is found again.  So new values
compile nothing, wherever they come from, and no other program is ever taken for this one.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from numpyro_onestep._util.numerics import refuse_transformations
from numpyro_onestep.target.operations import bind, called, is_jitted, num_numbers
from numpyro_onestep.target.promotion import evaluate_precisely

# NumPyro's handlers are shared by all threads: one model is traced at a time.
TRACING = threading.RLock()


class Program:
    """The text of a function without its arrays; two programs are equal if their texts are.

    The names of the outputs are a part of the text, though XLA's text has only their order: two
    models may differ in the names of their sites alone.

    A pickled program keeps only the fingerprint of its text: `is_detached` is then true, and the
    program must be traced again from its function.
    """

    def __init__(self, closed: Any, out_tree: Any, fingerprint: str, callbacks: tuple = ()):
        self.closed, self.out_tree, self.fingerprint = closed, out_tree, fingerprint
        # Python functions that the program calls at run time: the text does not tell two apart.
        self._callbacks = callbacks

    @property
    def is_detached(self) -> bool:
        """Whether the program is known by its fingerprint only."""
        return self.closed is None

    def evaluate(self, captured: list[Array], *args: Array) -> PyTree:
        """The function's value, with `captured` for the arrays that it closes over."""
        values = jex.jaxpr_as_fun(self.closed)(*captured, *args)
        return jax.tree.unflatten(self.out_tree, values)

    def _key(self):
        return self.fingerprint, self.out_tree, tuple(id(call) for call in self._callbacks)

    def __hash__(self):
        return hash(self._key())

    def __eq__(self, other):
        return isinstance(other, Program) and self._key() == other._key()

    def __deepcopy__(self, memo):
        return self

    def __getstate__(self):
        return {
            "fingerprint": self.fingerprint,
            "closed": None,
            "out_tree": None,
            "_callbacks": (),
        }


class TracedFunction(eqx.Module):
    """A traced function of arrays: call it as the function itself, inside of JAX or outside."""

    captured: list[Array]
    program: Program = eqx.field(static=True)

    def __call__(self, *args: Array) -> PyTree:
        """The function's value."""
        return _evaluate(self, *args)

    @property
    def num_numbers(self) -> int:
        """How many numbers an evaluation computes, by the text of the function; at least 1."""
        return max(1, _total(self.program.closed.jaxpr, num_numbers))

    @property
    def num_operations(self) -> int:
        """How many operations an evaluation takes, by the text of the function; at least 1."""
        return max(1, _total(self.program.closed.jaxpr, lambda equation: 1))


@eqx.filter_jit
def _evaluate(traced: TracedFunction, *args: Array) -> PyTree:
    # A jitted function of its own, so that each program that uses it traces it once.
    return traced.program.evaluate(traced.captured, *args)


def trace(
    function: Callable, *examples: Any, differentiable: bool = False, precise: bool = False
) -> TracedFunction:
    """Trace a function for arguments of the examples' shapes and types.

    Args:
        function: a function of arrays that returns a pytree of arrays.
        *examples: an array for each argument.
        differentiable: the function is real-valued and its gradient will be needed. Then the text
            of the gradient counts as well, since a custom rule may close over arrays of its own.
        precise: what depends on arrays of single precision alone is computed in double.

    Raises:
        TypeError: inside a JAX transformation.
    """
    with TRACING:
        # The lambda is a new function each time; JAX would not trace the same function again.
        closed, shapes = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*examples)
        if any(_holds_arrays(inner) for inner in _inner(closed.jaxpr)):
            inlined = jax.make_jaxpr(lambda *args: _inline(closed.jaxpr, closed.consts, args))
            closed = inlined(*examples)
        refuse_transformations(closed.consts)
        captured = [_own_copy(value) for value in closed.consts]
        # The arrays become inputs, so that neither program nor compiled code keeps the user's own
        # arrays: JAX 0.12 cannot hold the same NumPy array in two precisions at a time.
        again = partial(_with_arrays, closed, evaluate_precisely if precise else _evaluate_as_is)
        closed = jax.make_jaxpr(again)(captured, *examples)

        def every(*inputs):
            return jex.jaxpr_as_fun(closed)(*inputs)

        def gradient(*inputs):
            one = jax.value_and_grad(lambda *inputs: every(*inputs)[0], argnums=len(captured))
            return one(*inputs)

        whole = gradient if differentiable else every
        text = jax.jit(whole).lower(*captured, *examples).as_text()
        out_tree = jax.tree.structure(shapes)
    fingerprint = hashlib.sha256(f"{text}{out_tree}".encode()).hexdigest()
    program = Program(closed, out_tree, fingerprint, tuple(_callbacks(closed.jaxpr)))
    return TracedFunction(captured, program)


def _with_arrays(closed: Any, how: Callable, arrays: list[Array], *args: Array) -> list[Any]:
    """Evaluate a program with these arrays in place of those that it holds."""
    return how(closed.jaxpr, arrays, args)


def _evaluate_as_is(jaxpr: Any, arrays: list[Array], args: tuple) -> list[Any]:
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, arrays))(*args)


def _own_copy(value: Any) -> Array:
    """The value as a JAX array; a NumPy array is copied, since it may be changed in place later."""
    return value if isinstance(value, jax.Array) else jnp.array(np.array(value))


def _inner(jaxpr: Any) -> Iterator[Any]:
    """The closed programs of the jitted functions that a program calls."""
    for equation in jaxpr.eqns:
        if is_jitted(equation):
            yield equation.params["jaxpr"]


def _holds_arrays(closed: Any) -> bool:
    return len(closed.consts) > 0 or any(_holds_arrays(c) for c in _inner(closed.jaxpr))


def _inline(jaxpr: Any, consts: Any, args: Any) -> list[Any]:
    """Evaluate a program; jitted functions that close over arrays are written out inline."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, jex.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        closed = equation.params["jaxpr"] if is_jitted(equation) else None
        if closed is not None and _holds_arrays(closed):
            outputs = _inline(closed.jaxpr, closed.consts, inputs)
        else:
            outputs = bind(equation, inputs, equation.params)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _callbacks(jaxpr: Any) -> Iterator[Any]:
    """Every Python function that a program calls back."""
    for equation in jaxpr.eqns:
        if "callback" in equation.primitive.name:
            found = (v for v in equation.params.values() if callable(v))
            # JAX wraps the function anew at each trace.
            yield from (getattr(v, "callback_func", v) for v in found)
        for inner in called(equation):
            yield from _callbacks(inner)


def _total(jaxpr: Any, of: Callable[[Any], int]) -> int:
    """The sum over all equations of a program; a loop of unknown length counts once."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [_total(program, of) for program in called(equation)]
        if inner:
            total += equation.params.get("length", 1) * sum(inner)
        else:
            total += of(equation)
    return total
