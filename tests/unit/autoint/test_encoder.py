from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from manyhead.autoint.encoder import Encoder, EncoderOptions
from manyhead.autoint.encoding import encode, fit_encoder, group_ids
from manyhead.autoint.fields import Field, Schema
from manyhead.autoint.sources import open_source
from manyhead.autoint.sources.table import TableSource
from manyhead.autoint.vocabulary import hash_texts
from manyhead_core.errors import ConfigError, DataError, WeightsError

ONE = EncoderOptions(min_count=1)


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns)


def fitted(table: pd.DataFrame, *fields: Field, options: EncoderOptions = ONE) -> Encoder:
    return Encoder.fit([table], Schema("y", fields), options)


def test_every_field_owns_a_block_with_the_unknown_id_first():
    table = frame(a=["x", "y", "x"], n=[1.0, 2.0, 3.0], b=["x", "x", "z"])
    fields = Field("a", "category"), Field("n", "number"), Field("b", "category")
    encoder = fitted(table, *fields)
    index = encoder.transform(table).index
    assert index.tolist() == [[1, 3, 5], [2, 3, 5], [1, 3, 6]]
    assert encoder.num_features == encoder.num_embeddings == 7
    assert encoder.feature_counts == {"a": 3, "n": 1, "b": 3}
    assert index.dtype == np.int32


def test_rare_and_unseen_values_share_the_unknown_id():
    encoder = fitted(
        frame(a=["x", "x", "rare"]), Field("a", "category"), options=EncoderOptions(min_count=2)
    )
    encoded = encoder.transform(frame(a=["x", "rare", "new"]))
    assert encoded.index[:, 0].tolist() == [1, 0, 0]
    assert encoded.value[:, 0].tolist() == [1, 1, 1]
    assert encoder.unseen(frame(a=["x", "rare", "new", None])) == {"a": pytest.approx(2 / 3)}


def test_min_count_of_a_field_wins():
    fields = Field("a", "category", min_count=3), Field("b", "category")
    encoder = fitted(frame(a=["x"] * 2, b=["x"] * 2), *fields)
    assert encoder.feature_counts == {"a": 1, "b": 2}


@pytest.mark.parametrize("gap", [None, "", np.nan, "-"])
def test_a_missing_category_has_value_0(gap):
    encoder = fitted(frame(a=["x", gap, "y"]), Field("a", "category", missing=("-",)))
    encoded = encoder.transform(frame(a=["y", gap]))
    assert encoded.value[:, 0].tolist() == [1, 0]
    assert encoder.num_features == 3


def test_numbers_are_scaled_by_training_rows_and_gaps_are_0():
    numbers = [1.0, 3.0, np.nan, 5.0]
    fields = (
        Field("s", "number"),
        Field("m", "number", scaling="minmax"),
        Field("r", "number", scaling="none"),
    )
    encoder = fitted(frame(s=numbers, m=numbers, r=numbers), *fields)
    new = [5.0, 9.0, np.nan]
    value = encoder.transform(frame(s=new, m=new, r=new)).value
    spread = np.std([1, 3, 5])
    expected = [[2 / spread, 1, 5], [6 / spread, 2, 9], [0, 0, 0]]
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_scaling_over_chunks_equals_scaling_of_all():
    numbers = np.random.default_rng(0).normal(1e6, 2.0, 1000)
    chunks = [frame(n=part) for part in np.array_split(numbers, 7)]
    schema = Schema("y", (Field("n", "number"),))
    value = Encoder.fit(chunks, schema).transform(frame(n=numbers)).value[:, 0]
    np.testing.assert_allclose(value, (numbers - numbers.mean()) / numbers.std(), atol=1e-5)


def test_a_constant_number_does_not_divide_by_zero():
    encoder = fitted(frame(n=[4.0, 4.0]), Field("n", "number"))
    assert encoder.transform(frame(n=[4.0, 5.0])).value[:, 0].tolist() == [0, 1]


def test_log_square_is_the_published_transform():
    field = Field("n", "number", transform="log_square", scaling="none")
    value = fitted(frame(n=[1.0]), field).transform(frame(n=[-3, 0, 2, 3, 100, 1382])).value
    assert value[:, 0].tolist() == [-3, 0, 2, 1, 21, 52]


def test_log1p_takes_negative_numbers():
    field = Field("n", "number", transform="log1p", scaling="none")
    value = fitted(frame(n=[1.0]), field).transform(frame(n=[-3.0, 3.0])).value
    np.testing.assert_allclose(value[:, 0], [-np.log(4), np.log(4)], rtol=1e-6)


def test_infinite_numbers_are_missing_and_counted():
    encoder = fitted(frame(n=[1.0, np.inf, 3.0]), Field("n", "number"))
    value = encoder.transform(frame(n=[-np.inf, 3.0])).value[:, 0]
    assert value.tolist() == [0, 1]
    assert encoder.non_finite == {"n": 1}


def test_infinite_numbers_can_be_an_error():
    options = EncoderOptions(non_finite="error")
    encoder = fitted(frame(n=[1.0, 3.0]), Field("n", "number"), options=options)
    with pytest.raises(DataError, match="column n: holds 1 infinite"):
        encoder.transform(frame(n=[np.inf]))


def test_text_in_a_number_column_names_row_and_value():
    table = pd.DataFrame({"n": ["1", "2", "abc"]}, index=[10, 11, 12])
    with pytest.raises(DataError, match="column n, row 12: 'abc' is no number"):
        fitted(table, Field("n", "number"))


def test_numbers_as_text_are_read():
    encoder = fitted(frame(n=["1", "", "3", "NA"]), Field("n", "number", missing=("NA",)))
    assert encoder.transform(frame(n=["3", "NA"])).value[:, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    "column",
    [["3", "12"], [3, 12], [3.0, 12.0], pd.array([3, 12], dtype="Int64"), pd.Categorical([3, 12])],
)
def test_a_code_is_the_same_value_in_every_type(column):
    encoder = fitted(frame(a=["12", "3"]), Field("a", "category"))
    assert encoder.transform(frame(a=column)).index[:, 0].tolist() == [2, 1]


def test_64_bit_ids_keep_all_digits():
    big = 2**62 + 1
    encoder = fitted(frame(a=[big, big + 1]), Field("a", "category"))
    assert encoder.transform(frame(a=[str(big + 1), str(big)])).index[:, 0].tolist() == [2, 1]


def test_lists_fill_slots_and_pad_with_weight_0():
    table = frame(t=["a|b|c", "", "b", None, "c|c"])
    encoder = fitted(table, Field("t", "list"))
    ids, weights = encoder.transform(table).lists[0]
    assert ids.tolist() == [[1, 2, 3], [0, 0, 0], [2, 0, 0], [0, 0, 0], [3, 3, 0]]
    assert weights.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert encoder.list_slots == (3,)


def test_lists_of_parquet_equal_delimited_text():
    field = Field("t", "list")
    lists = frame(t=[np.array(["a", "b"], dtype=object), None, ["b"], []])
    encoder = fitted(frame(t=["a|b", "", "b", ""]), field)
    for ours, theirs in zip(
        encoder.transform(lists).lists[0],
        encoder.transform(frame(t=["a|b", None, "b", ""])).lists[0],
        strict=True,
    ):
        assert ours.tolist() == theirs.tolist()


def test_longer_lists_lose_their_end():
    encoder = fitted(frame(t=["a|b|c|d"]), Field("t", "list", max_slots=2))
    assert encoder.transform(frame(t=["d|c|b|a", "z"])).lists[0][0].tolist() == [[4, 3], [0, 0]]


def test_weights_of_a_list_come_from_their_own_column():
    table = frame(t=["a|b", "b", ""], w=["0.5|2", "3", ""])
    encoder = fitted(table, Field("t", "list", weights="w"))
    assert encoder.transform(table).lists[0][1].tolist() == [[0.5, 2], [3, 0], [0, 0]]


@pytest.mark.parametrize(
    ("weights", "message"), [("1", "row 0: has 1 weights for 2"), ("1|-1", "0 or more")]
)
def test_wrong_weights_are_refused(weights, message):
    encoder = fitted(frame(t=["a|b"], w=["1|1"]), Field("t", "list", weights="w"))
    with pytest.raises(DataError, match=message):
        encoder.transform(frame(t=["a|b"], w=[weights]))


def test_fields_can_share_a_dictionary():
    table = frame(item=["a", "b"], seen=["b|c", "a"])
    encoder = fitted(table, Field("item", "category"), Field("seen", "list", shares="item"))
    encoded = encoder.transform(table)
    assert encoded.index[:, 0].tolist() == [1, 2]
    assert encoded.lists[0][0].tolist() == [[2, 3], [1, 0]]
    assert encoder.feature_counts == {"item": 4, "seen": 0}


def test_hashed_fields_need_no_dictionary_and_know_no_unseen_value():
    fields = Field("a", "category"), Field("b", "category", num_buckets=10)
    encoder = fitted(frame(a=["x"], b=["x"]), *fields)
    ids = encoder.transform(frame(a=["x"] * 50, b=[str(n) for n in range(50)])).index[:, 1]
    assert encoder.num_features == 12
    assert ids.min() >= 2
    assert ids.max() <= 11
    assert len(np.unique(ids)) == 10
    assert list(encoder.unseen(frame(a=["x"], b=["y"]))) == ["a"]


def test_hashes_are_the_same_in_every_process_and_version():
    # Saved models depend on these numbers.
    hashes = hash_texts(np.array(["a", "é", ""], dtype=object)).tolist()
    assert hashes == [15274115773151787720, 15518835523818932747, 18156241167437517946]


def test_a_missing_column_names_the_nearest():
    encoder = fitted(frame(colour=["x"]), Field("colour", "category"))
    with pytest.raises(DataError, match=r"'colour' is missing; did you mean color\?"):
        encoder.transform(frame(color=["x"]))


def test_a_missing_column_can_count_as_missing_values():
    fields = Field("a", "category"), Field("n", "number"), Field("t", "list")
    encoder = fitted(frame(a=["x"], n=[1.0], t=["u|v"]), *fields)
    encoded = encoder.transform(frame(a=["x"]), absent="missing")
    assert encoded.value.tolist() == [[1, 0]]
    assert encoded.lists[0][1].tolist() == [[0, 0]]


def test_state_survives_json_and_tensors_exactly():
    table = frame(a=["é", "", "x|y"], n=[0.1, 0.2, 0.4], t=["u", "", "v|u"], h=["p", "q", "r"])
    fields = (
        Field("a", "category"),
        Field("n", "number"),
        Field("t", "list"),
        Field("h", "category", num_buckets=5),
    )
    encoder = fitted(table, *fields)
    meta, tensors = encoder.state()
    again = Encoder.from_state(json.loads(json.dumps(meta)), tensors)
    ours, theirs = encoder.transform(table), again.transform(table)
    assert np.array_equal(ours.index, theirs.index)
    assert np.array_equal(ours.value, theirs.value)
    assert np.array_equal(ours.lists[0][0], theirs.lists[0][0])
    assert again.schema == encoder.schema
    assert again.feature_counts == encoder.feature_counts


def test_an_empty_dictionary_survives_too():
    encoder = fitted(frame(a=[None, ""]), Field("a", "category"))
    again = Encoder.from_state(*encoder.state())
    assert again.transform(frame(a=["x", None])).value[:, 0].tolist() == [1, 0]


def test_a_state_of_a_newer_version_is_refused():
    meta, tensors = fitted(frame(a=["x"]), Field("a", "category")).state()
    with pytest.raises(WeightsError, match="format 2, this version reads 1"):
        Encoder.from_state(meta | {"format": 2}, tensors)


def test_no_training_row_is_an_error():
    with pytest.raises(DataError, match="no training row"):
        Encoder.fit([frame(a=[])], Schema("y", (Field("a", "category"),)))


def write(path, text) -> TableSource:
    path.write_text(text)
    return TableSource(path, Schema("y", (Field("a", "category"),), group="u"), chunk_rows=2)


def test_the_dictionary_comes_from_training_rows_only(tmp_path):
    source = write(tmp_path / "t.csv", "y,a,u\n1,p,1\n0,q,1\n1,r,2\n0,p,2\n")
    split = np.array([0, 2, 1, 0], dtype=np.int8)
    encoder = fit_encoder(source, split, options=ONE)
    ids = np.concatenate([encoded.index[:, 0] for _, encoded in encode(source, encoder)])
    assert ids.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("split", [[1, 1, 2, 2], [0, 0, 0], [0] * 5])
def test_a_split_that_does_not_fit_is_refused(tmp_path, split):
    source = write(tmp_path / "t.csv", "y,a,u\n1,p,1\n0,q,1\n1,r,2\n0,p,2\n")
    with pytest.raises(DataError, match="split"):
        fit_encoder(source, np.array(split, dtype=np.int8))


def test_group_ids_do_not_depend_on_type_or_file():
    text, number = frame(u=["7", "8", None]), frame(u=[7, 8, 9])
    ids = group_ids(text, "u")
    assert ids[:2].tolist() == group_ids(number, "u")[:2].tolist()
    assert ids[2] == -1
    assert (ids[:2] >= 0).all()
    assert group_ids(text, None).tolist() == [-1, -1, -1]


def avazu(tmp_path, hours: list[str]):
    from manyhead.autoint.sources.avazu import COLUMNS

    names = ["id", "click", *COLUMNS[1:]]
    rows = [[str(n), str(n % 2), hour, *(["k"] * (len(names) - 3))] for n, hour in enumerate(hours)]
    lines = [",".join(row) for row in [names, *rows]]
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    return open_source("avazu", tmp_path, None, "reference")


@pytest.mark.parametrize("chunk_rows", [3, 100])
def test_a_streaming_reference_encoder_gives_ids_from_the_fifth_occurrence_on(tmp_path, chunk_rows):
    source = avazu(tmp_path, ["14102100"] * 4 + ["14102101"] * 5 + ["14102100"] * 2)
    source.chunk_rows = chunk_rows
    encoder = fit_encoder(source, np.zeros(11, dtype=np.int8), "reference")
    index = np.concatenate([e.index for _, e in encode(source, encoder, "reference")])
    # 21 constant fields cross at row 4 and take the ids 23..43; then hour 01 at row 8, 00 at row 9.
    assert index[:, 0].tolist() == [0] * 11
    assert index[:, 1].tolist() == [1] * 8 + [44, 45, 45]
    assert index[:, 2].tolist() == [2] * 4 + [23] * 7
    assert encoder.num_features == 46


def test_new_data_get_the_final_ids_of_a_streaming_encoder(tmp_path):
    source = avazu(tmp_path, ["14102100"] * 6)
    encoder = fit_encoder(source, np.zeros(6, dtype=np.int8), "reference")
    again = Encoder.from_state(*encoder.state())
    assert again.transform(next(source.chunks())).index[0, 1] == 23


def test_kdd12_joins_profiles_and_numbers_them_in_file_order(tmp_path):
    (tmp_path / "userid_profile.txt").write_text("5\t2\t4\n6\t1\t4\n7\t2\t3\n")
    users = ["6", "0", "5", "9"] * 5
    rows = [f"{n % 3}\t{n + 1}\tu\ta\tv\t1\t1\tq\tk\tt\td\t{user}" for n, user in enumerate(users)]
    (tmp_path / "training.txt").write_text("\n".join(rows) + "\n")
    source = open_source("kdd12", tmp_path, None, "reference")
    frame = next(source.chunks())
    assert frame["click"].tolist() == [float(n % 3 > 0) for n in range(20)]
    encoder = fit_encoder(source, np.zeros(20, dtype=np.int8), "reference")
    encoded = next(encode(source, encoder, "reference"))[1]
    index, value = encoded.index, encoded.value
    assert encoder.field_names[-2:] == ("gender", "age")
    # genders 2, 1 and ages 4, 3 come up as 2 4 1 3 and own the ids 11 12 13 14
    assert index[:3, 11:].tolist()[0] == [13, 12]
    assert index[2, 11:].tolist() == [11, 12]
    assert value[:4, 11:].tolist() == [[1, 1], [0, 0], [1, 1], [0, 0]]
    assert value[:4, 10].tolist() == [1, 0, 1, 1]
    assert index[:, 0].tolist() == [0] * 20
    assert value[:4, 0].tolist() == [1, 2, 1, 1]
    # display_url is the first of seven constant fields that cross at row 9
    assert index[:, 1].tolist() == [3] * 9 + [15] * 11
    assert encoder.num_features == 15 + 7


def test_reference_mode_is_for_published_data_only(tmp_path):
    (tmp_path / "t.csv").write_text("y,a\n1,x\n0,x\n")
    with pytest.raises(ConfigError, match="mode: reference"):
        open_source("table", tmp_path, Schema("y", (Field("a", "category"),)), "reference")
