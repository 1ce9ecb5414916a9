"""The command line: every command, flag and exit code in one place; the work is in the steps.

Each command is a frozen dataclass whose fields are its flags and whose ``run`` imports its step, so that help is quick.
Exit codes: 0 done, 1 the work failed, 2 the input cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, Union

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg, subcommand

from mgc.config import PRESETS, SweepConfig, TrainConfig, read_config
from mgc.core.errors import InputError, MgcError, RunError
from mgc.core.progress import say
from mgc.core.ray_session import disconnect
from mgc.core.storage import Folder

Preset: TypeAlias = Literal["baseline", "regularized", "short_chunk"]
DEFAULT_PRESET: Preset = "regularized"
DESCRIPTION = "Music genre classification: from a folder of MP3s to a tracked model."


@dataclass(frozen=True, kw_only=True)
class Output:
    """How a command answers."""

    json: bool = False
    """End standard output with one line of JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> dict[str, Any]:
        """Do the work; the result is what ``--json`` prints."""
        raise NotImplementedError

    def show(self, result: dict[str, Any]) -> str:
        """The result for a person."""
        return _rows(result)

    def problem(self, result: dict[str, Any]) -> MgcError | None:
        """What is wrong although the work could be done; its exit code follows the result."""
        return None


@dataclass(frozen=True, kw_only=True)
class Toy(Output):
    """Generate an FMA-shaped synthetic set of eight genres, with some broken clips in it."""

    out: Positional[Path]
    """Folder to make: OUT/fma_small, OUT/fma_metadata."""
    clips_per_genre: int = 12
    seed: int = 0

    def run(self) -> dict[str, Any]:
        from mgc.collection import toy

        return toy.make_toy(self.out, clips_per_genre=self.clips_per_genre, seed=self.seed).to_dict()


@dataclass(frozen=True, kw_only=True)
class Download(Output):
    """Download a part of FMA, check it, and unpack it; a download that broke off goes on."""

    name: Positional[Literal["fma_small", "fma_medium", "fma_large", "fma_metadata"]]
    """fma_metadata has the genres and splits, the others the clips."""
    root: Path
    """Folder to unpack in: ROOT/fma_small, ROOT/fma_metadata."""
    base_url: str = "https://os.unil.cloud.switch.ch/fma/"
    """Where the archives are."""

    def run(self) -> dict[str, Any]:
        from mgc.collection import download

        return download.download(self.name, self.root, base_url=self.base_url)


@dataclass(frozen=True, kw_only=True)
class Audit(Output):
    """Count a collection and look for missing files, artists in two splits, and duplicates."""

    root: str
    """FMA folder, folder with a folder per genre, or CSV file (path,genre[,split,artist])."""
    subset: str = "small"
    """Of an FMA folder: small, medium or large."""

    def run(self) -> dict[str, Any]:
        from mgc.collection import audit

        return audit.audit(self.root, subset=self.subset).to_dict()

    def show(self, result: dict[str, Any]) -> str:
        from mgc.collection import audit

        return str(audit.AuditReport(**{name: value for name, value in result.items() if name != "ok"}))

    def problem(self, result: dict[str, Any]) -> MgcError | None:
        from mgc.collection.splits import leak_message

        return None if result["ok"] else InputError(leak_message(result["artist_leaks"]))


@dataclass(frozen=True, kw_only=True)
class Preprocess(Output):
    """Turn a collection into a feature set: log-Mel spectrograms in Parquet shards."""

    root: str
    """FMA folder, folder with a folder per genre, or CSV file (path,genre[,split,artist]); a path or a URI (s3://…)."""
    out: str
    """Folder of the feature set, by path or URI; what is finished in it is kept, new clips get new shards."""
    subset: str = "small"
    """Of an FMA folder: small, medium or large."""
    workers: int | None = None
    """Tasks at a time; all CPUs by default."""
    limit: int | None = None
    """Take only so many clips, drawn over all splits."""
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

    def run(self) -> dict[str, Any]:
        from mgc.features import preprocess

        return preprocess.preprocess(
            self.root,
            self.out,
            subset=self.subset,
            workers=self.workers,
            limit=self.limit,
            min_seconds=self.min_seconds,
            keep_damaged=self.keep_damaged,
            clip_timeout=self.clip_timeout,
            max_quarantined=self.max_quarantined,
            clips_per_shard=self.clips_per_shard,
            overwrite=self.overwrite,
        )


@dataclass(frozen=True, kw_only=True)
class Verify(Output):
    """Read a feature set again, every byte, and name what is not as its manifest and plan say."""

    features: Positional[str]
    """A finished feature set."""

    def run(self) -> dict[str, Any]:
        from mgc.features import verify

        return verify.verify(self.features)

    def show(self, result: dict[str, Any]) -> str:
        from mgc.features import verify

        return verify.summary(result)

    def problem(self, result: dict[str, Any]) -> MgcError | None:
        return None if result["ok"] else RunError(f"{self.features}: {len(result['problems'])} problems")


@dataclass(frozen=True, kw_only=True)
class Inspect(Output):
    """Count what is in a feature set, and draw a contact sheet of its spectrograms."""

    features: Positional[str]
    """A finished feature set."""
    out: Path = Path("contact_sheet.png")
    """The picture."""

    def run(self) -> dict[str, Any]:
        from mgc.features import inspect as overview

        return overview.overview(self.features, out=self.out)

    def show(self, result: dict[str, Any]) -> str:
        from mgc.features import inspect as overview

        return overview.summary(result)


@dataclass(frozen=True, kw_only=True)
class Learning(Output):
    """What training and tuning share; the configuration starts from the preset, then --config, then single flags."""

    features: str
    """A finished feature set."""
    preset: Preset = DEFAULT_PRESET
    """baseline is the seed's plain CNN, regularized what helps it on whole clips, short_chunk the best, on 3 s each."""
    config_file: Annotated[Path | None, arg(name="config")] = None
    """JSON file of (some) configuration fields, as mgc tune writes it."""
    allow_leaks: bool = False
    """Go on although artists are in more than one split; the run is tagged."""
    config: Annotated[OmitArgPrefixes[TrainConfig], arg(name="")] = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class Train(Learning):
    """Fit the CNN, on one device or several; one model, or one a seed and a fold."""

    seeds: int = 1
    """Models that differ by their seed alone: --seed and those after it."""
    gpus: int | None = None
    """GPUs; one if there is one by default, 2 or more train through Ray Train."""
    workers: int = 1
    """CPU workers; 2 or more train through Ray Train."""
    feed: Literal["device", "memory", "stream"] | None = None
    """Keep the clips on the GPU, in memory, or read them from their shards as they are wanted; else as they fit."""
    graphs: bool = False
    """On one GPU: record a training step as a CUDA graph and launch it as one; not yet seen on a GPU."""
    deterministic: bool = False
    """On a GPU: the same figures each time, bit for bit, in more time; on the CPU they are so anyway."""
    run_name: str | None = None
    """Name of the MLflow run."""

    def run(self) -> dict[str, Any]:
        from mgc.training import train

        return train.train(
            self.features,
            self.config,
            seeds=self.seeds,
            gpus=self.gpus,
            workers=self.workers,
            feed=self.feed,
            graphs=self.graphs,
            deterministic=self.deterministic,
            run_name=self.run_name,
            allow_leaks=self.allow_leaks,
        )

    def show(self, result: dict[str, Any]) -> str:
        from mgc.training import train

        return train.summary(result)


@dataclass(frozen=True, kw_only=True)
class Tune(Learning):
    """Search the regularisation: dropout, BatchNorm, head, weight decay, or any other field of the configuration."""

    sweep: Annotated[OmitArgPrefixes[SweepConfig], arg(name="")] = field(default_factory=SweepConfig)
    space: Path | None = None
    """YAML file of the dimensions to search; without it the regularisers of mgc/sweep/spaces/regularizers.yaml."""
    name: str | None = None
    """Name of the sweep; the time by default."""
    resume: str | None = None
    """Go on with the interrupted sweep of this name, by its own settings."""

    def run(self) -> dict[str, Any]:
        from mgc.sweep import tune

        return tune.tune(
            self.features,
            self.config,
            self.sweep,
            space=self.space,
            name=self.name,
            resume=self.resume,
            allow_leaks=self.allow_leaks,
        )

    def show(self, result: dict[str, Any]) -> str:
        from mgc.sweep import tune

        return tune.summary(result)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Output):
    """Score a run on a split: accuracy with its interval, macro-F1, per-genre F1, confusion, calibration."""

    run_id: Annotated[str, arg(name="run")]
    """MLflow run of a training or a trial, or a parent run: each of its models, and all together."""
    features: str
    """A finished feature set."""
    split: Literal["training", "validation", "test"] = "test"

    def run(self) -> dict[str, Any]:
        from mgc.evaluation import evaluate

        return evaluate.evaluate(self.run_id, self.features, split=self.split)

    def show(self, result: dict[str, Any]) -> str:
        from mgc.evaluation import evaluate

        return evaluate.summary(result)


@dataclass(frozen=True, kw_only=True)
class Compare(Output):
    """Say whether one evaluated run is better than another, clip by clip: McNemar's test and a bootstrap interval."""

    run_a: Positional[str]
    """MLflow run, evaluated before; of a parent run its models together."""
    run_b: Positional[str]
    """Another."""
    split: Literal["training", "validation", "test"] = "test"

    def run(self) -> dict[str, Any]:
        from mgc.evaluation import compare

        return compare.compare(self.run_a, self.run_b, split=self.split)

    def show(self, result: dict[str, Any]) -> str:
        from mgc.evaluation import compare

        return compare.summary(result)


@dataclass(frozen=True, kw_only=True)
class Crown(Output):
    """Register an evaluated run in MLflow as the champion, if there is none or it is shown to be better."""

    run_id: Annotated[str, Positional, arg(name="run")]
    """MLflow run, evaluated on the test split before; of a parent run its models together, as one."""

    def run(self) -> dict[str, Any]:
        from mgc.evaluation import promote as champion

        return champion.crown(self.run_id)

    def show(self, result: dict[str, Any]) -> str:
        from mgc.evaluation import promote as champion

        return champion.summary(result)


@dataclass(frozen=True, kw_only=True)
class Report(Output):
    """Make one self-contained HTML page of a run: the claim and what it rests on."""

    run_id: Annotated[str, Positional, arg(name="run")]
    """MLflow run of a training or a trial, or a parent run: of seeds, of folds, or of a sweep."""
    out: Path = Path("report.html")
    """The page; it is kept with the run too."""

    def run(self) -> dict[str, Any]:
        from mgc.evaluation import run_page as report

        return report.report(self.run_id, out=self.out)


@dataclass(frozen=True, kw_only=True)
class Baseline(Output):
    """Score the field's floor, MFCC statistics and an SVM, on the clips and splits of a feature set."""

    features: str
    """A finished feature set."""
    root: str
    """The collection that it was made from."""
    split: Literal["official", "random"] = "official"
    """The feature set's own split, or the literature's random one, which is LEAKY."""
    workers: int | None = None
    """Processes; all CPUs by default."""

    def run(self) -> dict[str, Any]:
        from mgc.evaluation import baseline as floor

        return floor.floor(self.root, self.features, split=self.split, workers=self.workers)

    def show(self, result: dict[str, Any]) -> str:
        from mgc.evaluation import baseline as floor

        return floor.summary(result)


@dataclass(frozen=True, kw_only=True)
class Predict(Output):
    """Predict the genre of audio files of any length."""

    model: str
    """Checkpoint folder; MLflow run, of a parent run its models together; or «champion», the one of the registry."""
    clips: Positional[tuple[Path, ...]]
    """Audio files."""

    def run(self) -> dict[str, Any]:
        from mgc.evaluation import predict

        if not self.clips:
            raise InputError("CLIP: name at least one audio file")
        return predict.predict(self.model, self.clips)

    def show(self, result: dict[str, Any]) -> str:
        return _rows({c["path"]: f"{c['genre']} ({c['probabilities'][c['genre']]:.0%})" for c in result["clips"]})


@dataclass(frozen=True, kw_only=True)
class Ui(Output):
    """Open MLflow's own UI on the project's store."""

    port: int = 5000

    def run(self) -> dict[str, Any]:
        from mgc.tracking import store

        uri = store.existing_store(Folder.at(Path.cwd()))
        if self.json:  # now, because the server takes this process's place
            print(json.dumps({"uri": uri, "url": f"http://127.0.0.1:{self.port}"}), flush=True)
        store.serve(uri, self.port)


@dataclass(frozen=True, kw_only=True)
class Demo(Output):
    """Run the main job end to end on a generated set."""

    out: Path = Path("demo")
    """Folder for the generated set and its features; made anew."""

    def run(self) -> dict[str, Any]:
        from mgc import demo

        return demo.demo(self.out)

    def show(self, result: dict[str, Any]) -> str:
        from mgc import demo

        return demo.summary(result)


Step: TypeAlias = Callable[[Any], dict[str, Any]]

COMMANDS: dict[str, type[Output]] = {
    "toy": Toy,
    "download": Download,
    "audit": Audit,
    "preprocess": Preprocess,
    "verify": Verify,
    "inspect": Inspect,
    "train": Train,
    "tune": Tune,
    "evaluate": Evaluate,
    "compare": Compare,
    "crown": Crown,
    "report": Report,
    "baseline": Baseline,
    "predict": Predict,
    "ui": Ui,
    "demo": Demo,
}


def main(arguments: Sequence[str] | None = None, step: Step | None = None) -> NoReturn:
    """Run one command and exit with its code; a job gives its own ``step``, a recipe for the parsed command."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments), step))


def run(arguments: list[str], step: Step | None = None) -> int:
    """Parse and run one command; print its result, or one line on what went wrong; return the exit code."""
    command = Output(json="--json" in arguments, debug="--debug" in arguments)  # until it is parsed
    try:
        command = parse(arguments)
        result = step(command) if step else command.run()
    except MgcError as error:
        return _complain(error, command)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except Exception as error:
        unexpected = MgcError(f"unexpected {type(error).__name__}: {error} (--debug shows where)".replace("\n", " "))
        return _complain(unexpected.with_traceback(error.__traceback__), command)
    disconnect()  # nothing of Ray's may follow the last line
    problem = command.problem(result)
    print(json.dumps(result) if command.json else command.show(result), flush=True)
    if problem:
        say(f"mgc: {problem.for_command_line()}")
    return problem.exit_code if problem else 0


def parse(arguments: list[str]) -> Output:
    """Turn arguments into a command; exits with help or usage as argparse does (2 for wrong usage)."""
    base = _base_config(arguments)
    kinds: list[Any] = []
    for name, kind in COMMANDS.items():
        default = kind(features=tyro.MISSING, config=base) if issubclass(kind, Learning) else tyro.MISSING_NONPROP
        kinds.append(Annotated[kind, subcommand(name, default=default)])
    union: Any = Union[tuple(kinds)]  # noqa: UP007 (made at run time)
    command: Output = tyro.cli(union, prog="mgc", args=arguments, description=DESCRIPTION)
    return command


def _complain(error: MgcError, command: Output) -> int:
    disconnect()
    if command.debug:
        traceback.print_exception(error)
    message = error.for_command_line()
    say(f"mgc: {message}")
    if command.json:
        print(json.dumps({"error": message}), flush=True)
    return error.exit_code


def _base_config(arguments: list[str]) -> TrainConfig:
    """The configuration that single flags change: the preset, under the --config file."""
    if not issubclass(COMMANDS.get(arguments[0], Output) if arguments else Output, Learning):
        return PRESETS[DEFAULT_PRESET]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", choices=PRESETS, default=DEFAULT_PRESET)
    parser.add_argument("--config", type=Path)
    try:
        known, _ = parser.parse_known_args(arguments, namespace=argparse.Namespace())
    except SystemExit:
        return PRESETS[DEFAULT_PRESET]  # a wrong --preset: the real parser says so
    preset = PRESETS[known.preset]
    return read_config(known.config, preset) if known.config else preset


def _rows(values: dict[str, Any]) -> str:
    """Plain values as aligned lines."""
    width = max(map(len, values))
    return "\n".join(f"{name:<{width}}  {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, dict) else str(value)


if __name__ == "__main__":
    main()
