from __future__ import annotations

import pytest
import yaml

from manyhead.autoint.fields import Field, Schema
from manyhead_core.errors import ConfigError


def schema() -> Schema:
    fields = (
        Field("tags", "list", separator="^", max_slots=4),
        Field("item", "category", column="item_id", min_count=3),
        Field("price", "number", transform="log1p", scaling="minmax", missing=("-1",)),
        Field("seen", "list", shares="item"),
    )
    return Schema("click", fields, label_above=2.0, group="user", segments=("item_id",))


def test_tokens_are_single_fields_first_then_lists():
    assert [f.name for f in schema().tokens] == ["item", "price", "tags", "seen"]


def test_columns_name_each_column_once_and_the_label_first():
    assert schema().columns == ("click", "tags", "item_id", "price", "seen", "user")


def test_yaml_and_back_is_the_same_schema(tmp_path):
    path = tmp_path / "schema.yaml"
    path.write_text(yaml.safe_dump(schema().to_dict()))
    assert Schema.load(path) == schema()


def test_plain_values_leave_out_what_is_the_default():
    written = Schema("y", (Field("a", "category"),)).to_dict()
    assert written == {"format": 1, "label": "y", "fields": [{"name": "a", "kind": "category"}]}


def test_a_field_that_shares_hashed_values_hashes_into_the_same_buckets():
    fields = (Field("item", "category", num_buckets=7), Field("seen", "list", shares="item"))
    assert Schema("y", fields).fields[1].num_buckets == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"label": "y", "fields": []}, "at least one field"),
        ({"label": "y"}, "must be a list"),
        ({"fields": [{"name": "a", "kind": "category"}]}, "label is missing"),
        ({"label": "y", "fields": [{"name": "a", "kind": "categry"}]}, "did you mean category"),
        (
            {"label": "y", "fields": [{"name": "a", "kind": "number", "scalling": "none"}]},
            "scaling",
        ),
        ({"label": "a", "fields": [{"name": "a", "kind": "number"}]}, "also a field"),
        ({"label": "y", "fields": [{"name": "a", "kind": "number"}] * 2}, "twice"),
        ({"label": "y", "fields": [{"name": "a", "kind": "list", "shares": "b"}]}, "called 'b'"),
        ({"label": "y", "format": 2, "fields": []}, "update manyhead"),
    ],
)
def test_a_wrong_schema_says_what_to_mend(content, message):
    with pytest.raises(ConfigError, match=message):
        Schema.from_dict(content)


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match="--write_schema"):
        Schema.load(tmp_path / "none.yaml")


def test_broken_yaml_is_one_line(tmp_path):
    path = tmp_path / "schema.yaml"
    path.write_text("label: [y\nfields: {")
    with pytest.raises(ConfigError, match="not valid YAML") as caught:
        Schema.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label: y\nfields: [{name: 2019, kind: number}]", r"fields.name: is 2019; .*'2019'"),
        ("label: no\nfields: [{name: a, kind: number}]", "schema.label: is False; write a text"),
        ("label: y\nsegments: site\nfields: [{name: a, kind: number}]", r"a list: \[site\]"),
        ("label: y\nfields: [{name: a, kind: list, max_slots: many}]", "write a whole number"),
        ("label: y\nlabel_above: low\nfields: [{name: a, kind: list}]", "write a number"),
    ],
)
def test_what_yaml_reads_otherwise_is_named(tmp_path, text, message):
    (tmp_path / "schema.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Schema.load(tmp_path / "schema.yaml")


def test_a_schema_that_is_no_text_is_named(tmp_path):
    (tmp_path / "schema.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is no utf-8 text"):
        Schema.load(tmp_path / "schema.yaml")
