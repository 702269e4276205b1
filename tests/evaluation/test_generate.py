"""Generation of many images by a network: seeds, batches, processes, the denoiser, and the output directory."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from evaluation.generate import ImageSampler, generate_batches
from evaluation.images_dir import FREE, generate_images
from evaluation.output_dir import open_output
from models import load_pretrained
from tests.conftest import ROOT, composed, environment
from utils.devices import choose_devices
from utils.distributed import Distributed
from utils.errors import InputError

CPU = torch.device("cpu")
ALONE = Distributed(CPU)
RUN = ROOT / "tests/golden/reference_run"


def vis_config(*overrides, load_dir=RUN):
    return composed(
        f"load_dir={load_dir}", "device=cpu", "sampling.method=multistep", "sampling.steps=4", *overrides, name="vis"
    )


def all_pixels(cfg, batch_size, rounds):
    rounds = generate_batches(ImageSampler(cfg, CPU), list(range(rounds)), batch_size, ALONE)
    return np.concatenate([drawn.pixels for _, drawn in rounds]).astype(int)


@pytest.mark.parametrize("overrides", [[], ["sampling.method=pc"], ["sampling.predictor=ancestral"]])
def test_an_image_is_a_function_of_its_seed_alone(overrides):
    cfg = vis_config(*overrides)
    whole = all_pixels(cfg, 12, 1)
    assert np.abs(all_pixels(cfg, 4, 3) - whole).max() <= 1  # rounding: a convolution may add in another order
    assert np.abs(all_pixels(cfg, 5, 2) - whole[:10]).max() <= 1
    assert len(np.unique(whole, axis=0)) == 12
    assert np.abs(all_pixels(vis_config(*overrides, "seed=1"), 12, 1) - whole).max() > 1


@pytest.mark.slow(19)
def test_a_compiled_network_draws_the_same_images():
    torch._dynamo.reset()  # the number of compilations of a function in one process, the tests', is limited
    cfg = vis_config("compile=true", "sampling.method=heun", "sampling.steps=3")
    compiled, plain = all_pixels(cfg, 10, 2), all_pixels(vis_config("sampling.method=heun", "sampling.steps=3"), 10, 2)
    assert hasattr(ImageSampler(cfg, CPU).net.forward, "__wrapped__")
    assert np.abs(compiled - plain).max() <= 1 and plain.std() > 10


@pytest.mark.slow(20)
@pytest.mark.parametrize("started_by", ["ngpus=2", "torchrun"])
def test_processes_share_the_images_and_change_none(script, tmp_path, started_by):
    options = [f"load_dir={RUN}", "device=cpu", "sampling.method=pc", "sampling.steps=4", "sampling.trajectory=3"]
    options += ["eval.batch_size=5", "eval.rounds=2"]
    assert script("run_vis.py", *options, "hydra.run.dir=one").returncode == 0
    command = [sys.executable, *(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])]
    command = (command if started_by == "torchrun" else command[:1]) + [ROOT / "run_vis.py", *options]
    command += ["hydra.run.dir=two", *([started_by] if started_by != "torchrun" else [])]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("round 1: 5 images") == 1
    for name in ("samples_0", "samples_1"):
        one, two = (np.load(tmp_path / folder / f"images/{name}.npz") for folder in ("one", "two"))
        assert np.abs(one["samples"].astype(int) - two["samples"]).max() <= 1
        assert np.array_equal(one["labels"], two["labels"]) if "labels" in one else "labels" not in two
    files = [{path.name for path in (tmp_path / folder / "images").rglob("*.*")} for folder in ("one", "two")]
    assert files[0] == files[1]


def test_a_process_that_fails_ends_the_drawing_with_one_line(script, tmp_path):
    result = script("run_vis.py", "load_dir=nowhere", "device=cpu", "ngpus=2")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("nowhere") and "is not a run" in line
    assert not list(tmp_path.iterdir())


def change_config(run, changes):
    path = run / ".hydra/config.yaml"
    cfg = OmegaConf.load(path)
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value)
    OmegaConf.save(cfg, path)


def published_denoiser(path, **changes):
    """Make a directory like that of the published denoiser: one file without a number, with the weights only."""
    shutil.copytree(RUN / ".hydra", path / ".hydra")
    change_config(path, {"model.scale_by_sigma": False})
    model = torch.load(RUN / "checkpoints/checkpoint_1.pth", weights_only=True)["model"]
    (path / "checkpoints").mkdir()
    torch.save({"model": {**model, **changes}}, path / "checkpoints/checkpoint.pth")
    return path


def test_the_published_denoiser_subtracts_what_its_network_returns(tmp_path):
    path = published_denoiser(tmp_path / "denoiser")
    sampler = ImageSampler(vis_config("sampling.denoiser=network", f"denoiser_path={path}"), CPU)
    x = torch.rand(3, 3, 8, 8)
    denoised = sampler.denoise(x, None)

    # The same network as a run whose average is the trained weights, at the published level 1e-5.
    shutil.copytree(path, tmp_path / "run")
    checkpoint = torch.load(RUN / "checkpoints/checkpoint_1.pth", weights_only=True)
    frozen = ("sigmas", "all_modules.0.W")
    checkpoint["ema"]["shadow_params"] = [tensor for name, tensor in checkpoint["model"].items() if name not in frozen]
    torch.save(checkpoint, tmp_path / "run/checkpoints/checkpoint_1.pth")
    net, _ = load_pretrained(tmp_path / "run")
    expected = (x - net(x, torch.full((3,), 1e-5))).clamp(0, 1)
    assert torch.allclose(denoised, expected, atol=1e-6)
    assert (denoised - x).abs().mean() > 0.01 and ((denoised > 0) & (denoised < 1)).float().mean() > 0.1

    plain, network = (
        ImageSampler(vis_config(f"sampling.denoiser={d}", f"denoiser_path={path}"), CPU)(range(3))
        for d in ("none", "network")
    )
    assert (plain.pixels != network.pixels).any()


def test_a_run_as_denoiser_gives_its_posterior_mean(tmp_path):
    cfg = vis_config("sampling.denoiser=network", f"denoiser_path={RUN}")
    by_network = ImageSampler(cfg, CPU)(range(3))
    cfg.sampling.denoiser = "mean"
    by_mean = ImageSampler(cfg, CPU)(range(3))
    assert np.abs(by_network.pixels.astype(int) - by_mean.pixels).max() <= 1
    assert by_mean.nfe == by_network.nfe + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.image_size": 16, "model.attn_resolutions": [8]},
            r"denoiser_path=\S+ is for data of shape \(3, 16, 16\), load_dir of \(3, 8, 8\)",
        ),
        ({"sde.sigma_min": 0.02}, "knows noise from 0.02"),
    ],
)
def test_a_denoiser_for_other_images_is_refused(tmp_path, changes, message):
    shutil.copytree(RUN, tmp_path / "other")
    change_config(tmp_path / "other", changes)
    with pytest.raises(InputError, match=message):
        ImageSampler(vis_config("sampling.denoiser=network", f"denoiser_path={tmp_path / 'other'}"), CPU)


def test_a_denoiser_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(InputError, match="denoiser_path is missing"):
        ImageSampler(vis_config("sampling.denoiser=network"), CPU)
    with pytest.raises(InputError, match="nowhere is not a run"):
        ImageSampler(vis_config("sampling.denoiser=network", "denoiser_path=nowhere"), CPU)
    path = published_denoiser(tmp_path / "denoiser", extra=torch.zeros(1))
    with pytest.raises(InputError, match="extra"):
        ImageSampler(vis_config("sampling.denoiser=network", f"denoiser_path={path}"), CPU)
    (path / "checkpoints/checkpoint.pth").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"checkpoint\.pth cannot be read"):
        ImageSampler(vis_config("sampling.denoiser=network", f"denoiser_path={path}"), CPU)


def open_images(folder, cfg):
    return open_output(folder, cfg, "vis", FREE)


def draw_into(out_dir, cfg, rounds):
    """Draw images as run_vis.py does; return the numbers of the batches drawn."""
    out_dir.mkdir(exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in out_dir.glob("images/samples_*.npz")}
    cfg.eval.rounds = rounds
    generate_images(cfg, out_dir, ALONE)
    drawn = [path for path in out_dir.glob("images/samples_*.npz") if before.get(path) != path.stat().st_mtime_ns]
    return sorted(int(path.stem.split("_")[1]) for path in drawn)


def test_drawing_resumes_where_it_stopped(tmp_path):
    cfg, folder = vis_config("sampling.trajectory=3", "eval.batch_size=3", "eval.save_images=true"), tmp_path / "images"
    assert draw_into(tmp_path, cfg, 3) == [0, 1, 2]
    whole = {path.name: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    assert len(whole) == 3 + 3 + 9 + 2 + 2  # grids, arrays, single images, a strip and an animation, .lock and vis.yaml
    (folder / "samples_1.npz").unlink()
    (folder / "samples_1.png").write_bytes(b"half")
    (folder / ".samples_1.tmp").write_bytes(b"half")
    assert draw_into(tmp_path, cfg, 3) == [1]
    assert {name: (folder / name).read_bytes() for name in whole if (folder / name).is_file()}.items() <= whole.items()
    assert draw_into(tmp_path, cfg, 3) == []
    cfg.ngpus = 2
    assert draw_into(tmp_path, cfg, 4) == [3]
    singles = sorted((folder / "single").iterdir())
    assert [path.name for path in singles] == [f"{n:06d}.png" for n in range(12)]
    arrays = np.load(folder / "samples_2.npz")["samples"]
    assert np.array_equal(np.asarray(Image.open(singles[7])), arrays[1])


@pytest.mark.parametrize("override", ["seed=1", "sampling.steps=5", "w=1", "eval.batch_size=4", "eval.ckpt=1"])
def test_other_images_do_not_go_into_the_same_directory(tmp_path, override):
    with open_images(tmp_path / "images", vis_config("eval.batch_size=3")):
        pass
    before = (tmp_path / "images/vis.yaml").read_bytes()
    with (
        pytest.raises(InputError, match=f"made with {override.split('=')[0]}="),
        open_images(tmp_path / "images", vis_config("eval.batch_size=3", override)),
    ):
        pass
    assert (tmp_path / "images/vis.yaml").read_bytes() == before


def test_a_directory_with_other_contents_is_refused(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "holiday.png").touch()
    with pytest.raises(InputError, match=r"did not write it"), open_images(folder, vis_config()):
        pass
    (folder / "vis.yaml").write_text("{unclosed")
    with pytest.raises(InputError, match=r"vis\.yaml cannot be read"), open_images(folder, vis_config()):
        pass
    (folder / "vis.yaml").write_text("- a list")
    with pytest.raises(InputError, match=r"vis\.yaml cannot be read|made with"), open_images(folder, vis_config()):
        pass


def test_two_processes_do_not_draw_into_one_directory(tmp_path):
    cfg = vis_config()
    again = open_images(tmp_path / "images", cfg)
    with (
        open_images(tmp_path / "images", cfg),
        pytest.raises(InputError, match="another run_vis"),
        again,
    ):
        pass


def test_devices_of_several_processes(monkeypatch):
    assert choose_devices("cpu", 3) == [CPU] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_devices("auto", 2) == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(InputError, match=r"ngpus=3, but torch sees 2"):
        choose_devices("cuda", 3)
