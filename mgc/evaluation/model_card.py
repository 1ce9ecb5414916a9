"""The model card: what a model is, what it learnt from, how good it is and what it is not for, as Markdown.

After Mitchell et al., «Model Cards for Model Reporting», FAT* 2019. The header is Hugging Face's for models, so a
checkpoint's folder is a model repository. The same facts give the same text; what is not known says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import yaml

from mgc.collection.splits import SPLITS
from mgc.config import PRESETS, member_name
from mgc.features.card import licences
from mgc.pages.markdown import plain, table
from mgc.tracking.runs import flatten

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mgc.config import TrainConfig
    from mgc.encoders.registry import Encoder
    from mgc.evaluation.calibration import Calibrated
    from mgc.evaluation.metrics import Scores
    from mgc.evaluation.predictions import Source
    from mgc.features.layout import Manifest
    from mgc.model.checkpoint import Card

FEW = 30
"""Clips of a genre in a split below which its figures are called rough: at 30 the standard error of a recall near .5 is
9 points."""
SPLIT_NAMES = {"test": "Test split", "validation": "Validation split"}
INTENDED = (
    "Sorting or tagging a music library by the genres that it knows, where a person can correct the answers.",
    "Comparing methods of music genre classification on the same clips.",
)
OUT_OF_SCOPE = (
    "Music of other genres, speech and noise: every recording gets one of these genres, whatever it is.",
    "Decisions about people, their pay or their rights.",
    "Artist, origin, language, mood or quality of a recording: it was not trained to tell them.",
)
FACTORS = (
    "Figures are given by genre, under «Results». Era, country and language of the music, instruments and quality of "
    "the recording may matter as much; no figures are given by them, because the feature set does not know them."
)
ETHICS = (
    "The recordings belong to those who made them. Whether a model that learnt from them may be published is for "
    "whoever publishes it to find out; licences are under «Training data», as far as they are known.",
    "Genres are names that people and markets made. Music that was rare in training is recognised worse, and a wrong "
    "label decides who is found: let people correct it.",
    "Artists serve to keep the splits apart. The model holds no name of an artist or of a track.",
)


@dataclass(frozen=True)
class SplitResult:
    """How good the model is on the clips of a split."""

    source: Source
    scores: Scores
    calibrated: Calibrated | None
    """Temperature and ``unsure``; None where the model is not calibrated."""


@dataclass(frozen=True)
class ModelCard:
    """What a model card says: facts about a run, its models and their figures."""

    name: str
    """Of the run."""
    run_id: str
    step: str
    """What made the run: ``train``, ``seeds``, ``folds`` or ``trial``."""
    started: str
    """Day on which the run was started, UTC."""
    version: str | None
    """Of mgc."""
    commit: str | None
    """Git commit of the code, and whether it was changed since."""
    place: str | None
    """Devices of the training."""
    parent: str | None
    """The run that this one is nested under: of seeds, of folds, or a sweep's."""
    registered: str | None
    """Name and version in the model registry."""
    searched: bool
    """Whether the configuration was chosen by a search on the validation clips."""
    models: tuple[tuple[str, Card], ...]
    """Run and checkpoint card of each model: one, or those of a parent run."""
    n_parameters: int
    """Of one model."""
    n_trained: int
    """Those that the training could change: without a frozen encoder's."""
    encoder: Encoder | None
    """The pretrained encoder, or the random one; None of a network of its own."""
    features: str
    """Where the feature set of the training was."""
    manifest: Manifest | None
    """Its manifest; None where it is gone, and the run keeps none."""
    leak: str
    """Why figures flatter, by ``mgc.dataset.protocols.leak``; empty where nothing is known against them."""
    results: tuple[SplitResult, ...]
    """Test split first, where it was evaluated; then validation, where its predictions are kept."""

    @property
    def config(self) -> TrainConfig:
        """Of the first model; the others' differ by seed and fold."""
        return self.models[0][1].config

    @property
    def genres(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.models[0][1].genres

    def of(self, split: str) -> SplitResult | None:
        """Return the figures of a split; None where there are none."""
        return next((result for result in self.results if result.source.split == split), None)

    def limits(self) -> list[str]:
        """List what speaks against trusting the figures, as sentences."""
        return [sentence for sentence in _limits(self) if sentence]

    def header(self) -> dict[str, Any]:
        """Return the metadata that Hugging Face reads at the head of a model's README.

        ``datasets`` names the feature set by its fingerprint, and no data set of the Hub. There is no ``license``: that
        of the weights is not known.
        """
        fingerprints = [self.models[0][1].fingerprint, *(result.source.fingerprint for result in self.results)]
        facts: dict[str, Any] = {
            "library_name": "mgc",
            "pipeline_tag": "audio-classification",
            "tags": ["audio", "music", "music-genre-classification", _slug(self.config.track)],
            "datasets": list(dict.fromkeys(map(dataset_name, fingerprints))),
            "metrics": ["accuracy", "f1"],
        }
        if self.results:
            facts["model-index"] = [{"name": self.name, "results": [_indexed(result) for result in self.results]}]
        return facts

    def text(self) -> str:
        """Return the card: Markdown behind a YAML header."""
        header = yaml.safe_dump(self.header(), sort_keys=False, allow_unicode=True, width=1000)
        parts = [
            f"# {plain(self.name)}",
            f"A model that tells the genre of music: {_listed(self.genres)}. "
            f"Made by mgc in MLflow run `{self.run_id}`; this card is made from what the run keeps.",
            _leak(self),
            _details(self),
            f"## Intended use\n\n{_bullets(INTENDED)}\n\nOut of scope:\n\n{_bullets(OUT_OF_SCOPE)}",
            _usage(self),
            f"## Factors\n\n{FACTORS}",
            _data(self),
            _split(self),
            _training(self),
            _results(self),
            f"## Limits\n\n{_bullets(map(plain, self.limits()))}",
            f"## Ethical considerations\n\n{_bullets(ETHICS)}",
        ]
        return f"---\n{header}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def dataset_name(fingerprint: str) -> str:
    """Return the name by which a card's header knows a feature set.

    Parameters
    ----------
    fingerprint
        Of the feature set.

    Examples
    --------
    >>> dataset_name("f" * 64)
    'mgc-features-ffffffffffff'
    """
    return f"mgc-features-{fingerprint[:12]}"


def preset_of(config: TrainConfig) -> str | None:
    """Return the preset that a configuration is, whatever its seed and folds; None of one that is none.

    Parameters
    ----------
    config
        Of a model.

    Examples
    --------
    >>> preset_of(replace(PRESETS["regularized"], seed=3))
    'regularized'
    """
    plain = replace(config, seed=0, folds=0, fold=0)
    return next((name for name, preset in PRESETS.items() if preset == plain), None)


# The parts of the card


def _leak(card: ModelCard) -> str:
    return f"> **{plain(card.leak)}. The figures flatter.**" if card.leak else ""


def _details(card: ModelCard) -> str:
    model, spec, encoder = card.config.model, card.models[0][1].spec, card.encoder
    bands, frames = spec.shape
    if encoder is None:
        network = f"CNN with blocks of {', '.join(map(str, model.channels))} filters and the head `{model.head}`"
    else:
        hidden = f"hidden layers of {', '.join(map(str, model.hidden))} units" if model.hidden else "no hidden layer"
        state = "frozen" if card.config.frozen else "fine-tuned"
        network = f"classifier with {hidden} on the {state} encoder {encoder.name}"
    preset = preset_of(card.config)
    name = f"preset `{preset}`" if preset else "none of the presets"
    parameters = f"{card.n_parameters:,} parameters"
    if card.n_trained != card.n_parameters:
        parameters += f", of which {card.n_trained:,} were trained"
    several = f"{len(card.models)} models; the mean of their probabilities. Each: " if len(card.models) > 1 else ""
    rows = {
        "version": f"mgc {card.version or '(version not known)'}",
        "date": f"{card.started} (UTC)",
        "run": f"`{card.run_id}` ({card.step})",
        "git commit": f"`{card.commit}`" if card.commit else "not known",
        **({"part of run": f"`{card.parent}`"} if card.parent else {}),
        "registered as": plain(card.registered or "not registered"),
        "track": card.config.track,
        "network": f"{several}{network}; {name}; {parameters}",
        "input": f"log-Mel spectrogram, {bands} bands × {frames} frames ({spec.seconds:g} s)",
        "output": f"a probability of each of {len(card.genres)} genres",
    }
    if encoder:
        rows |= {
            "encoder trained on": encoder.trained_on or "nothing: random weights",
            "encoder's licence": encoder.licence or "none: random weights",
            "encoder's source": plain(encoder.source),
        }
    rows["licence of the weights"] = "not stated: it is for whoever publishes them to say"
    details = table(("", ""), ((f"**{name}**", value) for name, value in rows.items()))
    return f"## Model details\n\n{details}"


def _usage(card: ModelCard) -> str:
    run, own = card.run_id, len(card.models) == 1
    model = "FOLDER" if own else run
    where = (
        "`FOLDER` is the one with `model.safetensors`, `model.json` and `calibration.json`; where the MLflow store is, "
        f"`{run}` does as well."
        if own
        else "Where the MLflow store is, the run's id stands for all models together. Each of them has a checkpoint of "
        "its own, and a card beside it."
    )
    return f"""## How to use it

```bash
mgc predict --model {model} song.mp3
```

```python
import mgc

print(mgc.predict("{model}", ["song.mp3"]))
```

{where} Files may have any length: they are cut into pieces as long as the clips of the training."""


def _data(card: ModelCard) -> str:
    lines = [
        "## Training data",
        f"The feature set «{plain(PurePosixPath(card.features).name or '(name not known)')}», fingerprint "
        f"`{card.models[0][1].fingerprint}`.",
    ]
    if card.manifest is None:
        lines.append("It is not where it was: its clips, its quarantine and its licences are not known here.")
    else:
        clips = card.manifest.clips
        splits = [split for split in SPLITS if split in clips]
        rows = ((plain(genre), *(clips[split].get(genre, 0) for split in splits)) for genre in card.genres)
        total = ("all clips", *(sum(clips[split].values()) for split in splits))
        lines.append(table(("genre", *splits), [*rows, total]))
        quarantined = ", ".join(f"{count} {reason}" for reason, count in card.manifest.quarantined.items())
        lines.append(f"Clips without a feature (quarantine): {quarantined or 'none'}.")
        if card.manifest.licenses:
            counts = ((plain(name), count) for name, count in licences(card.manifest).items())
            lines.append(table(("licence of the track", "clips"), counts))
        else:
            lines.append("Licences of the tracks: unknown.")
    recipe = card.manifest.recipe if card.manifest else {"spec": card.models[0][1].spec.to_dict()}
    lines.append("Recipe: " + ", ".join(f"{name} {plain(value)}" for name, value in flatten(recipe).items()) + ".")
    return "\n\n".join(lines)


def _split(card: ModelCard) -> str:
    config = card.config
    if config.split == "random":
        said = (
            "All clips are drawn anew at random, 80/10/10 within each genre, whoever made them, as in the literature."
        )
    elif config.folds:
        which = f"fold {config.fold} of {config.folds}" if len(card.models) == 1 else f"{config.folds} folds"
        said = (
            f"Cross-validation over the splits training and validation: {which}, all clips of an artist in one fold. "
            "A model learns from the other folds, and is validated on its own. Test clips are in no fold."
        )
    else:
        said = "The feature set's own split: learnt from training, validated on validation; test is never learnt from."
    verdict = (
        f"{card.leak}."
        if card.leak
        else "not checked: the feature set is not where it was."
        if card.manifest is None and config.split == "official"
        else "No artist is known to be in more than one split, as far as the collection names its artists."
    )
    return f"## Split and leaks\n\n{said}\n\nVerdict: {plain(verdict)}"


def _training(card: ModelCard) -> str:
    seconds = [each.figures["seconds"] for _, each in card.models if "seconds" in each.figures]
    took = f"{sum(seconds):.0f} s in epochs" if len(seconds) == len(card.models) else "time not known"
    members = (
        (
            member_name(each.config.seed, each.config.fold),
            _number(each.figures.get("epochs"), ".0f"),
            _number(each.figures.get("best_epoch"), ".0f"),
            _number(each.figures.get("train_accuracy")),
            _number(each.figures.get("val_accuracy")),
            f"`{run_id}`",
        )
        for run_id, each in card.models
    )
    names = ("model", "epochs", "kept epoch", "training accuracy", "validation accuracy", "run")
    leaves = [flatten(each.config.to_dict()) for _, each in card.models]
    settings = ((f"`{name}`", "; ".join(dict.fromkeys(plain(each[name]) for each in leaves))) for name in leaves[0])
    return f"""## Training

Devices: {card.place or "not known"}; {took}.

{table(names, members)}

{table(("setting", "value"), settings)}"""


def _results(card: ModelCard) -> str:
    test = card.of("test")
    lines = ["## Results", "Intervals are Wilson's 95 % intervals over clips."]
    if test is None:
        lines.append("The test split was not evaluated with this model.")
    lines += [_result(card, result) for result in card.results]
    if card.of("validation") is None:
        lines.append(
            "No validation predictions are kept, so there is no interval, no figure by genre and no calibration. What "
            "the training logged is under «Training»."
        )
    return "\n\n".join(lines)


def _result(card: ModelCard, result: SplitResult) -> str:
    source, scores, calibrated = result.source, result.scores, result.calibrated
    low, high = scores.ci95
    facts = [
        f"accuracy {scores.accuracy:.3f} [{low:.3f}, {high:.3f}] of {scores.n} clips{_together(card, source)}",
        f"macro-F1 {scores.macro_f1:.3f}",
        f"expected calibration error {scores.ece:.3f}, as the probabilities come from the network",
    ]
    if source.members:
        facts.insert(1, f"one model alone: {_spread(source)}")
    if calibrated is None:
        facts.append("not calibrated: no temperature, and no threshold of «unsure», is known")
    else:
        facts += str(calibrated).splitlines()
        facts.append(
            "no confidence is high enough: every answer is «unsure»"
            if calibrated.threshold is None
            else f"below a calibrated confidence of {calibrated.threshold:.3f} an answer is «unsure»"
        )
    if source.split == "test":
        facts.append(f"test-set evaluation {source.test_evaluations} on this test set, counted over all runs")
    if source.fingerprint != card.models[0][1].fingerprint:
        facts.append(f"of another feature set than the training's, fingerprint `{source.fingerprint}`")
    rows = (
        (plain(genre), row["support"], *(f"{row[name]:.3f}" for name in ("precision", "recall", "f1")))
        for genre, row in scores.per_genre.items()
    )
    genres = table(("genre", "clips", "precision", "recall", "F1"), rows)
    title = f"{SPLIT_NAMES[source.split]}{', LEAKY' * bool(source.leak)}"
    return f"### {title}\n\n{_bullets(f'{fact[0].upper()}{fact[1:]}.' for fact in facts)}\n\n{genres}"


def _limits(card: ModelCard) -> Iterable[str]:
    config, test, validation = card.config, card.of("test"), card.of("validation")
    if card.leak:
        yield f"{card.leak}: a model that knows the artist need not know the genre."
    if test is None:
        yield "The test split was not evaluated: all figures are of validation clips."
    elif test.source.test_evaluations > 1:
        yield (
            f"The test split was evaluated {test.source.test_evaluations} times: whoever chooses among models by it "
            "makes it a validation split."
        )
    if config.keep == "best":
        yield "The kept epoch is the one that was best on validation, so that the validation accuracy is partly luck."
    if card.searched:
        yield "The configuration was chosen by a search on the same validation clips, which flatters there."
    if len(card.models) == 1:
        yield "One model, one seed: another seed may give another accuracy, which the interval does not count."
    if validation and validation.calibrated:
        yield f"Temperature and the threshold of «unsure» were learnt from {validation.scores.n} validation clips."
    for result in card.results:
        if result.source.fingerprint != card.models[0][1].fingerprint:
            yield (
                f"The {result.source.split} split is of another feature set: whether the model knows its clips or "
                "artists is not checked."
            )
        support = {genre: int(row["support"]) for genre, row in result.scores.per_genre.items()}
        yield _few(f"{result.source.split} clips", support)
    if card.manifest:
        learnt = {"official": ("training",), "random": SPLITS}[config.split] if not config.folds else SPLITS[:2]
        counts = {
            genre: sum(card.manifest.clips.get(split, {}).get(genre, 0) for split in learnt) for genre in card.genres
        }
        yield _few(f"clips to learn from in {' and '.join(learnt)}", counts)
    seconds = card.models[0][1].spec.seconds
    yield f"The model has learnt from clips of {seconds:g} s, whatever part of the track they are of."
    yield "Genre labels are opinions: a recording may be of several genres, and the catalogue says one."
    if card.encoder and card.encoder.trained_on:
        yield "The encoder may have heard recordings of these splits in its own training; that was not checked."


# Words


def _indexed(result: SplitResult) -> dict[str, Any]:
    """A split's figures as Hugging Face's ``model-index`` has them."""
    source, scores = result.source, result.scores
    together, flatters = (
        f" of {len(source.members)} models together" * bool(source.members),
        ", LEAKY" * bool(source.leak),
    )
    metrics = [
        {"type": "accuracy", "value": scores.accuracy, "name": f"Accuracy{together}{flatters}"},
        {"type": "f1", "value": scores.macro_f1, "name": f"Macro-F1{together}{flatters}"},
    ]
    if source.members:
        alone = mean(member.accuracy for member in source.members)
        metrics.append({"type": "accuracy", "value": alone, "name": f"Accuracy of one model, mean{flatters}"})
    return {
        "task": {"type": "audio-classification", "name": "Music genre classification"},
        "dataset": {
            "type": dataset_name(source.fingerprint),
            "name": PurePosixPath(source.features).name or dataset_name(source.fingerprint),
            "split": source.split,
            "revision": source.fingerprint,
        },
        "metrics": metrics,
    }


def _together(card: ModelCard, source: Source) -> str:
    """Which models answered."""
    if source.split == "validation" and card.config.folds:
        return ", each by a model not trained on it"
    return f", {len(source.members)} models together" if source.members else ""


def _spread(source: Source) -> str:
    accuracies = [member.accuracy for member in source.members]
    return f"{mean(accuracies):.3f} ± {stdev(accuracies):.3f} (mean ± standard deviation of {len(accuracies)})"


def _few(clips: str, counts: dict[str, int]) -> str:
    """A sentence that names the genres of few clips; empty where there are none."""
    few = [f"{genre} ({count})" for genre, count in counts.items() if count < FEW]
    return f"Fewer than {FEW} {clips}: {', '.join(few)}." if few else ""


def _number(value: float | None, form: str = ".3f") -> str:
    return "not known" if value is None else f"{value:{form}}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(plain, names))


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _slug(text: str) -> str:
    """A tag: ``pretrained (musicnn)`` is ``pretrained-musicnn``."""
    return re.sub(r"\W+", "-", text).strip("-")
