"""MLflow's model registry: the models that became champion, and which of them is it now.

A version is the model of one run, known by its tags: the run, and the runs whose models it is made of. The alias
``champion`` is on one version. The registry is that of the store of the runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mgc.tracking.store import client, current

if TYPE_CHECKING:
    from collections.abc import Mapping

REGISTERED = "mgc-genre"
"""Name of the registered model."""
CHAMPION = "champion"
RUN_TAG = "mgc.run_id"
MODELS_TAG = "mgc.models"


@dataclass(frozen=True)
class Version:
    """A registered model."""

    number: str
    run_id: str
    models: tuple[str, ...]
    """The runs that trained what it is made of: its own, or those of an ensemble."""

    @classmethod
    def _of(cls, version: Any) -> Version:
        run_id = version.tags.get(RUN_TAG) or version.run_id or "(none)"  # one registered by hand has no tags
        return cls(str(version.version), run_id, tuple(version.tags.get(MODELS_TAG, run_id).split(",")))


def champion(uri: str, name: str = REGISTERED) -> Version | None:
    """The version with the alias ``champion``; None if no run has become it yet."""
    for model in client(uri).search_registered_models(f"name = '{name}'"):
        if CHAMPION in model.aliases:
            return Version._of(client(uri).get_model_version(name, str(model.aliases[CHAMPION])))
    return None


def register(uri: str, name: str, model_id: str, run_id: str, models: tuple[str, ...], facts: Mapping[str, str]) -> str:
    """Make a run's model a version, with facts as its tags, and return the version's number; of a run there is one.

    Parameters
    ----------
    model_id
        MLflow's id of the model.
    models
        The runs that trained what the model is made of.
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


def crown(uri: str, name: str, number: str) -> None:
    """Move the alias ``champion`` to a version."""
    client(uri).set_registered_model_alias(name, CHAMPION, number)
