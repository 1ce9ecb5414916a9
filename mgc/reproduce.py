"""The command ``mgc reproduce``: stated figures, run again by their own commands, and whether each still holds.

A YAML file of claims (``docs/claims.yaml`` is this project's) names the data sets that must be given, and the claims::

    data:
      fma: FMA-small, the folder with fma_small and fma_metadata
    claims:
      - name: floor
        what: Logistic regression on log-Mel statistics, four folds by artist.
        commands:
          - mgc preprocess --root {fma} --out features
          - mgc baseline --features features --kind logmel --classifier logistic --folds 4
        metric: accuracy
        value: 0.407
        tolerance: 0.005
        cost: two minutes

``{fma}`` is the folder that ``--data fma=FOLDER`` gives, ``{1.run_id}`` a value of what the claim's first command
answered. ``metric`` is a key of the last command's JSON; dots lead into objects and lists (``ci95.0``). ``value`` is a
number, or true or false.

All commands run in one work folder, each in a process of its own, with its own MLflow store. A command line that has
been run there is not run again: claims share what they have in common, and a reproduction that was ended goes on.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import yaml

import mgc
from mgc.core.atomic_files import write_text
from mgc.core.errors import InputError, MgcError, RunError, path_error
from mgc.core.progress import clock, say
from mgc.core.results import Result
from mgc.core.storage import Folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# fmt: off
COMMANDS = (
    "audit", "baseline", "blend", "compare", "download", "evaluate", "index", "label", "mislabels", "predict",
    "preprocess", "toy", "train", "tune", "verify",
)
# fmt: on
"""What a claim may run: the commands that end by themselves and answer with figures."""
ANSWERS = "answers.json"
"""File in the work folder: the answer of each command line that was run there."""
NOT_INHERITED = ("MLFLOW_TRACKING_URI", "MGC_STORAGE")
"""Variables that would keep a claim's runs elsewhere than in the work folder."""
OPTIONAL = {"tolerance", "cost"}
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

Figure: TypeAlias = "int | float | bool"


@dataclass(frozen=True)
class Claim:
    """One figure, and how to get it."""

    name: str
    what: str
    """One sentence."""
    commands: tuple[tuple[str, ...], ...]
    """Argument lists of mgc, without «mgc» itself."""
    metric: str
    """Key of the last command's JSON."""
    value: Figure
    """What is stated."""
    tolerance: float = 0.0
    """By how much another run may differ."""
    cost: str = ""
    """How long it takes, roughly."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the data sets that it needs."""
        found = (name for command in self.commands for part in command for name in _PLACEHOLDER.findall(part))
        return tuple(dict.fromkeys(name for name in found if not name[0].isdecimal()))


@dataclass(frozen=True)
class Outcome:
    """What came of one claim."""

    name: str
    what: str
    verdict: Literal["holds", "does not hold", "failed", "skipped"]
    value: Figure
    """What is stated."""
    tolerance: float
    seen: Figure | None = None
    """What was found; None of a claim that failed or was skipped."""
    note: str = ""
    """Why it failed or was skipped."""

    def __str__(self) -> str:
        """One line."""
        stated = f"{self.value} ± {self.tolerance:g}" if self.tolerance else f"{self.value}"
        seen = f"{self.seen:.4g}" if isinstance(self.seen, float) else f"{self.seen}"
        told = self.note if self.seen is None else f"{seen}, stated {stated}"
        return f"{self.verdict:<13}  {self.name}: {told}"


@dataclass(frozen=True)
class Reproduction(Result):
    """What came of the claims of a file."""

    claims: tuple[Outcome, ...]
    work: str
    """The folder that the commands ran in."""
    seconds: float
    counts: dict[str, int] = field(init=False)
    """Claims by their verdict."""

    def __post_init__(self) -> None:
        verdicts = [claim.verdict for claim in self.claims]
        object.__setattr__(self, "counts", {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)})

    def problem(self) -> MgcError | None:
        """Return which claims do not hold, or could not be tried because a command failed."""
        wrong = [claim.name for claim in self.claims if claim.verdict in ("does not hold", "failed")]
        return (
            RunError(f"{len(wrong)} of {len(self.claims)} claims not reproduced: {', '.join(wrong)}") if wrong else None
        )

    def __str__(self) -> str:
        """A line a claim, and the counts."""
        counts = ", ".join(f"{verdict}: {count}" for verdict, count in self.counts.items())
        return "\n".join([*map(str, self.claims), f"{counts}; in {clock(self.seconds)}, in {self.work}"])


def reproduce(
    file: str | Path,
    *,
    only: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
    work: str | Path = "reproduced",
) -> Reproduction:
    """Run the commands of claims and compare what they find with what is stated.

    The file is checked whole before anything runs. Its commands run with your rights and write where they say: read a
    file of somebody else's first.

    Parameters
    ----------
    file
        YAML file of claims, as the module's docstring describes it.
    only
        Names of the claims to try; all by default.
    data
        Data sets, each as ``NAME=FOLDER``, by path or URI. Claims whose data are not given are skipped.
    work
        Folder to run the commands in: a new or empty one, or one of an earlier reproduction by the same version, whose
        answers are kept.

    Returns
    -------
    Reproduction
        An outcome a claim; its ``problem`` is a ``RunError`` where one does not hold or failed.

    Raises
    ------
    InputError
        The file is not one of claims, a name is not known, a data set is not there, or ``work`` is something else.

    Examples
    --------
    >>> print(reproduce("docs/claims.yaml", only=("toy-quarantine",)))  # doctest: +SKIP
    holds          toy-quarantine: 1, stated 1
    """
    start = time.monotonic()
    known, claims = read(Path(file))
    if unknown := set(only) - {claim.name for claim in claims}:
        raise InputError(f"`only={min(unknown)}`: no claim of {file} has this name")
    chosen = [claim for claim in claims if not only or claim.name in only]
    folders = _folders(data, known)
    outcomes, place = [], _work(Path(work))
    with Folder.at(place).claim("`work`:"):
        runner = _Runner(place)
        for number, claim in enumerate(chosen, start=1):
            say(f"reproduce: {number} of {len(chosen)}, {claim.name}" + (f" ({claim.cost})" if claim.cost else ""))
            outcomes.append(_tried(claim, folders, known, runner))
            say(f"reproduce: {outcomes[-1]}")
    return Reproduction(tuple(outcomes), str(place), round(time.monotonic() - start, 2))


def _tried(claim: Claim, folders: Mapping[str, str], known: Mapping[str, str], runner: _Runner) -> Outcome:
    def outcome(verdict: Any, **more: Any) -> Outcome:
        return Outcome(claim.name, claim.what, verdict, claim.value, claim.tolerance, **more)

    if missing := [name for name in claim.needs if name not in folders]:
        given = " ".join(f"--data {name}=FOLDER" for name in missing)
        return outcome("skipped", note=f"give {given} ({'; '.join(known[name] for name in missing)})")
    answers: list[dict[str, Any]] = []
    try:
        for command in claim.commands:
            answers.append(runner.answer(_filled(command, folders, answers)))
        seen = _value(answers[-1], claim.metric)
        if isinstance(seen, bool) != isinstance(claim.value, bool) or not isinstance(seen, bool | int | float):
            raise RunError(f"the answer has {seen!r} at «{claim.metric}»")
    except RunError as error:
        return outcome("failed", note=str(error))
    apart = abs(seen - claim.value)
    near = apart <= claim.tolerance or math.isclose(apart, claim.tolerance)  # binary fractions
    return outcome("holds" if near else "does not hold", seen=seen)


def _filled(command: Iterable[str], folders: Mapping[str, str], answers: list[dict[str, Any]]) -> list[str]:
    """The arguments with folders and earlier answers in the places of their placeholders."""

    def value(match: re.Match[str]) -> str:
        number, _, key = match[1].partition(".")
        return str(_value(answers[int(number) - 1], key)) if number.isdecimal() else folders[match[1]]

    return [_PLACEHOLDER.sub(value, part) for part in command]


def _value(answer: Any, key: str) -> Any:
    node = answer
    for part in key.split("."):
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise RunError(f"the answer has no «{key}»") from None
    return node


class _Runner:
    """Runs command lines in the work folder, each once."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._file = work / ANSWERS
        self._answers: dict[str, dict[str, Any]] = (
            json.loads(self._file.read_text())["answers"] if self._file.exists() else {}
        )
        self._failed: dict[str, str] = {}

    def answer(self, arguments: list[str]) -> dict[str, Any]:
        """Return what a command line answers, from before or from now.

        Raises
        ------
        RunError
            It ended with another exit code than 0, or answered no JSON.
        """
        line = shlex.join(["mgc", *arguments])
        if line in self._answers:
            say(f"reproduce: {line}  (answered before)")
            return self._answers[line]
        if line not in self._failed:
            say(f"reproduce: {line}")
            self._clear(arguments)
            code, printed = self._run(arguments)
            try:
                answer = json.loads(printed.strip().rpartition("\n")[2])
            except ValueError:
                answer, code = {"error": "it answered no JSON"}, code or 1
            if not code:
                self._answers[line] = answer
                self._keep()
                return answer  # type: ignore[no-any-return]
            self._failed[line] = f"«{line}» ended with exit code {code}: {_error(answer)}"
        raise RunError(self._failed[line])

    def _clear(self, arguments: list[str]) -> None:
        """Remove what a killed reproduction's ``mgc toy`` left: it takes no folder that is there."""
        for argument in arguments[1:] if arguments[0] == "toy" else []:
            folder = (self.work / argument).resolve()
            if self.work.resolve() in folder.parents:
                shutil.rmtree(folder, ignore_errors=True)

    def _run(self, arguments: list[str]) -> tuple[int, str]:
        """Run a command to its end; an interrupt is passed on to it once, and waits for it."""
        environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        command = [sys.executable, "-m", "mgc.cli", *arguments, "--json"]
        process = subprocess.Popen(
            command, cwd=self.work, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            process_group=0,
        )  # fmt: skip
        try:
            printed, _ = process.communicate()
        except BaseException:
            process.terminate()
            process.communicate()
            raise
        return process.returncode, printed

    def _keep(self) -> None:
        try:
            write_text(json.dumps({"version": mgc.__version__, "answers": self._answers}, indent=1), self._file)
        except OSError as error:
            raise path_error(f"{self._file}: cannot be written ({error.strerror})", error) from None


def _error(answer: Any) -> str:
    return str(answer["error"]) if isinstance(answer, dict) and "error" in answer else "see above"


def _work(work: Path) -> Path:
    """Make the work folder, or check that it is one of this version."""
    try:
        kept = json.loads((work / ANSWERS).read_text()) if (work / ANSWERS).exists() else None
        if kept is None and work.exists() and (not work.is_dir() or any(work.iterdir())):
            raise InputError(f"`work={work}`: is not empty and not of a reproduction; choose another folder")
        if kept is not None and kept["version"] != mgc.__version__:
            raise InputError(f"`work={work}`: has answers of mgc {kept['version']}; choose another folder")
        work.mkdir(parents=True, exist_ok=True)
        if kept is None:
            write_text(json.dumps({"version": mgc.__version__, "answers": {}}), work / ANSWERS)
    except OSError as error:
        raise path_error(f"`work={work}`: cannot be used ({error.strerror})", error) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"`work={work}`: its {ANSWERS} cannot be read; choose another folder") from None
    return work.absolute()


def _folders(data: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """The data sets by name, by absolute path or URI."""
    folders = {}
    for each in data:
        name, equals, place = each.partition("=")
        if not equals or not place:
            raise InputError(f"`data={each}`: must be NAME=FOLDER")
        if name not in known:
            raise InputError(f"`data={each}`: the file knows {', '.join(known) or 'no data sets'}")
        folder = Folder.at(place)
        if folder.kind() is None:
            raise InputError(f"`data={each}`: no such folder")
        folders[name] = folder.uri
    return folders


# The file


def read(file: Path) -> tuple[dict[str, str], list[Claim]]:
    """Read and check a file of claims.

    Parameters
    ----------
    file
        As the module's docstring describes it.

    Returns
    -------
    data
        What each data set is, by its name.
    claims
        In the file's order.

    Raises
    ------
    InputError
        It cannot be read, or a field is not as it must be; the message names file and field.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    try:
        return _checked(tree)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _checked(tree: Any) -> tuple[dict[str, str], list[Claim]]:
    _require(
        isinstance(tree, dict) and isinstance(tree.get("claims"), list) and tree["claims"], "claims: must be a list"
    )
    _require(not (more := tree.keys() - {"data", "claims"}), f"{', '.join(map(str, more))}: not known")
    data = tree.get("data", {})
    _require(isinstance(data, dict), "data: must be names, each with a line that says what it is")
    for name, what in data.items():
        fits = isinstance(name, str) and _NAME.fullmatch(name) and not name[0].isdecimal() and isinstance(what, str)
        _require(fits, f"data.{name}: must be a name in small letters, with a line that says what it is")
    claims: list[Claim] = []
    for number, each in enumerate(tree["claims"], start=1):
        claims.append(_claim(f"claims.{number}", each, data))
        _require(claims[-1].name not in {claim.name for claim in claims[:-1]}, f"claims.{number}.name: is there twice")
    return data, claims


def _claim(where: str, tree: Any, data: Mapping[str, str]) -> Claim:
    fields = set(Claim.__dataclass_fields__)
    _require(isinstance(tree, dict), f"{where}: must have {', '.join(sorted(fields))}")
    _require(not (more := tree.keys() - fields), f"{where}.{', '.join(map(str, more))}: not known")
    _require(not (lacking := fields - OPTIONAL - tree.keys()), f"{where}.{min(lacking, default='')}: is missing")
    for name in ("name", "what", "metric", *(["cost"] if "cost" in tree else [])):
        _require(isinstance(tree[name], str) and tree[name].strip(), f"{where}.{name}: must be a text")
    _require(_NAME.fullmatch(tree["name"]), f"{where}.name: must be small letters, digits and hyphens")
    value, tolerance = tree["value"], tree.get("tolerance", 0)
    _require(_number(value) or isinstance(value, bool), f"{where}.value: must be a number, or true or false")
    _require(_number(tolerance) and tolerance >= 0, f"{where}.tolerance: must be a number of at least 0")
    lines = tree["commands"]
    _require(isinstance(lines, list) and lines, f"{where}.commands: must be a list of lines")
    commands = tuple(
        _command(f"{where}.commands.{number}", line, number, data) for number, line in enumerate(lines, start=1)
    )
    return Claim(**{**tree, "what": tree["what"].strip(), "commands": commands})


def _command(where: str, line: Any, number: int, data: Mapping[str, str]) -> tuple[str, ...]:
    """The arguments of a line, checked; no shell ever sees it."""
    try:
        program, *arguments = shlex.split(line) if isinstance(line, str) else [""]
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    fits = program == "mgc" and arguments and arguments[0] in COMMANDS
    _require(fits, f"{where}: must be a line «mgc COMMAND …», of {', '.join(COMMANDS)}")
    for name in (name for part in arguments for name in _PLACEHOLDER.findall(part)):
        step, _, key = name.partition(".")
        earlier = step.isdecimal() and 1 <= int(step) < number and key
        _require(name in data or earlier, f"{where}: {{{name}}} is no data set and no answer of an earlier command")
    return tuple(arguments)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _require(holds: Any, message: str) -> None:
    if not holds:
        raise InputError(message)
