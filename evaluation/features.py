"""Features and class logits of images by a fixed network, for the metrics of sample quality."""

import hashlib
import logging
from abc import ABC, abstractmethod
from io import BytesIO
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.images import ImageDataset, digits
from datasets.patches import patches
from models.io.checkpoint import read_checkpoint
from models.io.weights import check_finite
from utils.errors import InputError

log = logging.getLogger(__name__)


class Features(ABC):
    """A fixed map from images to features.

    Attributes:
        name: name of the map.
        dimension: number of features of an image.
        sha256: SHA-256 of its weights.
    """

    name: str
    dimension: int
    sha256: str

    @abstractmethod
    def __call__(self, pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        """Compute features (N, d) and class logits (N, K), float32 on the CPU.

        Args:
            pixels: images, uint8 (N, H, W, C), white is 255.
        """


def features_of(dataset: str, weights: str | None) -> "type[DigitFeatures] | type[PatchFeatures] | type[Inception]":
    """Return the class of the map that ``create_features`` creates from the same arguments."""
    if weights is not None:
        return Inception
    return DigitFeatures if dataset == "digits" else PatchFeatures if dataset == "patches" else Inception


def create_features(dataset: str, weights: str | None, device: torch.device, image_size: int) -> Features:
    """Create the map for a data set.

    This is ``Inception``, except for ``digits`` and ``patches`` without ``weights``: these have small maps of their
    own, so that nothing is downloaded.

    Args:
        dataset: name of the data set.
        weights: file of Inception weights; None for torch-fidelity's, downloaded at the first use.
        device: device to compute on.
        image_size: height and width of the images.

    Raises:
        InputError: if there are no weights, or the file does not hold them.
    """
    kind = features_of(dataset, weights)
    if kind is DigitFeatures:
        return DigitFeatures()
    if kind is PatchFeatures:
        return PatchFeatures(image_size)
    return Inception(_downloaded_weights() if weights is None else Path(weights), device)


class Inception(Features):
    """The Inception network of Szegedy et al. (2015) as torch-fidelity computes it: 2048 features and 1008 logits.

    Grey images are given three equal channels.
    """

    name = "inception-v3-compat"
    dimension = 2048

    def __init__(self, weights: Path, device: torch.device) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # a slow import

        safe = BytesIO()  # torch-fidelity would unpickle the file without restrictions
        torch.save(read_checkpoint(weights), safe)
        safe.seek(0)
        try:
            layers = ["2048", "logits_unbiased"]
            net = FeatureExtractorInceptionV3(self.name, layers, feature_extractor_weights_path=safe)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{weights} does not hold the weights of torch-fidelity's Inception: {reason}") from error
        for name, tensor in net.state_dict().items():
            check_finite(tensor, name, weights)
        self.net, self.device = net.to(device), device
        with weights.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        """See ``Features``."""
        x = torch.from_numpy(pixels).to(self.device).movedim(-1, 1)
        features, logits = self.net(x if x.shape[1] == 3 else x[:, :1].expand(-1, 3, -1, -1))
        return features.float().cpu(), logits.float().cpu()


class RandomFilters(Features):
    """A small map that needs no download.

    Two layers of 3x3 filters drawn from a fixed seed, each followed by absolute values, and means over each quarter of
    the image: 64 features, of mean 0 and deviation 1 over the training images. The logits are those of a logistic
    regression on them, fitted to the classes of the training images.

    Args:
        real: training images, with classes.
    """

    SEED, WIDTHS = 0, (32, 16)
    dimension = 4 * WIDTHS[-1]

    def __init__(self, real: ImageDataset) -> None:
        from sklearn.linear_model import LogisticRegression  # a slow import

        rng = np.random.RandomState(self.SEED)  # gives the same numbers in every version of numpy
        inner, outer = self.WIDTHS
        shapes = ((inner, real.shape[0]), (outer, inner))
        self.filters = [torch.from_numpy(rng.standard_normal((n, m, 3, 3))) for n, m in shapes]
        self.sha256 = hashlib.sha256(b"".join(f.numpy().tobytes() for f in self.filters)).hexdigest()
        pixels = to_pixels(real.data, real.levels)
        features = torch.cat([self._responses(pixels[i : i + 2000]) for i in range(0, len(pixels), 2000)])
        self.mean, self.scale = features.mean(0), features.std(0)
        self.classifier = LogisticRegression(max_iter=2000).fit((features - self.mean) / self.scale, real.labels)

    def __call__(self, pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        """See ``Features``."""
        features = (self._responses(pixels) - self.mean) / self.scale
        return features.float(), torch.from_numpy(self.classifier.decision_function(features)).float()

    def _responses(self, pixels: np.ndarray) -> Tensor:
        x = torch.from_numpy(pixels).double().movedim(-1, 1) / 255.0
        for filters in self.filters:
            x = F.conv2d(x, filters / filters[0].numel() ** 0.5, padding=1).abs()
        return F.adaptive_avg_pool2d(x, 2).flatten(1)


class DigitFeatures(RandomFilters):
    """The map for the 8x8 digits."""

    name = "digits-64"

    def __init__(self) -> None:
        super().__init__(digits(train=True))


class PatchFeatures(RandomFilters):
    """The map for patches of photographs; their classes are the photographs.

    Args:
        image_size: height and width of the patches.
    """

    name = "patches-64"

    def __init__(self, image_size: int) -> None:
        super().__init__(patches(train=True, image_size=image_size))


def to_pixels(pixels: Tensor, levels: int | None) -> np.ndarray:
    """Convert images of a data set, (N, C, H, W), to the format that run_vis.py writes, uint8 (N, H, W, C)."""
    top = 1 if levels is None else levels - 1  # the value that is white
    scaled = pixels if levels == 256 else (pixels * (255.0 / top)).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.movedim(1, -1).numpy())


def _downloaded_weights() -> Path:
    """Return the file of torch-fidelity's Inception weights in torch's cache, downloaded if it is missing."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s", URL_INCEPTION_V3)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=path.stem.rsplit("-", 1)[1])
        except (URLError, OSError, RuntimeError) as error:
            raise InputError(
                f"{URL_INCEPTION_V3} could not be downloaded ({error}): place the file at {path}, or say "
                "metrics.feature_weights=PATH"
            ) from error
    return path
