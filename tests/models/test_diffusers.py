"""Exports to diffusers, read and drawn from by the real package: scheduler, network and pipeline."""

import json
import subprocess
import sys

import diffusers.utils.dynamic_modules_utils as dynamic_modules
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import ModelCard
from scipy.stats import kstest

import models.io.diffusers_dir
from models import load_pretrained
from models.diffusers_pipeline.reflected_scheduler import ReflectedMultistepScheduler
from models.export import export
from sampling.few_steps import Multistep
from sampling.images import to_uint8
from sde import ReflectedVE, heat_kernel
from tests.conftest import ROOT, composed, environment, tiny_config
from tests.scripts.test_recipes import NARROW
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError
from utils.seeds import image_generators

COLOUR = ROOT / "tests/golden/reference_run"  # a published DDPM++ of 8x8 images in colour, without classes
STEPS, NUMBER, SEED = 6, 10, 5

# Draw without and with guidance; the seeds are those of run_vis.py, as docs/checkpoints.md says.
DRAW = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)
folder, out, seed, n, steps = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
drawn = {}
for w in (0.0, 4.0):
    seeds = [np.random.SeedSequence([seed, 3, i]).generate_state(1, np.uint64)[0] for i in range(n)]
    generators = [torch.Generator().manual_seed(int(s)) for s in seeds]
    images = pipeline(
        class_labels=list(range(n)), guidance_scale=1 + w, generator=generators, num_inference_steps=steps
    ).images
    drawn[f"w{w:g}"] = np.stack([np.asarray(image) for image in images])
np.savez(out, **drawn)
print(sorted({name.split(".")[0] for name in sys.modules} & {"sampling", "evaluation", "training", "cli", "losses"}))
"""
# Make steps with the scheduler of an export.
STEP = """
import sys
import torch
from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

names = {"module_file": "reflected_scheduler.py", "class_name": "ReflectedMultistepScheduler"}
scheduler = get_class_from_dynamic_module(sys.argv[1], **names, trust_remote_code=True).from_pretrained(sys.argv[1])
scheduler.set_timesteps(4)
x = scheduler.prior_sample((2, 3), torch.Generator().manual_seed(0))
for t in scheduler.timesteps:
    x = scheduler.step(0.1 / t.square() - x / t.square(), t, x).prev_sample
print(x.flatten().tolist())
print(sorted({name.split(".")[0] for name in sys.modules} & {"models", "sde", "datasets", "utils", "sampling"}))
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Make a run on digits with classes, and its export."""
    folder = tmp_path_factory.mktemp("digits")
    options = ["training.snapshot_sampling=false", "training.n_iters=150", "training.eval_freq=150", "optim.lr=0.01"]
    options += [
        "model.parametrization=kernel_width",
        "training.drop_label=0.2",
        "model.ema_rate=0.8",
        "training.log_freq=150",
    ]
    train(tiny_config(*options), folder / "run", Distributed(torch.device("cpu")))
    export(folder / "run", folder / "exported", "diffusers")
    return folder


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    """Let diffusers print no advice, and copy modules to a folder of the test."""
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    monkeypatch.setattr(dynamic_modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def load(folder):
    """Load a pipeline as a user does, without progress bars."""
    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def elsewhere(tmp_path, code, *arguments, packages):
    """Run code in a new process in another folder, with only some packages of this repository on its path."""
    (tmp_path / "path").mkdir()
    for name in packages:
        (tmp_path / "path" / name).symlink_to(ROOT / name)
    env = environment() | {"PYTHONPATH": str(tmp_path / "path"), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def drawn_by_run_vis(script, folder, run, *options):
    """Return the images that run_vis.py draws, uint8 (N, H, W, C)."""
    few = [f"seed={SEED}", f"eval.batch_size={NUMBER}", "sampling.method=multistep", f"sampling.steps={STEPS}"]
    done = script("run_vis.py", f"load_dir={run}", *few, "device=cpu", f"hydra.run.dir={folder}", *options)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "images/samples_0.npz")["samples"]


def levels_apart(first, second):
    assert first.shape == second.shape and first.dtype == second.dtype == np.uint8
    assert first.std() > 10
    return np.abs(first.astype(int) - second).max()


@pytest.mark.slow(15)
def test_images_are_those_of_run_vis(digits, tmp_path, script):
    packages = ("models", "datasets", "sde", "utils")  # what the network imports
    arguments = (digits / "exported", tmp_path / "drawn.npz", SEED, NUMBER, STEPS)
    assert elsewhere(tmp_path, DRAW, *arguments, packages=packages).strip() == "[]"
    drawn = np.load(tmp_path / "drawn.npz")
    assert np.abs(drawn["w0"].astype(int) - drawn["w4"]).max() > 5
    for w in ("0", "4"):
        options = [f"w={w}", "label=[0,1,2,3,4,5,6,7,8,9]"]
        expected = drawn_by_run_vis(script, tmp_path / f"vis{w}", digits / "run", *options)
        assert levels_apart(expected[..., 0], drawn[f"w{w}"]) <= 1


def test_images_in_colour_are_those_of_run_vis(tmp_path, script):
    export(COLOUR, tmp_path / "exported", "diffusers")
    pipeline = load(tmp_path / "exported")
    generators = image_generators(SEED, range(NUMBER))
    images = pipeline(generator=generators, num_inference_steps=STEPS).images
    assert [(image.mode, image.size) for image in images] == [("RGB", (8, 8))] * NUMBER
    expected = drawn_by_run_vis(script, tmp_path / "vis", COLOUR)
    assert levels_apart(expected, np.stack([np.asarray(image) for image in images])) <= 1


@pytest.mark.parametrize("network", ["vdm", "mlp"])
def test_other_networks_have_the_same_scores(network, tmp_path):
    options = ["data=fake", "data.image_size=8", f"model={network}", *NARROW[network], "device=cpu"]
    cfg = composed(*options, "training.n_iters=2", "training.batch_size=4", "training.snapshot_sampling=false")
    del cfg.resume
    train(cfg, tmp_path / "run", Distributed(torch.device("cpu")))
    export(tmp_path / "run", tmp_path / "exported", "diffusers")
    x, t = torch.rand(3, *load_pretrained(tmp_path / "run")[0].data_shape), torch.tensor(0.3)
    score = load_pretrained(tmp_path / "run")[0](x, t.expand(3))
    assert score.abs().max() > 0
    torch.testing.assert_close(load(tmp_path / "exported").unet(x, t).sample, score)


def test_the_scheduler_of_an_export_needs_diffusers_only(digits, tmp_path):
    said = elsewhere(tmp_path, STEP, digits / "exported/scheduler", packages=()).splitlines()
    assert json.loads(said[0]) == pytest.approx([0.1] * 6, abs=0.02)  # the score is that of the point 0.1
    assert said[1] == "[]"


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("sigmas", [None, (1.0, 0.4, 0.1)])
def test_steps_are_those_of_multistep(eta, sigmas):
    process = ReflectedVE(0.01, 5.0)
    x_init = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))

    def score_fn(x, sigma):
        return heat_kernel.score(x, torch.full_like(x, 0.9), sigma)

    expected = Multistep(process, steps=5 if sigmas is None else 3, sigmas=sigmas, eta=eta)(
        score_fn, x_init, image_generators(0, range(4))
    )
    levels = {"sigma_min": process.sigma_min, "sigma_start": process.prior_sigma}
    scheduler = ReflectedMultistepScheduler(**levels, num_inference_steps=5, eta=eta)
    scheduler.set_timesteps(sigmas=sigmas)
    x, generators = x_init, image_generators(0, range(4))
    for t in scheduler.timesteps:
        (x,) = scheduler.step(score_fn(x, t.expand(4)), t, x, generators, return_dict=False)
    torch.testing.assert_close(x, expected.samples, rtol=0, atol=2e-6)
    assert (x != x_init).all() and scheduler.step_index == expected.nfe
    with pytest.raises(ValueError, match="call set_timesteps before the next samples"):
        scheduler.step(x, t, x)


def test_noise_is_that_of_the_process():
    scheduler = ReflectedMultistepScheduler()
    x0, sigma = torch.rand(200, 3), torch.linspace(0.01, 4.0, 200)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    expected = heat_kernel.sample(x0, sigma, torch.Generator().manual_seed(3))
    assert torch.equal(scheduler.add_noise(x0, noise, sigma), expected)
    start = scheduler.init_noise_sigma * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    assert start.abs().max() > 10
    assert kstest(scheduler.scale_model_input(start), "uniform").pvalue > 0.01
    assert torch.equal(scheduler.scale_model_input(x0), x0)


def test_sampling_may_start_at_a_later_level():
    scheduler = ReflectedMultistepScheduler(num_inference_steps=8)
    x0 = torch.full((5, 2), 0.2)
    t = scheduler.timesteps[4]
    x = scheduler.add_noise(x0, torch.randn(5, 2), t.expand(5))
    for t in scheduler.timesteps[4:]:
        x = scheduler.step((x0 - x) / t.square(), t, x).prev_sample
    assert scheduler.step_index == 8 and (x - x0).abs().max() < 0.05


def test_the_configuration_is_saved_and_loaded(tmp_path):
    scheduler = ReflectedMultistepScheduler(sigma_min=0.02, sigma_start=0.8, num_inference_steps=7, rho=3.0, eta=0.5)
    scheduler.save_pretrained(tmp_path)
    for loaded in (
        ReflectedMultistepScheduler.from_pretrained(tmp_path),
        ReflectedMultistepScheduler.from_config(scheduler.config),
    ):
        assert torch.equal(loaded.timesteps, scheduler.timesteps) and len(loaded.timesteps) == 7
        assert (loaded.config.eta, loaded.config.rho) == (0.5, 3.0)
    changed = ReflectedMultistepScheduler.from_config(scheduler.config, eta=0.0, num_inference_steps=3)
    assert len(changed.timesteps) == 3 and changed.timesteps[0] == pytest.approx(0.8)
    assert (changed.config.eta, changed.config.sigma_min) == (0.0, 0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: ReflectedMultistepScheduler(sigma_min=0.5, sigma_start=0.1), "need 0 < sigma_min < sigma_start"),
        (lambda s: ReflectedMultistepScheduler(eta=-1.0), "eta=-1.0"),
        (lambda s: s.set_timesteps(0), "num_inference_steps=0: need at least 1"),
        (lambda s: s.set_timesteps(sigmas=[0.1, 0.2]), "need noise levels that fall"),
        (lambda s: s.set_timesteps(sigmas=[0.1, 0.01]), "all above sigma_min=0.01"),
        (lambda s: s.set_timesteps(3, sigmas=[0.2, 0.1]), "sigmas has 2 levels"),
        (lambda s: s.step(torch.zeros(1), 999, torch.zeros(1)), "timestep=999.0 is not one of scheduler.timesteps"),
        (lambda s: s.prior_sample((3, 1), [torch.Generator()]), "1 generators for 3 samples"),
    ],
)
def test_what_a_scheduler_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(ReflectedMultistepScheduler())


def test_what_a_pipeline_takes(digits):
    pipeline = load(digits / "exported")
    few = {"num_inference_steps": 2}

    def draw(**options):
        return pipeline(**few, output_type="pt", **options).images

    start = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    both = draw(class_labels=[3, -1], latents=start)
    assert both.shape == (2, 1, 8, 8) and both.min() >= 0 and both.max() <= 1 and both.std() > 0.1
    torch.testing.assert_close(both[:1], draw(class_labels=3, latents=start[:1]))
    assert torch.equal(both, draw(class_labels=torch.tensor([3, -1]), generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(both, draw(class_labels=[4, -1], latents=start))
    assert not torch.equal(both, draw(class_labels=[3, -1], guidance_scale=3.0, latents=start))
    assert draw(class_labels=1, batch_size=3).shape == (3, 1, 8, 8)
    levels = pipeline(class_labels=3, sigmas=[1.0, 0.3], latents=start[:1], output_type="np").images
    assert levels.shape == (1, 8, 8, 1)
    (images,) = pipeline(class_labels=3, sigmas=[1.0, 0.3], latents=start[:1], return_dict=False)
    assert images[0].mode == "L" and np.array_equal(
        np.asarray(images[0]), to_uint8(torch.tensor(levels[0, ..., 0])[None])[..., 0]
    )

    for options, message in [
        ({}, "class_labels is missing: this network has classes 0 to 9"),
        ({"class_labels": [10]}, r"class_labels=\[10\]"),
        ({"class_labels": 0.5}, "class_labels=0.5"),
        ({"class_labels": [1, 2], "batch_size": 3}, "3 of batch_size, 2 of class_labels"),
        ({"class_labels": 1, "latents": start[:, :, :4]}, "these images have"),
        ({"class_labels": 1, "output_type": "latent"}, "output_type=latent"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipeline(**few, **options)
    with pytest.raises(ValueError, match=r"load them in float32"):
        pipeline.to(torch.bfloat16)(class_labels=1)


def test_a_model_card_is_one_that_the_hub_reads(digits, tmp_path):
    export(digits / "run", tmp_path / "model", "safetensors")
    for folder, library in ((digits / "exported", "diffusers"), (tmp_path / "model", "reflected-diffusion")):
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == library and card.data.pipeline_tag == "unconditional-image-generation"
        assert "reflected-diffusion" in card.data.tags
        assert "- classes: 10, numbered from 0" in card.text and "(1, 8, 8)" in card.text
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["README.md", "model.safetensors"]
    x, sigma = torch.rand(2, 1, 8, 8), torch.tensor([0.1, 1.0])
    assert torch.equal(*(load_pretrained(path)[0](x, sigma) for path in (digits / "run", tmp_path / "model")))
    export(tmp_path / "model", tmp_path / "again", "diffusers")
    for name in ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (digits / "exported" / name).read_bytes()
    (tmp_path / "model/README.md").write_text("mine")
    with pytest.raises(InputError, match="model exists: choose another name"):
        export(digits / "run", tmp_path / "model", "safetensors")
    assert (tmp_path / "model/README.md").read_text() == "mine"


def test_what_is_not_exported_to_diffusers(digits, tmp_path, monkeypatch):
    small = ["training.n_iters=1", "training.batch_size=4", "training.snapshot_sampling=false", "device=cpu"]
    vectors = [
        "data=array",
        "data.shape=[2]",
        "data.low=0",
        "data.high=1",
        "data.scale=1",
        f"data.root={tmp_path}/x.npy",
    ]
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(size=(20, 2)))
    for name, options, message in [
        ("array", [*vectors, "model=mlp", *NARROW["mlp"]], r"array: data\.shape=\[2\] is no image"),
        ("ve", ["data=fake", "data.image_size=8", "sde=ve", "model=vdm", *NARROW["vdm"]], r"ve: sde\.name=ve"),
    ]:
        cfg = composed(*options, *small)
        del cfg.resume
        train(cfg, tmp_path / name, Distributed(torch.device("cpu")))
        with pytest.raises(InputError, match=message):
            export(tmp_path / name, tmp_path / "out", "diffusers")
    with pytest.raises(InputError, match="--format diffusers is a directory"):
        export(digits / "run", tmp_path / "out.safetensors", "diffusers")
    monkeypatch.setattr(models.io.diffusers_dir, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install diffusers"):
        export(digits / "run", tmp_path / "out", "diffusers")
    assert not list(tmp_path.glob("*out*"))
