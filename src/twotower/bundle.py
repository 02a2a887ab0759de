"""Bundle: everything that answers a raw query, in one folder with a manifest.

manifest.json lists every other file with its SHA-256; `load` verifies them before it reads anything else. The folder
is written aside and renamed, so that a crash leaves the old bundle whole.
"""

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import safetensors.torch
from jaxtyping import Float
from torch import Tensor

from twotower.data.preprocessor import Preprocessor
from twotower.files import PathLike, folder_written_aside
from twotower.models.base import RetrievalModelV2

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained model with what it needs to answer raw queries.

    Args:
        model: the trained model.
        preprocessor: encodes raw queries as it encoded the training data.
        items: (N rows) raw ids and display fields of the candidates.
        vectors: (N, D) the candidates' vectors, row for row.
    """

    model: RetrievalModelV2
    preprocessor: Preprocessor
    items: pl.DataFrame
    vectors: Float[Tensor, "N D"]


def save_bundle(bundle: Bundle, path: PathLike) -> None:
    """Write the folder; an older bundle at the path is replaced only when the new one is complete."""
    with folder_written_aside(path, "manifest.json") as folder:
        bundle.model.save(folder / "model")
        bundle.preprocessor.save(folder / "preprocessor")
        bundle.items.write_parquet(folder / "items.parquet")
        safetensors.torch.save_file({"vectors": bundle.vectors.contiguous()}, folder / "vectors.safetensors")
        manifest = {
            "format": FORMAT,
            "twotower": importlib.import_module("twotower").__version__,
            "candidate_id": bundle.model.candidate_id.name,
            "files": {str(f.relative_to(folder)): _sha256(f) for f in sorted(folder.rglob("*")) if f.is_file()},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


def load_bundle(path: PathLike, custom_objects: Mapping[str, type] | None = None) -> Bundle:
    """Read a bundle; classes of your own that the model is built from by name in `custom_objects`.

    Raises:
        ValueError: no manifest, another format, or a file that is missing or differs from the manifest.
    """
    folder = Path(path)
    if not (folder / "manifest.json").exists():
        raise ValueError(f"no bundle at {folder}: manifest.json is missing. Give the folder that save() wrote.")
    manifest = json.loads((folder / "manifest.json").read_text())
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"the bundle at {folder} has format {manifest['format']}, written by twotower {manifest['twotower']}; this "
            f"version reads {FORMAT}."
        )
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.exists() or _sha256(file) != expected:
            state = "is missing" if not file.exists() else "was changed or cut short"
            raise ValueError(f"the bundle at {folder} is damaged: {name} {state}. Save the bundle again.")
    items = pl.read_parquet(folder / "items.parquet")
    vectors = safetensors.torch.load_file(folder / "vectors.safetensors")["vectors"]
    if len(items) != len(vectors):
        raise ValueError(f"the bundle at {folder} is mixed up: {len(items)} items, but {len(vectors)} vectors.")
    return Bundle(
        RetrievalModelV2.load(folder / "model", custom_objects),
        Preprocessor.load(folder / "preprocessor"),
        items,
        vectors,
    )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
