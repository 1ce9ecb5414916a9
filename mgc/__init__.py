"""Music genre classification, from a folder of MP3s to a tracked model.

A name is loaded when it is used: ``import mgc`` alone loads nothing heavy. ``docs/architecture.md`` has the picture.

Examples
--------
>>> import mgc
>>> features = mgc.extract_features("fma", "features")  # doctest: +SKIP
>>> run = mgc.fit(features, mgc.PRESETS["short_chunk"])  # doctest: +SKIP
>>> print(mgc.evaluate(run, features))  # doctest: +SKIP
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_NAMES = {
    "FeatureSet": "features.feature_set:FeatureSet",
    "LogMelSpec": "audio.logmel:LogMelSpec",
    "ModelConfig": "config:ModelConfig",
    "AugmentConfig": "config:AugmentConfig",
    "OptimConfig": "config:OptimConfig",
    "TrainConfig": "config:TrainConfig",
    "SweepConfig": "config:SweepConfig",
    "PRESETS": "config:PRESETS",
    "audit": "collection.audit:audit",
    "extract_features": "features.preprocess:extract_features",
    "fit": "training.train:train",
    "search": "sweep.tune:tune",
    "evaluate": "evaluation.evaluate:evaluate",
    "compare": "evaluation.compare:compare",
    "mislabels": "evaluation.mislabels:mislabels",
    "predict": "library.predict:predict",
    "label": "library.label:label",
    "Labels": "library.labels:Labels",
    "playlists": "library.playlists:playlists",
    "promote": "evaluation.promote:promote",
    "report": "sweep.report:report",
}
"""The public names and where they are; ``__init__.pyi`` says the same to type checkers."""
__all__ = ["__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used (PEP 562)."""
    if name not in _NAMES:
        raise AttributeError(f"module 'mgc' has no attribute {name!r}")
    module, _, attribute = _NAMES[name].partition(":")
    value = globals()[name] = getattr(import_module(f"mgc.{module}"), attribute)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
