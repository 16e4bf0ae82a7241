"""The pictures show what the run has found: their data are compared, not their pixels."""

import pickle
import subprocess
import sys

import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from matplotlib import pyplot
from scipy.stats import genpareto

from numpyro_onestep import OneStep, inference
from numpyro_onestep.importance.evidence import weigh
from numpyro_onestep.importance.psis import tail_of
from numpyro_onestep.integrations import structure_picture
from numpyro_onestep.storage.tree import decoded, encoded
from numpyro_onestep.structure.structure import structure_of
from tests.conftest import EFFECT, QUICK, STD_ERROR, eight_schools
from tests.graphs import graph, hierarchy

pytestmark = pytest.mark.filterwarnings("ignore::numpyro_onestep.OneStepWarning")
PLOTS = {
    "training": lambda sampler, ax=None: sampler.plot_training(ax),
    "weights": lambda sampler, ax=None: sampler.plot_weights(ax),
    "evidence": lambda sampler, ax=None: sampler.plot_evidence(jr.key(1), ax, 2),
    "structure": lambda sampler, ax=None: sampler.plot_structure(ax),
}


@pytest.fixture(autouse=True)
def no_figure_stays():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def quick():
    """A run in which the one-step map is not enough, so that a second map is trained."""
    sampler = OneStep(eight_schools, **QUICK | {"max_steps": 300})
    sampler.run(jr.key(0), STD_ERROR, y=EFFECT)
    return sampler


def groups(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    with numpyro.plate("group", len(y)):
        value = numpyro.sample("value", dist.Normal(mu, 1))
        numpyro.sample("slope", dist.Normal(value, 1))
        numpyro.sample("y", dist.StudentT(3, value, 1), obs=y)


@pytest.fixture(scope="module")
def structured():
    sampler = OneStep(groups, structure=["mu"], **QUICK)
    sampler.run(jr.key(0), np.arange(5.0))
    return sampler


def line(ax, label):
    """The data of the only line whose label begins so."""
    (found,) = [one for one in ax.lines if str(one.get_label()).startswith(label)]
    return np.asarray(found.get_xdata()), np.asarray(found.get_ydata())


def test_training_shows_the_elbo_of_every_iteration_and_where_it_ended(quick):
    ax = quick.plot_training()
    before = sum(course.num_iterations for course in quick.result.trained_before)
    x, y = line(ax, "each iteration")
    np.testing.assert_array_equal(y, -quick.losses)
    np.testing.assert_array_equal(x, before + 1 + np.arange(len(y)))
    _, y = line(ax, "dense map, 1 flow step: ELBO")
    hundreds = quick.losses.reshape(-1, 100)
    np.testing.assert_allclose(y, -np.median(hundreds, axis=1))
    end, _ = line(ax, f"stopped at max_steps after {len(quick.losses)}")
    assert set(end) == {before + len(quick.losses)}
    falls, _ = line(ax, "learning rate falls")
    assert set(falls) == {before + quick.result.training.cooling_from}
    _, y = line(ax, "log evidence")
    assert set(y) == {quick.log_evidence}
    assert ax.get_ylabel() == "ELBO (nats)"


def test_maps_that_were_not_taken_are_shown_in_the_order_of_their_training(monkeypatch):
    monkeypatch.setattr(inference, "is_enough", lambda weighted: False)
    sampler = OneStep(eight_schools, **QUICK)
    sampler.run(jr.key(0), STD_ERROR, y=EFFECT)
    result = sampler.result
    courses = [*result.trained_before, *result.trained_after]
    assert [course.num_iterations for course in courses] == [100]
    steps = {1, 2} - {result.num_flow_steps}
    name = f"dense map, {steps.pop()} flow step"
    assert courses[0].name.startswith(name)
    assert courses[0].elbo <= sampler.elbo
    x, y = line(sampler.plot_training(), name)
    np.testing.assert_array_equal(y, courses[0].elbos)
    assert x[0] == (50.5 if result.trained_before else 150.5)
    again = pickle.loads(pickle.dumps(sampler))
    assert str(again.result.trained_before) == str(result.trained_before)


def test_both_stages_of_a_training_are_shown():
    sampler = OneStep(eight_schools, num_distillation_steps=100, **QUICK)
    sampler.run(jr.key(0), STD_ERROR, y=EFFECT)
    ax, losses = sampler.plot_training(), sampler.losses_by_stage
    np.testing.assert_array_equal(line(ax, "bound in the dist")[1], -losses["distillation"])
    x, y = line(ax, "each iteration")
    np.testing.assert_array_equal(y, -losses["evidence"])
    assert x[0] == 101


def test_weights_are_those_of_the_pool_with_the_tail_of_psis(quick):
    ax, evidence = quick.plot_weights(), quick.result.evidence
    log_weight = np.asarray(quick.get_pool().log_weight, np.float64) - evidence.log_evidence
    relative = np.exp(log_weight)
    w, share = line(ax, "400 weights")
    np.testing.assert_allclose(w, np.sort(relative)[::-1], rtol=1e-5)
    np.testing.assert_allclose(share, np.arange(1, 401) / 400)
    w, share = line(ax, "fitted tail")
    tail = tail_of(log_weight, evidence.pareto_k)
    assert tail.shape == evidence.pareto_k
    expected = genpareto.sf(w - tail.cut, evidence.pareto_k, scale=tail.scale)
    np.testing.assert_allclose(share * 400 / tail.num, expected, rtol=1e-6)
    np.testing.assert_allclose(line(ax, "largest weight")[0], relative.max())
    assert f"Pareto k = {evidence.pareto_k:.2f}" in ax.get_title()
    assert f"{evidence.pareto_k_limit:.2f}" in ax.get_title()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    # Half of the tail's weights are above its median.
    assert np.mean(relative > tail.cut) == pytest.approx(tail.num / 400, abs=2 / 400)


def with_log_weights(sampler, log_weight):
    """The run with other weights."""
    result = sampler.result
    zeros = np.zeros(len(log_weight))
    pool = result.pool._replace(log_density=log_weight, log_q=zeros, log_mixture=zeros)
    other = pickle.loads(pickle.dumps(sampler))
    object.__setattr__(other.result, "weighted", weigh(pool))
    return other


def test_a_heavy_tail_shows_the_mass_beyond_its_largest_weight(quick):
    heavy = with_log_weights(quick, 2 * np.random.default_rng(0).exponential(size=400))
    ax = heavy.plot_weights()
    assert "above its limit" in ax.get_title()
    assert heavy.pareto_k > 0.7
    (shaded,) = ax.collections
    edge = shaded.get_paths()[0].vertices[:, 0].min()
    assert edge >= line(ax, "largest weight")[0][0]
    assert any("beyond the largest weight" in text.get_text() for text in ax.get_legend().texts)


def test_weights_without_a_tail_are_shown_alone(quick):
    ax = with_log_weights(quick, np.zeros(400)).plot_weights()
    assert any("no tail is fitted" in text.get_text() for text in ax.get_legend().texts)
    ax.figure.canvas.draw()
    nothing = with_log_weights(quick, np.full(400, -np.inf))
    for plot in (nothing.plot_weights, lambda: PLOTS["evidence"](nothing)):
        assert "No weight is finite" in plot().texts[0].get_text()


def test_evidence_stands_between_its_bounds(quick):
    ax = PLOTS["evidence"](quick)
    interval = quick.evidence_interval(jr.key(1), 2)
    expected = [interval.lower, quick.log_evidence, interval.upper]
    points = [bar.lines[0] for bar in ax.containers]
    assert [point.get_xdata()[0] for point in points] == expected
    assert [point.get_ydata()[0] for point in points] == [2, 1, 0]
    errors = interval.lower_std_error, quick.log_evidence_std_error, interval.upper_std_error
    for bar, error in zip(ax.containers, errors, strict=True):
        (segment,) = bar.lines[2][0].get_segments()
        assert np.ptp(segment[:, 0]) == pytest.approx(4 * error)
    shown = [text.get_text().split("\n")[0] for text in ax.get_yticklabels()]
    assert shown == ["ELBO", "log evidence", "EUBO"]


def test_an_upper_bound_that_was_not_found_is_said_to_be_missing(quick, monkeypatch):
    interval = quick.evidence_interval(jr.key(1), 0)
    infinite = interval._replace(upper=np.inf, upper_std_error=np.inf, reached_fraction=0.5)
    monkeypatch.setattr(OneStep, "evidence_interval", lambda *_: infinite)
    ax = quick.plot_evidence(jr.key(1))
    assert "no upper bound: the inverse was found at 50.0%" in ax.get_title()
    assert len(ax.containers) == 2


def cells(ax):
    (image,) = ax.images
    return np.asarray(image.get_array())


def test_structure_has_the_globals_and_the_blocks_that_were_found(structured):
    ax = structured.plot_structure()
    found = cells(ax)
    g, joined = structure_picture.GLOBAL, structure_picture.INTERACT
    on_mu = np.arange(11) % 2 == 0  # mu itself and the values; the slopes depend on these alone
    np.testing.assert_array_equal(found[0] == g, on_mu)
    np.testing.assert_array_equal(found[:, 0] == g, on_mu)
    expected = np.kron(np.eye(5, dtype=int), np.full((2, 2), joined))
    np.testing.assert_array_equal(found[1:, 1:], expected)
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == ["mu", *(f"{n}[{i}]" for i in range(5) for n in ("slope", "value"))]
    assert str(structured.structure) in ax.get_title()


def test_a_dense_map_gives_a_full_matrix(quick):
    ax = quick.plot_structure()
    assert (cells(ax) == structure_picture.DENSE).all()
    assert cells(ax).shape == (10, 10)
    assert ax.get_title() == "dense map of 10 coordinates"


def series(length):
    """The structure of a series that depends on a global, its coordinates in random order."""
    place = np.random.default_rng(0).permutation(length + 1).tolist()
    edges = [(0, i) for i in range(1, length + 1)] + [(i, i + 1) for i in range(1, length)]
    return structure_of(graph(length + 1, [(place[i], place[j]) for i, j in edges]))


def test_a_series_is_a_band_in_whatever_order_its_coordinates_are():
    found = series(40)
    order = structure_picture.arranged(found)
    assert sorted(order) == list(range(41))
    matrix = structure_picture.matrix(found, order)
    rows, columns = np.nonzero(matrix[1:, 1:] == structure_picture.INTERACT)
    assert abs(rows - columns).max() == 1
    assert len(rows) == 40 + 2 * 39
    # What the elimination has joined is told apart from what interacts.
    assert (matrix == structure_picture.JOINED).any()


def test_thousands_of_coordinates_share_cells():
    for found in (series(3000), structure_of(hierarchy(5000))):
        matrix = structure_picture.matrix(found, structure_picture.arranged(found))
        assert matrix.shape == (structure_picture.MOST_CELLS,) * 2
        border = int((np.diagonal(matrix) == structure_picture.GLOBAL).sum())
        assert border == 15
        inner = matrix[border:, border:]
        near = abs(np.subtract.outer(np.arange(len(inner)), np.arange(len(inner)))) <= 1
        assert (inner[np.eye(len(inner), dtype=bool)] == structure_picture.INTERACT).all()
        assert (inner[~near] != structure_picture.INTERACT).all()


@pytest.mark.parametrize("name", PLOTS)
def test_a_picture_is_drawn_on_given_axes_and_else_on_a_figure_of_its_own(name, quick):
    figure, axes = pyplot.subplots(1, 2)
    assert PLOTS[name](quick, axes[1]) is axes[1]
    assert not axes[0].has_data()
    assert pyplot.get_fignums() == [figure.number]
    ax = PLOTS[name](quick)
    assert pyplot.get_fignums() == [figure.number, ax.figure.number]
    ax.figure.canvas.draw()


@pytest.mark.parametrize("name", PLOTS)
def test_a_picture_before_a_run_is_an_error(name):
    with pytest.raises(RuntimeError, match=r"no results yet: call run"):
        PLOTS[name](OneStep(eight_schools))
    assert pyplot.get_fignums() == []


def test_without_matplotlib_the_error_says_what_to_install(quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name, plot in PLOTS.items():
        message = rf"OneStep\.plot_{name} needs matplotlib: pip install matplotlib"
        with pytest.raises(ImportError, match=message):
            plot(quick)


@pytest.mark.parametrize("fixture", ["quick", "structured"])
def test_pictures_of_a_run_from_a_file_are_the_same(fixture, request, tmp_path):
    sampler = request.getfixturevalue(fixture)
    sampler.save(tmp_path / "run.nos")
    again = OneStep.load(tmp_path / "run.nos", sampler.model)  # without the data
    for name in ("training", "weights"):
        one, other = (PLOTS[name](run) for run in (sampler, again))
        assert len(one.lines) == len(other.lines)
        for a, b in zip(one.lines, other.lines, strict=True):
            np.testing.assert_array_equal(a.get_ydata(), b.get_ydata())
    np.testing.assert_array_equal(cells(sampler.plot_structure()), cells(again.plot_structure()))
    with pytest.raises(RuntimeError, match="without its data"):
        PLOTS["evidence"](again)


def test_a_file_of_an_earlier_version_has_pictures_of_what_it_holds(structured):
    arrays = []
    tree = encoded(structured.result, arrays)
    run, training = tree["fields"], tree["fields"]["training"]["fields"]
    structure = run["fit"]["fields"]["structure"]["fields"]
    for fields, name in (
        (run, "trained_before"),
        (run, "trained_after"),
        (training, "cooling_from"),
        (structure, "edges"),
    ):
        del fields[name]
    earlier = pickle.loads(pickle.dumps(structured))
    earlier._last = decoded(tree, arrays)
    object.__setattr__(earlier._last, "problem", structured.result.problem)
    _, y = line(earlier.plot_training(), "each iteration")
    np.testing.assert_array_equal(y, -structured.losses)
    np.testing.assert_array_equal(
        cells(earlier.plot_structure()), cells(structured.plot_structure())
    )


def test_a_run_of_which_only_the_flow_is_there_shows_its_training(quick):
    sampler = pickle.loads(pickle.dumps(quick))
    result = sampler.result
    names = "problem", "fit", "training", "num_flow_steps", "seconds"
    sampler._last = type(result).__mro__[3](*(getattr(result, name) for name in names))
    assert type(sampler._last).__name__ == "Trained"
    _, y = line(sampler.plot_training(), "each iteration")
    np.testing.assert_array_equal(y, -quick.losses)
    with pytest.raises(RuntimeError, match="before its draws were weighed"):
        sampler.plot_weights()


def test_a_comparison_has_a_picture_for_notebooks_and_leaves_no_state_in_pyplot():
    code = (
        "import sys, numpy as np\n"
        "from numpyro_onestep.compare import Comparison\n"
        "draws = {'x': np.random.default_rng(0).normal(size=(100, 2))}\n"
        "found = Comparison(draws, draws, 1.0, 2.0, 0, {})\n"
        "figure = found.plot()\n"
        "assert len(figure.axes) == 2, figure.axes\n"
        "assert figure._repr_png_().startswith(b'\\x89PNG')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
