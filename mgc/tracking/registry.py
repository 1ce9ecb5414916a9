"""MLflow's model registry: the models that were promoted, and which of them is the champion now.

A version is the model of one run. Its tags name the run and, of an ensemble, the runs of its members. The alias
``champion`` is on one version. The registry is that of the store of the runs.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgc.tracking.store import client, current

if TYPE_CHECKING:
    from collections.abc import Mapping

REGISTERED = "mgc-genre"
"""Name of the registered model."""
CHAMPION = "champion"
"""The alias of the version that is the champion."""
RUN_TAG = "mgc.run_id"
MODELS_TAG = "mgc.models"
"""Tags of a version: its run, and the runs that trained its members."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    number: str
    """In the registry, from 1."""
    run_id: str
    """The run that was promoted."""
    models: tuple[str, ...]
    """The runs that trained its members: of a single model its own run."""

    @classmethod
    def _of(cls, version: Any) -> Version:
        run_id = version.tags.get(RUN_TAG) or version.run_id or "(none)"  # one registered by hand has no tags
        return cls(str(version.version), run_id, tuple(version.tags.get(MODELS_TAG, run_id).split(",")))


def champion(uri: str, name: str = REGISTERED) -> Version | None:
    """Return the version with the alias ``champion``.

    Parameters
    ----------
    uri
        Of the store.
    name
        Of the registered model.

    Returns
    -------
    Version or None
        The champion; None if no run was promoted yet.
    """
    for model in client(uri).search_registered_models(f"name = '{name}'"):
        if CHAMPION in model.aliases:
            return Version._of(client(uri).get_model_version(name, str(model.aliases[CHAMPION])))
    return None


def register(uri: str, name: str, model_id: str, run_id: str, models: tuple[str, ...], facts: Mapping[str, str]) -> str:
    """Register a run's model as a version, once: the version of the run, if it has one, only gets the tags.

    Parameters
    ----------
    uri
        Of the store.
    name
        Of the registered model, created if need be.
    model_id
        MLflow's id of the logged model.
    run_id
        The run that is promoted.
    models
        The runs that trained the model's members.
    facts
        More tags of the version.

    Returns
    -------
    str
        The version's number.
    """
    connection = client(uri)
    if not connection.search_registered_models(f"name = '{name}'"):
        connection.create_registered_model(name)
    identity = {RUN_TAG: run_id, MODELS_TAG: ",".join(models)}
    wanted = " and ".join([f"name = '{name}'", *(f"tags.`{key}` = '{value}'" for key, value in identity.items())])
    for version in connection.search_model_versions(wanted):
        for key, value in facts.items():
            connection.set_model_version_tag(name, version.version, key, value)
        return str(version.version)
    with current(uri):  # where a source of this form is looked up
        made = connection.create_model_version(
            name, f"models:/{model_id}", run_id=run_id, tags={**facts, **identity}, model_id=model_id
        )
    return str(made.version)


def add_text(uri: str, model_id: str, text: str, name: str) -> None:
    """Add a text to the files of a logged model, and so of the versions that are of it.

    Parameters
    ----------
    uri
        Of the store.
    model_id
        MLflow's id of the logged model.
    text
        The content.
    name
        Of the file, which is replaced.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_text(text, encoding="utf-8")
        client(uri).log_model_artifact(model_id, str(file))


def set_champion(uri: str, name: str, number: str) -> None:
    """Move the alias ``champion`` to a version.

    Parameters
    ----------
    uri
        Of the store.
    name
        Of the registered model.
    number
        Of the version.
    """
    client(uri).set_registered_model_alias(name, CHAMPION, number)
