"""Tables of every format on disk: splits, labels, groups, notes, and mistakes."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from submanifold.common.errors import UserError
from submanifold.common.settings import read_settings
from submanifold.data.prepare import read_groups, read_labels
from submanifold.data.prepare_table import prepare_table
from submanifold.data.settings import INSTALLED, TableSettings, read_data_settings
from submanifold.data.tables import files, scan
from submanifold.data.tables.preprocessor import Preprocessor

RNG = np.random.default_rng(0)
N = 200
FRAME = pd.DataFrame({
    "number": RNG.normal(size=N) * 5 + 100,
    "count": RNG.integers(0, 50, N),
    "ratio": RNG.random(N).astype(np.float32),
    "class": RNG.choice(["a", "b"], N),
    "patient": RNG.choice([f"p{i}" for i in range(30)], N),
    "part": np.repeat(["train", "valid", "test"], [100, 60, 40]),
})  # fmt: skip
WRITE = {
    "csv": lambda path, frame: frame.to_csv(path, index=False),
    "csv.gz": lambda path, frame: frame.to_csv(path, index=False),
    "tsv": lambda path, frame: frame.to_csv(path, sep="\t", index=False),
    "parquet": lambda path, frame: frame.to_parquet(path, row_group_size=70),
    "feather": lambda path, frame: frame.to_feather(path, chunksize=70),
    "npy": lambda path, frame: np.save(path, frame.to_records(index=False)),
    "npz": lambda path, frame: np.savez(path, **{each: frame[each] for each in frame}),
}
INPUTS = ["number", "count", "ratio"]
BESIDE = {"label": "class", "drop": ["patient", "part"]}


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch):
    monkeypatch.setattr(scan, "_scans", {})
    monkeypatch.setattr(scan, "_surveys", {})


def prepared(folder, table, name="table.csv", **changes):
    """Write a table, prepare it, and return the arrays by split, the manifest and the settings."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    if isinstance(table, str | bytes):
        path.write_bytes(table if isinstance(table, bytes) else table.encode())
    elif isinstance(table, np.ndarray):
        np.save(path, table)
    elif table is not None:
        WRITE[name.partition(".")[2]](path, table)
    settings = read_settings(TableSettings, {"path": str(path), **changes}, "data")
    *arrays, manifest = prepare_table(settings, folder / "out", folder / "raw")
    return dict(zip(("train", "valid", "test"), arrays, strict=True)), manifest, settings


def rows_of(settings, arrays):
    """All rows in their own units, in the order of the first column."""
    x = np.concatenate([*arrays.values()])
    frame = settings.read().preprocessor.inverse_transform(x)
    return frame.sort_values(frame.columns[0], ignore_index=True)


@pytest.mark.parametrize("suffix", WRITE)
def test_every_format_gives_the_same_arrays(tmp_path, suffix):
    frame = FRAME.drop(columns=["class", "patient", "part"])
    arrays, manifest, settings = prepared(tmp_path, frame, f"table.{suffix}")
    assert {name: each.shape for name, each in arrays.items()} == {
        "train": (160, 3), "valid": (20, 3), "test": (20, 3)
    }  # fmt: skip
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    found = rows_of(settings, arrays)
    wanted = frame.sort_values("number", ignore_index=True)
    assert np.allclose(found, wanted, rtol=1e-6)
    wanted_kinds = ["continuous", "quantized", "continuous"]
    assert [each["kind"] for each in manifest["columns"]] == wanted_kinds
    assert arrays["train"].std(0) == pytest.approx(1, abs=1e-2)


def test_chunks_and_a_table_larger_than_the_cache_give_the_same(tmp_path, monkeypatch):
    whole, *_ = prepared(tmp_path / "a", FRAME, **BESIDE)
    monkeypatch.setattr(files, "CHUNK_VALUES", 60)
    monkeypatch.setattr(scan, "CACHED_BYTES", 0)
    for name in ("table.csv", "table.parquet", "table.feather"):
        chunked, *_ = prepared(tmp_path / name, FRAME, name, **BESIDE)
        for split, array in whole.items():
            assert np.allclose(chunked[split], array, atol=1e-5)


def test_a_parquet_file_is_read_in_the_memory_of_a_row_group(tmp_path, monkeypatch):
    frame = pd.DataFrame(RNG.normal(size=(100_000, 8))).rename(columns=str)
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=5000)
    monkeypatch.setattr(files, "CHUNK_VALUES", 8000)
    table = files.open_file(tmp_path / "t.parquet")
    allocated = [pa.total_allocated_bytes() for chunk in table.chunks(table.columns) if len(chunk)]
    assert max(allocated) < 0.3 * (tmp_path / "t.parquet").stat().st_size


def test_prepared_rows_are_found_again(tmp_path, monkeypatch):
    first, *_ = prepared(tmp_path, FRAME, **BESIDE)
    before = (tmp_path / "out" / "train.npy").stat().st_mtime_ns
    nothing = pytest.fail
    monkeypatch.setattr(scan, "_scans", {})
    monkeypatch.setattr(scan.Survey, "__init__", lambda *args: nothing("read again"))
    again, *_ = prepared(tmp_path, None, **BESIDE)
    assert (tmp_path / "out" / "train.npy").stat().st_mtime_ns == before
    assert np.array_equal(first["train"], again["train"])


def test_a_changed_file_or_setting_prepares_the_rows_again(tmp_path):
    first, *_ = prepared(tmp_path, FRAME, **BESIDE)
    changed, *_ = prepared(tmp_path, FRAME.assign(ratio=FRAME["ratio"] ** 2), **BESIDE)
    assert not np.array_equal(first["train"], changed["train"])
    seeded, *_ = prepared(tmp_path, None, **BESIDE, seed=1)
    assert not np.array_equal(seeded["train"], changed["train"])
    (tmp_path / "out" / "train.npy").unlink()  # the arrays map it
    (tmp_path / "out" / "train.npy").write_bytes(b"")
    repaired, *_ = prepared(tmp_path, None, **BESIDE, seed=1)
    assert np.array_equal(repaired["train"], seeded["train"])


def test_equal_training_rows_have_different_noise(tmp_path):
    frame = pd.DataFrame({"a": np.tile([1, 2, 3, 4], 50), "b": np.tile([5, 6], 100)})
    arrays, manifest, _ = prepared(tmp_path, frame)
    assert len(np.unique(arrays["train"], axis=0)) == 160
    assert manifest["duplicates"] == {"valid": 20, "test": 20}
    assert "20 of 20 test rows equal a training row" in manifest["split_note"]


def test_labels_and_groups_are_kept_beside_the_rows(tmp_path):
    arrays, manifest, settings = prepared(
        tmp_path, FRAME, label="class", groups="patient", drop="part"
    )
    labels, groups = read_labels(tmp_path / "out"), read_groups(tmp_path / "out")
    rows = {}
    for split, array in arrays.items():
        found = settings.read().preprocessor.inverse_transform(array)["number"]
        index = [int(abs(FRAME["number"] - each).argmin()) for each in found]
        assert labels[split] == list(FRAME["class"].iloc[index])
        rows[split] = set(FRAME["patient"].iloc[index])
        assert len(rows[split]) == len(set(groups[split])) == manifest["groups"][split]
    assert sum(map(len, rows.values())) == 30
    assert not rows["train"] & rows["test"]


@pytest.mark.parametrize(
    ("rows", "counts", "expected"),
    [
        (300, {}, (240, 30, 30)),
        (178, {}, (138, 20, 20)),  # p-values need 20 validation rows
        (80, {}, (40, 20, 20)),
        (79, {}, (41, 19, 19)),
        (40, {}, (20, 10, 10)),
        (40, {"valid": 25}, (8, 25, 7)),
        (178, {"train": 150}, (150, 14, 14)),
    ],
)
def test_default_sizes_of_the_splits(tmp_path, rows, counts, expected):
    frame = pd.DataFrame(RNG.normal(size=(rows, 2))).rename(columns=str)
    arrays, *_ = prepared(tmp_path, frame, counts=counts)
    assert tuple(len(arrays[split]) for split in ("train", "valid", "test")) == expected


def test_a_column_names_the_splits(tmp_path):
    arrays, *_ = prepared(tmp_path, FRAME, split="part", drop=["class", "patient"])
    assert [len(each) for each in arrays.values()] == [100, 60, 40]
    counts = {"test": 30}
    arrays, *_ = prepared(tmp_path, FRAME, split="part", columns=INPUTS, counts=counts)
    assert [len(each) for each in arrays.values()] == [100, 60, 30]


def test_patterns_choose_columns(tmp_path):
    frame = pd.DataFrame(RNG.normal(size=(50, 4)), columns=["id", "x_1", "x_2", "y"])
    for choice in (
        {"columns": "x_*"},
        {"drop": ["id", "y"]},
        {"drop": "id|y"},
        {"columns": "[xy]*", "drop": "y"},
    ):
        _, manifest, _ = prepared(tmp_path, frame, **choice)
        assert [each["name"] for each in manifest["columns"]] == ["x_1", "x_2"]


def test_rows_with_missing_values_are_left_out(tmp_path):
    frame = FRAME.drop(columns=["class", "patient", "part"])
    frame.loc[::4, "number"] = np.nan
    arrays, manifest, settings = prepared(tmp_path, frame, missing="drop")
    assert sum(map(len, arrays.values())) == 150
    assert manifest["dropped"] == 50
    assert rows_of(settings, arrays)["number"].min() == pytest.approx(frame["number"].min())


def test_a_folder_and_a_list_of_files_are_one_table(tmp_path):
    whole, *_ = prepared(tmp_path / "whole", FRAME, **BESIDE)
    folder = tmp_path / "folder"
    folder.mkdir()
    WRITE["parquet"](folder / "1.parquet", FRAME[:150])
    WRITE["csv"](folder / "2.csv", FRAME[150:][[*FRAME.columns[::-1]]])  # other order
    (folder / "notes.md").write_text("no table")
    for name, path in {
        "a": str(folder),
        "b": [str(folder / "1.parquet"), str(folder / "2.csv")],
    }.items():
        settings = TableSettings(path=path, **BESIDE)
        train, *_ = prepare_table(settings, tmp_path / name, tmp_path / "raw")
        assert np.allclose(train, whole["train"], atol=1e-5)


@pytest.mark.parametrize("source", INSTALLED)
def test_installed_tables(tmp_path, source):
    settings = read_data_settings({"source": source})
    train, valid, test, manifest = prepare_table(settings, tmp_path / "out", tmp_path / "raw")
    assert settings.event_shape == train.shape[1:]
    assert len(read_labels(tmp_path / "out")["train"]) == len(train)
    assert Preprocessor.from_dict(json.loads(json.dumps(settings.facts))["table"]).features
    assert "target" not in {each["name"] for each in manifest["columns"]}
    assert np.isfinite([train.min(), valid.max(), test.max()]).all()


NUMBERS = "a,b\n" + "".join(f"{i},{i * i % 17}.5\n" for i in range(40))
RIGHT = {
    "wrong separator": (NUMBERS.replace(",", ";"), {}),
    "tabs in a csv": (NUMBERS.replace(",", "\t"), {}),
    "spaces as separators": (NUMBERS.replace(",", "  "), {}),
    "decimal comma": (NUMBERS.replace(",", ";").replace(".", ","), {}),
    "byte order mark": ("\ufeff" + NUMBERS, {}),
    "windows line ends": (NUMBERS.replace("\n", "\r\n"), {}),
    "spaces": (NUMBERS.replace(",", " , "), {}),
    "quoted": (NUMBERS.replace("a,b", '"a","b"'), {}),
    "index of pandas": (",a,b\n" + "".join(f"{i},{i},{i * i % 17}.5\n" for i in range(40)), {}),
    "blank lines": (NUMBERS + "\n\n", {}),
    "capital suffix": (NUMBERS, {"name": "TABLE.CSV"}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_variants_of_csv_are_read(tmp_path, name):
    text, options = RIGHT[name]
    arrays, _, settings = prepared(tmp_path, text, **options)
    found = rows_of(settings, arrays)
    assert list(found.columns) == ["a", "b"]
    assert list(found["a"]) == list(range(40))
    assert list(found["b"]) == [i * i % 17 + 0.5 for i in range(40)]


def test_numbers_without_a_header_are_read_with_a_warning(tmp_path, caplog):
    arrays, _, settings = prepared(tmp_path, NUMBERS.partition("\n")[2])
    assert len(rows_of(settings, arrays)) == 40
    assert "the columns are x0, x1" in caplog.text


def parquet_bytes(tmp_path, frame=FRAME):
    WRITE["parquet"](tmp_path / "whole.parquet", frame)
    return (tmp_path / "whole.parquet").read_bytes()


ROWS = FRAME[INPUTS]
MISTAKES = {
    "no file": (None, {}, "path=.*table.csv: expected .* got a path that does not exist"),
    "empty file": ("", {}, "path=.*: expected a table, got an empty file"),
    "only blank lines": ("\n\n", {}, "got an empty file"),
    "only a header": ("a,b\n", {}, "expected rows, got none"),
    "one row": ("a,b\n1,2\n", {}, "expected at most 1 rows in three splits"),
    "one column": ("a\n" + "1.5\n2\n" * 20, {}, "at least 2 columns with different values, got 1"),
    "all equal": ("a,b\n" + "1,2\n" * 20, {}, "different values, got 0 of 2"),
    "text in a number column": (
        NUMBERS.replace("\n7,", "\nseven,"), {}, "columns.a: .* numbers, got 1 .*'seven' in row 8",
    ),
    "categories": (FRAME, {}, "categorical: .* class, patient, part. .*categorical=intervals"),
    "missing values": (
        NUMBERS.replace("\n7,", "\n,").replace("\n8,", "\n,").replace("\n9,", "\n,"), {},
        r"missing: .* got some in a \(3\)",  # in all splits
    ),
    "infinities": (NUMBERS.replace("\n7,", "\ninf,"), {}, r"no infinities, got some in a \(1\)"),
    "duplicate names": (NUMBERS.replace("a,b", "a,a"), {}, "got a more than once"),
    "a name is missing": ("a,,b\n" + "1,2,3\n" * 9, {}, "got none for column 2"),
    "too many values in a row": (NUMBERS + "1,2,3\n", {}, "values in each line, got 3 in line 42"),
    "too many values below": (NUMBERS * 2 + "1,2,3\n", {}, "readable csv file, got an error"),
    "more values than names": ("a,b\n" + "1,2,3\n" * 9, {}, "2 values in each line, got 3"),
    "not text": (b"a,b\n\xff\xfe1,2\n", {}, "readable csv file, got an error"),
    "cut parquet": ("parquet", {"name": "t.parquet"}, "readable parquet file, got an error"),
    "text as parquet": (NUMBERS, {"name": "t.parquet"}, "readable parquet file, got an error"),
    "text as feather": (NUMBERS, {"name": "t.feather"}, "readable feather file, got an error"),
    "text as npy": (NUMBERS, {"name": "t.npy"}, "readable npy file, got an error"),
    "text as npz": (NUMBERS, {"name": "t.npz"}, "readable npz file, got an error"),
    "excel": (NUMBERS, {"name": "t.xlsx"}, "expected a CSV, .* got the suffix .xlsx"),
    "images": (b"PK", {"name": "pictures.zip"}, "the suffix .zip. .*images need dataset=folder"),
    "an image as npy": (np.zeros((2, 3, 8, 8)), {"name": "t.npy"}, "Images need dataset=folder"),
    "no such column": (ROWS, {"columns": ["numbr"]}, "columns: .* Did you mean number"),
    "no such dropped column": (ROWS, {"drop": ["x*"]}, r"drop: .* got x\*, which matches none"),
    "everything dropped": (ROWS, {"drop": ["*"]}, "columns: expected columns .* got none"),
    "no such label": (ROWS, {"label": "clas"}, "label: expected a column"),
    "no such group": (ROWS, {"groups": "clas"}, "groups: expected a column"),
    "no such split": (ROWS, {"split": "official"}, "split: expected a column"),
    "a split without names": (
        FRAME, {"split": "class", "columns": INPUTS}, "split=class: expected the values",
    ),
    "too few groups": (
        FRAME, {"groups": "class", "columns": INPUTS}, "groups: expected at least 3 groups",
    ),
    "groups in two parts": (
        FRAME, {"groups": "patient", "split": "part", "columns": INPUTS}, "each group in one part",
    ),
    "too many rows": (ROWS, {"counts": {"test": 500}}, "counts: expected at most 200 rows"),
    "kind of no column": (ROWS, {"kinds": {"size": "continuous"}}, "kinds.size: expected a column"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(tmp_path, name):
    table, options, message = MISTAKES[name]
    if isinstance(table, str) and table == "parquet":
        table = parquet_bytes(tmp_path)[:-100]
    with pytest.raises(UserError, match=message) as error:
        prepared(tmp_path, table, **options)
    assert len(str(error.value)) < 500


def test_two_files_with_other_columns(tmp_path):
    WRITE["csv"](tmp_path / "1.csv", ROWS)
    WRITE["csv"](tmp_path / "2.csv", ROWS.drop(columns="count"))
    WRITE["csv"](tmp_path / "3.csv", ROWS.assign(more=1))
    for name, message in (("2.csv", "got a file without count"), ("3.csv", "got also more")):
        paths = [str(tmp_path / "1.csv"), str(tmp_path / name)]
        with pytest.raises(UserError, match=f"{name}: expected the columns of 1.csv, {message}"):
            prepare_table(TableSettings(path=paths), tmp_path / "out", tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="got a folder without any"):
        prepare_table(TableSettings(path=str(tmp_path / "none")), tmp_path / "out", tmp_path)


def test_settings_that_do_not_fit_the_source():
    with pytest.raises(UserError, match="path: expected the path of a table with source=table"):
        read_data_settings({"source": "table"})
    with pytest.raises(UserError, match=r"path: expected none with source=wine, got a\.csv"):
        read_data_settings({"source": "wine", "path": "a.csv"})
    with pytest.raises(UserError, match=r"kinds\.a=integer is not known"):
        read_data_settings({"source": "table", "path": "a.csv", "kinds": {"a": "integer"}})


def test_a_forgotten_label_is_noted(tmp_path):
    frame = ROWS.assign(Target=RNG.integers(0, 3, N))
    _, manifest, _ = prepared(tmp_path, frame)
    assert "column Target looks like a label" in manifest["split_note"]
    _, manifest, _ = prepared(tmp_path, frame, label="Target")
    assert manifest["split_note"] is None


def test_more_columns_than_rows_are_noted(tmp_path):
    frame = pd.DataFrame(RNG.normal(size=(30, 60))).rename(columns=str)
    arrays, manifest, _ = prepared(tmp_path, frame)
    assert arrays["train"].shape == (16, 60)
    assert "fewer training rows (16) than columns (60)" in manifest["split_note"]
