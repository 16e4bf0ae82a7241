"""Posteriors with structure: their answers are doubted, and the suite's rows and page are right."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from benchmarks.__main__ import main
from benchmarks.isolated import row_of
from benchmarks.problems.structured import STRUCTURED
from benchmarks.problems.structured.check import by_hessian, by_one_group
from benchmarks.problems.structured.exact import MixedModel, Walks, moments_over
from benchmarks.store import Store
from benchmarks.suites.structure import dimension, errors, measure


def test_names_are_those_of_the_problems_and_forms_share_their_answer():
    assert [problem.name for problem in STRUCTURED.values()] == list(STRUCTURED)
    centred, other = STRUCTURED["slopes_176_centred"], STRUCTURED["slopes_176_noncentred"]
    assert dimension(centred) == dimension(other) == 357
    assert centred.reference() is other.reference()


def test_a_mixed_model_is_a_multivariate_normal():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), [1, 3, 3, 5])
    effects, covariates = rng.standard_normal((12, 2)), rng.standard_normal((12, 3))
    effects[1:4] = effects[4:7]  # one design of two groups
    y, prior_sd = rng.standard_normal(12), np.array([1.0, 2.0, 3.0])
    model = MixedModel(effects, covariates, y, group, prior_sd)
    scales, sigma = np.array([0.7, 1.3]), 0.6
    same = group[:, None] == group
    between = (effects * scales**2) @ effects.T * same
    fixed = (covariates * prior_sd**2) @ covariates.T
    covariance = between + fixed + sigma**2 * np.eye(12)
    expected = multivariate_normal.logpdf(y, np.zeros(12), covariance)
    assert model.log_likelihood(scales, sigma) == pytest.approx(expected, abs=1e-10)
    # Of group 1: the first effect, plus the first coefficient.
    means, variances = model.conditional(
        scales, sigma, np.array([[1.0, 0.0, 0.0]]), np.array([[1.0, 0.0]])
    )
    along = scales[0] ** 2 * effects[:, 0] * (group == 1) + prior_sd[0] ** 2 * covariates[:, 0]
    gain = np.linalg.solve(covariance, along)
    assert means[3 + 1] == pytest.approx(gain @ y, abs=1e-10)
    prior = scales[0] ** 2 + prior_sd[0] ** 2
    assert variances[3 + 1] == pytest.approx(prior - gain @ along, abs=1e-10)


def test_walks_are_multivariate_normals():
    rng = np.random.default_rng(1)
    y, x = rng.standard_normal((2, 6)), rng.standard_normal(6)
    y[:, 2] = np.nan
    walks = Walks(y, np.column_stack([np.ones(6), x]))
    mean, first, steps, noise = (
        np.array([0.3, -0.2]),
        np.array([1.0, 0.5]),
        np.array([0.4, 0.2]),
        0.7,
    )
    times = np.minimum.outer(np.arange(6), np.arange(6))
    paths = [f**2 + s**2 * times for f, s in zip(first, steps, strict=True)]
    seen = np.arange(6) != 2
    prior = paths[0] + paths[1] * np.outer(x, x)
    covariance = (prior + noise**2 * np.eye(6))[np.ix_(seen, seen)]
    centre = (mean[0] + mean[1] * x)[seen]
    expected = multivariate_normal.logpdf(y[:, seen], centre, covariance).sum()
    point = (mean[None], first[None], steps[None], np.array([noise]))
    assert walks.filter(*point) == pytest.approx(expected, abs=1e-10)
    means, variances = walks.smooth(*(each[0] for each in point))
    gain = np.linalg.solve(covariance, (paths[1] * x)[:, seen].T).T  # of the second coefficient
    assert means[..., 1] == pytest.approx(mean[1] + (y[:, seen] - centre) @ gain.T, abs=1e-10)
    explained = (gain * (paths[1] * x)[:, seen]).sum(1)
    assert variances[:, 1] == pytest.approx(np.diag(paths[1]) - explained, abs=1e-10)


def test_moments_over_points_are_those_of_the_mixture():
    def conditional(point):
        return np.array([point[0], 2 * point[0]]), np.array([0.0, 0.25])

    answer = moments_over(np.array([[99.0], [101.0]]), np.log([1.0, 3.0]), conditional)
    assert answer.log_evidence == pytest.approx(np.log(4))
    assert answer.mean == pytest.approx([100.5, 201])
    assert answer.sd == pytest.approx([0.75**0.5, (3 + 0.25) ** 0.5])
    draws = np.random.default_rng(0).choice([99.0, 101.0], 400_000, p=[0.25, 0.75])
    draws = 2 * draws + 0.5 * np.random.default_rng(1).standard_normal(len(draws))
    kurtosis = (((draws - draws.mean()) / draws.std()) ** 4).mean()
    assert answer.kurtosis[1] == pytest.approx(kurtosis, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["intercepts_60_noncentred", "level_100_scan"])
def test_answers_agree_with_numpyros_density(x64, name):
    problem = STRUCTURED[name]
    (y,) = problem.args()
    few = replace(problem, args=lambda: (y[:4],))
    assert max(by_hessian(few)) < 1e-8


@pytest.mark.slow
def test_answers_of_groups_of_labels_agree_with_numpyros_density(x64):
    assert by_one_group(STRUCTURED["bernoulli_300_centred"]) < 1e-8


def test_errors_are_those_of_the_draws():
    problem = STRUCTURED["intercepts_60_centred"]
    answer = problem.reference()
    assert answer is not None
    assert answer.log_evidence is not None
    z = np.random.default_rng(0).standard_normal((4000, 63))
    draws = answer.mean + answer.sd * (z - z.mean(0)) / z.std(0)
    draws[:, 0] += 0.2 * answer.sd[0]
    draws[:, 3] = answer.mean[3] + 1.5 * (draws[:, 3] - answer.mean[3])
    sites = {
        "mu": draws[:, 0],
        "tau": np.exp(draws[:, 1]),
        "sigma": np.exp(draws[:, 2]),
        "theta": draws[:, 3:, None],
    }
    figures = {"elbo": answer.log_evidence - 2, "log_evidence": answer.log_evidence + 0.5}
    row = errors(problem, sites, figures)
    assert row["worst_mean"] == "mu"
    assert row["worst_sd"] == "theta"
    assert row["global_mean_error"] == pytest.approx(0.2)
    assert row["latent_log_sd_error"] == pytest.approx(np.log(1.5))
    assert row["latent_mean_error"] == pytest.approx(0, abs=1e-9)
    assert row["global_log_sd_error"] == pytest.approx(0, abs=1e-9)
    assert row["elbo_gap"] == pytest.approx(2)
    assert row["log_evidence_error"] == pytest.approx(0.5)


def test_a_run_that_takes_too_long_says_so():
    assert row_of(measure, {}, 0.01) == {"error": "ended after 0 s"}


def test_the_page_has_a_line_for_every_problem_and_method(tmp_path):
    store = Store(tmp_path / "structure.json")
    run = {"problem": "seeds", "method": "onestep", "dimension": 26}
    store.add({**run, "seed": 0, "seconds": 9.0, "latent_mean_error": 0.04, "warnings": ["a"]})
    store.add({**run, "seed": 1, "seconds": 7.0, "latent_mean_error": 0.02, "warnings": []})
    store.add({"problem": "seeds", "method": "iaf", "seed": 0, "error": "ended after 9 s\nmore"})
    main(["structure", "--report", "--results", str(tmp_path), "--docs", str(tmp_path)])
    page = (tmp_path / "structure.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| seeds")]
    assert len(lines) == 2
    assert "| 26 | onestep | 2 | 8.0 (7.0 to 9.0) |" in lines[0]
    assert lines[0].endswith("| 1 of 2 |")
    assert lines[1].endswith("| no result: ended after 9 s |")
