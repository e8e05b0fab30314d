"""Every card obeys the schema; a folder is judged by names, counts and beginnings of files."""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from manyhead import registry
from manyhead.__main__ import main
from manyhead_core.data import cards
from manyhead_core.data.cards import Card, Checks, FileRule
from manyhead_core.data.check import Finding, check, matcher
from manyhead_core.errors import DataError

CARDS = cards.load()
APPS = {"acmil", "arbex", "autoint", "convformer", "medusa", "mqsa_ted", "mvpformer"}
MINIMAL: dict[str, Any] = {
    "id": "tiny",
    "title": "A tiny set",
    "domain": "recommendation",
    "apps": ["autoint"],
    "licence": "CC0",
    "access": {"kind": "open", "url": "https://example.org", "how": "download"},
    "citation": "nobody",
    "files": [{"path": "a.csv", "what": "rows"}],
    "splits": "none",
    "group": "row",
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | changes), encoding="utf-8")
    return path


def card_of(tmp_path: Path, *rules: dict[str, Any]) -> Card:
    filled = [{"what": "something"} | rule for rule in rules]
    return cards.read(written(tmp_path, files=filled))


def states(card: Card, root: Path) -> dict[str, tuple[str, str]]:
    return {found.file: (found.state, found.remark) for found in check(card, root)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", CARDS)
def test_card_is_complete_and_its_patterns_compile(name: str) -> None:
    card = CARDS[name]
    assert card.id == name
    assert set(card.apps) <= APPS
    assert card.access.url.startswith(("https://", "http://"))
    assert any(rule.required for rule in card.files)
    for rule in card.files:
        matcher(rule)
        if rule.checks.line:
            re.compile(rule.checks.line)
    text = " ".join([card.title, card.splits, *card.notes])
    assert "—" not in text
    assert "--" not in text


def test_every_app_of_the_suite_has_data() -> None:
    with_data = {app for card in CARDS.values() for app in card.apps}
    assert set(registry.apps()) <= with_data
    assert with_data == APPS


def test_no_file_of_a_set_hides_another(root: Path) -> None:
    for name, lines in [("ratings.dat", "1::2::3::4\n"), ("users.dat", "1::F::1::10::48067\n")]:
        (root / name).write_text(lines * 7000)
    found = states(CARDS["movielens-1m"], root)
    assert found["ratings.dat"][0] == found["users.dat"][0] == "ok"
    assert found["movies.dat"][0] == "missing"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"domain": "cooking"}, "tiny.yaml: domain: 'cooking' is unknown; known: faces"),
        ({"apps": "autoint"}, "tiny.yaml: apps: is a text; write a list"),
        ({"licence": None}, "tiny.yaml: licence: is empty; write a text"),
        ({"licence": 4}, "tiny.yaml: licence: is a whole number; write a text"),
        ({"licence": " "}, "tiny.yaml: licence: is empty"),
        ({"author": "me"}, "tiny.yaml: author: unknown; known: id, title"),
        ({"files": []}, "tiny.yaml: files: is empty"),
        ({"files": ["a.csv"]}, "tiny.yaml: files[0]: is a text; write a mapping"),
        ({"notes": [3]}, "tiny.yaml: notes: holds something else than a text"),
        ({"id": "other"}, "tiny.yaml: id is 'other'; name the file other.yaml"),
        ({"access": {"kind": "open", "url": "x"}}, "tiny.yaml: access: how: is missing"),
        (
            {"access": {"kind": "free", "url": "x", "how": "y"}},
            "tiny.yaml: access.kind: 'free' is unknown; known: open, registration, application",
        ),
    ],
)
def test_broken_card_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError) as error:
        cards.read(written(tmp_path, **change))
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("checks", "says"),
    [
        ({"width": 3}, "files[0].checks: width: unknown"),
        ({"columns": 3}, "files[0].checks.columns: needs a separator"),
        ({"columns": "3", "separator": ","}, "files[0].checks: columns: is a text"),
        ({"magic": "word"}, "files[0].checks.magic: 'word' is unknown"),
        ({"min_rows": 10_000_000}, "files[0].checks.min_rows: 10000000 is over 10000"),
        ({"count": [1, 2, 3]}, "files[0].checks.count: give the fewest"),
        ({"count": ["1"]}, "files[0].checks: count: holds something else"),
    ],
)
def test_broken_checks_are_refused(tmp_path: Path, checks: dict[str, Any], says: str) -> None:
    rule = {"path": "a.csv", "what": "rows", "checks": checks}
    with pytest.raises(DataError, match=re.escape(says)):
        cards.read(written(tmp_path, files=[rule]))


def test_unreadable_yaml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text("id: [", encoding="utf-8")
    with pytest.raises(DataError, match=r"^tiny\.yaml: not readable as YAML"):
        cards.read(path)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("train.txt", "train.txt.gz", True),
        ("train.txt", "TRAIN.TXT", True),
        ("train.txt", "sub/train.txt", False),
        ("*.txt", "a/b.txt", False),
        ("**/b.txt", "b.txt", True),
        ("**/b.txt", "x/y/b.txt", True),
        ("{a,b}.csv", "b.csv.gz", True),
        ("x{,_64}.npz", "x_64.npz", True),
        ("x{,_64}.npz", "x.npz.gz", False),
        ("[1-3]/?.jpg", "2/a.jpg", True),
        ("[1-3]/?.jpg", "4/a.jpg", False),
        ("a.b", "aXb", False),
    ],
)
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    rule = FileRule(path=pattern, what="", checks=Checks())
    assert bool(matcher(rule).fullmatch(name)) == matches


def test_table_with_the_wrong_columns_says_what_it_found(tmp_path: Path, root: Path) -> None:
    card = card_of(tmp_path, {"path": "a.tsv", "checks": {"separator": "\t", "columns": 3}})
    (root / "a.tsv").write_text("1\t2\t3\n4\t5\n")
    assert states(card, root) == {"a.tsv": ("wrong", "2 columns between tab, not 3: 4 5")}


def test_quoted_separator_is_no_column(tmp_path: Path, root: Path) -> None:
    card = card_of(tmp_path, {"path": "a.csv", "checks": {"separator": ",", "columns": 2}})
    (root / "a.csv").write_text('1,"x, y"\n')
    assert states(card, root)["a.csv"][0] == "ok"


def test_header_may_come_in_any_order_with_a_byte_order_mark(tmp_path: Path, root: Path) -> None:
    card = card_of(tmp_path, {"path": "a.csv", "checks": {"header": ["click", "id"]}})
    (root / "a.csv").write_bytes(b'\xef\xbb\xbf"id",more,click\r\n1,2,0\r\n')
    assert states(card, root)["a.csv"][0] == "ok"
    (root / "a.csv").write_text("id,clicks\n1,2\n")
    assert states(card, root)["a.csv"][1].startswith("the first line lacks click; it starts")


@pytest.mark.parametrize(("rows", "state"), [(40, "ok"), (39, "wrong")])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_counted_up_to_the_limit(
    tmp_path: Path, root: Path, rows: int, state: str, packed: bool
) -> None:
    card = card_of(tmp_path, {"path": "a.txt", "checks": {"min_rows": 40, "line": r"\d+$"}})
    content = "".join(f"{i}\n\n" for i in range(rows)).encode()
    name = "a.txt.gz" if packed else "a.txt"
    (root / name).write_bytes(gzip.compress(content) if packed else content)
    assert [found.state for found in check(card, root)] == [state]


@pytest.mark.parametrize(("min_rows", "state"), [(6000, "ok"), (9000, "wrong")])
def test_only_the_beginning_is_read(tmp_path: Path, root: Path, min_rows: int, state: str) -> None:
    card = card_of(tmp_path, {"path": "a.txt", "checks": {"min_rows": min_rows}})
    rows = "".join(hashlib.sha256(str(i).encode()).hexdigest() + "\n" for i in range(8000))
    packer = zlib.compressobj(wbits=31)
    sound = packer.compress(rows.encode()) + packer.flush(zlib.Z_FULL_FLUSH)
    # Whoever reads on past the sound part fails.
    (root / "a.txt.gz").write_bytes(sound + b"\xff" * 1000)
    assert [found.state for found in check(card, root)] == [state]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"\n\n", "holds no line of text"),
        (b"a\x00b\n", "is no text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_what_is_no_text(tmp_path: Path, root: Path, content: bytes, says: str) -> None:
    (root / "a.txt").write_bytes(content)
    state, remark = states(card_of(tmp_path, {"path": "a.txt"}), root)["a.txt"]
    assert state == "wrong"
    assert remark.startswith(says)


def test_damaged_gzip_and_dead_links_are_told_apart(tmp_path: Path, root: Path) -> None:
    (root / "a.txt.gz").write_bytes(gzip.compress(b"1\n" * 10_000)[:12])
    (root / "b.txt").symlink_to(root / "nowhere")
    (root / "c.txt.gz").write_text("no gzip\n")
    rules = [{"path": f"{name}.txt"} for name in "abc"]
    found = states(card_of(tmp_path, *rules), root)
    assert found["c.txt.gz"] == ("wrong", "is damaged or cut off")
    assert found["a.txt.gz"] == ("wrong", "is damaged or cut off")
    assert found["b.txt"][1].startswith("is a link to nothing")


def test_binary_files_are_known_by_their_first_bytes(tmp_path: Path, root: Path) -> None:
    rule = {"path": "x.npz", "checks": {"magic": "npz", "arrays": ["images", "labels"]}}
    card = card_of(tmp_path, rule)
    np.savez(root / "x.npz", images=np.zeros(2), labels=np.zeros(2))
    assert states(card, root)["x.npz"][0] == "ok"
    np.savez(root / "x.npz", images=np.zeros(2))
    assert states(card, root)["x.npz"][1] == "lacks the arrays labels; holds images"
    (root / "x.npz").write_bytes(b"\x89HDF\r\n\x1a\n1234")
    assert states(card, root)["x.npz"] == ("wrong", "is no npz file but hdf5")


def test_hash(tmp_path: Path, root: Path) -> None:
    rule = {"path": "x.bin", "checks": {"sha256": hashlib.sha256(b"right").hexdigest()}}
    card = card_of(tmp_path, rule)
    (root / "x.bin").write_bytes(b"right")
    assert states(card, root)["x.bin"][0] == "ok"
    (root / "x.bin").write_bytes(b"wrong")
    assert states(card, root)["x.bin"][1] == "differs from the published file (sha256)"


@pytest.mark.parametrize(
    ("number", "remark"),
    [(1, "1 files; 2 or more belong here"), (4, "4 files; at most 3 belong here"), (3, "3 files")],
)
def test_counts(tmp_path: Path, root: Path, number: int, remark: str) -> None:
    card = card_of(tmp_path, {"path": "*.bin", "checks": {"count": [2, 3]}})
    for i in range(number):
        (root / f"{i}.bin").write_bytes(b"x")
    assert states(card, root)["*.bin"][1] == remark


def test_one_arrangement_of_several_is_enough(tmp_path: Path, root: Path) -> None:
    card = card_of(
        tmp_path,
        {"path": "a.csv", "layout": "table"},
        {"path": "b.csv", "layout": "table"},
        {"path": "*/*.png", "layout": "folders"},
        {"path": "readme.txt", "required": False},
    )
    (root / "cat").mkdir()
    (root / "cat" / "1.png").write_bytes(b"x")
    assert [(f.file, f.state) for f in check(card, root)] == [
        ("*/*.png", "ok"),
        ("readme.txt", "absent"),
    ]
    (root / "a.csv").write_text("1\n")
    assert [f.file for f in check(card, root)] == ["*/*.png", "readme.txt"]
    (root / "b.csv").write_text("1\n")
    (root / "cat" / "1.png").unlink()
    assert [f.state for f in check(card, root)] == ["ok", "ok", "absent"]


def test_surplus_is_summed_by_folder_and_does_no_harm(tmp_path: Path, root: Path) -> None:
    card = card_of(tmp_path, {"path": "a.csv"})
    (root / "a.csv").write_text("1\n")
    (root / "note").write_text("x")
    (root / ".hidden").write_text("x")
    (root / "sub").mkdir()
    for i in range(3):
        (root / "sub" / str(i)).write_text("x")
    found = check(card, root)
    assert found[1:] == [
        Finding("note", "surplus", "not on the card"),
        Finding("sub/", "surplus", "3 files not on the card"),
    ]
    assert not any(f.bad for f in found)


def test_circular_links_end(tmp_path: Path, root: Path) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "up").symlink_to(root, target_is_directory=True)
    (root / "sub" / "a.csv").write_text("1\n")
    assert states(card_of(tmp_path, {"path": "**/a.csv"}), root)["**/a.csv"] == ("ok", "")


def test_folder_above_gets_a_hint(tmp_path: Path, root: Path) -> None:
    (root / "deep").mkdir()
    (root / "deep" / "a.csv").write_text("1\n")
    state, remark = states(card_of(tmp_path, {"path": "a.csv"}), root)["a.csv"]
    assert state == "missing"
    assert remark.endswith("; found below deep: pass that folder")


def test_commands(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "autoint"]) == 0
    out = capsys.readouterr().out
    assert "movielens-1m" in out
    assert "camelyon16" not in out
    assert main(["data", "show", "movielens-1m"]) == 0
    assert "GroupLens" in capsys.readouterr().out
    (root / "u.data").write_text("1\t2\t3\t4\n" * 10_000)
    assert main(["data", "check", "movielens-100k", str(root)]) == 2
    out = capsys.readouterr().out
    assert "u.data" in out
    assert out.splitlines()[-1].startswith(
        "movielens-100k: NOT complete (1 ok, 3 missing, 1 absent)"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "movielens1m"], "unknown data set 'movielens1m'; did you mean movielens-1m?"),
        (["list", "autoin"], "unknown app 'autoin'; did you mean autoint?"),
        (["list", "--domain", "poses"], "unknown domain 'poses'; did you mean pose?"),
        (["check", "criteo", "nowhere"], "nowhere: folder does not exist"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_file_is_not_a_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "train.txt").write_text("1\n")
    assert main(["data", "check", "criteo", str(root / "train.txt")]) == 2
    assert "is a file; pass the folder that holds it" in capsys.readouterr().err
