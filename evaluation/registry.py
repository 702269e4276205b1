"""The registry of the metrics of run_eval.py, by the names of configs/metrics/, in the order of computation."""

from collections.abc import Callable, Sequence

from evaluation.bpd import ElboBPD, FlowBPD
from evaluation.energy_distance import EnergyDistance
from evaluation.memorization import Memorization
from evaluation.metric import Metric
from evaluation.sample_quality import FID, KID, InceptionScore, PrecisionRecall
from utils.errors import InputError

METRICS: dict[str, Callable[..., Metric]] = {
    "bpd": FlowBPD,
    "elbo": ElboBPD,
    "energy_distance": EnergyDistance,
    "fid": FID,
    "kid": KID,
    "inception_score": InceptionScore,
    "precision_recall": PrecisionRecall,
    "memorization": Memorization,
}


def check_reference(key: str, chosen: Sequence[str]) -> None:
    """Check that the ``chosen`` metrics can be computed from a mean and covariance in place of the training images.

    Args:
        key: option that names the file, with its value.
        chosen: names of metrics.

    Raises:
        InputError: naming the metrics that cannot, or the key if none of them uses a mean and covariance.
    """
    needs = {name: getattr(METRICS[name], "compares_with", "nothing") for name in chosen}
    if more := [name for name in chosen if needs[name] == "features"]:
        raise InputError(
            f"{key} is a mean and covariance, from which {' and '.join(more)} cannot be computed: choose "
            "metrics=[fid], or leave metrics.reference out to compare with the training images"
        )
    if "statistics" not in needs.values():
        raise InputError(f"{key} is for fid, which is not among the chosen metrics: {', '.join(chosen)}")
