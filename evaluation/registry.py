"""The metrics that run_eval.py knows, by the names of configs/metrics/, in the order in which they are computed."""

from collections.abc import Callable

from evaluation.bpd import ElboBPD, FlowBPD
from evaluation.metric import Metric
from evaluation.sample_quality import FID, KID, InceptionScore, PrecisionRecall

METRICS: dict[str, Callable[..., Metric]] = {
    "bpd": FlowBPD,
    "elbo": ElboBPD,
    "fid": FID,
    "kid": KID,
    "inception_score": InceptionScore,
    "precision_recall": PrecisionRecall,
}
