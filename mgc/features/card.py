"""The dataset card: the README of a feature set, with its counts, its recipe and the lines that read it elsewhere.

It begins with the YAML header of Hugging Face's hub (https://huggingface.co/docs/hub/datasets-cards), by which the
folder, pushed as it is, is a data set with splits and a viewer, and ``datasets.load_dataset`` reads it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml

from mgc.collection.licences import UNKNOWN, parse
from mgc.collection.splits import SPLITS
from mgc.features.layout import CROISSANT, QUARANTINE, SHARDS, SHEET
from mgc.pages.markdown import plain, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgc.features.layout import Manifest

HUB_SPLITS = dict(zip(SPLITS, ("train", "validation", "test"), strict=True))
"""What Hugging Face calls our splits."""
HUB_LICENSES = frozenset(
    {"cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0"}
    | {"cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0"}
    | {"cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", UNKNOWN}
)
"""Ids of https://huggingface.co/docs/hub/repositories-licenses that a licence of ours may have."""
SHOWN = 20
"""Licences that the card counts, each on a line."""
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")


def title(manifest: Manifest) -> str:
    """What a feature set is called in its card and in its Croissant file."""
    return f"Log-Mel spectrograms of {sum(_rows(manifest).values())} clips of {len(manifest.genres)} music genres"


def description(manifest: Manifest) -> str:
    """What is in a feature set, in one sentence."""
    bands, frames = manifest.spec.shape
    kind = "Z-scored log-Mel" if manifest.spec.scaling == "zscore" else "Log-Mel"
    return f"{kind} spectrograms, {bands} bands × {frames} frames, made by mgc."


def licences(manifest: Manifest) -> dict[str, int]:
    """Rows of all splits by licence, the most frequent first; ``unknown`` in a set of before licences were known."""
    counts = sum((Counter(each) for each in manifest.licenses.values()), Counter[str]())
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0]))) or {
        UNKNOWN: sum(_rows(manifest).values())
    }


def dataset_card(manifest: Manifest) -> str:
    """Write the README of a feature set.

    Parameters
    ----------
    manifest
        The manifest of the finished set.

    Returns
    -------
    str
        Markdown: a header for Hugging Face's hub, clips by genre, split and licence, the quarantine, a picture, the
        recipe, and code that reads the shards with pyarrow, DuckDB, polars, Hugging Face datasets and pandas. The same
        manifest gives the same text.
    """
    bands, frames = manifest.spec.shape
    quarantine = ", ".join(f"{count} {reason}" for reason, count in manifest.quarantined.items()) or "none"
    spec = "\n".join(f"- {name}: {value}" for name, value in manifest.recipe["spec"].items())
    header = yaml.safe_dump(_header(manifest), sort_keys=False, allow_unicode=True, width=1000)
    picture = f"\n![Spectrograms of clips of each genre]({SHEET})\n" if _rows(manifest) else ""
    first_split = HUB_SPLITS[next(iter(_rows(manifest)), SPLITS[0])]
    texts = list(licences(manifest))
    more = f"\n… and {len(texts) - SHOWN} more.\n" if len(texts) > SHOWN else ""
    known = "as its source says (column `license`)" if manifest.licenses else "not known: no source was asked"
    return f"""---
{header}---
# Log-Mel feature set

{description(manifest)}

{_table("genre", manifest.genres, manifest.clips)}

In quarantine (`{QUARANTINE}`): {quarantine}.
{picture}
## Licences
The licence of a clip is {known}.

{_table("licence", texts[:SHOWN], manifest.licenses or {split: {UNKNOWN: rows} for split, rows in _all(manifest)})}
{more}
## Recipe
{spec}
- decoder: {manifest.recipe["decoder"]}
- fingerprint: `{manifest.fingerprint}`

## Reading it
`logmel` holds {bands} × {frames} little-endian float16 values in C order; dB = value × `std_db` + `mean_db`.
Run these lines in this folder. [`{CROISSANT}`]({CROISSANT}) describes it in the vocabulary of MLCommons Croissant.

pyarrow:
```python
import numpy as np, pyarrow.parquet as pq
table = pq.read_table("shards")
first = np.frombuffer(table["logmel"][0].as_py(), "<f2").reshape({bands}, {frames})
```

DuckDB:
```python
import duckdb
duckdb.sql("SELECT split, genre, count(*) AS clips FROM 'shards/*.parquet' GROUP BY ALL ORDER BY ALL").show()
```

polars:
```python
import numpy as np, polars as pl
frame = pl.read_parquet("shards/*.parquet")
first = np.frombuffer(frame["logmel"][0], "<f2").reshape({bands}, {frames})
```

Hugging Face datasets:
```python
import os, numpy as np, datasets
data = datasets.load_dataset(os.getcwd())
first = np.frombuffer(data["{first_split}"][0]["logmel"], "<f2").reshape({bands}, {frames})
```

pandas:
```python
import numpy as np, pandas as pd
frame = pd.read_parquet("shards")
first = np.frombuffer(frame["logmel"][0], "<f2").reshape({bands}, {frames})
```
"""  # noqa: S608 (the DuckDB line is prose)


def _header(manifest: Manifest) -> dict[str, Any]:
    """The card's metadata, as the hub and ``datasets`` read them."""
    rows, size = _rows(manifest), Counter[str]()
    for entry in manifest.shards:
        size[entry.split] += entry.bytes
    splits = [
        {"name": HUB_SPLITS[split], "num_bytes": size[split], "num_examples": count} for split, count in rows.items()
    ]
    files = [{"split": HUB_SPLITS[split], "path": f"{SHARDS}/{split}-*.parquet"} for split in rows]
    total, bytes_ = sum(rows.values()), sum(size[split] for split in rows)
    return {
        **_license(manifest),
        "pretty_name": title(manifest),
        "task_categories": ["audio-classification"],
        "tags": ["music", "music-genre-classification", "log-mel-spectrogram", "mgc"],
        "size_categories": [_SIZES[min(max(0, len(str(total)) - 3), len(_SIZES) - 1)]],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {
            "features": [{"name": field.name, "dtype": _dtype(field, manifest)} for field in manifest.schema],
            "splits": splits,
            "download_size": bytes_,
            "dataset_size": bytes_,
        },
    }


def _license(manifest: Manifest) -> dict[str, str]:
    """The one licence of all clips by the hub's id; ``other`` where it has none, or where there are several."""
    texts = list(licences(manifest))
    if len(texts) != 1:
        return {"license": "other", "license_name": "several-see-the-column-license"}
    licence = parse(texts[0])
    name = (licence.spdx or texts[0]).lower()
    if name in HUB_LICENSES:
        return {"license": name}
    return {"license": "other", "license_name": texts[0]} | ({"license_link": licence.url} if licence.url else {})


def _dtype(field: pa.Field, manifest: Manifest) -> Any:
    """A column's type as ``datasets`` names it."""
    if field.name == "label":
        return {"class_label": {"names": {str(label): genre for label, genre in enumerate(manifest.genres)}}}
    return {pa.float64(): "float64", pa.float32(): "float32", pa.bool_(): "bool"}.get(field.type, str(field.type))


def _rows(manifest: Manifest) -> dict[str, int]:
    """Rows of the splits that have any."""
    return {split: count for split, count in _all(manifest) if count}


def _all(manifest: Manifest) -> list[tuple[str, int]]:
    """Rows of every split."""
    return [(split, sum(genres.values())) for split, genres in manifest.clips.items()]


def _table(what: str, names: Sequence[str], counts: dict[str, dict[str, int]]) -> str:
    """A line for each name, with its count in each split."""
    return table((what, *counts), ([plain(name), *(each.get(name, 0) for each in counts.values())] for name in names))
