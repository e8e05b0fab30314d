"""feature_map.json: what the columns of encoded Parquet files are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from manyhead.autoint.store import Layout
from manyhead_core.errors import DataError

FORMAT = 1
MAP_FILE = "feature_map.json"
PARTS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
KINDS = {"categorical": "category", "numeric": "number", "sequence": "list"}


@dataclass(frozen=True)
class EncodedField:
    """One column of encoded data.

    Args:
        name: Name of field and column.
        kind: `category`, `number` or `list`.
        offset: Added to an id of the column to give the id in the table of embeddings; the id
            itself for a number.
        size: Ids of the field are below this number; 1 for a number.
        padding: Id that means "no value"; None when only null does.
        slots: Slots of a list.
    """

    name: str
    kind: Literal["category", "number", "list"]
    offset: int
    size: int
    padding: int | None = None
    slots: int = 0


class EncodedFields:
    """The fields of encoded data; takes the place of an encoder, since there is nothing to fit.

    Args:
        label: Column of the label.
        fields: Fields in file order; the token order puts lists last.
        num_features: Rows of the table of embeddings.
    """

    def __init__(self, label: str, fields: Sequence[EncodedField], num_features: int) -> None:
        self.label, self.num_features = label, num_features
        self.singles = [field for field in fields if field.kind != "list"]
        self.lists = [field for field in fields if field.kind == "list"]
        if not self.singles:
            raise DataError(f"{MAP_FILE}: no single-valued field; at least one is needed")

    @property
    def fields(self) -> list[EncodedField]:
        """Fields in token order."""
        return self.singles + self.lists

    @property
    def num_fields(self) -> int:
        """Number of tokens."""
        return len(self.fields)

    @property
    def field_names(self) -> list[str]:
        """Names in token order."""
        return [field.name for field in self.fields]

    @property
    def feature_counts(self) -> dict[str, int]:
        """Ids of each field."""
        return {field.name: field.size for field in self.fields}

    @property
    def list_slots(self) -> tuple[int, ...]:
        """Slots of each multi-valued field."""
        return tuple(field.slots for field in self.lists)

    @property
    def layout(self) -> Layout:
        """Layout of the rows in a store."""
        return Layout(len(self.singles), self.list_slots)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is saved with the weights; there are no tensors."""
        return {"format": FORMAT, "kind": "encoded", "map": self.to_map()}, {}

    @classmethod
    def from_state(
        cls,
        meta: Mapping[str, Any],
        tensors: Mapping[str, Tensor],  # noqa: ARG003
    ) -> EncodedFields:
        """The inverse of `state`."""
        return cls.from_map(meta["map"])

    def to_map(self) -> dict[str, Any]:
        """Content of feature_map.json, in the form that `from_map` reads."""
        kinds = {kind: name for name, kind in KINDS.items()}
        features = [
            {
                field.name: {
                    "type": kinds[field.kind],
                    "vocab_size": field.size,
                    "offset": field.offset,
                    **({} if field.padding is None else {"padding_idx": field.padding}),
                    **({"max_len": field.slots} if field.kind == "list" else {}),
                }
            }
            for field in self.fields
        ]
        return {
            "format": FORMAT,
            "labels": [self.label],
            "num_fields": self.num_fields,
            "total_features": self.num_features,
            "features": features,
        }

    @classmethod
    def from_map(cls, content: Mapping[str, Any]) -> EncodedFields:
        """Build from a feature map: this suite's own, or one of FuxiCTR.

        The latter counts ids within each field; its fields get consecutive ranges of ids.

        Raises:
            DataError: The map lacks what is needed, or knows a kind of field that we do not.
        """
        try:
            label = content["labels"][0]
            entries = [item for feature in content["features"] for item in feature.items()]
        except (KeyError, IndexError, TypeError, AttributeError) as err:
            raise DataError(
                f"{MAP_FILE}: needs labels (a list of one name) and features (a list)"
            ) from err
        if content.get("format", FORMAT) > FORMAT:
            raise DataError(
                f"{MAP_FILE}: format {content['format']} is newer than this version reads "
                f"({FORMAT}); update manyhead"
            )
        fields: list[EncodedField] = []
        top = 0
        for name, entry in entries:
            field = _field(name, entry, top)
            top = max(top, field.offset + field.size)
            fields.append(field)
        # `total_features` of other toolkits counts shared tables in its own way.
        total = content["total_features"] if "format" in content else top
        return cls(label, fields, max(total, top))


def _field(name: str, entry: Mapping[str, Any], top: int) -> EncodedField:
    kind = KINDS.get(str(entry.get("type", "")))
    if kind is None:
        known = ", ".join(KINDS)
        raise DataError(
            f"{MAP_FILE}: field {name} is of type {entry.get('type')!r}; known: {known}"
        )
    size = 1 if kind == "number" else int(entry.get("vocab_size", 0))
    if size < 1:
        raise DataError(f"{MAP_FILE}: field {name} has no vocab_size; add its number of ids")
    slots = int(entry.get("max_len", 0)) if kind == "list" else 0
    if kind == "list" and slots < 1:
        raise DataError(f"{MAP_FILE}: field {name} has no max_len; add its number of slots")
    padding = entry.get("padding_idx") if kind != "number" else None
    return EncodedField(name, kind, int(entry.get("offset", top)), size, padding, slots)  # type: ignore[arg-type]


def read_map(root: Path) -> EncodedFields:
    """Read feature_map.json of a folder of encoded data.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    path = Path(root) / MAP_FILE
    if not path.is_file():
        raise DataError(
            f"data.root: {root} holds no {MAP_FILE}; pass a folder of encoded Parquet or "
            "another --data.format"
        )
    try:
        return EncodedFields.from_map(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as err:
        raise DataError(f"{path}: is no valid JSON: {err}") from err


def part_files(root: Path) -> dict[str, list[Path]]:
    """The Parquet files of each part of a folder: `train.parquet`, `train_*.parquet`, `train/`."""
    found: dict[str, list[Path]] = {}
    for part, names in PARTS.items():
        for name in names:
            files = [Path(root) / f"{name}.parquet"]
            files += sorted(Path(root).glob(f"{name}_*.parquet"))
            files += sorted((Path(root) / name).rglob("*.parquet"))
            found.setdefault(part, []).extend(file for file in files if file.is_file())
    return found


def write_map(folder: Path, fields: EncodedFields) -> Path:
    """Write feature_map.json."""
    path = Path(folder) / MAP_FILE
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(fields.to_map(), indent=1), encoding="utf-8")
    return partial.replace(path)
