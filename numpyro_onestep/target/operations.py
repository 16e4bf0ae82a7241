"""The operations that a traced program is made of."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def bind(operation: Any, values: list[Any], params: dict[str, Any]) -> list[Any]:
    """The outputs of an operation, with these inputs and parameters."""
    bound = operation.primitive.get_bind_params(params)
    # Before jax 0.9 `get_bind_params` returned functions beside the parameters.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    outputs = operation.primitive.bind(*functions, *values, **params)
    return outputs if operation.primitive.multiple_results else [outputs]


def is_jitted(operation: Any) -> bool:
    """Whether it is the call of a jitted function."""
    return operation.primitive.name in ("jit", "pjit")


def called(operation: Any) -> Iterator[Any]:
    """The programs that are its parameters: those of a loop, a branch or a function."""
    values = list(operation.params.values())
    for value in jax.tree.leaves(values, is_leaf=lambda v: hasattr(v, "eqns")):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


def num_numbers(operation: Any) -> int:
    """How many numbers it computes."""
    return sum(int(np.prod(var.aval.shape)) for var in operation.outvars)
