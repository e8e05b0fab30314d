"""The encoder: raw table rows to dictionary ids and values, Song et al. 2019, section 4.2.

One dictionary spans all fields: every value of a field and every numerical field owns one row of
the embedding table. It is fitted on training rows, saved with the weights, and applied to new data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from manyhead.autoint.coders import (
    CategoryCoder,
    Coder,
    ListCoder,
    NumberCoder,
    coder_from_meta,
)
from manyhead.autoint.fields import Schema, nearest
from manyhead.autoint.vocabulary import Vocabulary
from manyhead_core.errors import ConfigError, DataError, WeightsError

FORMAT = 1


class Encoded(NamedTuple):
    """Encoded rows as arrays.

    Args:
        index: Ids of the single-valued fields, int32 `(rows, single)`.
        value: Their values, float32 `(rows, single)`; 0 where the value is missing.
        lists: Per list field ids int32 and weights float32, both `(rows, slots)`.
    """

    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index
    value: np.ndarray
    lists: tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclass(frozen=True)
class EncoderOptions:
    """How the dictionary is built.

    Args:
        min_count: Values seen less often in training share the unknown id of their field, which
            trains the embedding that unseen values will get.
        max_slots: Upper bound of the slots of a list field that sets none itself.
        non_finite: Infinite numbers: `missing` counts them and treats them as missing, `error`
            stops.
    """

    min_count: int = 2
    max_slots: int = 50
    non_finite: Literal["missing", "error"] = "missing"

    def __post_init__(self) -> None:
        if self.min_count < 1 or self.max_slots < 1:
            raise ConfigError("encoder: min_count and max_slots must be 1 or more")


class Encoder:
    """Turns raw rows into ids and values.

    Args:
        schema: Meaning of the columns.
        coders: One per field, in token order.
        vocabularies: Dictionaries by the name of the field that owns them.
        num_features: Ids in use: values of all fields, unknown ids and numerical fields.
        num_embeddings: Rows that the embedding table needs; larger than `num_features` where a
            published layout leaves rows unused.
        options: What it was built with.
    """

    def __init__(
        self,
        schema: Schema,
        coders: Iterable[Coder],
        vocabularies: Mapping[str, Vocabulary],
        num_features: int,
        num_embeddings: int | None = None,
        options: EncoderOptions | None = None,
    ) -> None:
        self.schema = schema
        self.coders = tuple(coders)
        self.vocabularies = dict(vocabularies)
        self.num_features = num_features
        self.num_embeddings = num_embeddings or num_features
        self.options = options or EncoderOptions()
        self.non_finite: dict[str, int] = {}

    @classmethod
    def fit(
        cls,
        frames: Iterable[pd.DataFrame],
        schema: Schema,
        options: EncoderOptions | None = None,
    ) -> Encoder:
        """Fit on raw training rows, given in chunks that need not fit into memory together."""
        from manyhead.autoint.fitting import fit

        return fit(frames, schema, options or EncoderOptions())

    @property
    def num_fields(self) -> int:
        """Tokens per row."""
        return len(self.coders)

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names in token order."""
        return tuple(coder.name for coder in self.coders)

    @property
    def feature_counts(self) -> dict[str, int]:
        """Rows of the table that each field owns; 0 for a field that shares another's."""
        return {coder.name: coder.owned for coder in self.coders}

    @property
    def list_slots(self) -> tuple[int, ...]:
        """Slots of every list field."""
        return tuple(coder.slots for coder in self.coders if isinstance(coder, ListCoder))

    def transform(
        self,
        frame: pd.DataFrame,
        *,
        streaming: bool = False,
        absent: Literal["error", "missing"] = "error",
    ) -> Encoded:
        """Encode raw rows; unseen values get the unknown id of their field.

        Args:
            frame: The columns of the schema; label, group and the like are not needed.
            streaming: Give a value its own id only from the row on where the reference
                preprocessing introduced it; the index of `frame` holds the row numbers.
            absent: What to do about a column that is not there.

        Raises:
            DataError: A column is missing or holds what it must not.
        """
        frame = self._complete(frame, absent)
        rows = frame.index.to_numpy() if streaming else None
        single = [c for c in self.coders if not isinstance(c, ListCoder)]
        index = np.empty((len(frame), len(single)), dtype=np.int32)
        value = np.empty((len(frame), len(single)), dtype=np.float32)
        for place, coder in enumerate(single):
            if isinstance(coder, NumberCoder):
                column, bad = coder.encode(frame)
                self._count_non_finite(coder, bad)
                index[:, place], value[:, place] = coder.id, column
            else:
                vocabulary = self._vocabulary(coder)
                index[:, place], value[:, place] = coder.encode(frame, vocabulary, rows)
        lists = tuple(
            coder.encode(frame, self._vocabulary(coder))
            for coder in self.coders
            if isinstance(coder, ListCoder)
        )
        return Encoded(index, value, lists)

    def unseen(self, frame: pd.DataFrame) -> dict[str, float]:
        """Share of the values, missing ones left aside, that have no id of their own.

        NaN for a field without any value; numbers and hashed fields are left out.
        """
        frame = self._complete(frame, "missing")
        return {
            coder.name: coder.unseen(frame, vocabulary)
            for coder in self.coders
            if not isinstance(coder, NumberCoder)
            and (vocabulary := self._vocabulary(coder)) is not None
        }

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Contents as plain values for JSON and tensors; no pickles."""
        meta = {
            "format": FORMAT,
            "schema": self.schema.to_dict(),
            "options": asdict(self.options),
            "num_features": self.num_features,
            "num_embeddings": self.num_embeddings,
            "list_slots": list(self.list_slots),
            "coders": [coder.meta() for coder in self.coders],
            "vocabularies": list(self.vocabularies),
        }
        tensors: dict[str, Tensor] = {}
        for place, vocabulary in enumerate(self.vocabularies.values()):
            tensors |= vocabulary.tensors(f"vocabulary.{place}")
        return meta, tensors

    @classmethod
    def from_state(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Encoder:
        """The reverse of `state`.

        Raises:
            WeightsError: The state was written by a newer version or is incomplete.
        """
        version = meta.get("format")
        if version != FORMAT:
            raise WeightsError(
                f"encoder: format {version}, this version reads {FORMAT}; update manyhead"
            )
        try:
            schema = Schema.from_dict(meta["schema"])
            vocabularies = {
                name: Vocabulary.from_tensors(f"vocabulary.{place}", dict(tensors))
                for place, name in enumerate(meta["vocabularies"])
            }
            coders = [coder_from_meta(row, schema) for row in meta["coders"]]
            sizes = meta["num_features"], meta["num_embeddings"]
            return cls(schema, coders, vocabularies, *sizes, EncoderOptions(**meta["options"]))
        except KeyError as err:
            raise WeightsError(f"encoder: {err} is missing; export the weights again") from err

    def _vocabulary(self, coder: CategoryCoder | ListCoder) -> Vocabulary | None:
        return self.vocabularies.get(coder.field.shares or coder.name)

    def _complete(self, frame: pd.DataFrame, absent: str) -> pd.DataFrame:
        gone = [c for coder in self.coders for c in coder.field.columns if c not in frame]
        if gone and absent == "missing":
            return frame.assign(**dict.fromkeys(gone))
        if gone:
            raise DataError(_absent(gone, frame))
        return frame

    def _count_non_finite(self, coder: NumberCoder, bad: int) -> None:
        if bad and self.options.non_finite == "error":
            raise DataError(
                f"column {coder.field.column}: holds {bad} infinite numbers; "
                "mend the column or set non_finite to missing"
            )
        if bad:
            self.non_finite[coder.name] = self.non_finite.get(coder.name, 0) + bad


def _absent(gone: list[str], frame: pd.DataFrame) -> str:
    hint = nearest(gone[0], frame.columns)
    more = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
    names = ", ".join(str(column) for column in frame.columns[:20])
    return f"column {gone[0]!r}{more} is missing; {hint}the table has: {names}"
