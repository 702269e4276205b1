"""run_eval.py: the metrics, their protocol, resuming after an interruption, and refusals of bad input."""

import hashlib
import io
import json
import os
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cli.evaluation_options import check_eval
from datasets.images import digits
from evaluation import reference
from evaluation.bpd import ElboBPD
from evaluation.evaluate import FREE, Evaluation
from evaluation.features import DigitFeatures, Inception, create_features, to_pixels
from evaluation.metric import EvaluationInputs
from evaluation.output_dir import open_output
from evaluation.read_samples import read_labels, read_samples
from evaluation.reference import read_statistics, reference_statistics
from evaluation.registry import METRICS
from tests.conftest import composed, tiny_config
from training.loop import train
from utils.distributed import Distributed
from utils.errors import InputError

CPU = torch.device("cpu")
ALONE = Distributed(CPU)
PROTOCOL = {"checkpoint": {"sha256": "of the test"}}
ALL = "metrics=[bpd,elbo,energy_distance,fid,kid,inception_score,precision_recall,memorization]"
QUICK = [
    "metrics.bpd.rtol=1e-2",
    "metrics.bpd.atol=1e-2",
    "metrics.elbo.num_times=4",
    "metrics.num_images=30",
    "sampling.method=multistep",
    "sampling.steps=4",
    "eval.images=25",
    "eval.batch_size=10",
    "device=cpu",
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of two steps on the digits."""
    path = tmp_path_factory.mktemp("eval") / "run"
    train(tiny_config("training.snapshot_sampling=false"), path, Distributed(CPU))
    return path


def eval_config(run_dir, *overrides, chosen=ALL):
    quick = [option for option in QUICK if not option.startswith(("metrics.bpd", "metrics.elbo")) or chosen == ALL]
    return composed(
        chosen, *quick, f"load_dir={run_dir}", f"dataroot={run_dir.parent / 'data'}", *overrides, name="eval"
    )


def evaluate(cfg, folder):
    folder.mkdir(exist_ok=True)
    return Evaluation(cfg, ALONE, PROTOCOL)(folder)


def sample_metrics(features, logits, known, chosen, seed=0):
    """Compute metrics of samples; return {name: Result}."""
    shared = SimpleNamespace(check_numbers=lambda *_: None, reference=known)
    inputs = SimpleNamespace(cfg=SimpleNamespace(seed=seed), features=shared)
    results = {}
    for name, options in chosen.items():
        metric = METRICS[name](inputs, **options)
        for rows in (slice(0, 100), slice(100, None)):
            metric.update({"features": features[rows].numpy(), "logits": logits[rows].numpy()})
        results |= metric.result()
    return results


@pytest.mark.slow(15)
def test_run_eval_computes_all_metrics(script, run_dir, tmp_path):
    options = [ALL, *QUICK, f"load_dir={run_dir}", f"dataroot={tmp_path / 'data'}", "hydra.run.dir=out"]
    done = script("run_eval.py", *options)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    for name in ("bpd", "elbo"):
        result, bits = results["metrics"][name], np.load(tmp_path / f"out/{name}.npz")["bits"]
        assert bits.shape == (25,) and bits.std() > 0
        assert result["value"] == pytest.approx(bits.mean())
        assert result["error"] == pytest.approx(bits.std(ddof=1) / 5)
        assert result["split"] == "test, 25 of 359 images"
        assert f"{name}" in done.stderr and f"{result['value']:.5g}" in done.stderr
    assert results["metrics"]["elbo"]["evaluations"]["mean"] == 4
    assert {"fid", "kid", "inception_score", "precision", "recall"} < results["metrics"].keys()
    assert results["metrics"]["fid"]["note"].startswith("of 30 images, not 50000")
    checkpoint = run_dir / "checkpoints/checkpoint_1.pth"
    assert results["checkpoint"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert results["packages"]["torch"] == torch.__version__
    assert results["reference"]["number"] == 1438
    assert (tmp_path / "data/statistics" / results["reference"]["statistics"]).is_file()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] == ".") == [".lock"]

    again = script("run_eval.py", *options)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out/results.json").read_text()) == results
    other = script("run_eval.py", *options, "seed=1")
    assert other.returncode == 1 and "made with seed=0, not 1" in other.stderr and "Traceback" not in other.stderr
    assert json.loads((tmp_path / "out/results.json").read_text()) == results


def test_an_evaluation_resumes_where_it_stopped(run_dir, tmp_path):
    cfg = eval_config(run_dir)
    whole = evaluate(cfg, tmp_path / "whole")

    class InterruptedError(Exception):
        pass

    folder = tmp_path / "parts"
    folder.mkdir()
    stopped, calls = Evaluation(cfg, ALONE, PROTOCOL), []
    compute = stopped.metrics["bpd"].per_image

    class TwoParts(type(compute)):
        def __call__(self, images, on_step):
            if len(calls) == 2:
                raise InterruptedError
            calls.append(images)
            return super().__call__(images, on_step)

    compute.__class__ = TwoParts
    with pytest.raises(InterruptedError):
        stopped(folder)
    assert calls == [range(10), range(10, 20)] and not (folder / "bpd.npz").exists()

    fresh, computed = Evaluation(cfg, ALONE, PROTOCOL), []
    compute = fresh.metrics["bpd"].per_image

    class Counting(type(compute)):
        def __call__(self, images, on_step):
            computed.append(images)
            return super().__call__(images, on_step)

    compute.__class__ = Counting
    resumed = fresh(folder)
    assert computed == [range(20, 25)]
    assert resumed["metrics"] == whole["metrics"]
    for name in ("bpd", "elbo"):
        first, second = (np.load(tmp_path / f"{part}/{name}.npz") for part in ("whole", "parts"))
        assert all(np.array_equal(first[key], second[key]) for key in first)


def test_a_compiled_network_has_the_same_bound(run_dir, tmp_path):
    found = []
    for switch in ("compile=false", "compile=true"):
        evaluate(eval_config(run_dir, "eval.images=12", switch, chosen="metrics=[elbo]"), tmp_path / switch)
        found.append(np.load(tmp_path / switch / "elbo.npz")["bits"])
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.slow(40)
def test_numbers_do_not_depend_on_batches_or_processes(script, run_dir, tmp_path):
    options = [ALL, *QUICK, "metrics.elbo.importance_sampling=true", f"load_dir={run_dir}"]
    options += [f"dataroot={tmp_path / 'data'}"]
    for more in (["hydra.run.dir=one"], ["hydra.run.dir=two", "ngpus=2"], ["hydra.run.dir=other", "eval.batch_size=7"]):
        done = script("run_eval.py", *options, *more)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr and done.stderr.count("with their protocol") == 1
    one, two, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two", "other"))
    assert two["devices"] == 2 * one["devices"]
    assert (
        one["metrics"].keys()
        == two["metrics"].keys()
        == ({*METRICS, "precision", "recall", "nearer_to_training"} - {"precision_recall"})
    )
    for name, result in one["metrics"].items():
        for key in result.keys() & {"value", "error"}:
            assert result[key] == pytest.approx(two["metrics"][name][key], rel=1e-4)
    for name in ("bpd", "elbo"):
        assert other["metrics"][name]["value"] == pytest.approx(one["metrics"][name]["value"], rel=1e-4)
        arrays = [np.load(tmp_path / f"{folder}/{name}.npz")["bits"] for folder in ("one", "two", "other")]
        for bits in arrays[1:]:
            np.testing.assert_allclose(arrays[0], bits, rtol=1e-4, atol=1e-4)


def test_a_zero_score_has_the_bits_of_a_uniform_density(tmp_path):
    """If all weights are 0, the score is 0 and the flow is constant."""
    run = tmp_path / "run"
    train(tiny_config("training.snapshot_sampling=false", "data.dequantize=true"), run, Distributed(CPU))
    path = run / "checkpoints/checkpoint_1.pth"
    checkpoint = torch.load(path, weights_only=True)
    for shadow in checkpoint["ema"]["shadow_params"]:
        shadow.zero_()
    torch.save(checkpoint, path)
    options = ["metrics.bpd.rtol=1e-2", "metrics.elbo.num_times=30", "eval.images=100", "eval.batch_size=100"]
    cfg = eval_config(run, *options, chosen="metrics=[bpd,elbo]")
    results = evaluate(cfg, tmp_path / "out")["metrics"]
    assert results["bpd"]["value"] == pytest.approx(np.log2(17), abs=1e-6)
    assert results["bpd"]["error"] == pytest.approx(0, abs=1e-6)
    assert results["elbo"]["value"] == pytest.approx(np.log2(17), abs=4 * results["elbo"]["error"])
    assert results["elbo"]["error"] < 0.04
    assert results["elbo"]["bound_on"].startswith("density")


def test_the_terms_of_the_bound_add_up(run_dir):
    cfg = eval_config(run_dir)
    worker = ElboBPD(EvaluationInputs(cfg, ALONE), **cfg.metrics.elbo)
    arrays = worker(range(5), lambda: None)
    np.testing.assert_allclose(arrays["bits"], arrays["data"] + arrays["diffusion"] + arrays["prior"])
    assert arrays["data"].min() > 0 and abs(arrays["prior"]).max() < 1e-12


CHOSEN = {
    "fid": {},
    "kid": {"subsets": 20, "subset_size": 300},
    "inception_score": {"splits": 5},
    "precision_recall": {"neighborhood": 3},
}


def test_quality_of_real_digits_of_noise_and_of_one_class(tmp_path):
    features, real, held_out = DigitFeatures(), digits(train=True), digits(train=False)
    known = reference_statistics(real, "digits", features, tmp_path)
    pixels = to_pixels(held_out.data, 17)

    def of(samples):
        results = sample_metrics(*features(samples), known, CHOSEN)
        return {name: result.value for name, result in results.items()}

    noise = of(np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8))
    good, threes = of(pixels), of(to_pixels(real.data[real.labels == 3], 17))
    assert good["fid"] < threes["fid"] < noise["fid"]
    assert abs(good["kid"]) < 0.05 < threes["kid"] < noise["kid"]
    assert good["precision"] > 0.85 and good["recall"] > 0.85
    assert noise["precision"] < 0.01 and noise["recall"] < 0.01
    assert threes["precision"] > 0.9 and threes["recall"] < 0.3
    assert good["inception_score"] > 6 > 1.5 > threes["inception_score"]
    same = sample_metrics(*features(to_pixels(real.data, 17)), known, {"fid": {}})["fid"].value
    assert same == pytest.approx(0, abs=1e-3)
    _, logits = features(pixels)
    assert (logits.argmax(1) == held_out.labels).float().mean() > 0.95


def test_statistics_are_those_of_all_images_and_are_kept(tmp_path, monkeypatch):
    features, real = DigitFeatures(), digits(train=True)
    first = reference_statistics(real, "digits", features, tmp_path)
    all_features = features(to_pixels(real.data, 17))[0].double().numpy()
    np.testing.assert_allclose(first.mean, all_features.mean(0), atol=1e-9)
    np.testing.assert_allclose(first.covariance, np.cov(all_features, rowvar=False), atol=1e-9)
    assert sorted(map(tuple, first.features.tolist())) == sorted(map(tuple, all_features.astype(np.float32).tolist()))

    monkeypatch.setattr(reference, "_statistics", None)  # cannot be called
    second = reference_statistics(real, "digits", features, tmp_path)
    assert np.array_equal(first.mean, second.mean) and torch.equal(first.features, second.features)
    monkeypatch.undo()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    third = reference_statistics(real, "digits", features, tmp_path)
    assert np.array_equal(first.covariance, third.covariance)
    assert reference_statistics(digits(False), "digits", features, tmp_path).protocol != first.protocol


def test_samples_are_read_from_files(tmp_path, run_dir):
    pixels = to_pixels(digits(False).data, 17)[:40]
    np.savez(tmp_path / "drawn.npz", samples=pixels)
    folder = tmp_path / "single"
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03d}.png")
    both = [read_samples(path, 8, 1) for path in (tmp_path / "drawn.npz", folder)]
    assert np.array_equal(both[0], pixels) and np.array_equal(both[1], pixels)
    cfg = eval_config(run_dir, f"metrics.samples_path={folder}", chosen="metrics=[fid]")
    results = evaluate(cfg, tmp_path / "out")
    expected = sample_metrics(
        *DigitFeatures()(pixels),
        reference_statistics(digits(True), "digits", DigitFeatures(), tmp_path),
        {"fid": {}},
    )
    assert results["metrics"]["fid"]["value"] == pytest.approx(expected["fid"].value, rel=1e-4)
    assert not (tmp_path / "out/images").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "drawn does not exist"),
        (lambda path: path.mkdir(), "has no .npz, no .npy and no images"),
        (os.mkfifo, "is neither a file nor a folder"),
        (lambda path: path.write_bytes(b"PK\3\4 cut short"), "drawn cannot be read"),
        (
            lambda path: path.write_bytes(pickle.dumps([1])),
            "drawn cannot be read as drawn images, .* file: it does not start as one",
        ),
        (
            lambda path: np.savez(path.open("wb"), other=np.zeros(3)),
            "drawn: found arrays other; need samples, or arr_0$",
        ),
        (lambda path: np.savez(path.open("wb")), "drawn: found arrays none; need samples"),
        (
            lambda path: np.savez(path.open("wb"), mu=np.zeros(3), sigma=np.eye(3)),
            "statistics are for metrics.reference",
        ),
        (lambda path: np.savez(path.open("wb"), **{f"a{i}": np.zeros(1) for i in range(99)}), "a6, a7, ...; need"),
        (lambda path: np.savez(path.open("wb"), samples=np.array([None])), "drawn holds object"),
        (lambda path: np.savez(path.open("wb"), np.zeros((3, 1, 8, 8), np.uint8)), "the channels have to come last"),
        (lambda path: np.savez(path.open("wb"), np.zeros((3, 8, 8), np.uint8)), r"of 3 axes and not \(N, H, W, C\)"),
        (
            lambda path: np.save(path.open("wb"), np.zeros((3, 8, 8, 1), np.float32)),
            "holds float32.*need whole numbers of",
        ),
        (
            lambda path: np.save(path.open("wb"), np.zeros((3, 8, 8, 3), np.uint8)),
            r"holds uint8 \(8, 8, 3\), the run has",
        ),
        (
            lambda path: path.write_bytes(saved(shape=(10**12, 8, 8, 1))),
            "it says that it holds uint8 .* but has 64 bytes",
        ),
        (lambda path: path.write_bytes(saved(shape=(-1, 8, 8, 1))), "it says that it holds uint8"),
        (lambda path: path.write_bytes(saved(shape=(1, 8, 8, 1)).replace(b"}", b"(")), "drawn cannot be read"),
        (lambda path: path.write_bytes(saved(shape=(1, 8, 8, 1)).replace(b"(1,", b"(01")), "drawn cannot be read"),
        (lambda path: entries_of_one_name(path), "several of its entries have one name"),
        (lambda path: np.savez(path.open("wb"), samples=np.zeros((3, 9, 9, 1), np.uint8)), r"drawn holds uint8 \(9, 9"),
        (lambda path: np.savez(path.open("wb"), samples=np.zeros((3, 8, 8, 1))), "drawn holds float64"),
    ],
)
def test_unsuitable_samples_are_named(tmp_path, make, message):
    path = tmp_path / "drawn"
    make(path)
    with pytest.raises(InputError, match=message) as refusal:
        read_samples(path, 8, 1)
    assert "\n" not in str(refusal.value)


def test_more_images_than_fit_into_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "black.npz", np.zeros((400_000, 8, 8, 1), np.uint8))
    assert (tmp_path / "black.npz").stat().st_size < 30_000
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 5000}.get)
    with pytest.raises(
        InputError, match=r"black\.npz cannot be read: 0\.0 GB are more than the memory of this machine"
    ):
        read_samples(tmp_path / "black.npz", 8, 1)


def test_samples_of_other_programs_are_read(tmp_path, caplog):
    pixels = to_pixels(digits(False).data, 17)[:30]
    np.savez(tmp_path / "a.npz", pixels[:10])  # as guided-diffusion does, without classes
    np.savez(tmp_path / "b.npz", pixels[10:20], np.arange(10))  # and with them
    np.save(tmp_path / "c.npy", pixels[20:])
    np.savez_compressed(tmp_path / "all.zip", np.asfortranarray(pixels))
    (tmp_path / "all.zip.npz").rename(tmp_path / "all")
    for path, part in (("a.npz", pixels[:10]), ("b.npz", pixels[10:20]), ("c.npy", pixels[20:]), ("all", pixels)):
        assert np.array_equal(read_samples(tmp_path / path, 8, 1), part)
    os.mkfifo(tmp_path / "d.npz")
    (tmp_path / "e.npy").symlink_to(tmp_path / "nowhere")
    (tmp_path / "f.npy").symlink_to("/dev/zero")
    (tmp_path / "g.npz").symlink_to("b.npz")
    assert np.array_equal(read_samples(tmp_path, 8, 1), pixels)
    assert f"4 of the arrays in {tmp_path} left out" in caplog.text


def test_a_folder_of_images_with_links_that_loop_pipes_and_devices(tmp_path, caplog):
    pixels = to_pixels(digits(False).data, 17)[:9]
    folder = tmp_path / "drawn"
    (folder / "more").mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image[..., 0]).save(folder / "more" / f"{i}.png")
    (folder / "more/up").symlink_to(folder)
    (folder / "more/around").symlink_to(folder / "more")
    (folder / "again").symlink_to("more")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    assert np.array_equal(read_samples(folder, 8, 1), pixels)
    for told in ("1 links that lead nowhere", "2 pipes, sockets or devices", "3 links to what is there already"):
        assert told in caplog.text


def test_statistics_of_other_programs_are_read(run_dir, tmp_path):
    features = DigitFeatures()
    known = reference_statistics(digits(True), "digits", features, tmp_path)
    np.savez(tmp_path / "edm.npz", mu=known.mean, sigma=known.covariance)
    np.savez_compressed(tmp_path / "pytorch_fid.npz", mu=known.mean.astype("f4"), sigma=known.covariance.astype("f4"))
    pixels = to_pixels(digits(False).data, 17)
    np.savez(tmp_path / "drawn.npz", pixels)
    expected = sample_metrics(*features(pixels), known, {"fid": {}})["fid"].value
    for name in ("edm", "pytorch_fid"):
        options = [f"metrics.samples_path={tmp_path / 'drawn.npz'}", f"metrics.reference={tmp_path / name}.npz"]
        cfg = eval_config(run_dir, *options, "dataroot=/nowhere", chosen="metrics=[fid,inception_score]")
        check_eval(cfg)
        evaluation = Evaluation(cfg, ALONE, PROTOCOL)
        results = evaluation(folder(tmp_path / f"out_{name}"))
        assert results["metrics"]["fid"]["value"] == pytest.approx(expected, rel=1e-4)
        assert results["metrics"]["inception_score"]["value"] > 5
        sha256 = hashlib.sha256((tmp_path / f"{name}.npz").read_bytes()).hexdigest()
        assert results["reference"]["statistics"] == str(tmp_path / f"{name}.npz")
        assert results["reference"]["statistics_sha256"] == evaluation.inputs.hashes["reference_sha256"] == sha256
        assert json.loads((tmp_path / f"out_{name}/results.json").read_text())["reference"] == results["reference"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(64)}, "found arrays mu; need mu and sigma, as EDM and pytorch-fid write them"),
        ({"arr_0": np.zeros(3), "labels": np.zeros(3)}, "found arrays arr_0, labels; need mu and sigma"),
        (
            {"mu": np.zeros(2048), "sigma": np.eye(2048, dtype="f2")},
            "mu is of 2048 features, those of this run have 64",
        ),
        ({"mu": np.zeros(64), "sigma": np.eye(63)}, "sigma is of 63 features"),
        ({"mu": np.zeros((1, 64)), "sigma": np.eye(64)}, r"mu is float64 \(1, 64\), need numbers \(d,\) of mu"),
        ({"mu": np.zeros(64, complex), "sigma": np.eye(64)}, r"mu is complex128 \(64,\), need numbers"),
        ({"mu": np.full(64, np.nan), "sigma": np.eye(64)}, "mu holds values that are not finite"),
        ({"mu": np.zeros(64), "sigma": np.full((64, 64), np.inf)}, "sigma holds values that are not finite"),
        ({"mu": np.zeros(64), "sigma": np.triu(np.ones((64, 64)))}, "sigma is no covariance"),
        ({"mu": np.zeros(64), "sigma": -np.eye(64)}, "sigma is no covariance"),
        (
            {"mu": np.zeros(64), "sigma": 2 * np.eye(64) - np.ones((64, 64))},
            "sigma is no covariance: it has a negative",
        ),
    ],
)
def test_unsuitable_statistics_are_named(arrays, message, tmp_path):
    np.savez(tmp_path / "real.npz", **arrays)
    with pytest.raises(InputError, match=rf"real\.npz: {message}"):
        read_statistics(tmp_path / "real.npz", DigitFeatures.dimension)


@pytest.mark.parametrize("kind", ["i2", "u1", "f2", "f8"])
def test_statistics_may_be_whole_numbers_and_of_low_rank(kind, tmp_path):
    one = np.ones((64, 64), kind)
    for covariance in (np.eye(64, dtype=kind), one, 0 * one):
        np.savez(tmp_path / "real.npz", mu=np.arange(64).astype(kind), sigma=covariance)
        read = read_statistics(tmp_path / "real.npz", 64)
        assert np.array_equal(read.covariance, covariance) and np.array_equal(read.mean, range(64))


@pytest.mark.parametrize(
    "header",
    [b" " * 60_000, b"-" * 9_000, b"(" * 9_000, b"{'descr': '|u1', 'fortran_order': False, 'secret': 1, 'shape': ()}"],
)
def test_a_damaged_npy_header_is_refused(header, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
    for read in (lambda: read_samples(path, 8, 1), lambda: read_statistics(path, 64)):
        with (
            warnings.catch_warnings(action="error"),
            pytest.raises(InputError, match=r"header is damaged or too long$"),
        ):
            read()


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("'|u1'", f"({'9' * 4000}, 8, 8, 1)", "no array is of such a shape$"),
        ("'|u1'", f"({'1, ' * 3000})", "no array is of such a shape$"),
        (f"[('{'a' * 9000}', '|u1')]", "(64,)", "it holds records, not numbers$"),
        ("('|u1', (8, 8))", "(1,)", "it holds records, not numbers$"),
    ],
)
def test_a_refusal_does_not_repeat_a_long_header(kind, shape, message, tmp_path):
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(64))
    with pytest.raises(InputError, match=message):
        read_samples(tmp_path / "a.npy", 8, 1)


def test_a_file_of_python_2_is_read_without_warnings(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1L, 8L, 8L, 1L), }\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(64))
    with warnings.catch_warnings(action="error"):
        assert read_samples(tmp_path / "a.npy", 8, 1).shape == (1, 8, 8, 1)


def test_labels_of_guided_diffusion(tmp_path):
    pixels = np.zeros((3, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "a.npz", pixels, np.array([4, 0, 9]))
    assert read_labels(tmp_path / "a.npz", 3).tolist() == [4, 0, 9]
    np.savez(tmp_path / "a.npz", pixels, np.array([0.5, 0, 9]))
    with pytest.raises(InputError, match=r"arr_1 is float64 \(3,\), need a whole number for each of 3 images"):
        read_labels(tmp_path / "a.npz", 3)


def test_statistics_that_are_no_file_are_named(tmp_path):
    (tmp_path / "real.pkl").write_bytes(pickle.dumps({"mu": np.zeros(64)}))
    for path, message in (
        ("gone", "gone is not a file"),
        ("real.pkl", "cannot be read as statistics, an .npz file: it does not start as one$"),
    ):
        with pytest.raises(InputError, match=message):
            read_statistics(tmp_path / path, 64)


def folder(path):
    """Create a new folder."""
    path.mkdir()
    return path


def saved(shape):
    """Write an .npy file of 64 bytes whose header states another shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(64)


def entries_of_one_name(path):
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w") as archive:
        for _ in range(2):
            archive.writestr("samples.npy", saved((1, 8, 8, 1)))


def inception_weights(path, monkeypatch):
    """A file of random weights of torch-fidelity's network."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    cls = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patched:
        patched.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(cls, "load_state_dict", lambda *_, **__: None)
        torch.manual_seed(0)
        net = cls("inception-v3-compat", ["2048", "logits_unbiased"])
    torch.save(net.state_dict(), path)
    return net


def test_inception_with_given_weights(tmp_path, run_dir, monkeypatch):
    path = tmp_path / "weights.pth"
    net = inception_weights(path, monkeypatch)
    features = create_features("digits", str(path), CPU, 8)
    pixels = to_pixels(digits(False).data[:3], 17)
    expected, logits = net(torch.from_numpy(pixels).movedim(-1, 1).repeat(1, 3, 1, 1))
    found = features(pixels)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], logits)
    assert found[0].shape == (3, 2048) and found[1].shape == (3, 1008)
    assert features.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_invalid_inception_weights_are_named(tmp_path, monkeypatch):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for contents, message in ((Evil(), "cannot be read"), ({"weights": torch.zeros(3)}, "does not hold the weights")):
        torch.save(contents, tmp_path / "weights.pth")
        with pytest.raises(InputError, match=rf"weights\.pth {message}"):
            Inception(tmp_path / "weights.pth", CPU)
    assert not (tmp_path / "ran").exists()
    os.mkfifo(tmp_path / "pipe.pth")
    for name in ("gone.pth", "pipe.pth"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            Inception(tmp_path / name, CPU)

    def no_network(url, *_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(
        InputError, match=r"could not be downloaded \(no route to host\).*metrics\.feature_weights=PATH"
    ):
        create_features("cifar10", None, CPU, 32)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.split=valid", "eval.split=valid: known are test, train"),
        ("eval.images=0", "eval.images=0"),
        ("metrics.bpd.divergence=trace", "metrics.bpd.divergence=trace: known are hutchinson, exact"),
        ("metrics.bpd.num_probes=0", "metrics.bpd.num_probes=0"),
        ("metrics.bpd.rtol=0", "metrics.bpd.rtol=0"),
        ("metrics.elbo.num_times=1.5", "metrics.elbo.num_times=1.5"),
        ("metrics.elbo.importance_sampling=3", "metrics.elbo.importance_sampling=3"),
        ("metrics.kid.subsets=0", "metrics.kid.subsets=0"),
        ("metrics.inception_score.splits=0", "metrics.inception_score.splits=0"),
        ("metrics.memorization.ratio=1", "metrics.memorization.ratio=1: need a number, more than 0, less than 1"),
        ("metrics.precision_recall.neighborhood=0", "metrics.precision_recall.neighborhood=0"),
        ("metrics.reference=x.npz", "x.npz is a mean and covariance, from which kid and precision_recall cannot be"),
        ("metrics.reference=[x]", "need a name or path"),
        ("precision=fp8", "precision=fp8"),
        ("ngpus=0", "ngpus=0"),
    ],
)
def test_bad_options_are_named(override, message):
    with pytest.raises(InputError, match=message):
        check_eval(composed(ALL, "load_dir=run", override, name="eval"))


def test_too_few_samples_are_refused_before_any_is_drawn(run_dir, tmp_path):
    cfg = eval_config(run_dir, "metrics.num_images=3", chosen="metrics=[precision_recall]")
    with pytest.raises(InputError, match=r"metrics\.num_images=3: 3 images, need at least 4"):
        evaluate(cfg, tmp_path / "eval")
    assert not (tmp_path / "eval/images").exists()


def test_statistics_without_fid_are_refused():
    cfg = composed("metrics=[bpd,inception_score]", "metrics.reference=x.npz", "load_dir=run", name="eval")
    with pytest.raises(
        InputError, match=r"metrics\.reference=x\.npz is for fid, which is not among the chosen metrics"
    ):
        check_eval(cfg)


def test_an_evaluation_without_metrics_is_refused():
    with pytest.raises(InputError, match="choose some of bpd, elbo"):
        check_eval(composed("metrics=[]", "load_dir=run", name="eval"))


def test_a_directory_with_other_contents_is_refused(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(InputError, match=r"run_eval\.py did not write it"),
        open_output(tmp_path / "run", eval_config(run_dir), "eval", FREE),
    ):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_the_path_of_the_images_is_only_taken_from_the_command_line(run_dir, tmp_path):
    """The path in the configuration of a run is not used."""
    shutil.copytree(run_dir, tmp_path / "run")
    path = tmp_path / "run/.hydra/config.yaml"
    text = path.read_text().replace("dataset: digits", f"dataset: folder\n  root: {tmp_path / 'private'}")
    path.write_text(text)
    with pytest.raises(InputError, match=r"data\.root is missing: say data\.root=PATH"):
        Evaluation(eval_config(tmp_path / "run", chosen="metrics=[elbo]"), ALONE, PROTOCOL)


def test_training_on_dequantized_images():
    from datasets import Loader

    data = digits(train=True)
    torch.manual_seed(0)
    batches = Loader(data, 500, 0, "cpu", dequantize=True)
    x0, _ = batches(0)
    levels = data.data[batches.indices(0)]
    assert torch.equal((x0 * 17).floor().to(torch.uint8), levels)
    u = x0 * 17 - levels
    assert u.mean() == pytest.approx(0.5, abs=0.01) and u.std() == pytest.approx(12**-0.5, abs=0.01)
