# %% [markdown]
# From a folder of music to a confusion matrix. `python docs/quickstart.py` takes a few minutes on two cores.
#
# The music is synthetic: eight invented genres, twelve clips each, generated here. Put your own folder in its place.

# %%
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from sklearn.metrics import ConfusionMatrixDisplay
from torch.utils.data import DataLoader

import mgc

here = Path("quickstart")
if not (here / "music").exists():  # «mgc toy quickstart/music» in a shell
    subprocess.run([sys.executable, "-m", "mgc.cli", "toy", here / "music"], check=True)

# %% [markdown]
# Log-Mel features of every clip, written as Parquet shards by Ray Data. Broken clips are quarantined, not fatal: the
# synthetic set has some on purpose. Run again, the cell finds the finished set and only opens it.

# %%
features = mgc.extract_features(here / "music", here / "features")
clips = features.to_pandas()
print(clips.groupby(["split", "genre"]).size().unstack(0))

# %% [markdown]
# The best preset, for fewer epochs and in smaller batches, because the set is small. A configuration is a frozen
# dataclass; MLflow keeps the run in `mlflow_runs/`, and `mgc ui` shows it.

# %%
preset = mgc.PRESETS["short_chunk"]
config = replace(preset, epochs=12, optim=replace(preset.optim, batch_size=8))
run = mgc.fit(features, config)
print(run)

# %% [markdown]
# One evaluation on the test split, which MLflow counts. Printed, the result is what `mgc evaluate` shows;
# `to_dict()` is what it prints with `--json`.

# %%
scores = mgc.evaluate(run, features)
print(scores)

# %%
figures = scores.to_dict()
display = ConfusionMatrixDisplay(np.array(figures["confusion"]), display_labels=list(figures["per_genre"]))
display.plot(cmap="Blues", colorbar=False, xticks_rotation=45)
plt.title(f"test: {figures['accuracy']:.2f} of {figures['n']} clips")
plt.savefig(here / "confusion.png", bbox_inches="tight")

# %% [markdown]
# Somebody else's model: a dataset of PyTorch, a pair of spectrogram and label a clip.

# %%
dataset = features.torch_dataset("training")
mel_BFT, label_B = next(iter(DataLoader(dataset, batch_size=8, shuffle=True)))
print(len(dataset), tuple(mel_BFT.shape), label_B.tolist())
