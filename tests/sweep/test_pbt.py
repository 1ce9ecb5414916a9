"""A population learns in step, the worst take up the best, and a killed one ends as an undisturbed one, bit for bit."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from helpers.untuned import BASE, Killed, keep_little, made, told, trainer
from safetensors.torch import load_file

from mgc.config import PRESETS
from mgc.core.errors import InputError, RunError
from mgc.dataset.protocols import learning_set
from mgc.model import checkpoint
from mgc.sweep import pbt as population
from mgc.sweep.samplers import Drawing
from mgc.sweep.space import DEFAULT, DEFAULT_PBT, Space, field_of
from mgc.sweep.sweep_folder import POPULATION, TASK, Task
from mgc.tracking import runs as tracking
from mgc.tracking.runs import Run
from mgc.training.fit_state import STATE, Epoch, history
from mgc.training.loop import fit

TREE = {
    "optim.lr": {"log_uniform": [1e-6, 0.05]},
    "optim.weight_decay": {"uniform": [0, 0.1]},
    "augment.time_masks": [0, 1, 2],
    "model.dropout": {"uniform": [0, 0.3]},
}
SPACE = Space.of(TREE, BASE)
MEMBERS = ["trial 1", "trial 2", "trial 3"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums are then taken in one order, and two fits can be compared bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(features):
    return learning_set(features, BASE)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def weights(sweep, name):
    return checkpoint.read(sweep.trial(name).folder)[0].state_dict()


def legs(course):
    return [tuple(leg) for leg in course]


class Undisturbed:
    """A population that nobody interrupted, and how its members' states were before and after each generation."""

    def __init__(self, features, data, folder):
        self.sweep = made(features, folder, BASE, TREE, trials=3)
        self.tasks, self.before, self.after = [], [], []
        train = trainer(self.sweep, data)

        def watched(tasks, title):
            self.tasks.append(tasks)
            self.before.append(self.states())
            train(tasks, title)
            self.after.append(self.states())

        self.names = population.evolve(self.sweep, SPACE, data, watched)
        self.courses = {name: legs(population.course(self.sweep, name)) for name in self.names}

    def states(self):
        folders = {name: self.sweep.trial(name).folder for name in MEMBERS}
        kept = {name: folder for name, folder in folders.items() if (folder / STATE).exists()}
        return {name: (load_file(folder / STATE), history(folder)) for name, folder in kept.items()}

    def taken(self, generation):
        """Who takes up whom before a generation; each is of one epoch."""
        ended, begun = self.after[generation - 1], self.before[generation]
        takers = [task.name for task in self.tasks[generation] if task.own_from == generation + 1]
        pairs = {}
        for name in takers:
            (pairs[name],) = [each for each in MEMBERS if each != name and ended[each][1] == begun[name][1]]
        return pairs


@pytest.fixture(scope="module")
def undisturbed(features, data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        keep_little(patch)
        return Undisturbed(features, data, tmp_path_factory.mktemp("sweeps") / "undisturbed")


# Generations


@pytest.mark.parametrize(
    ("epochs", "ends"),
    [
        (1, [None]),
        (2, [1, None]),
        (3, [1, 2, None]),
        (4, [1, 2, 3, None]),
        (5, [1, 2, 3, 4, None]),
        (7, [1, 3, 4, 6, None]),
        (20, [4, 8, 12, 16, None]),
        (40, [8, 16, 24, 32, None]),
    ],
)
def test_generations_end_at_fifths_of_the_epochs(features, tmp_path, monkeypatch, epochs, ends):
    sweep = made(features, tmp_path / "sweep", replace(BASE, epochs=epochs), TREE, trials=2)
    monkeypatch.setattr(population, "history", lambda folder: [Epoch(1, 1.0, 0.5, 1.0, 0.5, 1.0, 1.0, 1.0)])
    heard = []
    population.evolve(sweep, SPACE, None, lambda tasks, title: heard.append((title, {task.until for task in tasks})))
    assert heard == [(f"generation {n} of {len(ends)}", {end}) for n, end in enumerate(ends, 1)]


def test_all_begin_with_what_is_drawn_and_end_kept(undisturbed):
    sweep = undisturbed.sweep
    assert undisturbed.names == MEMBERS
    assert [{task.until for task in tasks} for tasks in undisturbed.tasks] == [{1}, {2}, {None}]
    drawing = Drawing(SPACE, "random", BASE.seed)
    for number, name in enumerate(MEMBERS, 1):
        mine = sweep.trial(name)
        assert legs(undisturbed.tasks[0][number - 1].course) == [(1, drawing.draw(number))]
        assert legs(mine.task.course) == undisturbed.courses[name]
        assert mine.outcome == "kept"
        assert {file.name for file in mine.folder.glob("*.safetensors")} == {checkpoint.WEIGHTS}
        record = mine.run.record()
        assert record.status == "FINISHED"
        assert record.tags[tracking.OUTCOME_TAG] == "kept"
        assert record.tags[tracking.PARENT_TAG] == sweep.parent_run_id


def test_the_card_has_the_last_configuration_of_the_course(undisturbed):
    lasts = []
    for name, course in undisturbed.courses.items():
        assert [first for first, _ in course] == sorted({first for first, _ in course})
        assert course[0][0] == 1
        lasts.append(course[-1][1])
        card = checkpoint.read(undisturbed.sweep.trial(name).folder)[1]
        assert card.config == undisturbed.sweep.train_config(course[-1][1], BASE.seed)
        assert card.figures["epochs"] == BASE.epochs
    assert all(lasts.count(each) == 1 for each in lasts)


@pytest.mark.parametrize("generation", [1, 2])
def test_the_worst_takes_up_the_best(undisturbed, generation):
    """What it has learnt, to the last moment of its optimiser; and then it learns on in its own way."""
    ended, begun = undisturbed.after[generation - 1], undisturbed.before[generation]
    courses = [{task.name: legs(task.course) for task in undisturbed.tasks[n]} for n in (generation - 1, generation)]
    scores = {name: points[-1].val_accuracy for name, (_, points) in ended.items()}
    pairs = undisturbed.taken(generation)
    assert len(pairs) == 1
    for name, better in pairs.items():
        assert scores[name] == min(scores.values()) < max(scores.values()) == scores[better]
        assert same(begun[name][0], ended[better][0])
        assert not same(begun[name][0], ended[name][0])
        assert courses[1][name][:-1] == courses[0][better]
        first, differences = courses[1][name][-1]
        assert first == generation + 1
        assert differences != courses[0][better][-1][1]
    for name in set(MEMBERS) - pairs.keys():
        assert same(begun[name][0], ended[name][0])
        assert begun[name][1] == ended[name][1]
        assert courses[1][name] == courses[0][name]


def test_each_epoch_has_the_rate_of_its_time_in_the_course(undisturbed):
    for name, course in undisturbed.courses.items():
        rates = [[d for first, d in course if first <= epoch][-1]["optim.lr"] for epoch in (1, 2, 3)]
        assert [point.lr for point in undisturbed.before[2][name][1]] == rates[:2]
        assert told(undisturbed.sweep.trial(name).run, "lr")[-1] == (3, rates[2])


def test_a_run_tells_each_step_once_and_only_what_it_learnt_itself(undisturbed):
    for name in MEMBERS:
        run = undisturbed.sweep.trial(name).run
        for metric in ("train_loss", "val_loss", "val_accuracy", "lr"):
            values = told(run, metric)
            assert [step for step, _ in values] == [1, 2, 3]
            own = [getattr(undisturbed.after[epoch - 1][name][1][-1], metric) for epoch in (1, 2)]
            assert [value for _, value in values[:2]] == own


def test_a_run_is_tagged_with_the_course_of_its_model(undisturbed):
    for name, course in undisturbed.courses.items():
        tag = undisturbed.sweep.trial(name).run.record().tags.get("mgc.course")
        assert (tag and legs(json.loads(tag))) == (course if len(course) > 1 else None)
    assert {len(course) for course in undisturbed.courses.values()} == {1, 2, 3}  # one took up what had taken up


def test_a_done_population_trains_nothing_again(undisturbed, data):
    def never(task, point):
        raise AssertionError

    before = {name: weights(undisturbed.sweep, name) for name in MEMBERS}
    runs = undisturbed.sweep.parent.children()
    population.evolve(undisturbed.sweep, SPACE, data, trainer(undisturbed.sweep, data, never))
    assert undisturbed.sweep.parent.children() == runs
    for name in MEMBERS:
        assert same(weights(undisturbed.sweep, name), before[name])


def exploit(features, folder, monkeypatch, accuracies):
    """Who takes up whom when members have come to accuracies."""
    sweep = made(features, folder, BASE, TREE, trials=len(accuracies))
    pairs = {}

    def points(trial_folder):
        accuracy = accuracies[int(trial_folder.name.split()[1]) - 1]
        return [Epoch(1, 1.0, 0.5, 1.0, accuracy, 1.0, 1.0, 1.0)]

    def adopt(source, target, signature, name):
        pairs[int(target.name.split()[1])] = int(source.name.split()[1])

    monkeypatch.setattr(population, "history", points)
    monkeypatch.setattr(population, "adopt", adopt)
    monkeypatch.setattr(population, "signature_of", lambda config, data: "")
    tasks = population._begin(sweep, SPACE)
    after = population._exploit(sweep, SPACE, None, tasks, 5, 1)
    assert [task.name for task in after] == [task.name for task in tasks]
    for number, (was, now) in enumerate(zip(tasks, after, strict=True), 1):
        if number in pairs:
            better = tasks[pairs[number] - 1]
            assert now.course[:-1] == better.course
            assert now.course[-1][0] == now.own_from == 6
            assert now.course[-1][1] != better.course[-1][1]
            assert now.seed == was.seed
        else:
            assert now == was
    return pairs


def test_the_worst_quarter_take_up_the_best_quarter(features, tmp_path, monkeypatch):
    pairs = exploit(features, tmp_path / "eight", monkeypatch, [0.5, 0.1, 0.9, 0.4, 0.3, 0.2, 0.8, 0.6])
    assert pairs.keys() == {2, 6}
    assert set(pairs.values()) <= {3, 7}


def test_equals_and_the_only_one_keep_what_they_have(features, tmp_path, monkeypatch):
    assert exploit(features, tmp_path / "equals", monkeypatch, [0.5, 0.5, 0.5, 0.5]) == {}
    assert exploit(features, tmp_path / "one", monkeypatch, [0.5]) == {}
    assert exploit(features, tmp_path / "two", monkeypatch, [0.5, 0.6]) == {1: 2}
    assert exploit(features, tmp_path / "three", monkeypatch, [0.5, 0.6, 0.5]) == {1: 2}


def test_a_member_that_failed_is_left_out(features, data, tmp_path, monkeypatch):
    """Though it was the best: nobody takes it up, and nobody trains it again."""
    keep_little(monkeypatch)
    sweep = made(features, tmp_path / "failing", BASE, TREE, trials=3)
    trained = []

    def tell(task, point):
        trained.append(task.name)
        if task.name == "trial 1" and point.epoch == 2:
            raise RunError("loss is nan")

    names = population.evolve(sweep, SPACE, data, trainer(sweep, data, tell))
    assert names == MEMBERS
    assert Counter(trained)["trial 1"] == 3  # one, and taken up again one and two
    assert [sweep.trial(name).outcome for name in names] == ["failed", "kept", "kept"]
    record = sweep.trial("trial 1").run.record()
    assert (record.status, record.tags[tracking.REASON_TAG]) == ("FAILED", "loss is nan")
    left = json.loads((sweep.folder / POPULATION).read_text())["tasks"]
    assert [task["name"] for task in left] == ["trial 2", "trial 3"]


# Refused


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"model.channels": [[4], [8]]}, "«model.channels» makes another network"),
        ({"optim.lr": [0.1, 0.2], "model.norm": [False, True]}, "«model.norm» makes another network"),
        ({"model.input_norm": [False, True]}, "«model.input_norm»"),
        ({"model.head": ["avg", "avgmax"]}, "«model.head»"),
        ({"model.window": [0, 16]}, "«model.window»"),
        ({"keep": ["best", "last"]}, "«keep» is the same in all models"),
        ({"patience": [0, 2]}, "«patience» is the same in all models"),
        ({"optim.ema_epochs": {"uniform": [0, 2]}}, "«optim.ema_epochs»"),
        (
            {"augment.time_masks": [0, 1], "augment.equalize": {"uniform": [0, 1], "when": {"augment.time_masks": 1}}},
            "«augment.equalize» depends on another",
        ),
    ],
)  # fmt: skip
def test_what_a_model_cannot_change_is_refused(tree, said):
    with pytest.raises(InputError, match=r"^--search pbt: ") as caught:
        population.check(Space.of(tree, BASE))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_model_can_change_is_not_refused():
    population.check(SPACE)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_default_space_is_a_populations(preset):
    space = Space.read(DEFAULT_PBT, PRESETS[preset])
    population.check(space)
    everything = {each.field for each in Space.read(DEFAULT, PRESETS[preset]).dimensions}
    assert {each.field for each in space.dimensions} == everything - set(population.NETWORK)
    assert all(field_of(PRESETS[preset], field) is not None for field in population.NETWORK)


def test_a_member_that_could_end_alone_is_refused():
    """Others would take up what is done, and its course would be forgotten."""
    with pytest.raises(InputError, match=r"--search pbt: not with --patience 2"):
        population.check(Space.of(TREE, replace(BASE, patience=2)))


# Killed


class Deaths:
    """Lets a process die right before it does something for good, wherever it has not died yet."""

    def __init__(self, sweep, monkeypatch, wanted=lambda what, name: True):
        self.sweep = sweep
        self.died = set()
        replaced, told, unlinked = os.replace, Run.metrics, Path.unlink

        def before(what, target, about=None):
            place = (what, target, about, self.progress())
            if wanted(what, Path(target).name) and place not in self.died:
                self.died.add(place)
                raise Killed(str(place))

        def replace(source, target):
            source, target = Path(source), Path(target)
            old = target.read_bytes() if target.exists() else None
            if source.exists() and source.read_bytes() != old:
                before("rename" if source.name.startswith("next-") else "write", target)
            replaced(source, target)

        def metrics(run, values, **about):
            before("tell", run.id, about.get("epoch"))
            told(run, values, **about)

        def unlink(file, **about):
            if file.name == STATE:
                before("discard", file)
            unlinked(file, **about)

        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(Path, "unlink", unlink)
        monkeypatch.setattr(Run, "metrics", metrics)

    def progress(self):
        """How far all have come: two deaths at the same are the same."""
        note = self.sweep.folder / POPULATION
        generation = json.loads(note.read_text())["generation"] if note.exists() else None
        lives = (len(history(folder)) for folder in sorted((self.sweep.folder / "trials").iterdir()))
        return generation, *lives

    def go_on(self, work):
        """Do it again and again until nobody dies."""
        while True:
            try:
                return work()
            except Killed:
                continue


def as_undisturbed(sweep, undisturbed):
    """All is as in the population that nobody interrupted."""
    for name in MEMBERS:
        assert legs(population.course(sweep, name)) == undisturbed.courses[name]
        assert same(weights(sweep, name), weights(undisturbed.sweep, name))
        mine, other = sweep.trial(name), undisturbed.sweep.trial(name)
        assert {**mine.figures, "seconds": 0} == {**other.figures, "seconds": 0}
        for metric in ("train_loss", "val_accuracy", "lr"):
            assert told(mine.run, metric) == told(other.run, metric), (name, metric)
        assert mine.run.record().status == "FINISHED"
        assert not list(mine.folder.glob("next-*"))
    assert len(sweep.parent.children()) == 3


def test_a_population_killed_before_every_write_ends_as_an_undisturbed_one(
    features, data, tmp_path, monkeypatch, undisturbed
):
    keep_little(monkeypatch)
    sweep = made(features, tmp_path / "killed", BASE, TREE, trials=3)
    deaths = Deaths(sweep, monkeypatch)
    deaths.go_on(lambda: population.evolve(sweep, SPACE, data, trainer(sweep, data)))
    kinds = Counter((what, Path(target).name) for what, target, *_ in deaths.died)
    assert kinds["write", POPULATION] == 3
    assert kinds["write", STATE] == 9
    assert kinds["write", TASK] == 9
    assert kinds["write", checkpoint.CARD] == kinds["discard", STATE] == 3
    assert kinds["rename", STATE] == 2
    as_undisturbed(sweep, undisturbed)


def test_a_population_killed_in_a_generation_goes_on_in_it(features, data, tmp_path, monkeypatch, undisturbed):
    keep_little(monkeypatch)
    sweep = made(features, tmp_path / "once", BASE, TREE, trials=3)
    train = trainer(sweep, data)

    def dying(tasks, title):
        train(tasks[:2] if title.startswith("generation 2") else tasks, title)
        if title.startswith("generation 2"):
            raise Killed

    with pytest.raises(Killed):
        population.evolve(sweep, SPACE, data, dying)
    titles = []

    def watched(tasks, title):
        titles.append(title)
        train(tasks, title)

    population.evolve(sweep, SPACE, data, watched)
    assert titles == ["generation 2 of 3", "generation 3 of 3"]
    as_undisturbed(sweep, undisturbed)


def test_a_population_killed_between_two_that_take_up_others_goes_on_with_the_second(features, tmp_path, monkeypatch):
    sweep = made(features, tmp_path / "between", BASE, TREE, trials=2)
    tasks = population._begin(sweep, SPACE)
    population._write(sweep, 1, tasks)
    states = [sweep.trial(task.name).folder / STATE for task in tasks]
    for state in states:
        state.parent.mkdir()
        state.write_text("its own")
        state.with_name("next-1.safetensors").write_text("taken up")
        state.with_name("next-2.safetensors").write_text("of a generation that was never written down")

    def stop(tasks, title):
        raise Killed

    with monkeypatch.context() as patch:
        deaths = Deaths(sweep, patch, lambda what, name: what == "rename")
        deaths.died.add(("rename", states[0], None, None))
        patch.setattr(deaths, "progress", lambda: None)
        with pytest.raises(Killed):
            population.evolve(sweep, SPACE, None, stop)
    assert [state.read_text() for state in states] == ["taken up", "its own"]
    for _ in range(2):
        with pytest.raises(Killed):
            population.evolve(sweep, SPACE, None, stop)
        assert [state.read_text() for state in states] == ["taken up", "taken up"]


# Trained again


COURSE = [(1, {"optim.lr": 0.01, "model.dropout": 0.2}), (3, {"optim.lr": 0.002, "augment.time_masks": 2})]


def again(features, data, folder, tell=lambda task, point: None, deaths=None):
    """Train a course of a population with another seed, until nobody dies."""
    base = replace(BASE, epochs=4, keep="last")
    sweep = made(features, folder, base, TREE, trials=3)
    task = Task("again", COURSE, 7, sweep.parent_run_id)
    trains = lambda: trainer(sweep, data, tell)([task], "again")  # noqa: E731
    deaths(sweep).go_on(trains) if deaths else trains()
    mine = sweep.trial("again")
    card = checkpoint.read(mine.folder)[1]
    assert mine.outcome == "kept"
    assert card.config == sweep.train_config(COURSE[1][1], 7)
    assert card.config.seed == 7
    assert card.config.optim.lr == 0.002
    assert card.config.model.dropout == 0.0  # the base's: the second leg says nothing of it
    assert told(mine.run, "lr") == [(1, 0.01), (2, 0.01), (3, 0.002), (4, 0.002)]
    return sweep


def test_a_course_trained_again_changes_where_it_changed_however_often_it_is_killed(
    features, data, tmp_path, monkeypatch
):
    keep_little(monkeypatch)
    whole = again(features, data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        parts = again(features, data, tmp_path / "parts", deaths=lambda sweep: Deaths(sweep, patch))
    assert same(weights(parts, "again"), weights(whole, "again"))
    assert told(parts.trial("again").run) == told(whole.trial("again").run)
    constant = fit(replace(whole.train_config(COURSE[0][1], 7), epochs=4), data, tmp_path / "constant")
    assert not same(weights(whole, "again"), checkpoint.read(constant.checkpoint)[0].state_dict())
