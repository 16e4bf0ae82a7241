"""Which name each axis of the ArviZ data gets, without training: at draws of the prior."""

from contextlib import ExitStack

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from hypothesis import given, settings
from hypothesis import strategies as hypothesis
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import log_likelihood as numpyro_log_likelihood
from numpyro.infer.reparam import LocScaleReparam

from numpyro_onestep.integrations.arviz import build
from numpyro_onestep.target import Site, axes_of
from tests.conftest import Pair


def many_axes(series, reading):
    """Plates that are not the leftmost axes, or not all of the batch, or not around all of it."""
    a, b = numpyro.plate("a", 3, dim=-3), numpyro.plate("b", 4, dim=-1)
    with b:
        d = numpyro.sample("d", dist.Normal(0, 1))
    with a, b:
        e = numpyro.sample("e", dist.Normal(d, 1))
        numpyro.deterministic("square", e**2)
        numpyro.deterministic("by_a", e.sum(-1, keepdims=True))
        numpyro.deterministic("vector", e[..., None] * jnp.ones(2))
        numpyro.deterministic("parts", (e, {"d": d}, Pair(d.sum(), d > 0)))
        numpyro.sample("row", dist.Normal(e, 1), obs=reading)
        numpyro.sample("number", dist.Normal(e, 1), obs=0.3)
        pairs = dist.MultivariateNormal(e[..., None] * jnp.ones(2), jnp.eye(2))
        names = {"event_dims": ["coordinate"]}
        numpyro.sample("pairs", pairs, obs=jnp.zeros((4, 2)), infer=names)

    def step(previous, value):
        with numpyro.plate("animal", 3, dim=-1), numpyro.plate("d", 2, dim=-2):
            z = numpyro.sample("z", dist.Normal(0.5 * previous, 1))
            numpyro.deterministic("z_sum", z.sum(0))
            numpyro.deterministic("z_total", z.sum() * jnp.ones(1))
            numpyro.sample("z_seen", dist.Normal(z, 1), obs=value)
        return z, None

    scan(step, jnp.zeros((2, 3)), series)
    with numpyro.plate("subject", 5):
        mean = numpyro.sample("mean", dist.Normal(0, 1))
        numpyro.sample("by_time", dist.Normal(mean, 1), obs=jnp.ones((5, 5)))
        numpyro.deterministic("unclear", mean * jnp.ones((5, 5)))
    with numpyro.plate("draw", 2), numpyro.plate("single", 1, dim=-2):
        numpyro.sample("w", dist.Normal(0, 1))
    numpyro.sample("chain", dist.Normal(0, 1))
    numpyro.sample("scales", dist.LKJCholesky(3), infer={"event_dims": ["g", "g"]})
    numpyro.sample("own", dist.Normal(0, 1).expand([2]).to_event(1), infer={"event_dims": "own"})
    numpyro.sample("wide", dist.Normal(jnp.zeros(4), 1), infer={"event_dims": ["group"]})
    numpyro.sample("short", dist.Normal(jnp.zeros(2), 1), infer={"event_dims": ["group"]})
    with handlers.reparam(config={"r": LocScaleReparam(0)}), numpyro.plate("k", 2):
        numpyro.sample("r", dist.Normal(jnp.ones(2), 1).to_event(1))
    with handlers.scope(prefix="inner"), numpyro.plate("k", 2):
        numpyro.sample("x", dist.Normal(0, 1))
    with numpyro.plate("coin", 2):
        seen = jnp.array([True, False])
        numpyro.sample("coins", dist.Bernoulli(logits=0.0), obs=seen)
        numpyro.sample("gap", dist.Normal(0, 1), obs=jnp.arange(2.0), obs_mask=seen)


# In a tree a slash is a path.
SLASH = "/" if az.__version__.startswith("0.") else "."
POSTERIOR = {
    "d": ["b"],
    "e": ["a", "e_dim_1", "b"],
    "square": ["a", "square_dim_1", "b"],
    "by_a": ["a", "by_a_dim_1", "by_a_dim_2"],
    "vector": ["a", "vector_dim_1", "b", "vector_dim_3"],
    "parts.0": ["a", "parts.0_dim_1", "b"],
    "parts.1.d": ["b"],
    "parts.2.total": [],
    "parts.2.is_positive": ["b"],
    # Time is as long as there are animals, and a plate has the name of a site.
    "z": ["z_dim_0", "z_dim_1", "animal"],
    "z_sum": ["z_sum_dim_0", "animal"],
    "z_total": ["z_total_dim_0", "z_total_dim_1"],
    "mean": ["subject"],
    # Of a deterministic site nobody knows which of two equal axes is the event's.
    "unclear": ["unclear_dim_0", "unclear_dim_1"],
    "w": ["single", "w_dim_1"],
    "chain_": [],
    "scales": ["g", "scales_dim_1"],
    "own": ["own_dim_0"],
    "short": ["group"],
    "wide": ["wide_dim_0"],
    "r": ["k", "r_dim_1"],
    "r_decentered": ["k", "r_decentered_dim_1"],
    f"inner{SLASH}x": [f"inner{SLASH}k"],
    "gap": ["coin"],
    "gap_unobserved": ["coin"],
}
LOG_LIKELIHOOD = {
    "row": ["a", "row_dim_1", "b"],
    "number": ["a", "number_dim_1", "b"],
    "pairs": ["a", "pairs_dim_1", "b"],
    "z_seen": ["z_seen_dim_0", "d", "animal"],
    "by_time": ["by_time_dim_0", "subject"],
    "coins": ["coin"],
    "gap_observed": ["coin"],
}
OBSERVED_DATA = {
    **LOG_LIKELIHOOD,
    "row": ["b"],
    "number": [],
    "pairs": ["b", "coordinate"],
}


def test_plates_that_are_not_the_leftmost_axes_or_not_all_of_the_batch():
    data = untrained(many_axes, jnp.zeros((3, 2, 3)), jnp.arange(4.0))
    for name, expected in (("posterior", POSTERIOR), ("log_likelihood", LOG_LIKELIHOOD)):
        found = {site: list(values.dims[2:]) for site, values in data[name].data_vars.items()}
        assert found == expected
    observed = data["observed_data"].data_vars
    assert {site: list(values.dims) for site, values in observed.items()} == OBSERVED_DATA


def test_names_that_meet():
    tree = {"t": (np.zeros(6), np.ones(6)), "t.0": np.full(6, 2.0), "draw": np.full((6, 2), 3.0)}
    tree["draw_dim_0"] = np.full(6, 4.0)
    posterior = build(tree, {}, {}, {}, [], {}, num_chains=2)["posterior"]
    values = {name: float(v.mean()) for name, v in posterior.data_vars.items()}
    assert values == {"t.0_": 0, "t.1": 1, "t.0": 2, "draw_": 3, "draw_dim_0": 4}
    assert posterior["draw_"].dims == ("chain", "draw", "draw__dim_0")
    clash = build({"a": np.zeros((6, 2)), "a_dim_0": np.zeros(6)}, {}, {}, {}, [], {})["posterior"]
    assert clash["a"].dims == ("chain", "draw", "a_dim_0_")
    empty = build({"none": np.zeros((6, 0, 2))}, {}, {}, {}, [], {}, num_chains=2)["posterior"]
    assert empty["none"].shape == (2, 3, 0, 2)


def test_a_plate_of_two_sizes_names_the_first_only():
    def model():
        for name, size in (("x", 2), ("y", 3), ("z", 2)):
            with numpyro.plate("i", size):
                numpyro.sample(name, dist.Normal(0, 1))

    posterior = untrained(model)["posterior"]
    assert [posterior[name].dims[2] for name in "xyz"] == ["i", "y_dim_0", "i"]


def untrained(model, *args):
    """The model's ArviZ data at a draw of the prior, its arrays compared with the model's."""
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(*args)
    sites = [
        Site(name, site["type"], bool(site.get("is_observed")), False, axes_of(site))
        for name, site in trace.items()
    ]
    names = [s.name for s in sites if s.type in ("sample", "deterministic") and not s.is_observed]
    draw = {name: trace[name]["value"] for name in names}
    arrays = {name: value for name, value in draw.items() if hasattr(value, "shape")}
    likelihood = numpyro_log_likelihood(model, arrays, *args, batch_ndims=0)
    draws, likelihood = jax.tree.map(lambda leaf: np.asarray(leaf)[None], (draw, likelihood))
    observed = {s.name: trace[s.name]["value"] for s in sites if s.is_observed}
    data = build(draws, {}, likelihood, observed, sites, {})
    expected = {
        "posterior": {name: draws[name] for name in arrays},
        "log_likelihood": likelihood,
        "observed_data": observed,
    }
    for group, values in expected.items():
        for name, value in values.items():
            found = data[group][name.replace("/", SLASH).replace("chain", "chain_")].to_numpy()
            found = found if group == "observed_data" else found[0]
            np.testing.assert_array_equal(found, value, strict=True)
    return data


def names_by_place(name, shape, plates, num_event, event_names=()):
    """What the axes of an array of that shape are called, each looked up from the right."""
    found = []
    for axis, size in enumerate(shape):
        place = axis - len(shape) + num_event
        named = f"{name}_dim_{axis}"
        if place >= 0 and place < len(event_names):
            named = event_names[place]
        elif (place, size) in plates:
            named = plates[place, size]
        found.append(named)
    return tuple(found)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(hypothesis.data())
def test_plates_of_any_layout(choices):
    places = choices.draw(hypothesis.lists(hypothesis.integers(-4, -1), max_size=3, unique=True))
    sizes = [choices.draw(hypothesis.integers(1, 4)) for _ in places]
    frames = list(zip("abc", places, sizes, strict=False))
    around, events = {}, {}
    for name in ("latent", "fixed", "seen"):
        around[name] = [frame for frame in frames if choices.draw(hypothesis.booleans())]
        events[name] = tuple(choices.draw(hypothesis.lists(hypothesis.integers(1, 4), max_size=2)))
    shapes = {}
    for name, inside in around.items():
        batch = np.ones(-min((place for _, place, _ in inside), default=0), int)
        for _, place, size in inside:
            batch[place] = size
        shapes[name] = (*map(int, batch), *events[name])
    # The data may lack axes on the left, and numbers along a plate, over which they broadcast.
    num_batch = len(shapes["seen"]) - len(events["seen"])
    batch = [n if choices.draw(hypothesis.booleans()) else 1 for n in shapes["seen"][:num_batch]]
    value = np.random.default_rng(0).normal(size=(*batch, *events["seen"]))
    value = value[(0,) * choices.draw(hypothesis.integers(0, num_batch))]
    event_names = ["u", "v"][: len(events["latent"])]

    def inside(name):
        stack = ExitStack()
        for frame in around[name]:
            stack.enter_context(numpyro.plate(frame[0], frame[2], dim=frame[1]))
        return stack

    def prior(name):
        return dist.Normal(0, 1).expand(events[name]).to_event(len(events[name]))

    def model():
        with inside("latent"):
            x = numpyro.sample("latent", prior("latent"), infer={"event_dims": event_names})
        with inside("fixed"):
            numpyro.deterministic(
                "fixed", x.sum() + jnp.arange(4.0).sum() * jnp.ones(shapes["fixed"])
            )
        with inside("seen"):
            numpyro.sample("seen", prior("seen"), obs=value)

    data = untrained(model)

    def expected(name, shape, num_event, event_names=()):
        plates = {(place, size): plate for plate, place, size in around[name]}
        return names_by_place(name, shape, plates, num_event, event_names)

    for group, name, shape, num_event in (
        ("posterior", "latent", shapes["latent"], len(events["latent"])),
        ("log_likelihood", "seen", shapes["seen"][:num_batch], 0),
        ("observed_data", "seen", value.shape, len(events["seen"])),
    ):
        found = data[group][name].dims[0 if group == "observed_data" else 2 :]
        assert found == expected(name, shape, num_event, event_names if name == "latent" else ())
    found = data["posterior"]["fixed"].dims[2:]
    right = expected("fixed", shapes["fixed"], len(events["fixed"]))
    used = [size for _, _, size in around["fixed"]] + list(events["fixed"])
    if len({1, *used}) == len(used) + 1:  # so that no axis can be taken for another
        assert found == right
    for axis, (dim, other) in enumerate(zip(found, right, strict=True)):
        assert dim in (other, f"fixed_dim_{axis}")
