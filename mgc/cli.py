"""The command line: every command, flag and exit code in one place; the work is in the steps.

Each command is a frozen dataclass: its fields are its flags, and its ``step`` names the function that is called with
them, which is imported only then, so that help is quick.
Exit codes: 0 done, 1 the work failed, 2 the input cannot be used, 130 and 143 it was interrupted (Ctrl-C, SIGTERM).
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeAlias, Union

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg, subcommand

from mgc.config import DEFAULT_PRESET, OLD_PRESETS, PRESETS, EncoderName, SweepConfig, TrainConfig, read_config
from mgc.core import signals
from mgc.core.errors import InputError, MgcError
from mgc.core.progress import drop_output, flush, open_streams, say, show
from mgc.core.ray_session import disconnect, show_logs
from mgc.core.results import Result
from mgc.serving.limits import Limits

Preset: TypeAlias = Literal["plain_cnn", "regularized", "short_chunk", "musicnn"]
DESCRIPTION = "Music genre classification: from a folder of MP3s to a tracked model."


@dataclass(frozen=True, kw_only=True)
class Command:
    """How a command answers."""

    step: ClassVar[str]
    """The function that does the work: ``room.module:function``; its parameters are the command's fields."""

    json: bool = False
    """End standard output with one line of JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def call(self) -> Result:
        """Call the step with the command's flags."""
        return call_step(self.step, **self.arguments())

    def arguments(self) -> dict[str, Any]:
        """The step's arguments: the command's own fields, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _ANSWERS}


def call_step(step: str, **arguments: Any) -> Result:
    """Import a step and call it.

    Parameters
    ----------
    step
        ``room.module:function``.
    **arguments
        What to call it with.
    """
    module, _, function = step.partition(":")
    result: Result = getattr(import_module(f"mgc.{module}"), function)(**arguments)
    return result


_ANSWERS = ("json", "debug", "verbose")
"""Flags that say how a command answers; all others are its step's."""


@dataclass(frozen=True, kw_only=True)
class OnRay(Command):
    """What commands share that may use a cluster."""

    wait: float = 15.0
    """Minutes to wait for the CPUs and GPUs of a cluster."""
    verbose: bool = False
    """Show the logs of Ray and of its workers."""


@dataclass(frozen=True, kw_only=True)
class Toy(Command):
    """Generate an FMA-shaped synthetic set of eight genres, with some broken clips in it."""

    step = "collection.toy:make_toy"

    out: Positional[Path]
    """Folder to make: OUT/fma_small, OUT/fma_metadata."""
    clips_per_genre: int = 12
    """Clips of each genre, at least 3."""
    seed: int = 0
    """The same seed and number of clips give the same bytes."""


@dataclass(frozen=True, kw_only=True)
class Download(Command):
    """Download a part of FMA, check it, and unpack it (what broke off goes on); or the weights of an encoder."""

    step = "collection.download:download"
    encoder_step: ClassVar[str] = "encoders.fetch:fetch"

    name: Positional[Literal["fma_small", "fma_medium", "fma_large", "fma_metadata", "musicnn", "ast"]]
    """fma_metadata has the genres and splits, the other parts of FMA the clips; musicnn and ast are encoders."""
    root: Path | None = None
    """Folder to unpack FMA in: ROOT/fma_small, ROOT/fma_metadata. Encoders go to the cache (MGC_CACHE)."""
    base_url: str = "https://os.unil.cloud.switch.ch/fma/"
    """Where the archives of FMA are."""

    def call(self) -> Result:
        """Call the step of FMA's parts, or that of encoders."""
        if self.name.startswith("fma_"):
            if self.root is None:
                raise InputError(f"`root`: is needed; give the folder to unpack {self.name} in")
            return super().call()
        if self.root is not None:
            raise InputError(f"`root={self.root}`: {self.name} goes to the cache; the variable MGC_CACHE says where")
        return call_step(self.encoder_step, name=self.name)


@dataclass(frozen=True, kw_only=True)
class Audit(Command):
    """Count a collection and look for missing files, artists in two splits, and duplicates."""

    step = "collection.audit:audit"

    root: str
    """FMA folder, folder with a folder per genre, or CSV file (path,genre[,split,artist])."""
    subset: str = "small"
    """Of an FMA folder: small, medium or large."""
    allow_outside: bool = False
    """Of a CSV file: take paths that lead out of its folder, too."""


@dataclass(frozen=True, kw_only=True)
class Index(Command):
    """Write the MD5 of every file of a collection as JSON, in the form that a mirdata loader reads."""

    step = "collection.index:index"

    root: str
    """FMA folder, folder with a folder per genre, or CSV file (path,genre[,split,artist]); a path or a URI (s3://…)."""
    out: Path
    """The JSON file."""
    subset: str = "small"
    """Of an FMA folder: small, medium or large."""
    version: str = "1.0"
    """The data set's version, as the index names it."""
    allow_outside: bool = False
    """Of a CSV file: take paths that lead out of its folder, too."""


@dataclass(frozen=True, kw_only=True)
class Preprocess(OnRay):
    """Turn a collection into a feature set: log-Mel spectrograms in Parquet shards."""

    step = "features.preprocess:preprocess"

    root: str
    """FMA folder, folder with a folder per genre, or CSV file (path,genre[,split,artist,license]), by path or URI."""
    out: str
    """Folder of the feature set, by path or URI; what is finished in it is kept, new clips get new shards."""
    features: Literal["logmel", "musicnn", "ast"] = "logmel"
    """The log-Mel that mgc's own networks learn from, or that which the pretrained encoder of this name listens to."""
    subset: str = "small"
    """Of an FMA folder: small, medium or large."""
    allow_outside: bool = False
    """Of a CSV file: take paths that lead out of its folder, too."""
    license: tuple[str, ...] = ()
    """Take only tracks of these licences: CC-BY in any version, CC-BY-4.0, any text of the collection, or unknown."""
    without_license: tuple[str, ...] = ()
    """Leave out tracks whose licence has one of these terms (NC, ND, SA, BY), is unknown or not understood."""
    workers: int | None = None
    """Tasks at a time; as many as there are CPUs, at any moment, by default."""
    limit: int | None = None
    """Take only so many clips, with splits and genres in proportion."""
    min_seconds: float = 5.0
    """Quarantine clips with less audio."""
    keep_damaged: bool = False
    """Make features, too, of clips that decode to clearly less audio than their file promises."""
    clip_timeout: float = 60.0
    """Seconds that decoding one clip may take before it is quarantined."""
    max_quarantined: float = 0.05
    """Share of the clips that may fail before the job does."""
    clips_per_shard: int = 64
    """Clips in a Parquet file."""
    overwrite: bool = False
    """Replace a set of another recipe or other clips; shards that stay as they are are kept."""


@dataclass(frozen=True, kw_only=True)
class Verify(Command):
    """Read a feature set again, every byte, and name what is not as its manifest and plan say."""

    step = "features.verify:verify"

    features: Positional[str]
    """A finished feature set."""
    sources: str | None = None
    """The collection it was made from, by path or URI: hash its files too, and name those that are not as they were."""


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Count what is in a feature set, and draw a contact sheet of its spectrograms."""

    step = "features.inspect:inspect"

    features: Positional[str]
    """A finished feature set."""
    out: Path = Path("contact_sheet.png")
    """The picture."""


@dataclass(frozen=True, kw_only=True)
class Learning(OnRay):
    """What training and tuning share; the configuration starts from the preset, then --config, then single flags."""

    features: str
    """A finished feature set."""
    preset: Preset = DEFAULT_PRESET
    """plain_cnn is the field's plain CNN, regularized what helps it on whole clips; short_chunk (best) hears 3 s."""
    config_file: Annotated[str | None, arg(name="config")] = None
    """JSON file of (some) configuration fields, as mgc tune writes it."""
    storage: str | None = None
    """Where states of fits, checkpoints and sweeps live: path or URI (s3://…); MGC_STORAGE, or mlflow_runs/ here."""
    allow_leaks: bool = False
    """Go on although artists are in more than one split; the run is tagged."""
    config: Annotated[OmitArgPrefixes[TrainConfig], arg(name="")] = field(default_factory=TrainConfig)

    def arguments(self) -> dict[str, Any]:
        """The step's arguments: preset and file are in the configuration already."""
        return {name: value for name, value in super().arguments().items() if name not in ("preset", "config_file")}


@dataclass(frozen=True, kw_only=True)
class Train(Learning):
    """Fit the CNN, on one device or several; one model, or one a seed and a fold."""

    step = "training.train:train"

    seeds: int = 1
    """Models that differ by their seed alone: --seed and those after it."""
    gpus: int | None = None
    """GPUs; one if there is one by default, 2 or more train through Ray Train."""
    workers: int = 1
    """CPU workers; 2 or more train through Ray Train."""
    min_workers: int | None = None
    """With how many workers or GPUs to go on where nodes were lost; all by default."""
    feed: Literal["device", "memory", "stream"] | None = None
    """Keep the clips on the GPU, in memory, or read them from their shards as they are wanted; else as they fit."""
    graphs: bool = False
    """On one GPU: record a training step as a CUDA graph and launch it as one; not yet measured on a GPU."""
    deterministic: bool = False
    """On a GPU: the same figures each time, bit for bit, in more time; on the CPU they are so anyway."""
    run_name: str | None = None
    """Name of the MLflow run."""


@dataclass(frozen=True, kw_only=True)
class Tune(Learning):
    """Search the regularisation: dropout, BatchNorm, head, weight decay, or any other field of the configuration."""

    step = "sweep.tune:tune"

    sweep_config: Annotated[OmitArgPrefixes[SweepConfig], arg(name="")] = field(default_factory=SweepConfig)
    space: Path | None = None
    """YAML file of the dimensions to search; without it the regularisers of mgc/sweep/spaces/."""
    name: str | None = None
    """Name of the sweep; the time by default. Given again with the same settings, it goes on."""
    resume: str | None = None
    """Go on with the interrupted sweep of this name, by its own settings."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Score a run on a split: accuracy with its interval, macro-F1, per-genre F1, confusion, calibration."""

    step = "evaluation.evaluate:evaluate"

    run: str
    """MLflow run of a training or a trial, or a parent run: each of its models, and all together."""
    features: str
    """A finished feature set."""
    split: Literal["training", "validation", "test"] = "test"
    """Whose clips are scored; of the test split each evaluation is counted."""
    precision: float = 0.9
    """Share of right answers, on validation clips, that is left when what is marked unsure is left out."""


@dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """Say whether one evaluated run is better than another, clip by clip: McNemar's test and a bootstrap interval."""

    step = "evaluation.compare:compare"

    run_a: Positional[str]
    """MLflow run, evaluated before; of a parent run its models together."""
    run_b: Positional[str]
    """Another."""
    split: Literal["training", "validation", "test"] = "test"
    """The split that both were evaluated on."""


@dataclass(frozen=True, kw_only=True)
class Blend(Command):
    """Score the weighted mean of the probabilities of several evaluated runs; validation chooses the weights."""

    step = "evaluation.blend:blend"

    runs: Positional[tuple[str, ...]]
    """MLflow runs, evaluated before; of a parent run its models together."""
    split: Literal["validation", "test"] = "validation"
    """Validation, each clip with weights that were found without it; or test."""


@dataclass(frozen=True, kw_only=True)
class Mislabels(Command):
    """List clips whose label a cross-validation doubts, most suspicious first, and make a page to listen to them."""

    step = "evaluation.mislabels:mislabels"

    run: str
    """MLflow run of «mgc train --folds N»: each clip is judged by models that never learnt it."""
    features: str
    """The feature set that it was trained on."""
    root: str | None = None
    """The collection that the set was made from, on a disk: the page plays its files."""
    out: Path = Path("mislabels.html")
    """The page; a table of the same name, .csv, is written beside it."""
    most: int = 50
    """Clips to list."""


@dataclass(frozen=True, kw_only=True)
class Promote(Command):
    """Register an evaluated run in MLflow as the champion, if there is none or it is shown to be better."""

    step = "evaluation.promote:promote"

    run: Positional[str]
    """MLflow run, evaluated on the test split before; of a parent run its models together, as one."""


@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Make one self-contained HTML page of a run: the claim and what it rests on."""

    step = "sweep.report:report"

    run: Positional[str]
    """MLflow run of a training or a trial, or a parent run: of seeds, of folds, or of a sweep."""
    out: Path = Path("report.html")
    """The page; it is kept with the run too."""


@dataclass(frozen=True, kw_only=True)
class Baseline(Command):
    """Score a classifier without a network, by default the field's MFCC statistics and SVM, on a feature set."""

    step = "evaluation.baseline:baseline"

    features: str
    """A finished feature set."""
    root: str | None = None
    """The collection that it was made from; MFCCs need it."""
    kind: Literal["mfcc", "logmel", "random_cnn"] = "mfcc"
    """Statistics of MFCCs; of the feature set's log-Mel bands; or of a CNN with random filters."""
    encoder: EncoderName = "none"
    """In their place: vectors of a pretrained encoder, or of the same layers with random weights."""
    classifier: Literal["svm", "logistic", "ridge", "knn", "zero_shot"] = "svm"
    """Support vector machine, logistic or ridge regression, nearest neighbours; or an encoder's own tags."""
    split: Literal["official", "random"] = "official"
    """The feature set's own split, or the literature's random one, which is LEAKY."""
    folds: int = 0
    """Cross-validate over training and validation, an artist's clips in one fold; the test clips are left alone."""
    workers: int | None = None
    """Processes; all CPUs by default."""


@dataclass(frozen=True, kw_only=True)
class Predict(Command):
    """Predict the genre of audio files of any length."""

    step = "library.predict:predict"

    model: str
    """Checkpoint folder; MLflow run, of a parent run its models together; or «champion», the one of the registry."""
    clips: Positional[tuple[str, ...]]
    """Audio files, by path or URI (s3://…)."""
    precision: float = 0.9
    """Share of right answers, on validation clips, that is left when what is marked unsure is left out."""


@dataclass(frozen=True, kw_only=True)
class Label(OnRay):
    """Label a whole library: the genre of every audio file, on all CPUs and GPUs; a second run does what is new."""

    step = "library.label:label"

    root: Positional[str]
    """The library: any tree of folders, by path or URI (s3://…)."""
    model: str
    """Checkpoint folder, MLflow run, or «champion», as of predict."""
    out: str
    """Folder of the label set, by path or URI."""
    precision: float = 0.9
    """Share of right answers, on validation clips, that is left when what is marked unsure is left out."""
    workers: int | None = None
    """Tasks at a time; as many as there are CPUs, at any moment, by default."""
    clip_timeout: float = 300.0
    """Seconds that decoding one file may take before it is quarantined."""
    retry: bool = False
    """Try the files in quarantine again, too."""
    overwrite: bool = False
    """Label everything anew; needed for another model, precision or library."""


@dataclass(frozen=True, kw_only=True)
class Playlists(Command):
    """Write a playlist (M3U8) a genre from a label set, the most confident tracks first."""

    step = "library.playlists:playlists"

    labels: Positional[str]
    """A finished label set."""
    out: str
    """Folder of the playlists; paths in them are relative to it."""
    unsure: bool = False
    """Take tracks that the model is unsure of, too."""


@dataclass(frozen=True, kw_only=True)
class Server(Command):
    """What commands share that answer until Ctrl-C: they announce themselves as JSON when they begin."""

    def arguments(self) -> dict[str, Any]:
        """The step's arguments, of which one says whether to announce as JSON."""
        return {**super().arguments(), "as_json": self.json}


@dataclass(frozen=True, kw_only=True)
class Serve(Server):
    """Serve a model on this machine: a page to drop a music file on, and an API."""

    step = "serving.serve:serve"

    model: str
    """Checkpoint folder; MLflow run, of a parent run its models together; or «champion», the one of the registry."""
    host: str = "127.0.0.1"
    """Interface to listen on; others than loopback want a token: MGC_TOKEN, or one that is made and said."""
    port: int = 8000
    """Port on this machine."""
    precision: float = 0.9
    """Share of right answers, on validation clips, that is left when what is marked unsure is left out."""
    limits: OmitArgPrefixes[Limits] = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class Ui(Server):
    """Open MLflow's own UI on the project's store."""

    step = "tracking.ui:serve"

    port: int = 5000
    """Port on this machine."""


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Run the main job end to end on a generated set."""

    step = "demo:demo"

    out: Path = Path("demo")
    """Folder for the generated set and its features; made anew."""


@dataclass(frozen=True, kw_only=True)
class Reproduce(Command):
    """Run stated figures again by their own commands, and say which hold."""

    step = "reproduce:reproduce"

    file: Positional[Path]
    """YAML file of claims: docs/claims.yaml has those of docs/results.md."""
    only: tuple[str, ...] = ()
    """Names of the claims to try; all by default."""
    data: tuple[str, ...] = ()
    """Data sets that claims need, each as NAME=FOLDER; claims without theirs are skipped."""
    work: Path = Path("reproduced")
    """Folder to run the commands in; what has been run there is not run again."""


Job: TypeAlias = Callable[[Any], Result]

COMMANDS: dict[str, type[Command]] = {
    "toy": Toy,
    "download": Download,
    "audit": Audit,
    "index": Index,
    "preprocess": Preprocess,
    "verify": Verify,
    "inspect": Inspect,
    "train": Train,
    "tune": Tune,
    "evaluate": Evaluate,
    "compare": Compare,
    "blend": Blend,
    "mislabels": Mislabels,
    "promote": Promote,
    "report": Report,
    "baseline": Baseline,
    "predict": Predict,
    "label": Label,
    "playlists": Playlists,
    "serve": Serve,
    "ui": Ui,
    "demo": Demo,
    "reproduce": Reproduce,
}
OLD_NAMES = {"crown": "promote"}
"""Commands by their former names, which are still understood."""


def main(arguments: Sequence[str] | None = None, job: Job | None = None) -> NoReturn:
    """Run one command and exit with its code.

    Parameters
    ----------
    arguments
        The command and its flags; those of this process by default.
    job
        What to do with the parsed command instead of calling its step: a recipe of several steps (``pipelines/``).
    """
    signals.catch()
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments), job))


def run(arguments: list[str], job: Job | None = None) -> int:
    """Parse and run one command; print its result, or one line on what went wrong; return the exit code.

    Parameters
    ----------
    arguments, job
        As ``main`` takes them.
    """
    open_streams()  # a genre that the terminal cannot print must not end finished work
    command = Command(json="--json" in arguments, debug="--debug" in arguments)  # until it is parsed
    try:
        command = parse(arguments)
        if getattr(command, "verbose", False):
            show_logs()
        result = job(command) if job else command.call()
    except MgcError as error:
        return _fail(error, command)
    except KeyboardInterrupt:
        threading.excepthook = sys.unraisablehook = _quietly  # Ray's threads, whose cluster goes under them
        disconnect()  # or Ray's threads would abort the process at its exit
        say(f"interrupted ({signals.received()})")
        eval("0")  # noqa: S307 (or `python -m` ends by a SIGINT of its own if the interrupt fell into an exec: bpo-1054041)
        return signals.exit_code()
    except BrokenPipeError:  # the reader of ``mgc --help | head`` has gone
        drop_output(sys.stdout)
        return 0
    except Exception as error:
        unexpected = MgcError(f"unexpected {type(error).__name__}: {error} (--debug shows where)".replace("\n", " "))
        return _fail(unexpected.with_traceback(error.__traceback__), command)
    disconnect()  # nothing of Ray's may follow the last line
    problem = result.problem()
    show(json.dumps(result.to_dict()) if command.json else str(result))
    if problem:
        say(f"mgc: {problem.for_command_line()}")
    return problem.exit_code if problem else 0


def _quietly(_: object) -> None:
    """Say nothing of what a thread raises."""


def parse(arguments: list[str]) -> Command:
    """Turn arguments into a command; exits with help or usage as argparse does (2 for wrong usage).

    Examples
    --------
    >>> parse(["verify", "features"]).features
    'features'
    """
    arguments = _with_new_names(arguments)
    base = _base_config(arguments)
    kinds: list[Any] = []
    for name, kind in COMMANDS.items():
        default = kind(features=tyro.MISSING, config=base) if issubclass(kind, Learning) else tyro.MISSING_NONPROP
        kinds.append(Annotated[kind, subcommand(name, default=default)])
    union: Any = Union[tuple(kinds)]  # noqa: UP007 (made at run time)
    try:
        command: Command = tyro.cli(union, prog="mgc", args=arguments, description=DESCRIPTION)
    finally:
        flush()  # the help, of which Python's exit would complain if its reader has gone
    return command


def _with_new_names(arguments: list[str]) -> list[str]:
    """Put today's names in the place of former ones."""
    command = [OLD_NAMES.get(each, each) for each in arguments[:1]]
    flags = list(arguments[1:])
    for index, (before, flag) in enumerate(zip(["", *flags], flags, strict=False)):
        name = flag.removeprefix("--preset=")
        if name in OLD_PRESETS and (name != flag or before == "--preset"):
            flags[index] = flag.removesuffix(name) + OLD_PRESETS[name]
    return command + flags


def _fail(error: MgcError, command: Command) -> int:
    disconnect()
    if command.debug:
        say("".join(traceback.format_exception(error)).rstrip())
    message = error.for_command_line()
    say(f"mgc: {message}")
    if command.json:
        show(json.dumps({"error": message}))
    return error.exit_code


def _base_config(arguments: list[str]) -> TrainConfig:
    """The configuration that single flags change: the preset, under the --config file."""
    if not issubclass(COMMANDS.get(arguments[0], Command) if arguments else Command, Learning):
        return PRESETS[DEFAULT_PRESET]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", choices=PRESETS, default=DEFAULT_PRESET)
    parser.add_argument("--config")
    try:
        known, _ = parser.parse_known_args(arguments, namespace=argparse.Namespace())
    except SystemExit:
        return PRESETS[DEFAULT_PRESET]  # a wrong --preset: the real parser says so
    preset = PRESETS[known.preset]
    return read_config(known.config, preset) if known.config else preset


if __name__ == "__main__":
    main()
