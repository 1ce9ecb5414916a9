"""The Croissant file of a feature set: what is inside, in MLCommons' vocabulary for data sets.

https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html. Search engines and loaders of several frameworks read
it. What only the publisher knows, as the URL and the creator, is left to be filled in.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mgc.collection.licences import parse
from mgc.features.card import description, licences, title
from mgc.features.layout import SHARDS

if TYPE_CHECKING:
    from mgc.features.layout import Manifest

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that the specification gives."""
PARQUET = "application/x-parquet"
MEANING = {
    "track_id": "Id of the clip",
    "split": "training, validation or test",
    "genre": "Name of the genre",
    "label": "Number of the genre among the sorted genres, from 0",
    "artist_id": "Id of the artist; none is in two splits unless the manifest lists it",
    "path": "Path of the clip's file in its collection",
    "license": "Licence of the clip, as its source says",
    "source_sha1": "SHA-1 of the clip's file",
    "seconds": "Seconds of audio that came out of the file",
    "promised_seconds": "Seconds of audio that the file's headers promise",
    "damaged": "Whether clearly less audio came out than the headers promise",
    "padded": "Whether the audio was padded with zeros to the length of the spectrogram",
    "mean_db": "Mean of the spectrogram in dB, before it was scaled",
    "std_db": "Standard deviation of the spectrogram in dB, before it was scaled",
}
"""What is in the columns, but for the spectrograms."""


def croissant(manifest: Manifest) -> str:
    """Write the Croissant file of a feature set.

    Parameters
    ----------
    manifest
        The manifest of the finished set.

    Returns
    -------
    str
        JSON-LD: name, licences, a file for each shard with its SHA-256, and the columns of all shards as one record
        set. The same manifest gives the same text.
    """
    shards = {
        "@type": "cr:FileSet",
        "@id": SHARDS,
        "name": SHARDS,
        "description": "All shards.",
        "encodingFormat": PARQUET,
        "includes": f"{SHARDS}/*.parquet",
    }
    files = [
        {
            "@type": "cr:FileObject",
            "@id": entry.file,
            "name": entry.file.removeprefix(f"{SHARDS}/"),
            "description": f"{entry.rows} clips of the {entry.split} split.",
            "contentUrl": entry.file,
            "contentSize": f"{entry.bytes} B",
            "encodingFormat": PARQUET,
            "sha256": entry.sha256,
        }
        for entry in manifest.shards
    ]
    clips = {
        "@type": "cr:RecordSet",
        "@id": "clips",
        "name": "clips",
        "description": "One record a clip.",
        "key": {"@id": "clips/track_id"},
        "field": [_field(field, manifest) for field in manifest.schema],
    }
    texts = [parse(text).url or text for text in licences(manifest)]
    dataset = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"log-mel-{manifest.fingerprint[:12]}",
        "alternateName": title(manifest),
        "description": description(manifest),
        "identifier": manifest.fingerprint,
        "license": list(dict.fromkeys(texts)),
        "keywords": ["music", "music genre classification", "log-Mel spectrogram", *manifest.genres],
        "distribution": [shards, *files],
        "recordSet": [clips],
    }
    return json.dumps(dataset, indent=1, ensure_ascii=False) + "\n"


def _field(field: pa.Field, manifest: Manifest) -> dict[str, Any]:
    """A column of the shards."""
    bands, frames = manifest.spec.shape
    spectrogram = f"Spectrogram: the bytes of {bands} × {frames} little-endian float16 values in C order"
    return {
        "@type": "cr:Field",
        "@id": f"clips/{field.name}",
        "name": field.name,
        "description": MEANING.get(field.name, spectrogram),
        "dataType": _data_type(field.type),
        "source": {"fileSet": {"@id": SHARDS}, "extract": {"column": field.name}},
    }


def _data_type(kind: pa.DataType) -> str:
    """A column's type in the vocabulary, which has none for bytes."""
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"
