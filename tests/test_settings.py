import pytest

from numpyro_onestep import OneStep, Settings
from tests.conftest import eight_schools


def test_defaults_are_those_that_the_docstring_promises():
    draws = Settings.of().draws
    assert (draws.num_samples, draws.num_pool, draws.correction) == (4000, 40_000, "psis")
    assert draws.rejuvenation(512) == (25, 4)
    assert draws.rejuvenation(1024) == (12, 1)
    assert Settings.of().flow.network_width(128) == 256
    assert Settings.of().flow.network_width(129) == 64
    assert Settings.of().step_budgets(128) == (1, 2)
    assert Settings.of().step_budgets(129) == (1,)


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("many_modes", "multimodal", True),
        ("num_moves", "num_rejuvenation_steps", 10),
        ("tail_fraction", "langevin_fraction", 0.1),
    ],
)
def test_a_setting_by_its_old_name_is_told_the_new_one(old, new, value):
    with pytest.raises(TypeError, match=f"now called '{new}'"):
        OneStep(eight_schools, **{old: value})


@pytest.mark.parametrize(
    ("old", "new"), [("base_elbo", "initial_elbo"), ("folded_share", "folded_fraction")]
)
def test_an_attribute_by_its_old_name_is_told_the_new_one(old, new):
    with pytest.raises(AttributeError, match=f"now called {new}"):
        getattr(OneStep(eight_schools), old)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"num_samples": 0}, "positive integer"),
        ({"num_samples": 10.5}, "positive integer"),
        ({"width": True}, "positive integer"),
        ({"learning_rate": -1.0}, "positive number"),
        ({"tolerance": "small"}, "positive number"),
        ({"ema_decay": 1.0}, r"in \[0, 1\)"),
        ({"volume_weight": -0.1}, "zero or a positive number"),
        ({"num_distillation_steps": -1}, "zero or a positive integer"),
        ({"num_grid_steps": 12}, "power of two"),
        ({"num_flow_steps": 3}, "divisor of num_grid_steps=16"),
        ({"target_precision": "half"}, "'auto', 'single' or 'double'"),
        ({"correction": "PSIS"}, "'pgibbs' or None"),
        ({"correction": "nuts", "multimodal": True}, "modes they start in"),
        ({"correction": "imh", "num_samples": 102}, "multiple of 4"),
        ({"num_samples": 100, "pool_size": 50}, "no smaller than num_samples=100"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_remedy(setting, words):
    with pytest.raises(ValueError, match=words) as raised:
        OneStep(eight_schools, **setting)
    assert list(setting)[-1] in str(raised.value)


def test_an_unknown_setting_is_answered_with_the_closest_one():
    with pytest.raises(TypeError, match="Did you mean 'num_samples'"):
        OneStep(eight_schools, num_sample=10)
    with pytest.raises(TypeError, match="Known settings: num_samples"):
        OneStep(eight_schools, zzz=10)


def test_a_model_or_a_potential_and_not_both():
    with pytest.raises(ValueError, match="exactly one"):
        OneStep()
    with pytest.raises(ValueError, match="exactly one"):
        OneStep(eight_schools, potential_fn=lambda x: x)
    with pytest.raises(TypeError, match="callable"):
        OneStep(3)
