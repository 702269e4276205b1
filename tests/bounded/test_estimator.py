"""``BoundedDiffusion``: scikit-learn's own checks, bounds and atoms, densities, completion, saved models."""

import pickle
import re

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator

from bounded import BoundedDiffusion
from evaluation import log_likelihood
from models import load_pretrained
from tests.conftest import ROOT

SMALL = {"width": 64, "num_blocks": 2, "random_state": 0, "verbose": False}
N = 1500


def rows(n=N, seed=0):
    """Draw a column with 40 % on its bound 2 and the rest uniform up to 6, and one near 3 where it is 2, else 1."""
    rng = np.random.default_rng(seed)
    first = np.where(rng.random(n) < 0.4, 2.0, rng.uniform(2.0, 6.0, n))
    second = np.where(first == 2.0, 3.0, 1.0) + 0.02 * rng.standard_normal(n)
    return np.stack([first, second], 1)


@pytest.fixture(scope="module")
def model():
    return BoundedDiffusion(low=[2, 0], high=[6, 4], n_iter=400, **SMALL).fit(rows())


@pytest.mark.slow(60)
def test_the_checks_of_scikit_learn():
    check_estimator(BoundedDiffusion(n_iter=2, batch_size=8, width=8, num_blocks=1, steps=2, verbose=False))


def test_samples_have_the_atom_and_the_two_modes(model):
    drawn = model.sample(N, random_state=1)
    assert drawn.shape == (N, 2) and drawn.dtype == np.float64
    assert drawn[:, 0].min() == 2.0 and drawn[:, 0].max() <= 6.0 and 0.0 <= drawn[:, 1].min() < drawn[:, 1].max() <= 4.0
    on_bound = drawn[:, 0] == 2.0
    assert on_bound.mean() == pytest.approx(0.4, abs=0.06)
    near = np.abs(drawn[:, 1] - np.where(on_bound, 3.0, 1.0)) < 0.2
    assert near.mean() > 0.95
    inner = drawn[~on_bound, 0]
    assert np.abs(np.sort(inner) - np.linspace(2, 6, len(inner))).max() < 0.5, "uniform there"


def test_a_sample_is_a_function_of_its_seed_and_number(model):
    state = torch.get_rng_state()
    drawn = model.sample(40, random_state=7)
    assert np.array_equal(drawn[:13], model.sample(13, random_state=7))
    assert not np.array_equal(drawn, model.sample(40, random_state=8))
    assert np.array_equal(model.sample(3), model.sample(3))
    assert torch.equal(state, torch.get_rng_state())


def test_the_same_seed_gives_the_same_network():
    x = rows(60)
    state = torch.get_rng_state()
    first, second, third = (BoundedDiffusion(n_iter=3, **{**SMALL, "random_state": s}).fit(x) for s in (0, 0, 1))
    assert np.array_equal(first.sample(5), second.sample(5)) and not np.array_equal(first.sample(5), third.sample(5))
    assert torch.equal(state, torch.get_rng_state())


def test_the_density_is_that_of_the_flow_in_the_units_of_the_data(model):
    x = np.array([[3.0, 1.0], [5.0, 1.02], [2.0, 3.0], [1.9, 1.0], [3.0, 4.1]])
    found = model.score_samples(x)
    assert np.isneginf(found[3:]).all() and np.isfinite(found[:3]).all()
    u = torch.tensor((x[:3] - [2, 0]) / 4).float()
    exact = log_likelihood(model.net_, model.process_, u, "exact", rtol=1e-5, atol=1e-5).log_prob.numpy()
    assert found[:3] == pytest.approx(exact - 2 * np.log(4), abs=0.02)
    assert model.score(x[:3]) == pytest.approx(found[:3].sum())
    # Where the first column is inside, the density is 0.6 / 4 times that of a normal law around 1.
    assert found[0] == pytest.approx(np.log(0.15) - np.log(0.02 * np.sqrt(2 * np.pi)), abs=1.0)


def test_unknown_values_are_drawn_given_the_known_ones(model):
    given = np.array([[np.nan, 3.0], [np.nan, 1.0], [2.0, np.nan], [4.0, np.nan], [np.nan, np.nan]])
    drawn = model.sample(40, random_state=0, given=given)
    assert drawn.shape == (200, 2)
    groups = drawn.reshape(5, 40, 2)
    for row, group in zip(given, groups, strict=True):
        known = ~np.isnan(row)
        assert (group[:, known] == row[known]).all()
    assert (groups[0, :, 0] == 2.0).mean() > 0.8 and (groups[1, :, 0] > 2.0).mean() > 0.8
    assert (np.abs(groups[2, :, 1] - 3) < 0.2).mean() > 0.8 and (np.abs(groups[3, :, 1] - 1) < 0.2).mean() > 0.8
    assert len(np.unique(groups[4, :, 0])) > 10
    for wrong, message in [
        (given[:, :1], "1 columns, the model 2"),
        (given + 5, "given: row 0 has a value out of bounds"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.sample(given=wrong)


def test_a_saved_model_is_a_run_directory(model, tmp_path, scripts):
    model.save(tmp_path / "saved")
    loaded = BoundedDiffusion.load(tmp_path / "saved")
    assert np.array_equal(loaded.sample(20, random_state=3), model.sample(20, random_state=3))
    assert np.array_equal(loaded.score_samples(rows(5)), model.score_samples(rows(5)))
    own = model.get_params() | {"low": [2.0, 0.0], "high": [6.0, 4.0]}  # bounds as lists
    unknown = ("device", "random_state", "validation_fraction", "verbose")  # are not part of a run
    assert {key: value for key, value in loaded.get_params().items() if key not in unknown} == {
        key: value for key, value in own.items() if key not in unknown
    }
    assert loaded.n_features_in_ == 2
    names = sorted(
        str(path.relative_to(tmp_path / "saved")) for path in (tmp_path / "saved").rglob("*") if path.is_file()
    )
    assert len(names) == 2 and names[0] == ".hydra/config.yaml" and names[1].startswith("checkpoints/checkpoint_")
    assert str(tmp_path) not in (tmp_path / "saved/.hydra/config.yaml").read_text()
    assert load_pretrained(tmp_path / "saved")[0].data_shape == (2,)
    with pytest.raises(ValueError, match="saved exists: choose another path"):
        model.save(tmp_path / "saved")
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again/.hydra/config.yaml").read_bytes() == (tmp_path / "saved/.hydra/config.yaml").read_bytes()
    result = scripts(tmp_path, "run_vis.py", "load_dir=saved", "sampling.steps=3", "hydra.run.dir=vis", "device=cpu")
    assert result.returncode == 0, result.stderr
    drawn = np.load(tmp_path / "vis/images/samples_0.npz")["samples"]
    assert drawn.shape == (100, 2) and drawn[:, 0].min() >= 2.0 and drawn[:, 0].max() <= 6.0


def test_a_directory_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config.yaml does not exist"):
        BoundedDiffusion.load(tmp_path)


def test_compositions(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.dirichlet([4, 2, 3], 800)
    x[::4, 1] = 0
    x = 5 * x / x.sum(1, keepdims=True)
    model = BoundedDiffusion(high=5, simplex=True, n_iter=300, **SMALL).fit(x)
    drawn = model.sample(800, random_state=1)
    assert drawn.shape == (800, 3) and drawn.min() == 0.0 and np.allclose(drawn.sum(1), 5.0)
    assert np.abs(drawn.mean(0) - x.mean(0)).max() < 0.2
    assert (drawn[:, 1] == 0).mean() == pytest.approx(0.25, abs=0.1)
    found = model.score_samples(np.array([[2.0, 1.0, 2.0], [2.0, 1.0, 1.0]]))
    assert np.isfinite(found[0]) and np.isneginf(found[1])
    with pytest.raises(ValueError, match="parts of a composition"):
        model.sample(given=[[np.nan, 1.0, 2.0]])
    model.save(tmp_path / "saved")
    assert np.array_equal(BoundedDiffusion.load(tmp_path / "saved").sample(5), model.sample(5))


def test_an_open_side():
    x = np.random.default_rng(0).exponential(3.0, (800, 1))
    x[::5] = 0
    model = BoundedDiffusion(low=0, high="open", n_iter=500, **SMALL).fit(x)
    drawn = model.sample(800, random_state=0)
    assert drawn.min() == 0.0 and (drawn == 0).mean() == pytest.approx(0.2, abs=0.06)
    assert drawn.mean() == pytest.approx(x.mean(), rel=0.15) and drawn.max() > 8


def test_it_works_with_the_tools_of_scikit_learn(model):
    copy = pickle.loads(pickle.dumps(model))
    assert np.array_equal(copy.sample(4), model.sample(4))
    assert clone(model).get_params() == model.get_params()
    scores = cross_val_score(BoundedDiffusion(n_iter=3, **SMALL), rows(60), cv=2)
    assert scores.shape == (2,) and np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 3.0}, r"X: row 0, column 1 is 0.97\d+: need a number from 3.0 to [\d.]+$"),
        ({"low": [0, 0, 0]}, "low has 3 values, and the data 2 columns"),
        ({"low": "open", "high": "open"}, "both sides of channel 0 are open"),
        ({"n_iter": 0}, "n_iter=0: need at least 1"),
        ({"low": [[0, 0]]}, r"a bound of shape \(1, 2\): need a number, or one for each column"),
        ({"n_iter": -1}, "training.n_iters=-1: need an integer, at least 0"),
        ({"width": 0}, "width=0: need an integer, at least 1"),
        ({"sigma_min": -1}, "sde.sigma_min=-1.0: need a number, more than 0"),
        ({"validation_fraction": 1.5}, "validation_fraction=1.5: need a number between 0 and 1"),
        ({"simplex": True}, "need parts of at least 0 that sum to 1"),
        ({"device": "tpu"}, "device=tpu: known are auto, cpu, cuda"),
    ],
)
def test_what_cannot_be_used_is_a_value_error_of_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        BoundedDiffusion(**{"n_iter": 2, **SMALL, **options}).fit(rows(50))
    assert "\n" not in str(error.value) and "rows.npy" not in str(error.value)


def test_a_fit_that_fails_leaves_no_model():
    model = BoundedDiffusion(n_iter=2, **SMALL).fit(rows(50))
    with pytest.raises(ValueError, match="low has 3 values"):
        model.set_params(low=[0, 0, 0]).fit(rows(50)[:, :1].repeat(2, 1))
    with pytest.raises(NotFittedError):
        model.sample(1)


def test_it_works_within_a_hydra_application():
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        around = GlobalHydra.instance().hydra
        BoundedDiffusion(n_iter=1, **SMALL).fit(rows(50))
        assert GlobalHydra.instance().hydra is around
    assert not GlobalHydra.instance().is_initialized()


def test_parameters_may_be_of_numpy_types():
    numbers = {"n_iter": np.int64(2), "width": np.int32(8), "sigma_min": np.float32(0.01), "high": np.str_("open")}
    model = BoundedDiffusion(**{**SMALL, **numbers}, low=list(np.zeros(2))).fit(rows(50))
    assert model.sample(3).shape == (3, 2)


def test_float32_rows_on_a_bound_are_within_it(recwarn):
    x = rows(50).astype(np.float32) / 10
    x[::2, 0] = 0.6  # as float32 more than 0.6
    x.flags.writeable = False
    model = BoundedDiffusion(n_iter=1, **SMALL, low=0, high=[0.6, 1]).fit(x)
    assert np.isfinite(model.score_samples(x[:1])).all() and float(x[0, 0]) > 0.6
    assert (model.sample(2, given=np.array([[x[0, 0], np.nan]], np.float32))[:, 0] == x[0, 0]).all()
    assert not [str(warning.message) for warning in recwarn if "writable" in str(warning.message)]


def test_the_density_far_out_on_an_open_side_is_finite():
    x = np.random.default_rng(0).exponential(1.0, (100, 1))
    model = BoundedDiffusion(low=0, high="open", n_iter=1, **SMALL).fit(x)
    scale = model.cfg_.data.scale
    near, far = model.score_samples(np.array([[15.0], [25.0]]) * scale)
    assert far == pytest.approx(near - 10.0, abs=0.1), "u is as good as 1 at both: the Jacobian alone differs"


def test_what_the_data_are_is_that_of_the_fit():
    x = np.random.default_rng(0).dirichlet([4, 2, 3], 50)
    model = BoundedDiffusion(simplex=True, n_iter=1, **SMALL).fit(x).set_params(simplex=False)
    with pytest.raises(ValueError, match="parts of a composition"):
        model.sample(given=[[np.nan, 0.2, 0.5]])


def code_of(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_code_of_the_pages_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = "n_iter=3, width=16, steps=3, verbose=False"
    names: dict = {}
    (code,) = code_of("docs/bounded.md")
    assert code.count("random_state=0)") == 1
    exec(code.replace("random_state=0)", f"random_state=0, {short})"), names)
    assert (
        names["samples"].shape == (1000, 2) and names["log_density"].shape == (100,) and names["wet"].shape == (20, 2)
    )
    assert (names["wet"][:, 1] == 100).all() and (tmp_path / "runs/rain/.hydra/config.yaml").is_file()
    _, code = code_of("README.md")
    exec(code.replace("100])", f"100], {short})"), names)
    assert names["samples"].shape == (1000, 2) and names["log_density"].shape == (3000,)
