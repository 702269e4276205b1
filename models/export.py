"""Export a trained model: python -m models.export RUN_DIR OUT [--format FORMAT] [--ckpt N] [--ema L]

published    a model directory that the published code reads: its configuration keys, tensor names and EMA order
safetensors  OUT.safetensors, one file with the EMA weights under our names and the configuration in its metadata; or a
             directory OUT with this file and a model card, to upload to the Hugging Face Hub; load_dir= takes both
diffusers    a directory with the EMA weights that DiffusionPipeline.from_pretrained of diffusers draws from
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from datasets.options import MAX_IMAGE_SIZE
from models.io.checkpoint import read_checkpoint
from models.io.config import load_config
from models.io.diffusers_dir import check_diffusers, write_diffusers
from models.io.model_card import OWN_LIBRARY, model_card
from models.io.pretrained import average_weights, build_shapes, load_pretrained
from models.io.published import published_tensors, to_published
from models.io.run_files import EXPORTED, find_checkpoint, named_checkpoint
from models.io.safetensors import write_safetensors
from models.io.weights import Weights, read_weights
from utils.ema_options import CheckpointNumber, check_weights
from utils.errors import ArgumentParser, InputError, UserError, printable
from utils.options import plain

# State of a new gradient scaler, which the published code expects in every checkpoint of ADM.
NEW_SCALER = {
    "scale": 65536.0,
    "growth_factor": 2.0,
    "backoff_factor": 0.5,
    "growth_interval": 2000,
    "_growth_tracker": 0,
}


def export(
    run_dir: Path,
    out: Path,
    layout: str = "published",
    ckpt: CheckpointNumber = -1,
    ema: float | None = None,
    max_image_size: int = MAX_IMAGE_SIZE,
) -> None:
    """Write a checkpoint of ``run_dir`` to ``out``, a directory, or with ``safetensors`` and this suffix a file.

    Args:
        run_dir: directory of a run, or one of its checkpoints; for ``safetensors`` also a published model directory,
            and for ``diffusers`` all that ``load_pretrained`` reads.
        out: path that does not exist yet; it appears when it is complete.
        layout: ``published``, ``safetensors`` or ``diffusers``.
        ckpt: number of the checkpoint; -1 for the highest, ``best`` for that with the lowest held-out loss.
        ema: relative length of the power-function average that takes the place of the one in the checkpoint; None to
            keep that; see ``load_pretrained``.
        max_image_size: see ``load_pretrained``.

    Raises:
        InputError: if the run cannot be read, is in that layout already or cannot be written in it, or ``out`` exists.
    """
    if out.exists():
        raise InputError(f"{out} exists: choose another name, nothing is overwritten")
    if layout != "safetensors" and out.suffix == ".safetensors":
        raise InputError(f"{out}: --format {layout} is a directory, and this is the name of a file")
    if layout == "diffusers":
        net, cfg = load_pretrained(run_dir, ckpt, ema=ema, max_image_size=max_image_size)
        check_diffusers(cfg, run_dir)
        with _appearing(out) as temporary:
            write_diffusers(temporary, cfg, net.network.state_dict())
        return
    check_weights(ema, "ema")
    run_dir, ckpt = named_checkpoint(run_dir, ckpt)
    cfg = load_config(run_dir, max_image_size)
    shapes = build_shapes(cfg, run_dir / ".hydra/config.yaml").network
    if layout == "published" and not published_tensors(shapes, cfg.sde):
        raise InputError(
            f"{run_dir}: the published code has no network like model.name={cfg.model.name}: use --format safetensors"
        )
    if layout == "published" and cfg.model.parametrization != "output":
        raise InputError(
            f"{run_dir}: the published code has no model.parametrization={cfg.model.parametrization}: "
            "use --format safetensors"
        )
    path = find_checkpoint(run_dir, ckpt)
    checkpoint = read_checkpoint(path)
    if layout == "published" and "optimizer" not in checkpoint:
        raise InputError(
            f"{path} has no optimizer state (training.keep_optimizer=false), which the published layout contains: use "
            "--format safetensors"
        )
    weights = read_weights(shapes, cfg, checkpoint, path)
    weights = replace(weights, averages=average_weights(shapes, run_dir, checkpoint, path, weights, ema))
    with _appearing(out) as temporary:
        if layout == "safetensors" and out.suffix == ".safetensors":
            write_safetensors(temporary, cfg, weights.averages)
        elif layout == "safetensors":
            temporary.mkdir()
            write_safetensors(temporary / EXPORTED, cfg, weights.averages)
            (temporary / "README.md").write_text(model_card(cfg, OWN_LIBRARY))
        elif weights.published:
            raise InputError(f"{path} is in the published layout already")
        else:
            (temporary / ".hydra").mkdir(parents=True)
            (temporary / "checkpoints").mkdir()
            published = OmegaConf.create(to_published(plain(cfg)))
            (temporary / ".hydra/config.yaml").write_text(OmegaConf.to_yaml(published))
            torch.save(published_checkpoint(shapes, cfg, checkpoint, weights), temporary / "checkpoints" / path.name)


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Yield the path of a temporary file or directory that becomes ``out`` at the end, or is removed after an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.rename(out)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def published_checkpoint(
    net: nn.Module, cfg: DictConfig, checkpoint: Mapping[str, Any], weights: Weights
) -> dict[str, Any]:
    """Convert a checkpoint to the layout of the published code.

    Args:
        net: network of the checkpoint.
        cfg: configuration of the run.
        checkpoint: checkpoint of this code, with ``optimizer``, ``step``, ``scaler`` and ``ema``.
        weights: weights of the checkpoint.
    """
    parameters = dict(net.named_parameters())
    table = published_tensors(net, cfg.sde)
    present = [(entry, entry.ours) for entry in table if entry.ours is not None]

    model = {
        entry.name: entry.constant if entry.ours is None else entry.convert(weights.model[entry.ours]).contiguous()
        for entry in table
    }
    trained = [(entry, ours) for entry, ours in present if parameters[ours].requires_grad]
    shadows = [entry.convert(weights.averages[ours]).contiguous() for entry, ours in trained]

    # Our optimiser numbers the trained parameters, in our order; theirs numbers all parameters, in their order.
    place = {name: i for i, name in enumerate(name for name, p in parameters.items() if p.requires_grad)}
    state, groups = checkpoint["optimizer"]["state"], checkpoint["optimizer"]["param_groups"]
    moments = {}
    for index, (entry, ours) in enumerate(present):
        if ours in place:
            moments[index] = {
                key: entry.convert(value).contiguous() if value.ndim else value  # a moment, or the step count
                for key, value in state[place[ours]].items()
            }
    group = {**groups[0], "params": list(range(len(present)))}
    # These choices depend on the machine that trained; the published code never sets them.
    group |= {key: None for key in ("fused", "foreach") if key in group}

    scaler = checkpoint["scaler"] or (NEW_SCALER if cfg.model.name == "adm" else None)
    return {
        "optimizer": {"state": moments, "param_groups": [group]},
        "model": model,
        "ema": {**checkpoint["ema"], "shadow_params": shadows},
        "step": checkpoint["step"],
        "scaler": scaler,
    }


def checkpoint_number(text: str) -> int | str:
    return text if text == "best" else int(text)


def main() -> None:
    """Parse the command line and export a model."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run_dir", type=Path, help="directory of the run, RUN/checkpoints/checkpoint_N.pth, or hf://USER/NAME"
    )
    parser.add_argument("out", type=Path, help="directory to write, or with --format safetensors FILE.safetensors")
    parser.add_argument("--format", choices=("published", "safetensors", "diffusers"), default="published")
    parser.add_argument(
        "--ckpt",
        type=checkpoint_number,
        default=-1,
        help="number of the checkpoint, or best; -1: the highest",
    )
    parser.add_argument("--ema", type=float, help="length of the average instead of the one in the checkpoint")
    parser.add_argument("--max-image-size", type=int, default=MAX_IMAGE_SIZE, help="larger images are refused")
    options = parser.parse_args()
    try:
        export(options.run_dir, options.out, options.format, options.ckpt, options.ema, options.max_image_size)
    except (UserError, OSError) as error:
        sys.exit(printable(str(error)))
    print(printable(f"wrote {options.out}"))


if __name__ == "__main__":
    main()
