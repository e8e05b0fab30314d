"""What the columns of a table mean: fields, label, group, time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml

from manyhead_core.errors import ConfigError

Kind = Literal["number", "category", "list"]
Transform = Literal["none", "log_square", "log1p"]
Scaling = Literal["none", "standard", "minmax"]
FORMAT = 1
# What a value of a YAML file must be, by annotation, and how to write it.
TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "str": (str, "a text, in quotes: '{}'"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "tuple[str, ...]": ((list, tuple), "a list: [{}]"),
}
Part = TypeVar("Part", "Field", "Schema")


@dataclass(frozen=True)
class Field:
    """One field of a row: one token of the model.

    Args:
        name: Name in reports and maps.
        kind: `number`, `category` (one value) or `list` (any number of values).
        column: Column of the table; empty means `name`.
        transform: Of a number. `log_square`: x up to 2, floor(ln(x)^2) above; `log1p`:
            sign(x) * ln(1 + |x|).
        scaling: Of a number, fitted on training rows: `standard`, `minmax` or `none`.
        min_count: Values seen less often in training share the unknown id; None takes the
            encoder's.
        num_buckets: Hash the values into so many ids instead of keeping a dictionary; 0 keeps one.
        shares: Name of the field whose dictionary this one uses.
        separator: Between the values of a list in a text column.
        weights: Column with the weights of a list, in the same form; empty means weight 1.
        max_slots: Longest list kept; 0 takes the longest in training.
        missing: Further texts that mean "no value"; the empty text always does.
    """

    name: str
    kind: Kind
    column: str = ""
    transform: Transform = "none"
    scaling: Scaling = "standard"
    min_count: int | None = None
    num_buckets: int = 0
    shares: str = ""
    separator: str = "|"
    weights: str = ""
    max_slots: int = 0
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "column", self.column or self.name)
        object.__setattr__(self, "missing", tuple(str(text) for text in self.missing))
        for option, known in (("kind", Kind), ("transform", Transform), ("scaling", Scaling)):
            _one_of(f"fields.{self.name}.{option}", getattr(self, option), get_args(known))
        if self.kind == "number" and (self.shares or self.num_buckets):
            raise ConfigError(
                f"fields.{self.name}: a number has no dictionary; drop shares and num_buckets"
            )
        if self.kind == "list" and not self.separator:
            raise ConfigError(f"fields.{self.name}.separator: is empty; pass one such as '|'")
        for option in ("num_buckets", "max_slots"):
            if getattr(self, option) < 0:
                raise ConfigError(f"fields.{self.name}.{option}: must be 0 or more")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that this field reads."""
        return (self.column, self.weights) if self.weights else (self.column,)


@dataclass(frozen=True)
class Schema:
    """The columns of a table.

    Args:
        label: Column of the label, 0 or 1.
        fields: Fields in column order; the tokens are the single-valued ones in this order, then
            the lists.
        label_above: A label larger than this counts as 1, any other as 0; None expects 0 and 1.
        row_id: Column that identifies a row.
        group: Column of the unit that rows belong to, such as the user.
        time: Column to order rows by.
        segments: Columns that evaluation breaks the results down by.
        delimiter: Of a text file; empty: tab for .tsv, comma for all other text files.
        decimal: Mark in the numbers of a text file: a point or a comma.
        header: Names of the columns when the text file has no header line.
    """

    label: str
    fields: tuple[Field, ...]
    label_above: float | None = None
    row_id: str | None = None
    group: str | None = None
    time: str | None = None
    segments: tuple[str, ...] = ()
    delimiter: str = ""
    decimal: str = "."
    header: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        object.__setattr__(self, "segments", tuple(self.segments))
        object.__setattr__(self, "header", tuple(self.header))
        _one_of("schema.decimal", self.decimal, (".", ","))
        if not self.fields:
            raise ConfigError("schema.fields: is empty; name at least one field")
        names = [f.name for f in self.fields]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"schema.fields: {name!r} appears twice; give each its own name")
        if any(self.label in f.columns for f in self.fields):
            raise ConfigError(
                f"schema.fields: the label column {self.label!r} is also a field; drop the field"
            )
        self._check_shares()
        buckets = {f.name: f.num_buckets for f in self.fields}
        shared = [replace(f, num_buckets=buckets[f.shares]) if f.shares else f for f in self.fields]
        object.__setattr__(self, "fields", tuple(shared))

    @property
    def single(self) -> tuple[Field, ...]:
        """Single-valued fields, in token order."""
        return tuple(f for f in self.fields if f.kind != "list")

    @property
    def lists(self) -> tuple[Field, ...]:
        """Multi-valued fields, in token order."""
        return tuple(f for f in self.fields if f.kind == "list")

    @property
    def tokens(self) -> tuple[Field, ...]:
        """All fields in token order."""
        return self.single + self.lists

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read, without repeats; the label first."""
        of_fields = [column for f in self.fields for column in f.columns]
        extra = [c for c in (self.row_id, self.group, self.time, *self.segments) if c]
        return tuple(dict.fromkeys([self.label, *of_fields, *extra]))

    @classmethod
    def load(cls, path: Path | str) -> Schema:
        """Read a schema from a YAML file.

        Raises:
            ConfigError: The file does not exist or does not hold a schema.
        """
        path = Path(path)
        if not path.is_file():
            raise ConfigError(
                f"schema: file {path} does not exist; "
                "`manyhead autoint inspect --input TABLE --write_schema FILE` drafts one"
            )
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as err:
            raise ConfigError(f"schema: {path} is no utf-8 text; is it a YAML file?") from err
        except yaml.YAMLError as err:
            line = " ".join(str(err).split())
            raise ConfigError(f"schema: {path} is not valid YAML: {line}") from err
        if not isinstance(content, Mapping):
            raise ConfigError(f"schema: {path} holds no mapping with label and fields")
        return cls.from_dict(content)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Schema:
        """Build a schema from plain values.

        Raises:
            ConfigError: A key is unknown or missing, or a value is not allowed.
        """
        values = {key: value for key, value in content.items() if value is not None}
        version = values.pop("format", FORMAT)
        if version != FORMAT:
            raise ConfigError(
                f"schema.format: is {version}, this version reads {FORMAT}; update manyhead"
            )
        rows = values.get("fields")
        if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
            raise ConfigError("schema.fields: must be a list of fields with name and kind")
        values["fields"] = tuple(_build(Field, row, "schema.fields") for row in rows)
        return _build(cls, values, "schema")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML or JSON, without what equals the default."""
        content = {key: _plain(value) for key, value in _changed(self).items() if key != "fields"}
        rows = [{k: _plain(v) for k, v in _changed(f).items()} for f in self.fields]
        return {"format": FORMAT, **content, "fields": rows}

    def _check_shares(self) -> None:
        owners = {f.name: f for f in self.fields if f.kind != "number"}
        for f in self.fields:
            if f.shares and f.shares not in owners:
                raise ConfigError(
                    f"fields.{f.name}.shares: there is no category or list called {f.shares!r}"
                )
            if f.shares and owners[f.shares].shares:
                raise ConfigError(
                    f"fields.{f.name}.shares: {f.shares!r} itself shares another dictionary; "
                    f"name {owners[f.shares].shares!r}"
                )


def nearest(name: str, known: Iterable[object]) -> str:
    """A hint with the most similar known name, or the empty text."""
    near = get_close_matches(name, [str(other) for other in known], n=1)
    return f"did you mean {near[0]}? " if near else ""


def _build(kind: type[Part], values: Mapping[str, Any], where: str) -> Part:
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            names = ", ".join(known)
            raise ConfigError(
                f"{where}: unknown key {key!r}; {nearest(str(key), known)}known: {names}"
            )
    for key, value in values.items():
        _check_type(f"{where}.{key}", value, str(known[key].type))
    for key, entry in known.items():
        needed = entry.default is MISSING and entry.default_factory is MISSING
        if needed and key not in values:
            raise ConfigError(f"{where}: {key} is missing in {dict(values)}")
    try:
        return kind(**values)
    except TypeError as err:
        raise ConfigError(f"{where}: {err}") from err


def _check_type(where: str, value: Any, annotation: str) -> None:
    """Raise when YAML has read something else than was meant: 2019 as a number, no as False."""
    kind = annotation.removesuffix(" | None")
    if kind not in TYPES or (value is None and kind != annotation):
        return
    types, what = TYPES[kind]
    if not isinstance(value, types) or isinstance(value, bool):
        raise ConfigError(f"{where}: is {value!r}; write {what.format(value)}")


def _changed(part: Field | Schema) -> dict[str, Any]:
    """Values that differ from their default; `column` only where it is not the name."""
    values = {f.name: getattr(part, f.name) for f in fields(part)}
    changed = {
        f.name: values[f.name]
        for f in fields(part)
        if f.default is MISSING or values[f.name] != f.default
    }
    if isinstance(part, Field) and part.column == part.name:
        del changed["column"]
    return changed


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return asdict(value) if isinstance(value, Field) else value


def _one_of(where: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        hint = nearest(str(value), known)
        raise ConfigError(f"{where}: is {value!r}; {hint}choose one of {', '.join(known)}")
