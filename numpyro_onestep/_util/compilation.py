"""`compiled`: `equinox.filter_jit` with XLA told to compile fast on a CPU.

Each function here is compiled once and then runs for a second or so, so on a CPU compilation is
most of what a user waits for.  Two of XLA's options halve it and cost no running time that could
be measured (docs/measured.md).  A third one says into how many parts a program is split, each of
which is compiled by another thread.  Parts cost time of their own, and two programs are often
compiled at a time, so there are half as many as cores.  A release that does not know an option
compiles as usual.
"""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, update_wrapper, wraps
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from numpyro_onestep._util import progress
from numpyro_onestep._util.numerics import is_double, numerics

# Compiled programs that are kept for later runs. Each target needs some ten; each program takes a
# few MB and sixty memory maps. The operating system allows 65,530 memory maps, and ends a process
# that asks for more.
_MOST_PROGRAMS = 256
_FAST_ON_CPU = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}


_every: "list[compiled]" = []
_targets: set[str] = set()  # fingerprints of targets whose programs may be kept
_other_thread = ThreadPoolExecutor(1, thread_name_prefix="compile")


class compiled:  # noqa: N801, it is used as a decorator
    """Compile a function: arrays among its arguments are traced, all else is static."""

    def __init__(self, function: Callable):
        update_wrapper(self, function)
        self._on = cache(lambda backend: eqx.filter_jit(_told(function), **_options(backend)))
        self._begun: list[Future] = []
        self._lock = threading.Lock()
        _every.append(self)

    def __call__(self, *args, **kwargs) -> Any:
        """The function's value, after any compilation that `ahead` began has ended."""
        with progress.program():
            for begun in self._take_begun():
                progress.compiling()
                begun.exception()  # waits; an error there will be raised again by the call below
            with _collector_paused():
                return self._on(jax.default_backend())(*args, **kwargs)

    def ahead(self, *args, **kwargs) -> None:
        """Begin to compile for arguments of such shapes, in another thread.

        Half of a compilation is Python code, during which other threads wait.  The other half runs
        beside them on a core of its own.
        """
        program: Any = self._on(jax.default_backend())
        ours, double = _configuration(), is_double()

        def compile_it() -> None:
            # A context manager of JAX holds in its own thread only, so a setting that the user
            # made by one does not hold here, and nothing is compiled.
            with numerics(double):
                if _configuration() == ours:
                    program.lower(*args, **kwargs).compile()

        with self._lock:
            self._begun.append(_other_thread.submit(compile_it))

    @property
    def _cache(self) -> Any:
        # Equinox has no public name for the function that it gives to `jax.jit`.
        return getattr(self._on(jax.default_backend()), "_cached", None)

    def _take_begun(self) -> list[Future]:
        with self._lock:  # two threads may run a sampler each
            begun, self._begun = self._begun, []
        return begun


def _told(function: Callable) -> Callable:
    """The same function; where it is traced, so that a program is made of it, that is said."""

    @wraps(function)
    def traced(*args, **kwargs):
        progress.compiling()
        return function(*args, **kwargs)

    return traced


def begin(work: Callable[[], Any]) -> None:
    """Do some work in the thread that compiles ahead, after all that was begun there before."""
    _other_thread.submit(work)


def make_room_for(target: str) -> None:
    """Drop all compiled programs if many are kept and this target is new.

    Otherwise the operating system would stop a process that loops over many models.
    """
    if target in _targets:
        return
    caches = [one._cache for one in _every if one._cache is not None]
    if sum(cache._cache_size() for cache in caches) > _MOST_PROGRAMS:
        _targets.clear()
        for cache in caches:
            cache.clear_cache()
    _targets.add(target)


def _configuration() -> dict[str, Any]:
    return {name: getattr(jax.config, name, None) for name in jax.config.values}


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector, which would search all of JAX's objects while tracing."""
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
    wanted = _FAST_ON_CPU | {"xla_cpu_parallel_codegen_split_count": max(1, _num_cores() // 2)}
    return {"compiler_options": {k: v for k, v in wanted.items() if _is_known(k, v)}}


def _num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_known(option: str, value: Any) -> bool:
    try:
        jax.jit(jnp.negative, compiler_options={option: value}).lower(0.0).compile()
    except Exception:  # whatever a release raises for an option it does not know
        return False
    return True
