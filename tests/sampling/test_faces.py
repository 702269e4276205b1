"""The score of a network is made to vanish at the faces: where, how exactly, for whom, and what it saves."""

import numpy as np
import pytest
import torch
from torch import nn

from evaluation import log_likelihood
from evaluation.generate import ImageSampler
from evaluation.likelihood import _score_and_trace
from models.export import export
from models.parametrization import OutputParametrization
from sampling import create_sampler, vanish_at_faces
from sampling.faces import AUTO_WIDTH, WithVanishingScore, resolve_face_width
from sampling.folding import folded_score
from sde import VE, ReflectedVE, heat_kernel
from tests.conftest import composed, tiny_config
from tests.targets import FIVE_POINTS
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError
from utils.old_keys import update_old_keys

SDE = ReflectedVE(0.01, 5.0)
PUBLISHED = OutputParametrization()


class Vanishing(OutputParametrization):
    vanishes_at_faces = True


def constant(size):
    """Score of constant components ``size`` / sigma, which point out of the cube at half of the faces."""
    return lambda x, sigma: size / sigma.to(x.dtype)[:, None] * torch.ones_like(x)


def cfg_of(*options):
    return composed("load_dir=x", *options, name="vis").sampling


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [1e-4, 0.01, 0.3, 5.0])
def test_the_normal_component_is_zero_at_the_faces_and_only_there(dtype, sigma):
    x = torch.tensor([[0.0, 0.3, 1.0], [1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [1e-6, 1 - 1e-6, 1e-3]], dtype=dtype)
    sigma = torch.full((4,), sigma, dtype=dtype)
    for size in (-3.0, 0.5, 1e4):
        score = vanish_at_faces(constant(size), 0.1)(x, sigma)
        on_face = (x == 0) | (x == 1)
        assert (score[on_face] == 0).all() and score.isfinite().all()
        assert (score[~on_face].sign() == np.sign(size)).all()
        assert (score.abs() <= constant(size)(x, sigma).abs()).all()


def test_far_from_the_faces_nothing_changes():
    x, sigma = torch.linspace(0.1, 0.9, 9)[:, None], torch.full((9,), 0.01)

    def wave(x, sigma):
        return torch.cos(5 * x) / sigma[:, None]

    torch.testing.assert_close(vanish_at_faces(wave, 0.1)(x, sigma), wave(x, sigma), rtol=1e-4, atol=5e-3)
    assert vanish_at_faces(wave, 0) is wave


@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_the_score_of_data_on_a_face_stays(sigma):
    """A component that is proportional to the distance from the face is the same at all distances."""
    for face in (0.0, 1.0):
        x = (face - torch.linspace(0.0, 2 * sigma, 50, dtype=torch.float64)[:, None]).abs()
        exact = heat_kernel.score(x, torch.full_like(x, face), sigma)
        limited = vanish_at_faces(
            lambda x, sigma, face=face: heat_kernel.score(x, torch.full_like(x, face), sigma), 0.1
        )
        torch.testing.assert_close(limited(x, torch.full((50,), sigma)), exact, rtol=2e-3, atol=0)


def test_an_exact_score_keeps_its_samples_and_its_density():
    x_init = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    plain, limited = (create_sampler(cfg_of("sampling.method=ode", f"sampling.face_width={w}"), SDE) for w in (0, 0.1))
    moved = (limited(FIVE_POINTS.score, x_init).samples - plain(FIVE_POINTS.score, x_init).samples).abs()
    assert moved.quantile(0.95) < 0.005 and (moved.amax(1) > 0.05).double().mean() < 0.02
    x = FIVE_POINTS.sample(100, SDE.sigma_min, torch.Generator().manual_seed(0))
    errors = log_likelihood(vanish_at_faces(FIVE_POINTS.score, 0.1), SDE, x, "exact").log_prob - (
        FIVE_POINTS.log_density(x.double(), SDE.sigma_min)
    )
    print(f"| {moved.quantile(0.95):.1e} | {errors.mean():.3f} | {errors.abs().quantile(0.95):.3f} |")
    assert errors.abs().quantile(0.95) < 0.15 and abs(errors.mean()) < 0.05


def test_the_trace_is_that_of_the_jacobian():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 4)).double()
    score = vanish_at_faces(lambda x, sigma: layers(x) / sigma[:, None], 0.1)
    y = 3 * torch.rand(20, 4, dtype=torch.float64) - 1
    y[0, 0], y[1, 1] = 0.0, 1.0  # on a face, where the derivative exists, and is large
    sigma = torch.full((20,), 0.2, dtype=torch.float64)
    field, trace = _score_and_trace(SDE, score, y, sigma, torch.eye(4, dtype=torch.float64).reshape(4, 1, 4))
    torch.testing.assert_close(field, folded_score(SDE, score, y, sigma).detach())
    jacobians = [
        torch.autograd.functional.jacobian(lambda p, s=sigma[:1]: folded_score(SDE, score, p[None], s)[0], point)
        for point in y[2:]
    ]
    torch.testing.assert_close(trace[2:], torch.stack([j.trace() for j in jacobians]))
    h = 1e-7
    bump = torch.tensor([h, 0, 0, 0], dtype=torch.float64)
    inward = (score(y[:1] + bump, sigma[:1]) - score(y[:1], sigma[:1]))[0, 0] / h
    eye = torch.eye(4, dtype=torch.float64)[:1].reshape(1, 1, 4)
    assert _score_and_trace(SDE, score, y[:1], sigma[:1], eye)[1].item() == pytest.approx(inward.item(), rel=1e-4)


def test_a_score_that_points_out_of_the_cube_costs_few_evaluations():
    """The jump of the field, of which the plain solver follows every crossing, is gone; both end near the face."""
    x_init = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    options = ["sampling.method=ode", "sampling.rtol=1e-2", "sampling.atol=1e-2"]
    plain, limited = (
        create_sampler(cfg_of(*options, f"sampling.face_width={w}"), SDE)(constant(-1.0), x_init) for w in (0, 0.1)
    )
    print(f"| {plain.nfe} | {limited.nfe} |")
    assert limited.nfe < 300 and plain.nfe > 3 * limited.nfe
    assert plain.samples.max() < 0.05 and limited.samples.max() < 0.05


def test_auto_is_for_networks_on_the_cube_whose_score_may_not_vanish():
    assert resolve_face_width("auto", SDE, PUBLISHED) == AUTO_WIDTH
    assert resolve_face_width("auto", SDE, Vanishing()) == resolve_face_width("auto", SDE, None) == 0
    assert resolve_face_width("auto", VE(), PUBLISHED) == 0
    assert resolve_face_width(0.3, SDE, None) == 0.3

    def width(*options, process=SDE, parametrization=PUBLISHED):
        sampler = create_sampler(cfg_of(*options), process, parametrization=parametrization)
        return sampler.width if isinstance(sampler, WithVanishingScore) else 0

    assert width("sampling.method=ode") == AUTO_WIDTH
    assert width("sampling.method=ode", parametrization=None) == 0
    assert width("sampling.method=ode", process=VE()) == 0
    assert width("sampling.method=ode", "sampling.face_width=0") == 0
    for method in ("pc", "heun", "multistep"):
        assert width(f"sampling.method={method}") == 0
        assert width(f"sampling.method={method}", "sampling.face_width=0.2") == 0.2
    assert width("sampling.method=ode", "sampling.moll=200", "sampling.side_eps=0.01") == 0


def test_the_tolerance_is_that_of_the_published_code_for_a_network_only():
    def tolerances(*options, parametrization=None):
        sampler = create_sampler(cfg_of("sampling.method=ode", *options), SDE, parametrization=parametrization)
        flow = sampler.sampler if isinstance(sampler, WithVanishingScore) else sampler
        return flow.rtol, flow.atol

    assert tolerances() == (None, None)
    assert tolerances(parametrization=PUBLISHED) == tolerances(parametrization=Vanishing()) == (1e-5, 1e-5)
    assert tolerances("sampling.rtol=1e-3", parametrization=PUBLISHED) == (1e-3, 1e-5)
    x_init = torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    default, given = (
        create_sampler(cfg_of("sampling.method=ode", *options), SDE)(FIVE_POINTS.score, x_init)
        for options in ((), ("sampling.rtol=1e-6", "sampling.atol=1e-6"))
    )
    assert torch.equal(default.samples, given.samples) and default.nfe == given.nfe


def test_bad_options_are_refused():
    for options, process, message in [
        (["sampling.face_width=-1"], SDE, "sampling.face_width=-1: need auto, or a number, at least 0"),
        (["sampling.face_width=atuo"], SDE, "sampling.face_width=atuo: need auto, or a number"),
        (["sampling.face_width=0.1"], VE(), "sampling.face_width=0.1 is for a process on"),
        (
            ["sampling.face_width=0.1", "sampling.method=ode", "sampling.moll=200"],
            SDE,
            "sampling.face_width=0.1 and sampling.moll=200: choose one of the two",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            create_sampler(cfg_of(*options), process)


def test_configurations_of_earlier_versions_mean_what_they_did():
    earlier = {"method": "ode", "rtol": 1e-6, "atol": 1e-6, "percentile": 0.9}
    added = {"nfe": None, "sigmas": None, "eta": 0}
    assert update_old_keys({"sampling": earlier})["sampling"] == {**earlier, "face_width": 0.0, **added}
    drawn = update_old_keys({"sampling": {**earlier, "method": "pc", "atol": 1e-4}})["sampling"]
    assert drawn == {"method": "pc", "rtol": None, "atol": 1e-4, "percentile": 0.9, "face_width": "auto", **added}
    now = {"sampling": {**earlier, "method": "pc", "face_width": 0.0, **added}}
    assert update_old_keys(now) == now


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model directory in the published layout, of a network that was trained for a moment."""
    folder = tmp_path_factory.mktemp("published")
    options = ["training.n_iters=150", "training.batch_size=64", "training.snapshot_sampling=false", "optim.lr=2e-3"]
    cfg = tiny_config(*options, "optim.warmup=20", "model.ema_rate=0.95", "training.eval_freq=1000", "model.dropout=0")
    train(cfg, folder / "run", Distributed(torch.device("cpu")))
    export(folder / "run", folder / "weights")
    return folder / "weights"


@pytest.mark.slow(10)
def test_the_published_command_takes_few_evaluations(published):
    """As ``run_vis.py load_dir=weights/... label=3 w=2.5 sampling.method=ode eval.batch_size=16``."""

    def evaluations(images, *options):
        chosen = ["label=3", "w=2.5", "sampling.method=ode", f"load_dir={published}", *options]
        return ImageSampler(composed(*chosen, name="vis"), torch.device("cpu"))(range(images)).nfe

    default = evaluations(16)
    coarse = [evaluations(2, "sampling.rtol=1e-3", "sampling.atol=1e-3", f"sampling.face_width={w}") for w in (0.1, 0)]
    print(f"| {default} | {coarse} |")
    assert default < 500 and coarse[1] > 1.5 * coarse[0]
