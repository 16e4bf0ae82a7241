"""`compiled`: `equinox.filter_jit` with XLA told to compile fast on a CPU.

Each function here is compiled once and then runs for a second or so, so on a CPU compilation is
most of what a user waits for.  Two of XLA's options halve it and cost no running time that could
be measured (docs/method.md); a release that does not know them compiles as usual.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

_FAST_ON_CPU = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}


def compiled(function: Callable) -> Callable:
    """Compile a function: arrays among its arguments are traced, all else is static."""

    @cache
    def on(backend: str) -> Callable:
        return eqx.filter_jit(function, **_options(backend))

    @wraps(function)
    def call(*args, **kwargs):
        with _collector_paused():
            return on(jax.default_backend())(*args, **kwargs)

    return call


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Tracing makes many objects, and the collector would go through all of JAX's for nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@cache
def _options(backend: str) -> dict[str, Any]:
    if backend != "cpu":
        return {}
    options: dict[str, Any] = {"compiler_options": _FAST_ON_CPU}
    try:
        jax.jit(jnp.negative, **options).lower(0.0).compile()
    except Exception:  # whatever a release raises for an option it does not know
        return {}
    return options
