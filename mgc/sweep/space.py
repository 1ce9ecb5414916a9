"""The search space of a sweep: dimensions over the fields of a configuration, read from a YAML file. No Ray, no Optuna.

A file has a line per dimension, the field by its dotted name: choices in brackets, or a range::

    model.norm: [false, true]
    model.dropout: {uniform: [0, 0.5]}
    optim.lr: {log_uniform: [0.0002, 0.005]}
    augment.time_mask_frames: {uniform: [10, 60], when: {augment.time_masks: [1, 2]}}

A range of an integer field holds integers. ``when`` makes a dimension conditional: it names dimensions above it, or
fields of the base configuration, and the value or values that they must have.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from mgc.config import TrainConfig, overlay
from mgc.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

SPACES = Path(__file__).with_name("spaces")
FIXED = ("epochs", "seed", "split", "folds", "fold", "model.encoder", "optim.encoder_lr", "optim.teacher")
"""Fields that are the same in all trials: else accuracies could not be compared, or the data would be another."""
RANGES = ("uniform", "log_uniform")


def default(base: TrainConfig) -> Path:
    """Return the file of what is searched by default: the regularisers of a CNN, or of a classifier on an encoder.

    Parameters
    ----------
    base
        The configuration that every trial starts from.
    """
    return SPACES / ("regularizers.yaml" if base.model.encoder == "none" else "classifier.yaml")


@dataclass(frozen=True)
class Dimension:
    """One field and its possible values."""

    field: str
    """Dotted name in the configuration."""
    kind: Literal["choice", "uniform", "log_uniform"]
    values: tuple[Any, ...]
    """The choices, or the two ends of the range."""
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """Conditions, each a field and its accepted values; unless all hold, the field keeps the base's value."""

    def __str__(self) -> str:
        """One line, as in the file."""
        values = ", ".join(str(value) for value in self.values)
        words = f"[{values}]" if self.kind == "choice" else f"{self.kind} [{values}]"
        return words + "".join(f", when {name} in {list(values)}" for name, values in self.when)

    def parse(self, text: str) -> Any:
        """Read a value from an MLflow parameter.

        Parameters
        ----------
        text
            The value as ``str`` writes it.

        Returns
        -------
        Any
            The value; None if the text is none of the choices, or no number.
        """
        if self.kind == "choice":
            return next((value for value in self.values if str(value) == text), None)
        for kind in (int, float):
            with suppress(ValueError):
                return kind(text)
        return None


@dataclass(frozen=True)
class Space:
    """The dimensions in their order, checked against the configuration that they change.

    Examples
    --------
    >>> space = Space.of({"model.dropout": {"uniform": [0, 0.5]}}, TrainConfig())
    >>> str(space.dimensions[0])
    'uniform [0.0, 0.5]'
    """

    base: TrainConfig
    """The configuration that every trial starts from."""
    dimensions: tuple[Dimension, ...]

    @classmethod
    def read(cls, file: Path, base: TrainConfig) -> Space:
        """Read a space from a YAML file.

        Parameters
        ----------
        file
            A file as the module's docstring describes it.
        base
            The configuration that every trial starts from.

        Raises
        ------
        InputError
            The file cannot be read, is not YAML, or has a dimension that does not fit the configuration.
        """
        try:
            tree = yaml.safe_load(file.read_text())
        except OSError as error:
            raise InputError(f"`space={file}`: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"`space={file}`: not YAML ({' '.join(str(error).split())})") from None
        try:
            return cls.of(tree, base)
        except InputError as error:
            raise InputError(f"`space={file}`: {error}") from None

    @classmethod
    def of(cls, tree: object, base: TrainConfig) -> Space:
        """Build a space from plain values.

        Parameters
        ----------
        tree
            The content of a YAML file: a dict from dotted field names to choices or ranges.
        base
            The configuration that every trial starts from.

        Raises
        ------
        InputError
            It has a dimension that does not fit the configuration.
        """
        if not isinstance(tree, dict) or not tree:
            raise InputError("must have a line a dimension, like «model.dropout: {uniform: [0, 0.5]}»")
        dimensions: list[Dimension] = []
        for name, content in tree.items():
            dimensions.append(_dimension(str(name), content, base))
            for condition, values in dimensions[-1].when:
                if condition in tree and condition not in {each.field for each in dimensions[:-1]}:
                    raise InputError(f"«{name}»: «{condition}», which it depends on, must stand above it")
                for value in values:
                    _check(base, condition, value)
        return cls(base, tuple(dimensions))

    def tree(self) -> dict[str, Any]:
        """The space as plain values, which ``of`` reads."""
        return {
            each.field: {each.kind: list(each.values), "when": {name: list(values) for name, values in each.when}}
            for each in self.dimensions
        }

    def suggest(self, trial: Any) -> None:
        """Draw a value for each dimension whose conditions hold, in order (Optuna's define-by-run).

        Parameters
        ----------
        trial
            An ``optuna.Trial`` or ``FixedTrial``; afterwards its ``params`` are the drawn values by field.
        """
        drawn: dict[str, Any] = {}
        for each in self.dimensions:
            if not all(drawn.get(name, field_of(self.base, name)) in values for name, values in each.when):
                continue
            if each.kind == "choice":
                drawn[each.field] = trial.suggest_categorical(each.field, list(each.values))
            elif isinstance(field_of(self.base, each.field), int):
                drawn[each.field] = trial.suggest_int(each.field, *each.values, log=each.kind == "log_uniform")
            else:
                drawn[each.field] = trial.suggest_float(each.field, *each.values, log=each.kind == "log_uniform")

    def grid(self) -> dict[str, list[Any]]:
        """The choices by field, for a grid search over all their combinations.

        Raises
        ------
        InputError
            A dimension is a range or conditional.
        """
        for each in self.dimensions:
            if each.kind != "choice" or each.when:
                raise InputError(f"`search=grid`: «{each.field}» ({each}) must be a plain list of choices")
        return {each.field: list(each.values) for each in self.dimensions}


def nested(differences: Mapping[str, Any]) -> dict[str, Any]:
    """``{"model.dropout": 0.1}`` as ``{"model": {"dropout": 0.1}}``."""
    tree: dict[str, Any] = {}
    for name, value in differences.items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def field_of(config: TrainConfig, name: str) -> Any:
    """Return the value of a field.

    Parameters
    ----------
    config
        The configuration.
    name
        Dotted name: ``"model.dropout"``.

    Raises
    ------
    InputError
        There is no such field.
    """
    node: Any = config
    for part in name.split("."):
        if not hasattr(node, part) or part.startswith("_") or callable(getattr(node, part)):
            raise InputError(f"config field «{name}» does not exist")
        node = getattr(node, part)
    return node


def _dimension(name: str, content: object, base: TrainConfig) -> Dimension:
    """One line of the file, checked."""
    if name in FIXED:
        raise InputError(f"«{name}» cannot be searched: it is the same in all trials")
    if isinstance(content, list):
        content = {"choice": content}
    kinds = [kind for kind in ("choice", *RANGES) if isinstance(content, dict) and kind in content]
    if not isinstance(content, dict) or len(kinds) != 1 or (extra := content.keys() - {*kinds, "when"}):
        wrong = f"; {', '.join(map(str, extra))} is not known" if isinstance(content, dict) and len(kinds) == 1 else ""
        raise InputError(f"«{name}» must be a list of choices, or uniform or log_uniform with two ends{wrong}")
    (kind,) = kinds
    values, when = content[kind], content.get("when") or {}
    if not isinstance(values, list) or not values or not isinstance(when, dict):
        raise InputError(f"«{name}»: {kind} must be a list, and when must name fields and values")
    current = field_of(base, name)
    values = [_number(value, current) for value in values]
    for value in values:
        _check(base, name, value)
    if kind in RANGES:
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (current, *values))
        if not numeric or len(values) != 2 or values[0] >= values[1]:
            raise InputError(f"«{name}»: {kind} {values} must be two numbers, the lower one first")
        if kind == "log_uniform" and values[0] <= 0:
            raise InputError(f"«{name}»: log_uniform {values} must be above zero")
    conditions = tuple((str(key), tuple(of if isinstance(of, list) else [of])) for key, of in when.items())
    for condition, _ in conditions:
        field_of(base, condition)
    return Dimension(name, kind, tuple(values), conditions)  # type: ignore[arg-type]


def _number(value: Any, current: Any) -> Any:
    """YAML 1.1 reads ``2e-4`` as text: make it the number that was meant."""
    if isinstance(value, str) and isinstance(current, int | float):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _check(base: TrainConfig, name: str, value: Any) -> None:
    """Raise the configuration's own error for a value that it cannot have."""
    overlay(base, nested({name: value}))
