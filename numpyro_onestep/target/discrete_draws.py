"""Values of discrete latent sites, drawn given a draw of the continuous ones.

Their conditional distribution is known exactly.  NumPyro's `infer_discrete` draws from it, but in
no model with `scan`.  The states of such a chain are drawn here: the density of the past is summed
forwards, and states are drawn backwards (forward filtering, backward sampling; Scott, "Bayesian
methods for hidden Markov models", Journal of the American Statistical Association 2002).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpyro import handlers
from numpyro.primitives import Messenger

from numpyro_onestep.target.enumeration import (
    PREVIOUS,
    TIME,
    as_array,
    axes_of,
    enumerated,
    factor,
    first_free_dim,
    funsor,
    handlers_of_funsor,
    packed_trace,
    plates_of,
    samples_of,
    summed_out,
)
from numpyro_onestep.target.model_trace import Site


def key_of(x: Float[Array, " d"]) -> PRNGKeyArray:
    """A random key that depends on the numbers of a draw alone.

    So a draw has the same values of its discrete sites wherever it is shown.  The key is a
    multilinear hash of the numbers' bits; that of another draw is independent.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    factors = np.random.default_rng(0).integers(0, 2**32, (2, x.size), dtype=np.uint32) | 1
    words = jnp.sum(factors * (bits ^ (bits >> 15)), axis=1, dtype=jnp.uint32)
    return jr.wrap_key_data(words, impl="threefry2x32")


def draw_discrete(
    model: Callable, args: tuple, kwargs: dict[str, Any], sites: list[Site], rng_key: PRNGKeyArray
) -> dict[str, Array]:
    """Values of the discrete latent sites, given the continuous ones and the data.

    Args:
        model: the model, with random keys, in which every continuous latent site has its value.
        args: its arguments.
        kwargs: its keyword arguments.
        sites: all of its sites.
        rng_key: a JAX random key.
    """
    states = {site.name for site in enumerated(sites) if site.axes.num_loop_axes}
    if not states:
        return _draw_without_scan(model, args, kwargs, sites, rng_key)
    # As observed, since NumPyro would enumerate a latent site whatever its value is.
    known: dict[str, Any] = {}
    for site in enumerated(sites):
        if site.name not in states:
            key = jr.fold_in(rng_key, len(known))
            given = handlers.condition(model, data=known)
            known[site.name] = _draw_beside_scan(given, args, kwargs, sites, site.name, key)
    given = handlers.condition(model, data=known)
    plain = handlers.trace(given).get_trace(*args, **kwargs)
    shapes = {name: jnp.shape(plain[name]["value"]) for name in states}
    found = packed_trace(given, args, kwargs, sites)
    return known | _draw_states(found, shapes, jr.fold_in(rng_key, len(known)))


class without_density_of_new_sites(Messenger):  # noqa: N801 (NumPyro's handlers have such names)
    """Leave the densities of sites without a value out of a model.

    Where data are not given, an observed site becomes a latent one, and is drawn.  Its density at
    what was drawn says nothing of the labels.

    Args:
        fn: the model.
        known: the sites that have values.
        sites: all sites; the discrete ones keep their densities.
    """

    def __init__(self, fn: Callable, known: set[str], sites: list[Site]):
        super().__init__(fn)
        self.kept = known | {site.name for site in enumerated(sites)}

    def process_message(self, msg: dict) -> None:
        """Mask the distribution of a new site."""
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        if msg["name"].replace(PREVIOUS, "") not in self.kept:
            msg["fn"] = msg["fn"].mask(False)


def _draw_without_scan(model, args, kwargs, sites, rng_key) -> dict[str, Array]:
    """All discrete sites together, by NumPyro."""
    numpyro = handlers_of_funsor()
    drawn = numpyro.infer_discrete(
        numpyro.config_enumerate(model), first_available_dim=first_free_dim(sites), rng_key=rng_key
    )
    found = handlers.trace(drawn).get_trace(*args, **kwargs)
    return {site.name: found[site.name]["value"] for site in enumerated(sites)}


def _draw_beside_scan(model, args, kwargs, sites, name: str, rng_key) -> Array:
    """The value of one site, such as a first state, by the model's density at each of its values.

    Raises:
        ValueError: it has several values.
    """
    site = handlers.trace(model).get_trace(*args, **kwargs)[name]
    shape = jnp.shape(site["value"])
    if np.prod(shape[: len(shape) - site["fn"].event_dim]) != 1:
        raise ValueError(
            f"The discrete latent site {name!r} has several values beside a scan, and OneStep "
            "draws only one there: move the site into the scan, for instance into its first step."
        )
    values = site["fn"].enumerate_support(expand=False).reshape(-1, *shape)

    def log_density(value):
        given = summed_out(handlers.condition(model, data={name: value}), sites)
        return handlers_of_funsor().log_density(given, args, kwargs, {})[0]

    return values[jr.categorical(rng_key, jax.vmap(log_density)(values))]


def _draw_states(
    found: dict[str, Any], shapes: dict[str, tuple[int, ...]], rng_key: PRNGKeyArray
) -> dict[str, Array]:
    """The states of a chain, those of several sites together.

    Args:
        found: the packed trace; a first step's sites have names that begin with `PREVIOUS`, and
            those of all later steps together an axis of time.
        shapes: of the values of each site, time first.
        rng_key: a JAX random key.

    Raises:
        ValueError: a state depends on more than one before it, there are two chains, or the states
            of several sites are in different plates.
    """
    names, sites = sorted(shapes), list(samples_of(found).values())
    times = {axis for site in sites for axis in axes_of(site) if axis.startswith(TIME)}
    plates = plates_of(found[PREVIOUS + names[0]])
    same = all(plates_of(found[PREVIOUS + name]) == plates for name in names)
    inside = times | {PREVIOUS + name for name in names} | set(names)
    after = [site for site in sites if axes_of(site) & inside and not _in_scan(site)]
    long = any(name.startswith(2 * PREVIOUS) for name in found)
    if len(times) > 1 or not same or after or long:
        raise ValueError(
            f"OneStep draws the states {', '.join(names)} of a scan only where each step depends "
            "on the one before (history=1), there is one scan, all states are in the same plates, "
            "and no site outside of the scan depends on them. Other states can be summed out by "
            "hand, with numpyro.factor for their log likelihood."
        )
    supports = {name: _support(found[PREVIOUS + name]) for name in names}
    now = {name: len(values) for name, values in supports.items()}
    before = {PREVIOUS + name: size for name, size in now.items()}
    of_plates = {name: size for name, (_, size) in plates.items()}
    num, batch = int(np.prod(list(now.values()))), tuple(of_plates.values())

    first = [site for site in sites if site["name"].startswith(PREVIOUS)]
    first = _total(first, before | of_plates).reshape(num, *batch)
    length = shapes[names[0]][0]
    moves = jnp.zeros((0, num, num, *batch))
    if length > 1:
        (time,) = times
        later = [site for site in sites if time in axes_of(site)]
        sizes = {time: length - 1} | before | now | of_plates
        moves = _total(later, sizes).reshape(length - 1, num, num, *batch)
    states = _backward_draws(first, moves, rng_key)
    of_each = jnp.unravel_index(states, tuple(now.values()))
    return {
        name: supports[name][index].reshape(shapes[name])
        for name, index in zip(names, of_each, strict=True)
    }


def _backward_draws(
    first: Float[Array, " k *b"], moves: Float[Array, " t k k *b"], rng_key: PRNGKeyArray
) -> Int[Array, " s *b"]:
    """States of every step, drawn from the last one to the first.

    Args:
        first: log density of the first step for each of its states.
        moves: log density of each later step for each state before it and of it.
        rng_key: a JAX random key.
    """

    def forward(past, move):
        return logsumexp(past[:, None] + move, axis=0), past

    last, pasts = jax.lax.scan(forward, first, moves)
    key_last, key_others = jr.split(rng_key)

    def backward(state, step):
        past, move, key = step
        # The states before, for the state that was drawn.
        into = jnp.take_along_axis(move, state[None, None], axis=1)[:, 0]
        drawn = jr.categorical(key, past + into, axis=0)
        return drawn, drawn

    end = jr.categorical(key_last, last, axis=0)
    keys = jr.split(key_others, len(moves))
    _, others = jax.lax.scan(backward, end, (pasts, moves, keys), reverse=True)
    return jnp.concatenate([others, end[None]])


def _in_scan(site: dict[str, Any]) -> bool:
    is_later = any(axis.startswith(TIME) for axis in axes_of(site))
    return is_later or site["name"].startswith(PREVIOUS)


def _support(site: dict[str, Any]) -> Array:
    """The values of a discrete site, one a row."""
    values = site["fn"].enumerate_support(expand=False)
    event = jnp.shape(values)[jnp.ndim(values) - site["fn"].event_dim :]
    return values.reshape(-1, *event)


def _total(sites: list[dict[str, Any]], sizes: dict[str, int]) -> Array:
    """The sum of the sites' log densities, as an array with such axes; over other plates summed."""
    total = 0.0
    for site in sites:
        one = factor(site)
        others = frozenset(plates_of(site)) - frozenset(sizes)
        if others:
            one = one.reduce(funsor().ops.add, others)
        total = one + total
    return as_array(total, sizes)
