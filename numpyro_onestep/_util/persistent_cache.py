"""JAX's persistent compilation cache, where the user has one, keeps every program of a run.

JAX writes a program to disk only if its compilation took a second or longer.  A run has some
thirty programs, most of which take less: half of the time that a second process would save.
"""

from contextlib import AbstractContextManager, nullcontext

import jax

# Seconds.  JAX's own limit; a user who has chosen another one keeps it.
_LIMIT_OF_JAX = 1.0


def every_program_kept() -> AbstractContextManager:
    """A context in which the cache keeps each program, however soon it was compiled.

    It holds in this thread only.  Nothing changes where there is no cache, where the user has set
    `jax_persistent_cache_min_compile_time_secs`, or where a release of JAX has no such context.
    """
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    limit = getattr(jax.config, "jax_persistent_cache_min_compile_time_secs", None)
    if not folder or limit != _LIMIT_OF_JAX:
        return nullcontext()
    try:
        # JAX has no public name for this context.
        from jax._src.config import persistent_cache_min_compile_time_secs
    except ImportError:
        return nullcontext()
    return persistent_cache_min_compile_time_secs(0.0)
