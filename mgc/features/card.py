"""The dataset card: the README of a feature set, with its counts, its recipe and the lines that read it elsewhere."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from mgc.features.layout import QUARANTINE

if TYPE_CHECKING:
    from mgc.features.layout import Manifest


def dataset_card(manifest: Manifest) -> str:
    """Write the README of a feature set.

    Parameters
    ----------
    manifest
        The manifest of the finished set.

    Returns
    -------
    str
        Markdown: clips by genre and split, the quarantine, the recipe, and code that reads the shards with pyarrow,
        DuckDB, polars, Hugging Face datasets and pandas. The same manifest gives the same text.
    """
    splits = list(manifest.clips)
    header = "| genre | " + " | ".join(splits) + " |\n|---|" + "---:|" * len(splits)
    table = "\n".join(
        f"| {_text(genre)} | " + " | ".join(str(manifest.clips[split].get(genre, 0)) for split in splits) + " |"
        for genre in manifest.genres
    )
    bands, frames = manifest.spec.shape
    quarantine = ", ".join(f"{count} {reason}" for reason, count in manifest.quarantined.items()) or "none"
    split_names = ", ".join(f'"{split}"' for split in splits if sum(manifest.clips[split].values()))
    spec = "\n".join(f"- {name}: {value}" for name, value in manifest.recipe["spec"].items())
    kind = "Z-scored log-Mel" if manifest.spec.scaling == "zscore" else "Log-Mel"
    return f"""# Log-Mel feature set

{kind} spectrograms, {bands} bands × {frames} frames, made by mgc.

{header}
{table}

In quarantine (`{QUARANTINE}`): {quarantine}.

## Recipe
{spec}
- decoder: {manifest.recipe["decoder"]}
- fingerprint: `{manifest.fingerprint}`

## Reading it
`logmel` holds {bands} × {frames} little-endian float16 values in C order; dB = value × `std_db` + `mean_db`.
Run these lines in this folder.

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
import numpy as np, datasets
files = {{split: f"shards/{{split}}-*.parquet" for split in ({split_names})}}
data = datasets.load_dataset("parquet", data_files=files)
first = np.frombuffer(data["training"][0]["logmel"], "<f2").reshape({bands}, {frames})
```

pandas:
```python
import numpy as np, pandas as pd
frame = pd.read_parquet("shards")
first = np.frombuffer(frame["logmel"][0], "<f2").reshape({bands}, {frames})
```
"""  # noqa: S608 (the DuckDB line is prose)


def _text(name: str) -> str:
    """A name in a table of Markdown: text, with no tag, no column and no line of its own."""
    return html.escape(" ".join(name.split()), quote=False).replace("|", r"\|")
