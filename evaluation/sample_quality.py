"""Metrics of sample quality: FID, KID, Inception score, precision and recall, computed by torch-fidelity."""

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from evaluation.metric import EvaluationInputs, Result, RowsMetric
from evaluation.reference import Reference
from evaluation.samples import SampleFeatures
from utils.options import Count

PAPERS_USE = 50_000  # samples


class SampleMetric(RowsMetric, ABC):
    """Base of metrics of the features and class logits of samples.

    Attributes:
        compares_with: statistics of the real images that the metric uses: "nothing", "statistics" for the mean and
            covariance of their features, or "features" for the features of single images.

    Args:
        inputs: configuration, processes and shared samples of the evaluation.
        fewest: smallest number of samples, and of real images, that the metric can be computed from.

    Raises:
        InputError: naming the key or file at fault.
    """

    compares_with: Literal["nothing", "statistics", "features"] = "features"

    def __init__(self, inputs: EvaluationInputs, fewest: int = 2) -> None:
        super().__init__()
        self.seed = inputs.cfg.seed
        self.per_image: SampleFeatures = inputs.features
        self.per_image.check_numbers(fewest, self.compares_with != "nothing")

    def result(self) -> dict[str, Result]:
        """Compute the metric of all samples so far."""
        rows = self.rows()
        features, logits = (torch.from_numpy(rows[name]) for name in ("features", "logits"))
        return self.compute(features, logits, None if self.compares_with == "nothing" else self.per_image.reference)

    @abstractmethod
    def compute(self, features: Tensor, logits: Tensor, real: Reference | None) -> dict[str, Result]:
        """Compute the metric.

        Args:
            features: features of the samples, (N, d).
            logits: class logits of the samples, (N, K).
            real: statistics of the real images; None if ``compares_with`` is "nothing".
        """


class FID(SampleMetric):
    """Frechet inception distance."""

    compares_with = "statistics"

    def __init__(self, inputs: EvaluationInputs) -> None:
        super().__init__(inputs)

    def compute(self, features: Tensor, logits: Tensor, real: Reference | None) -> dict[str, Result]:
        """Compute the distance between the Gaussians with the mean and covariance of samples and of real images."""
        from torch_fidelity import metric_fid  # a slow import

        assert real is not None
        n = len(features)
        drawn = metric_fid.fid_features_to_statistics(features.double())
        statistics = {"mu": real.mean, "sigma": real.covariance}
        value = metric_fid.fid_statistics_to_metric(drawn, statistics, verbose=False)[metric_fid.KEY_METRIC_FID]
        note = {"note": f"of {n} images, not {PAPERS_USE}: larger than of more"} if n < PAPERS_USE else {}
        return {"fid": Result(value, None, {"drawn": n, **note})}


class KID(SampleMetric):
    """Kernel inception distance.

    Args:
        inputs: configuration, processes and shared samples of the evaluation.
        subsets: number of random subsets.
        subset_size: number of images in a subset; at most the number of samples and of real images.
    """

    def __init__(
        self, inputs: EvaluationInputs, *, subsets: Count, subset_size: Annotated[int, Field(ge=2, le=10**6)]
    ) -> None:
        super().__init__(inputs)
        self.subsets, self.subset_size = subsets, subset_size

    def compute(self, features: Tensor, logits: Tensor, real: Reference | None) -> dict[str, Result]:
        """Average the squared maximum mean discrepancy over subsets of samples and of real images."""
        from torch_fidelity import metric_kid

        assert real is not None and real.features is not None
        size = min(self.subset_size, len(features), len(real.features))
        out = metric_kid.kid_features_to_metric(
            features, real.features, kid_subsets=self.subsets, kid_subset_size=size, rng_seed=self.seed, verbose=False
        )
        error_is = f"standard deviation over {self.subsets} subsets of {size}"
        mean, deviation = out[metric_kid.KEY_METRIC_KID_MEAN], out[metric_kid.KEY_METRIC_KID_STD]
        return {"kid": Result(mean, deviation, {"error_is": error_is, "drawn": len(features)})}


class InceptionScore(SampleMetric):
    """Inception score.

    Args:
        inputs: configuration, processes and shared samples of the evaluation.
        splits: number of parts whose standard deviation is the error.
    """

    compares_with = "nothing"

    def __init__(self, inputs: EvaluationInputs, *, splits: Count) -> None:
        super().__init__(inputs)
        self.splits = splits

    def compute(self, features: Tensor, logits: Tensor, real: Reference | None) -> dict[str, Result]:
        """Average over parts of the samples the exponential of the mutual information of image and class."""
        from torch_fidelity import metric_isc

        splits = min(self.splits, len(logits))
        out = metric_isc.isc_features_to_metric(logits, splits=splits, rng_seed=self.seed)
        protocol = {"error_is": f"standard deviation over {splits} parts", "drawn": len(logits)}
        mean, deviation = out[metric_isc.KEY_METRIC_ISC_MEAN], out[metric_isc.KEY_METRIC_ISC_STD]
        return {"inception_score": Result(mean, deviation, protocol)}


class PrecisionRecall(SampleMetric):
    """Precision and recall by nearest neighbours (Kynkaanniemi et al. 2019).

    Args:
        inputs: configuration, processes and shared samples of the evaluation.
        neighborhood: number of nearest neighbours that span the manifold.
    """

    def __init__(self, inputs: EvaluationInputs, *, neighborhood: Count) -> None:
        super().__init__(inputs, fewest=neighborhood + 1)
        self.neighborhood = neighborhood

    def compute(self, features: Tensor, logits: Tensor, real: Reference | None) -> dict[str, Result]:
        """Compute the share of samples on the manifold of real images (precision), and the reverse (recall)."""
        from torch_fidelity import metric_prc

        assert real is not None and real.features is not None
        out = metric_prc.prc_features_to_metric(
            features,
            real.features,
            prc_neighborhood=self.neighborhood,
            save_cpu_ram=True,
            prc_batch_size=5000,
            verbose=False,
        )
        n, num_real = len(features), len(real.features)
        results = {}
        for name, count in (("precision", n), ("recall", num_real)):
            share = out[name]
            error = float(np.sqrt(share * (1 - share) / count))
            error_is = f"binomial standard error of {count} images"
            protocol = {"error_is": error_is, "drawn": n, "real": num_real, "neighborhood": self.neighborhood}
            results[name] = Result(share, error, protocol)
        return results
