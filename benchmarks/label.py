"""`mgc label` against `mgc preprocess` on the same clips, and what planning a large library takes.

    python benchmarks/label.py ROOT --model MODEL [--clips 240] [--rounds 3] [--processes 2] [--files 100000]

ROOT is what `mgc preprocess` takes, on a disk; MODEL what `mgc label` does. Each round makes features of the clips, and
labels them, one after the other, with Ray up and all warm; rates are over the time in Ray Data, and the ratio is the
median of the rounds'. Then so many empty files are planned, in this process: seconds, and by how much its memory grew.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

from mgc.collection.tracks import read_tracks
from mgc.core import ray_session
from mgc.core.storage import Folder
from mgc.features.preprocess import preprocess
from mgc.library.genre_model import load
from mgc.library.label import audio_files, label
from mgc.library.label_plan import LabelPlan
from mgc.library.labels import Settings


def plan(files: int, scratch: Path) -> None:
    """Plan a library of empty files and print what it took."""
    for number in range(files):
        folder = scratch / f"artist {number // 100:04d}" / f"album {number // 10 % 10}"
        if number % 10 == 0:
            folder.mkdir(parents=True)
        (folder / f"{number % 10:02d} - a title of usual length.mp3").touch()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    target = Folder.at(scratch / "labels")
    target.make()
    made = LabelPlan.of(audio_files(Folder.at(scratch)), Settings("", ("a", "b"), 0.9, 0.5, ""), "")
    made.write(target)
    seconds = time.monotonic() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{files} files: listed and planned in {seconds:.1f} s; memory grew by {grown:.0f} MB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--model", required=True)
    for name, default in (("clips", 240), ("rounds", 3), ("processes", 2), ("files", 100_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    model, rates = load(flags.model), dict[str, list[float]](features=[], labels=[])
    tracks = read_tracks(flags.root)
    there = [path for path in tracks.table["path"].to_pylist() if (tracks.audio_root / path).path.is_file()]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.chdir(scratch)
        for path in there[: flags.clips]:
            link = scratch / "library" / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((tracks.audio_root / path).path)
        lines = [f"{path},{('a', 'b')[number % 2]},training" for number, path in enumerate(there[: flags.clips])]
        (scratch / "library" / "clips.csv").write_text("\n".join(["path,genre,split", *lines]))
        ray_session.connect()
        for number in range(flags.rounds + 1):  # the first warms up
            made = preprocess(f"{folder}/library/clips.csv", f"{folder}/features{number}", workers=flags.processes)
            said = label(f"{folder}/library", flags.model, f"{folder}/labels{number}", workers=flags.processes)
            if number:
                rates["features"].append(made.clips_per_second)
                rates["labels"].append(said.files_per_second)
                print(
                    f"round {number}: features {rates['features'][-1]:.2f}, labels {rates['labels'][-1]:.2f} a second"
                )
        ray_session.disconnect()
        ratio = median(one / other for one, other in zip(rates["labels"], rates["features"], strict=True))
        kind = type(model.network).__name__, model.network.window
        print(
            f"labels / features: {ratio:.2f} ({len(lines)} clips, {flags.processes} tasks, {kind[0]}, window {kind[1]})"
        )
        (scratch / "many").mkdir()
        plan(flags.files, scratch / "many")


if __name__ == "__main__":
    main()
