from mgc.audio.logmel import LogMelSpec as LogMelSpec
from mgc.collection.audit import audit as audit
from mgc.config import PRESETS as PRESETS
from mgc.config import AugmentConfig as AugmentConfig
from mgc.config import ModelConfig as ModelConfig
from mgc.config import OptimConfig as OptimConfig
from mgc.config import SweepConfig as SweepConfig
from mgc.config import TrainConfig as TrainConfig
from mgc.evaluation.compare import compare as compare
from mgc.evaluation.evaluate import evaluate as evaluate
from mgc.evaluation.predict import predict as predict
from mgc.evaluation.promote import promote as promote
from mgc.features.feature_set import FeatureSet as FeatureSet
from mgc.features.preprocess import extract_features as extract_features
from mgc.sweep.report import report as report

__version__: str
