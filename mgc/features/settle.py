"""The plan of a run, in the folder of a feature set that is there or is not: begun, resumed, extended, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgc.core.errors import InputError
from mgc.core.progress import say
from mgc.features.layout import MANIFEST, PLAN, read_manifest
from mgc.features.plan import Plan

if TYPE_CHECKING:
    from mgc.core.storage import Folder


def settle(target: Folder, plan: Plan, *, overwrite: bool) -> Plan:
    """Make the plan of a run: the new one, or the one in the folder with the clips that are new.

    Parameters
    ----------
    target
        Folder of the feature set, which is there.
    plan
        A new plan of all clips.
    overwrite
        Whether a set that is there is replaced.

    Raises
    ------
    InputError
        The folder holds a set of other clips or another recipe, or files that are no feature set.
    RunError
        The disk or the object store cannot be read.
    """
    before = None if overwrite else Plan.read(target)
    if before is None:
        _refuse_foreign(target, overwrite=overwrite)
        return plan
    if differences := before.differences(plan.table, plan.recipe):
        raise InputError(
            f"`out={target}`: holds another feature set: {'; '.join(differences)}; "
            "choose another folder, or `overwrite=True` to replace what differs"
        )
    if changed := before.other_licences(plan.table):
        say(f"{target}: {changed}; the set keeps those that it was made with until it is overwritten")
    new = before.without(plan.table)
    if len(new):
        say(f"{target}: {len(new)} new clips go to new shards, {len(before.table)} stay")
    return before.extended(new) if len(new) else before


def _refuse_foreign(target: Folder, *, overwrite: bool) -> None:
    """Refuse a folder that has no plan and is not empty."""
    files = [name for name in target.files() if not name.startswith(".")]
    if MANIFEST in files:
        if not overwrite:
            read_manifest(target)  # of another format: says so
            raise InputError(f"`out={target}`: {PLAN} is lost; choose another folder, or `overwrite=True`")
    elif PLAN not in files and (files or (target.path and any(target.path.glob("[!.]*")))):
        raise InputError(f"`out={target}`: is not empty and holds no feature set; choose another folder")
