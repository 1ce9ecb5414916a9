"""The application of `mgc serve` under Ray Serve: one replica or many, on any nodes.

    MGC_TOKEN=… serve run pipelines.serve:app model=s3://bucket/state/checkpoints/RUN

Run it in the folder that has ``pipelines/``; cluster/kuberay/serve.yaml has it as a RayService. Arguments are the flags
of ``mgc serve`` without those of Ray Serve's own, host and port: ``model=… precision=0.8 max_mb=50 at_once=4``. Each
replica has its limits to itself. A token is always wanted, because a replica does not know who reaches Ray Serve:
``MGC_TOKEN`` in the environment of the replicas, which a Ray that is started here takes from this one.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ray import serve

from mgc.core.errors import InputError
from mgc.evaluation.calibration import PRECISION, check_precision
from mgc.library.genre_model import load
from mgc.serving.app import application
from mgc.serving.limits import Limits
from mgc.serving.token import NAME, given_token

if TYPE_CHECKING:
    from mgc.serving.guard import Guard

MOST = 100
"""Requests of a replica that Ray Serve lets through: more than its limit, so that it is the one that refuses."""


class Genre:
    """A replica.

    Parameters
    ----------
    model
        A name that ``mgc predict`` takes, which each node can read.
    precision
        Share of right answers, on the model's validation clips, that ``unsure`` leaves.
    limits
        What is refused.
    """

    def __init__(self, model: str, precision: float, limits: Limits) -> None:
        token = given_token()
        if not token:
            raise InputError(f"{NAME}: set it in the environment of the replicas")
        self._made = application(load(model), limits, token, precision=precision)

    def __serve_build_asgi_app__(self) -> Guard:
        """Return what answers requests."""
        return self._made


_DEPLOYMENT = serve.deployment(name="genre", max_ongoing_requests=MOST)(serve.ingress()(Genre))


def app(arguments: dict[str, Any]) -> serve.Application:
    """Build the application.

    Parameters
    ----------
    arguments
        ``model``, and any of ``precision`` and the fields of ``Limits``; as text, or as numbers.

    Raises
    ------
    InputError
        There is no ``model`` among them, or a name that is none of these.
    """
    values: dict[str, Any] = {"precision": PRECISION, **asdict(Limits())}
    if unknown := sorted(set(arguments) - {"model", *values}):
        raise InputError(f"«{unknown[0]}»: no argument; there are model, {', '.join(values)}")
    if "model" not in arguments:
        raise InputError("«model»: name one, model=…")
    for name, default in values.items():
        try:
            values[name] = type(default)(arguments.get(name, default))
        except ValueError:
            raise InputError(f"{name}={arguments[name]}: no number") from None
    precision = values.pop("precision")
    check_precision(precision)
    limits = Limits(**values)
    deployment = _DEPLOYMENT.options(max_ongoing_requests=max(MOST, 2 * limits.at_once))
    return deployment.bind(arguments["model"], precision, limits)
