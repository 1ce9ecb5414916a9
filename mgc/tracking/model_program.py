"""A model in MLflow's own form: a ``pt2`` program (torch.export, no pickle) with signature and input example."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities import LoggedModelStatus

from mgc.tracking.store import client, current

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


def log_program(
    uri: str, run_id: str, model: torch.nn.Module, shape: tuple[int, int], n_genres: int, tags: Mapping[str, str]
) -> str:
    """Log a model with a run, once: a finished logged model of the run that has these tags is taken instead.

    Parameters
    ----------
    uri
        Of the store.
    run_id
        Of the run, which stays as it is.
    model
        On the CPU, in evaluation mode: float32 [shape=(batch, 1, *shape)] to logits [shape=(batch, n_genres)].
    shape
        (mel bands, frames) of its input.
    n_genres
        Logits of its output.
    tags
        Of the logged model.

    Returns
    -------
    str
        MLflow's id of the model: ``models:/ID``.
    """
    connection = client(uri)
    run = connection.get_run(run_id)
    for output in run.outputs.model_outputs:
        logged = connection.get_logged_model(output.model_id)
        if logged.status == LoggedModelStatus.READY and tags.items() <= logged.tags.items():
            return str(output.model_id)
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    float32 = np.dtype(np.float32)  # unnamed tensors: with names the pytorch flavour is handed a dict and refuses
    signature = ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, 1, *shape))]),
        outputs=Schema([TensorSpec(float32, (-1, n_genres))]),
    )
    # made here, because log_model would open the run again, or without it take another experiment
    made = connection.create_logged_model(
        run.info.experiment_id, name="model", source_run_id=run_id, tags=dict(tags), params=run.data.params
    )
    with current(uri):
        mlflow.pytorch.log_model(
            model,
            model_id=made.model_id,
            run_id=run_id,
            serialization_format="pt2",
            signature=signature,
            # two rows: torch.export takes a batch of one for a constant
            input_example=np.zeros((2, 1, *shape), np.float32),
            pip_requirements=[f"torch=={version('torch').split('+')[0]}"],
        )
    return str(made.model_id)
