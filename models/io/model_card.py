"""The model card of an exported directory: README.md with the metadata that the Hugging Face Hub reads."""

from typing import Any

import yaml
from omegaconf import DictConfig

from datasets.shape import data_shape, is_image

OWN_LIBRARY = "reflected-diffusion"
USE = {
    OWN_LIBRARY: """\
```sh
python run_vis.py load_dir=hf://USER/NAME
python run_eval.py load_dir=hf://USER/NAME 'metrics=[elbo]'
```
""",
    "diffusers": """\
The folder of the code of reflected diffusion models must be on `PYTHONPATH`, for the network. `trust_remote_code=True`
runs `pipeline.py`, `scheduler/reflected_scheduler.py` and `unet/score_network.py` of this directory.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("USER/NAME", trust_remote_code=True)
image = pipeline({call}).images[0]
```
""",
}


def model_card(cfg: DictConfig, library: str) -> str:
    """Return the text of README.md: metadata in YAML, what the model is, and how to draw from it.

    All that the text repeats of the configuration are numbers and names that this code knows: a loaded run is not
    trusted, and the page is shown in browsers.

    Args:
        cfg: checked configuration of the run.
        library: what reads the files, a key of ``USE``.
    """
    image, num_classes = is_image(cfg.data), int(cfg.data.num_classes) if cfg.data.classes else 0
    metadata: dict[str, Any] = {"library_name": library, "tags": ["diffusion", "reflected-diffusion", "safetensors"]}
    if image:
        # The Hub has no task for images of a class: this is the nearest.
        metadata["pipeline_tag"] = "unconditional-image-generation"
    parametrization = cfg.model.get("parametrization", "output")
    facts = {
        "process": f"{cfg.sde.name}, noise levels {float(cfg.sde.sigma_min):g} to {float(cfg.sde.sigma_max):g}",
        "network": f"{cfg.model.name}, parametrization {parametrization}, averaged weights",
        "data": f"{'images' if image else 'arrays'} of shape {data_shape(cfg.data)}",
    }
    if num_classes:
        facts["classes"] = f"{num_classes}, numbered from 0"
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    use = USE[library].replace("{call}", "class_labels=[0]" if num_classes else "")
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n# Reflected diffusion model\n\n{lines}\n\n{use}"
