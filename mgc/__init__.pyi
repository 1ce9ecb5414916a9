from mgc.audio.logmel import LogMelSpec
from mgc.collection.audit import audit
from mgc.config import PRESETS, AugmentConfig, ModelConfig, OptimConfig, SweepConfig, TrainConfig
from mgc.evaluation.compare import compare
from mgc.evaluation.evaluate import evaluate
from mgc.evaluation.mislabels import mislabels
from mgc.evaluation.promote import promote
from mgc.features.feature_set import FeatureSet
from mgc.features.preprocess import extract_features
from mgc.library.label import label
from mgc.library.labels import Labels
from mgc.library.playlists import playlists
from mgc.library.predict import predict
from mgc.sweep.report import report
from mgc.sweep.tune import tune as search
from mgc.training.train import train as fit

__version__: str
__all__ = [
    "PRESETS",
    "AugmentConfig",
    "FeatureSet",
    "Labels",
    "LogMelSpec",
    "ModelConfig",
    "OptimConfig",
    "SweepConfig",
    "TrainConfig",
    "__version__",
    "audit",
    "compare",
    "evaluate",
    "extract_features",
    "fit",
    "label",
    "mislabels",
    "playlists",
    "predict",
    "promote",
    "report",
    "search",
]
