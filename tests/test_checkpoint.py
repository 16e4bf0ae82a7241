"""A run that is ended at any moment goes on from its checkpoint, to the same bits."""

import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_onestep import OneStep, OneStepWarning
from numpyro_onestep.checkpoint import journal
from numpyro_onestep.storage import file
from numpyro_onestep.training import loop
from tests.conftest import EFFECT, QUICK, STD_ERROR, eight_schools

pytestmark = pytest.mark.filterwarnings("ignore::numpyro_onestep.OneStepWarning")
SHORT = QUICK | {"max_steps": 300}


class Killed(BaseException):
    """In place of a signal that nothing can catch: no code of the package waits for it."""


@pytest.fixture
def eager(monkeypatch):
    """Checkpoints are written after every chunk."""
    monkeypatch.setattr(journal, "SECONDS_BETWEEN_WRITES", 0.0)


@pytest.fixture
def killer(monkeypatch, eager):
    """A function: `killer(n)` ends the run right after its n-th write from now on."""
    write, rest = file.write, [0]

    def counted(*args):
        write(*args)
        rest[0] -= 1
        if rest[0] == 0:
            raise Killed

    monkeypatch.setattr(file, "write", counted)
    return lambda after: rest.__setitem__(0, after)


def bits(sampler):
    """All that a run leaves behind, as bytes, without times."""
    evidence = sampler.result.evidence
    trees = sampler.get_samples(), sampler.sample(jr.key(9), 50), sampler.get_pool(), evidence
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trees)]
    return leaves, sampler.losses.tobytes(), sampler.messages, str(sampler.result.scan)


def groups(y):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    with numpyro.plate("group", len(y)):
        value = numpyro.sample("value", dist.Normal(mu, 1))
        numpyro.sample("y", dist.Normal(value, 1), obs=y)


def two_modes(x):
    return -jnp.logaddexp(-0.5 * jnp.sum((x - 4) ** 2), -0.5 * jnp.sum((x + 4) ** 2))


def schools(path, **settings):
    sampler = OneStep(eight_schools, checkpoint=path, **{**SHORT, **settings})
    sampler.run(jr.key(0), STD_ERROR, y=EFFECT)
    return sampler


def distilled(path):
    return schools(path, num_distillation_steps=100, max_steps=200)


def doubled(path):
    return schools(path, target_precision="double", max_steps=100)


def structured(path):
    sampler = OneStep(groups, structure=["mu"], checkpoint=path, **SHORT)
    sampler.run(jr.key(0), np.arange(12.0))
    return sampler


def explored(path):
    sampler = OneStep(potential_fn=two_modes, multimodal=True, checkpoint=path, **SHORT)
    sampler.run(jr.key(0), init_params=jnp.zeros(2))
    return sampler


@pytest.mark.parametrize(
    ("run", "fewest"),
    [
        (distilled, 7),
        pytest.param(structured, 6, marks=pytest.mark.slow),
        pytest.param(doubled, 5, marks=pytest.mark.slow),
        pytest.param(explored, 7, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_after_each_of_its_writes_ends_in_the_same_bits(
    run, fewest, killer, tmp_path
):
    expected, path, sampler, kills = bits(run(None)), tmp_path / "run.ckpt", None, 0
    while sampler is None:
        killer(1)
        try:
            sampler = run(path)
        except Killed:
            kills += 1
    assert kills >= fewest
    assert bits(sampler) == expected
    assert os.listdir(tmp_path) == ["run.ckpt"]


def test_a_run_that_has_ended_is_read_from_its_checkpoint(tmp_path, monkeypatch):
    expected = bits(schools(tmp_path / "run.ckpt"))
    monkeypatch.setattr(loop, "train", None)  # so that a training would be an error
    assert bits(schools(tmp_path / "run.ckpt", progress_bar=True)) == expected
    with zipfile.ZipFile(tmp_path / "run.ckpt") as archive:
        for name in archive.namelist():
            assert np.asarray(EFFECT).tobytes() not in archive.read(name)


def test_an_interrupted_run_goes_on_when_it_is_called_again(tmp_path, monkeypatch):
    expected = bits(schools(None))
    run_chunk, calls = loop.run_chunk, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_chunk(*args)

    interrupted.ahead = run_chunk.ahead
    monkeypatch.setattr(loop, "run_chunk", interrupted)
    sampler = schools(tmp_path / "run.ckpt")
    assert sampler.result.training.interrupted
    assert len(sampler.losses) == 100
    sampler.run(jr.key(0), STD_ERROR, y=EFFECT)
    assert bits(sampler) == expected


def sequence(path):
    """A run, one from its flow on other data, one with another key: each has its bits."""
    sampler = OneStep(eight_schools, checkpoint=path, warm_start=True, **QUICK)
    found = []
    for seed, effect in ((0, EFFECT), (1, EFFECT + 1), (2, EFFECT)):
        sampler.run(jr.key(seed), STD_ERROR, y=effect)
        found.append(bits(sampler))
    return found


def test_a_script_of_several_runs_is_gone_on_with_where_it_was(killer, tmp_path):
    killer(0)
    expected = sequence(None)
    for after in (5, 4, 0):
        killer(after)
        try:
            found = sequence(tmp_path / "run.ckpt")
        except Killed:
            continue
    assert found == expected
    assert sorted(os.listdir(tmp_path)) == ["run.ckpt", "run.ckpt.2", "run.ckpt.3"]


def test_the_same_run_once_more_is_read_and_keeps_its_file(tmp_path):
    sampler = schools(tmp_path / "run.ckpt")
    expected = bits(sampler)
    again = pickle.loads(pickle.dumps(sampler))
    for one in (sampler, again):
        one.run(jr.key(0), STD_ERROR, y=EFFECT)
        assert bits(one) == expected
    assert os.listdir(tmp_path) == ["run.ckpt"]
    sampler.save(tmp_path / "run.nos")
    assert bits(OneStep.load(tmp_path / "run.nos", eight_schools, STD_ERROR, EFFECT)) == expected


def centred(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """The checkpoint of a run that was killed."""
    path = tmp_path_factory.mktemp("checkpoint") / "run.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            schools(path)
    return path


def other(path, model=eight_schools, key=0, y=EFFECT, init_params=None, **settings):
    sampler = OneStep(model, checkpoint=path, **{**SHORT, **settings})
    sampler.run(jr.key(key), STD_ERROR[: len(y)], y=y, init_params=init_params)


START = {"mu": np.float32(0), "tau": np.float32(0), "standardised": np.zeros(8, np.float32)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": 1}, "the random key\\. "),
        ({"y": EFFECT + 1}, "the data \\(the values of the arrays that the model reads\\)\\. "),
        ({"y": EFFECT[:7]}, "the model \\(its code, .*; the data"),
        ({"model": centred}, "the model \\(its code"),
        ({"max_steps": 400}, "the settings \\(max_steps is 300 there and 400 here\\)\\. "),
        ({"structure": ["mu"]}, "structure is 'auto' there and \\['mu'\\] here"),
        ({"init_params": START}, "the starting point \\(init_params"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_checkpoint_of_another_run_is_refused_with_the_reason(unfinished, change, reason):
    before = unfinished.read_bytes()
    with pytest.raises(ValueError, match=f"is of another run. What differs: .*{reason}") as error:
        other(unfinished, **change)
    assert "Delete the file" in str(error.value)
    assert "another path as checkpoint=" in str(error.value)
    assert unfinished.read_bytes() == before


def test_that_of_other_packages_is_refused(unfinished, monkeypatch):
    found = journal.identity_of

    def of_another_version(*args):
        identity = found(*args)
        identity["environment"]["jax"] = "0.1"
        return identity

    monkeypatch.setattr(journal, "identity_of", of_another_version)
    with pytest.raises(ValueError, match=f"jax is {jax.__version__!r} there and '0.1' here"):
        other(unfinished)


def test_a_damaged_or_foreign_checkpoint_is_an_error_and_stays(unfinished, tmp_path):
    path, whole = tmp_path / "bad.ckpt", unfinished.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"notes of mine"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read: it is no file of .*Delete the file"):
            other(path)
        assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the path of a file in a folder that is"):
        OneStep(eight_schools, checkpoint=tmp_path / "nowhere" / "run.ckpt")
    with pytest.raises(IsADirectoryError, match="cannot be written"):
        OneStep(eight_schools, checkpoint=tmp_path)


def test_a_run_outlives_a_disk_that_is_full(tmp_path, monkeypatch):
    expected = bits(schools(None))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file, "write", full)
    with pytest.warns(OneStepWarning, match="could not be written .No space left"):
        sampler = schools(tmp_path / "run.ckpt")
    assert bits(sampler) == expected


def long(path):
    return schools(path, max_steps=3000, tolerance=1e-9)


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_a_checkpoint_to_go_on_from(tmp_path):
    code = (
        "import sys; from numpyro_onestep.checkpoint import journal\n"
        "from tests import test_checkpoint\n"
        "journal.SECONDS_BETWEEN_WRITES = 0.0\n"
        "test_checkpoint.long(sys.argv[1])\n"
    )
    path = tmp_path / "run.ckpt"
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(path)]) as process:
        while process.poll() is None and not _is_training(path):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert _is_training(path)
    assert bits(long(path)) == bits(long(None))
    assert os.listdir(tmp_path) == ["run.ckpt"]


def _is_training(path) -> bool:
    return path.exists() and file.read(path, "checkpoint")[0]["state"]["dict"]["place"] is not None
