"""Bundle: everything that answers a raw query, in one folder with a manifest.

    manifest.json            format, library version, hash of the schema, and the SHA-256 and size of every other file
    model/                   towers: structure as JSON, weights as safetensors
    preprocessor/            vocabularies and scales
    items.parquet            raw ids and display fields of the candidates, with their keys in the index
    index/                   the candidates' vectors and what finds them; built-from.json says from which tower and items
    users.sqlite             features of users by id, if there are any
    metrics.json             what was measured before it was saved
    origin.json              what it was made from, if `twotower refresh` made it

`load_bundle` verifies all of it before anything is used. The folder is written aside and changes places with an older one at
once, so that a crash leaves the old bundle whole. Nothing in it is a pickle.
"""

import datetime
import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from twotower.data.preprocessor import Preprocessor
from twotower.encoder import embed
from twotower.feature_stores.base import FeatureStore
from twotower.feature_stores.sqlite import SQLiteFeatures
from twotower.files import PathLike, folder_written_aside, restore_folder, sha256_of
from twotower.indexes.base import Index
from twotower.indexes.kinds import load_index
from twotower.models.base import RetrievalModelV2
from twotower.schema import Schema
from twotower.schema_io import schema_to_json

FORMAT = 2
KEY = "__key"  # the column of items.parquet that says under which key the index holds an item
MADE_FROM = ("model/weights.safetensors", "preprocessor/preprocessor.json", "items.parquet")
ALWAYS = (*MADE_FROM, "model/module.json", "index/index.json", "index/built-from.json", "metrics.json")
AGAIN = "save the bundle again, as a whole."
TRIES = 3  # a bundle that is replaced while it is read is read again
CHECKED_ITEMS = 4  # encoded again when a bundle is loaded
TOLERANCE = 1e-3  # of their vectors: another processor rounds otherwise


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained model with what it needs to answer raw queries.

    Args:
        model: the trained model.
        preprocessor: encodes raw queries as it encoded the training data.
        items: (N rows) raw ids, what the candidate tower reads, and display fields of the candidates.
        keys: (N,) int64, under which the index holds each item.
        index: the candidates' vectors.
        users: features of users by their id, if there are any.
        metrics: what was measured, by name.
        origin: what it was made from, as plain JSON.

    Raises:
        ValueError: model and preprocessor know other ids, or the index holds other candidates than the items.
    """

    model: RetrievalModelV2
    preprocessor: Preprocessor
    items: pl.DataFrame
    keys: Tensor
    index: Index
    users: FeatureStore | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_ids(self.model.input_schema, self.preprocessor.schema)
        if self.index.dim != self.model.candidate.dim:
            raise ValueError(
                f"the index holds vectors of width {self.index.dim}, but the candidate tower gives "
                f"{self.model.candidate.dim}: they do not belong together. Build the index from this model's candidates."
            )
        if KEY in self.items.columns:
            raise ValueError(f"the items have a column {KEY!r}, which a bundle keeps for itself; rename it.")
        if len(self.items) != len(self.keys) or len(self.index) != len(self.keys):
            raise ValueError(
                f"the index holds {len(self.index)} candidates, but there are {len(self.items)} items with "
                f"{len(self.keys)} keys: they do not belong together. Build the index from these items."
            )
        if not torch.equal(self.keys.sort().values, self.index.keys.cpu().sort().values):
            raise ValueError(
                "the index holds other candidates than the items: build it from these items, with their keys."
            )

    @property
    def vectors(self) -> Float[Tensor, "N D"]:
        """The candidates' vectors, row for row with `items`."""
        return self.index.vectors_of(self.keys)


def save_bundle(bundle: Bundle, path: PathLike) -> None:
    """Write the folder; an older bundle at the path is replaced only when the new one is complete.

    Raises:
        ValueError: something else stands at the path.
    """
    with folder_written_aside(path, "manifest.json") as folder:
        bundle.model.save(folder / "model")
        bundle.preprocessor.save(folder / "preprocessor")
        bundle.items.with_columns(pl.Series(KEY, bundle.keys.numpy())).write_parquet(folder / "items.parquet")
        bundle.index.save(folder / "index")
        made_from = {name: sha256_of(folder / name) for name in MADE_FROM}
        (folder / "index" / "built-from.json").write_text(json.dumps(made_from, indent=1))
        if bundle.users is not None:
            bundle.users.write_sqlite(folder / "users.sqlite")
        (folder / "metrics.json").write_text(json.dumps(dict(bundle.metrics), indent=1))
        if bundle.origin:
            (folder / "origin.json").write_text(json.dumps(dict(bundle.origin), indent=1))
        files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
        manifest = {
            "format": FORMAT,
            "twotower": importlib.import_module("twotower").__version__,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "candidate_id": bundle.model.candidate_id.name,
            "items": len(bundle.items),
            "schema": _schema_hash(bundle.model.input_schema),
            "files": {
                f.relative_to(folder).as_posix(): {"sha256": sha256_of(f), "bytes": f.stat().st_size} for f in files
            },
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def load_bundle(path: PathLike, custom_objects: Mapping[str, type] | None = None) -> Bundle:
    """Read and verify a bundle.

    Args:
        path: the folder.
        custom_objects: classes of your own that the model is built from, by name.

    Raises:
        ValueError: no manifest, another format, a file that is missing, changed or too many, or parts that do not belong
            together; the part is named.
    """
    folder = Path(path)
    for _ in range(TRIES):
        manifest = _verified(folder)
        bundle = _read(folder, manifest, custom_objects)
        if read_manifest(folder) == manifest:
            return bundle
    raise ValueError(f"the bundle at {folder} changed {TRIES} times while it was read. Try again.")


def _read(folder: Path, manifest: Mapping[str, Any], custom_objects: Mapping[str, type] | None) -> Bundle:
    """What was verified."""
    model = RetrievalModelV2.load(folder / "model", custom_objects)
    if _schema_hash(model.input_schema) != manifest["schema"]:
        raise ValueError(
            f"the model in the bundle at {folder} reads another schema than the bundle was saved with: {AGAIN}"
        )
    table = pl.read_parquet(folder / "items.parquet", glob=False)
    users, origin = folder / "users.sqlite", folder / "origin.json"
    bundle = Bundle(
        model,
        Preprocessor.load(folder / "preprocessor"),
        table.drop(KEY),
        torch.from_numpy(table[KEY].to_numpy().copy()),
        load_index(folder / "index", {n: c for n, c in (custom_objects or {}).items() if issubclass(c, Index)}),
        SQLiteFeatures(users, read_only=True) if users.exists() else None,
        json.loads((folder / "metrics.json").read_text()),
        json.loads(origin.read_text()) if origin.exists() else {},
    )
    _check_vectors(bundle, folder)
    return bundle


def read_manifest(path: PathLike) -> dict[str, Any]:
    """manifest.json of a bundle, not verified.

    Raises:
        ValueError: no manifest, or one of another format.
    """
    restore_folder(path)
    file = Path(path) / "manifest.json"
    if not file.exists():
        raise ValueError(f"no bundle at {path}: manifest.json is missing. Give the folder that save() wrote.")
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"the bundle at {path} is damaged: manifest.json was changed or cut short ({error})."
        ) from error
    if not isinstance(manifest, dict):
        raise ValueError(f"the bundle at {path} is damaged: manifest.json holds no object, but {str(manifest)[:50]}.")
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"the bundle at {path} has format {manifest.get('format')}, written by twotower {manifest.get('twotower')}; this "
            f"version reads {FORMAT}. Save it again with this version."
        )
    files = manifest.get("files")
    whole = isinstance(files, dict) and all(
        isinstance(f, dict) and isinstance(f.get("sha256"), str) for f in files.values()
    )
    lacking = [name for name in ALWAYS if not isinstance(files, dict) or name not in files]
    if not whole or lacking or not isinstance(manifest.get("schema"), str):
        raise ValueError(
            f"the bundle at {path} is damaged: manifest.json lacks {lacking or 'what a bundle has'}. {AGAIN.capitalize()}"
        )
    return manifest


def _verified(folder: Path) -> dict[str, Any]:
    """The manifest, after every file was compared with it."""
    manifest = read_manifest(folder)
    there = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()} - {"manifest.json"}
    # a hub adds a card and files of its own; nothing here reads them
    extra = sorted(n for n in there - set(manifest["files"]) if n != "README.md" and not n.startswith("."))
    if extra:
        raise ValueError(
            f"the bundle at {folder} holds {extra[0]}, which its manifest does not know. Remove it, or {AGAIN}"
        )
    hashes: dict[str, str] = {}
    for name, expected in manifest["files"].items():
        hashes[name] = sha256_of(folder / name) if name in there else ""
        if hashes[name] != expected["sha256"]:
            state = "is missing" if name not in there else "was changed or cut short"
            raise ValueError(f"the bundle at {folder} is damaged: {name} {state}. Save the bundle again.")
    for name, made_from in json.loads((folder / "index" / "built-from.json").read_text()).items():
        if hashes[name] != made_from:
            raise ValueError(
                f"the index in the bundle at {folder} was built from another {name} than the bundle holds: their vectors would not "
                f"belong together. Build the index anew with Retriever(model, preprocessor, items), and {AGAIN}"
            )
    return manifest


def _check_vectors(bundle: Bundle, folder: Path) -> None:
    """The tower must still give the vectors that the index holds."""
    some = bundle.items.head(CHECKED_ITEMS)
    if not len(some):
        return
    now = embed(bundle.model.candidate, bundle.preprocessor.transform(some))
    held = bundle.index.vectors_of(bundle.keys[:CHECKED_ITEMS])
    if not torch.allclose(now, held, rtol=TOLERANCE, atol=TOLERANCE * float(held.abs().max())):
        raise ValueError(
            f"the candidate tower in the bundle at {folder} gives other vectors than its index holds, by up to "
            f"{float((now - held).abs().max()):.2g}: {AGAIN}"
        )


def _check_ids(model: Schema, preprocessor: Schema) -> None:
    """ValueError when the model was trained on other codes than the Preprocessor gives."""
    for column in model:
        if column.name not in preprocessor:
            continue
        given = preprocessor[column.name]
        trained, now = ((c.int_domain, c.properties.get("vocabulary")) for c in (column, given))
        if trained != now and trained[1] is not None:
            raise ValueError(
                f"column {column.name!r} was trained on other ids than this Preprocessor gives ({trained} against {now}). Give the "
                "Preprocessor of the training data; after preprocessor.extend, call model.extend(preprocessor.schema) first."
            )


def _schema_hash(schema: Schema) -> str:
    return hashlib.sha256(schema_to_json(schema).encode()).hexdigest()
