"""Population based training: models that lag take up better ones, and vary their settings as they go on.

After Jaderberg et al., «Population based training of neural networks» (2017), in step: all train a generation, then the
worst quarter each take the state of one of the best quarter, with settings perturbed or drawn anew. A generation is a
list of tasks, so that whatever trains tasks trains it, and ``population.json`` is all there is to go on from.
"""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mgc.core.atomic_files import write_text
from mgc.core.errors import InputError
from mgc.sweep.samplers import Drawing
from mgc.sweep.sweep_folder import POPULATION, Task, trial_name
from mgc.training.fit_state import STATE, adopt, history, signature_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mgc.dataset.protocols import LearningSet
    from mgc.sweep.space import Space
    from mgc.sweep.sweep_folder import Course, Sweep

GENERATIONS = 5
QUANTILE = 0.25
"""Share of the population that takes up another, and that is taken up."""
NETWORK = ("model.channels", "model.norm", "model.input_norm", "model.head", "model.window", "optim.ema_epochs")
"""Fields that a model cannot change while it learns: other weights, or other moments, belong to them."""
NEXT = "next-{}.safetensors"
"""State that a model takes up when the generation of this number begins."""


def check(space: Space) -> None:
    """Refuse a space with fields that a model cannot change, and models that end before the others.

    Raises
    ------
    InputError
        Naming the first such field.
    """
    if space.base.patience:
        raise InputError(f"--search pbt: not with --patience {space.base.patience}; a population ends together")
    for each in space.dimensions:
        if each.field in ("keep", "patience"):
            raise InputError(
                f"--search pbt: «{each.field}» is the same in all models, or what they take up is not theirs"
            )
        if each.field in NETWORK:
            raise InputError(f"--search pbt: «{each.field}» makes another network; search what can change in training")
        if each.when:
            raise InputError(f"--search pbt: «{each.field}» depends on another; a population varies each on its own")


def evolve(sweep: Sweep, space: Space, data: LearningSet, train: Callable[[list[Task], str], None]) -> list[str]:
    """Train the population, generation by generation; return the names of its models.

    Parameters
    ----------
    train
        Trains tasks, under a title, and returns when all are paused or kept, or have failed.
    """
    epochs = sweep.epochs
    ends = sorted({max(1, round(epochs * part / GENERATIONS)) for part in range(1, GENERATIONS + 1)})
    generation, tasks = _read(sweep) or (0, _begin(sweep, space))
    _write(sweep, generation, tasks)
    while True:
        for task in tasks:
            folder = sweep.trial(task.name).folder
            with suppress(FileNotFoundError):  # it takes up no other, or has done so
                (folder / NEXT.format(generation)).replace(folder / STATE)
        until = ends[generation] if ends[generation] < epochs else None
        train([replace(task, until=until) for task in tasks], f"generation {generation + 1} of {len(ends)}")
        if until is None:
            return [trial_name(n) for n in range(1, sweep.config.trials + 1)]
        generation += 1
        tasks = _exploit(sweep, space, data, [task for task in tasks if _alive(sweep, task)], until, generation)
        _write(sweep, generation, tasks)


def course(sweep: Sweep, name: str) -> Course:
    """What a model of the population was trained with."""
    known = _read(sweep)
    assert known
    return next(task.course for task in known[1] if task.name == name)


def _begin(sweep: Sweep, space: Space) -> list[Task]:
    seed = sweep.seed
    drawing = Drawing(space, "random", seed)
    numbers = range(1, sweep.config.trials + 1)
    return [Task(trial_name(number), [(1, drawing.draw(number))], seed, sweep.parent_run_id) for number in numbers]


def _alive(sweep: Sweep, task: Task) -> bool:
    return sweep.trial(task.name).outcome is None


def _exploit(
    sweep: Sweep, space: Space, data: LearningSet, tasks: list[Task], until: int, generation: int
) -> list[Task]:
    """Let the worst take up the best; the states lie beside their own until the next generation is written down."""
    chance = random.Random(f"{sweep.seed} {generation}")
    lasts = {task.name: history(sweep.trial(task.name).folder)[-1] for task in tasks}
    scores = {name: point.val_accuracy for name, point in lasts.items()}
    ranked = sorted(tasks, key=lambda task: scores[task.name])
    few = min(max(1, round(QUANTILE * len(ranked))), len(ranked) // 2)
    changed: dict[str, Task] = {}
    for task in ranked[:few]:
        better = chance.choice(ranked[len(ranked) - few :])
        if scores[better.name] <= scores[task.name]:
            continue
        anew = Drawing(space, "random", chance.getrandbits(32)).draw(1)
        differences = space.perturb(better.course[-1][1], anew, chance)
        signature = signature_of(sweep.train_config(differences, task.seed), data)
        trial = sweep.trial(task.name)
        adopt(sweep.trial(better.name).folder, trial.folder, signature, NEXT.format(generation))
        course = [*better.course, (until + 1, differences)]
        changed[task.name] = replace(task, course=course, own_from=until + 1)
        if run := trial.run:
            last = lasts[task.name]  # its process may have died before it said so, and its state goes
            run.metrics(last.metrics(), epoch=last.epoch, at=last.ended)
            run.tag({"mgc.course": json.dumps(course)[:5000]})
    return [changed.get(task.name, task) for task in tasks]


def _read(sweep: Sweep) -> tuple[int, list[Task]] | None:
    file = sweep.folder / POPULATION
    if not file.exists():
        return None
    known: dict[str, Any] = json.loads(file.read_text())
    return known["generation"], [Task(**task) for task in known["tasks"]]


def _write(sweep: Sweep, generation: int, tasks: list[Task]) -> None:
    tree = {"generation": generation, "tasks": [asdict(task) for task in tasks]}
    write_text(json.dumps(tree, indent=1) + "\n", sweep.folder / POPULATION)
