"""Tables of every format on disk: splits, labels, groups, notes, and mistakes."""

import io
import json
import shlex

import numpy as np
import pandas as pd
import pytest

from sidecars import read_sidecar
from submanifold.common.errors import UserError
from submanifold.common.settings import read_settings
from submanifold.config.loader import load_configuration
from submanifold.config.merge import parse_params
from submanifold.config.project import PACKAGED_CONF
from submanifold.data.arrays import load_events
from submanifold.data.settings import INSTALLED, TableSettings, read_data_settings
from submanifold.data.tables import Preprocessor
from submanifold.data.tables.files import read_table
from submanifold.data.tables.schema import prepare_table
from submanifold.runs.selection import select_experiment

RNG = np.random.default_rng(0)
N = 200
FRAME = pd.DataFrame(
    {
        "number": RNG.normal(size=N) * 5 + 100,
        "count": RNG.integers(0, 50, N),
        "ratio": RNG.random(N).astype(np.float32),
        "class": RNG.choice(["a", "b"], N),
        "patient": RNG.choice([f"p{i}" for i in range(30)], N),
        "part": np.repeat(["train", "valid", "test"], [100, 60, 40]),
    }
)
WRITE = {
    "csv": lambda path, frame: frame.to_csv(path, index=False),
    "csv.gz": lambda path, frame: frame.to_csv(path, index=False),
    "tsv": lambda path, frame: frame.to_csv(path, sep="\t", index=False),
    "TSV.BZ2": lambda path, frame: frame.to_csv(path, sep="\t", index=False),
    "PARQUET": lambda path, frame: frame.to_parquet(path),
    "parquet": lambda path, frame: frame.to_parquet(path, row_group_size=70),
    "feather": lambda path, frame: frame.to_feather(path, chunksize=70),
    "npy": lambda path, frame: np.save(path, frame.to_records(index=False)),
    "npz": lambda path, frame: np.savez(path, **{each: frame[each] for each in frame}),
}
INPUTS = ["number", "count", "ratio"]
LABELLED = {"label": "class", "drop": ["patient", "part"]}


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
    by_split = zip(("train", "valid", "test"), arrays, strict=True)
    return {split: events.x for split, events in by_split}, manifest, settings


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
        "train": (160, 3),
        "valid": (20, 3),
        "test": (20, 3),
    }
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    found = rows_of(settings, arrays)
    wanted = frame.sort_values("number", ignore_index=True)
    assert np.allclose(found, wanted, rtol=1e-6)
    wanted_kinds = ["continuous", "quantized", "continuous"]
    assert [each["kind"] for each in manifest["columns"]] == wanted_kinds
    assert arrays["train"].std(0) == pytest.approx(1, abs=1e-2)


def test_prepared_rows_are_found_again(tmp_path):
    first, *_ = prepared(tmp_path, FRAME, **LABELLED)
    before = (tmp_path / "out" / "train.npy").stat().st_mtime_ns
    again, *_ = prepared(tmp_path, None, **LABELLED)
    assert (tmp_path / "out" / "train.npy").stat().st_mtime_ns == before
    assert np.array_equal(first["train"], again["train"])


def test_a_changed_file_or_setting_prepares_the_rows_again(tmp_path):
    first, *_ = prepared(tmp_path, FRAME, **LABELLED)
    changed, *_ = prepared(tmp_path, FRAME.assign(ratio=FRAME["ratio"] ** 2), **LABELLED)
    assert not np.array_equal(first["train"], changed["train"])
    seeded, *_ = prepared(tmp_path, None, **LABELLED, seed=1)
    assert not np.array_equal(seeded["train"], changed["train"])
    (tmp_path / "out" / "train.npy").unlink()
    repaired, *_ = prepared(tmp_path, None, **LABELLED, seed=1)
    assert np.array_equal(repaired["train"], seeded["train"])


def test_equal_training_rows_have_different_noise(tmp_path):
    frame = pd.DataFrame({"a": np.tile([1, 2, 3, 4], 50), "b": np.tile([5, 6], 100)})
    arrays, manifest, _ = prepared(tmp_path, frame)
    assert len(np.unique(arrays["train"], axis=0)) == 160
    assert manifest["duplicates"] == {"valid": 20, "test": 20}
    assert "20 of 20 test rows equal a training row" in manifest["split_note"]


def test_duplicates_are_held_out_rows_that_equal_training_rows(tmp_path):
    """Some rows repeat a training row, others a row of another split; the first one is broken."""
    table = FRAME[[*INPUTS, "part"]].copy()
    table.loc[0, "count"] = None
    copied = {0: range(100, 104), 110: range(160, 163), 7: range(163, 165), 30: range(20, 30)}
    for first, copies in copied.items():
        originals = range(first, first + len(copies))
        table.loc[copies, INPUTS] = table.loc[originals, INPUTS].to_numpy()
    _, manifest, _ = prepared(tmp_path, table, split="part")
    assert manifest["duplicates"] == {"valid": 4, "test": 2}
    assert "4 of 60 valid rows equal a training row" in manifest["split_note"]


def test_labels_and_groups_are_kept_beside_the_rows(tmp_path):
    arrays, manifest, settings = prepared(
        tmp_path, FRAME, label="class", groups="patient", drop="part"
    )
    labels, groups = (read_sidecar(tmp_path / "out", name) for name in ("labels", "groups"))
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
    "counts",
    [
        {"train": 90, "valid": 30, "test": 20},
        {"test": 20},
        {"train": 90, "valid": 30},
    ],
)
def test_splits_of_groups_have_as_many_rows_as_counts_say(tmp_path, counts):
    arrays, *_ = prepared(tmp_path, FRAME, groups="patient", inputs=INPUTS, counts=counts)
    assert {split: len(arrays[split]) for split in counts} == counts
    groups = read_sidecar(tmp_path / "out", "groups")
    assert not set(groups["train"]) & set(groups["test"])


@pytest.mark.parametrize(
    ("rows", "counts", "expected"),
    [
        (300, {}, (240, 30, 30)),
        (178, {}, (138, 20, 20)),  # p-values need 20 validation rows
        (80, {}, (40, 20, 20)),
        (40, {"valid": 25}, (8, 25, 7)),
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
    arrays, *_ = prepared(tmp_path, FRAME, split="part", inputs=INPUTS, counts=counts)
    assert [len(each) for each in arrays.values()] == [100, 60, 30]


def test_patterns_choose_columns(tmp_path):
    frame = pd.DataFrame(RNG.normal(size=(50, 4)), columns=["id", "x_1", "x_2", "y"])
    for choice in (
        {"inputs": "x_*"},
        {"drop": ["id", "y"]},
        {"drop": "id,y"},
        {"inputs": "[xy]*", "columns": {"y": "ignore"}},
    ):
        _, manifest, _ = prepared(tmp_path, frame, **choice)
        assert [each["name"] for each in manifest["columns"]] == ["x_1", "x_2"]


def test_a_folder_and_a_list_of_files_are_one_table(tmp_path):
    whole, *_ = prepared(tmp_path / "whole", FRAME, **LABELLED)
    folder = tmp_path / "folder"
    folder.mkdir()
    WRITE["parquet"](folder / "1.parquet", FRAME[:150])
    WRITE["csv"](folder / "2.csv", FRAME[150:][[*FRAME.columns[::-1]]])  # other order
    (folder / "notes.md").write_text("no table")
    for name, path in {
        "a": str(folder),
        "b": [str(folder / "1.parquet"), str(folder / "2.csv")],
    }.items():
        settings = TableSettings(path=path, **LABELLED)
        train, *_ = prepare_table(settings, tmp_path / name, tmp_path / "raw")
        assert np.allclose(train.x, whole["train"], atol=1e-5)


@pytest.mark.parametrize("source", INSTALLED)
def test_installed_tables(tmp_path, source):
    settings = read_data_settings({"source": source})
    train, valid, test, manifest = prepare_table(settings, tmp_path / "out", tmp_path / "raw")
    assert settings.event_shape == train.x.shape[1:]
    assert len(read_sidecar(tmp_path / "out", "labels")["train"]) == len(train)
    assert Preprocessor.from_dict(json.loads(json.dumps(settings.facts))["table"]).features
    assert "target" not in {each["name"] for each in manifest["columns"]}
    assert np.isfinite([train.x.min(), valid.x.max(), test.x.max()]).all()


NUMBERS = "a,b\n" + "".join(f"{i},{i * i % 17}.5\n" for i in range(40))
RIGHT = {
    "wrong separator": (NUMBERS.replace(",", ";"), {}),
    "spaces as separators": (NUMBERS.replace(",", "  "), {}),
    "decimal comma": (NUMBERS.replace(",", ";").replace(".", ","), {}),
    "blank lines first": ("\n  \r\n,\n" + NUMBERS.replace("\n7,", "\n\n7,"), {}),
    "separator line of a spreadsheet": ("sep=;\n" + NUMBERS.replace(",", ";"), {}),
    "utf-16": (NUMBERS.encode("utf-16"), {}),
    "years as names": (
        NUMBERS.replace("\n", ",1,2,3\n").replace("1,2,3", "1999,2000,2001", 1),
        {"drop": "1999,2000,2001"},
    ),
    "quoted names between semicolons": (NUMBERS.replace("a,b", '"a";"b"').replace(",", ";"), {}),
    "byte order mark": ("\ufeff" + NUMBERS, {}),
    "windows line ends": (NUMBERS.replace("\n", "\r\n"), {}),
    "two dropped columns": (
        NUMBERS.replace("\n", ",9,x\n").replace("9,x", "c,d", 1),
        {"drop": "c,d"},
    ),
    "columns of one name": (NUMBERS.replace("\n", ",9\n").replace("9", "a", 1), {"drop": "a.1"}),
    "big-endian": (np.array([[i, i * i % 17 + 0.5] for i in range(40)], ">f8"), {"name": "t.npy"}),
    "index of pandas": (",a,b\n" + "".join(f"{i},{i},{i * i % 17}.5\n" for i in range(40)), {}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_variants_of_csv_are_read(tmp_path, name):
    text, options = RIGHT[name]
    arrays, _, settings = prepared(tmp_path, text, **options)
    found = rows_of(settings, arrays)
    assert list(found.columns) == (["x0", "x1"] if name == "big-endian" else ["a", "b"])
    found.columns = ["a", "b"]
    assert list(found["a"]) == list(range(40))
    assert list(found["b"]) == [i * i % 17 + 0.5 for i in range(40)]


FORMATTED = {
    ",": ("1,234.5", "1,5", "0,125", "12%", "$12", "1200 €", "-7 €"),
    "\t": ("0,125", "1,250", "1,250.5"),
    ";": ("1.234,50", "7 €"),
}


@pytest.mark.parametrize(("separator", "text"), [(s, t) for s in FORMATTED for t in FORMATTED[s]])
def test_numbers_in_other_formats_are_refused_unless_they_are_categories(tmp_path, separator, text):
    lines = "".join(f'"{text}"{separator}{n}\n' for n in range(40))
    table = f"price{separator}b\n{lines}"
    message = (
        "text of numbers with units, a comma or several marks, such as .*, in price.*price=ignore"
    )
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, table.replace(text, f"{text[:-1]}1", 1))
    kinds = {"columns": {"price": "category"}}
    _, manifest, _ = prepared(tmp_path, table.replace(text, f"{text[:-1]}1", 20), **kinds)
    assert manifest["columns"][0]["kind"] == "categorical"


def test_a_table_of_a_european_spreadsheet_is_read(tmp_path, caplog):
    text = "Größe;Preis\n1,5;1234,50\n2,5;-7\n"
    (tmp_path / "t.csv").write_bytes(text.encode("cp1252"))
    frame = read_table(tmp_path / "t.csv")
    assert frame.to_dict("list") == {"Größe": [1.5, 2.5], "Preis": [1234.5, -7]}
    assert "t.csv: read as cp1252, because it is not UTF-8" in caplog.text


def parquet_bytes(tmp_path, frame=FRAME):
    WRITE["parquet"](tmp_path / "whole.parquet", frame)
    return (tmp_path / "whole.parquet").read_bytes()


def forged_npy(shape):
    """A file whose header promises more than it contains."""
    file = io.BytesIO()
    fields = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file.getvalue() + bytes(160)


ROWS = FRAME[INPUTS]
MISTAKES = {
    "no file": (None, {}, "path=.*table.csv: expected .* got no such file"),
    "empty file": ("", {}, "readable csv table, got an error: No columns"),
    "only a header": ("a,b\n", {}, "counts: expected at least 3 rows, one for each split, got 0"),
    "one column": ("a\n" + "1.5\n2\n" * 20, {}, "at least 2 columns with different values, got 1"),
    "strict": (
        FRAME.assign(no=range(len(FRAME)), a=1),
        {"strict": True, "columns": {"part": "category"}},
        r"got 2 categories: .* in class; .* in patient. .*or omit strict",
    ),
    "strict with missing values": (
        NUMBERS.replace("\n7,", "\n,").replace("\n8,", "\n,").replace("\n9,", "\n,"),
        {"strict": True},
        r"got numbers, \d+ to 39, in steps of 1; 15.0% missing in a",
    ),
    "too many values below": (NUMBERS * 2 + "1,2,3\n", {}, "readable csv table, got an error"),
    "not text": (b"a,b\n\x81,2\n", {}, "readable csv table, got an error"),
    "two separators": ("a;b,c\n1;2,3\n", {}, "names with one separator, got a;b,c"),
    "no header": (
        "5.1,a,3.5\n" + "4.9,a,3.0\n4.7,b,3.2\n" * 20,
        {},
        r"names of columns in the first line, got the numbers 5.1, 3.5. .* such as x0,x1,x2",
    ),
    "a header of two lines": (
        '"a\nb",c\n1,2\n',
        {},
        "names of columns in one line, got a line break within quotes",
    ),
    "utf-16 without a mark": (
        NUMBERS.encode("utf-16-le"),
        {},
        "expected text in UTF-8, got null characters",
    ),
    "forged npy": (forged_npy((10**12, 2)), {"name": "t.npy"}, "readable npy table, got an error"),
    "a huge npy": (forged_npy((2**70, 2)), {"name": "t.npy"}, "readable npy table, got an error"),
    "cut parquet": ("parquet", {"name": "t.parquet"}, "readable parquet table, got an error"),
    "text as npy": (NUMBERS, {"name": "t.npy"}, "readable npy table, got an error"),
    "excel": (NUMBERS, {"name": "t.xlsx"}, "expected a CSV, .* got the suffix .xlsx"),
    "images": (b"PK", {"name": "pictures.zip"}, "the suffix .zip .*images need dataset=folder"),
    "an image as npy": (np.zeros((2, 3, 8, 8)), {"name": "t.npy"}, "images need dataset=folder"),
    "no such column": (ROWS, {"inputs": ["numbr"]}, "inputs: .* Did you mean number"),
    "no such label": (ROWS, {"label": "clas"}, "label: expected columns"),
    "no such split": (ROWS, {"split": "official"}, "split: expected columns"),
    "a split without names": (
        FRAME,
        {"split": "class", "inputs": INPUTS},
        "split=class: expected the values",
    ),
    "groups in two parts": (
        FRAME,
        {"groups": "patient", "split": "part", "inputs": INPUTS},
        "each group in one part",
    ),
    "too many rows": (ROWS, {"counts": {"test": 500}}, "counts: expected at most 200 rows"),
}


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
    for name, other in (("2.csv", "count"), ("3.csv", "more")):
        paths = [str(tmp_path / "1.csv"), str(tmp_path / name)]
        message = f"{name}: expected the columns of 1.csv, but only one of them has {other}"
        with pytest.raises(UserError, match=message):
            prepare_table(TableSettings(path=paths), tmp_path / "out", tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="got no such file"):
        prepare_table(TableSettings(path=str(tmp_path / "none")), tmp_path / "out", tmp_path)


def test_numbers_are_read_to_the_last_bit(tmp_path):
    values = np.random.default_rng(1).normal(size=3000) * 10.0 ** np.arange(-150, 150, 0.1)
    frame = pd.DataFrame({"a": values, "b": values[::-1]})
    for name in ("t.csv", "t.parquet", "t.feather"):
        WRITE[name.partition(".")[2]](tmp_path / name, frame)
        pd.testing.assert_frame_equal(read_table(tmp_path / name), frame, check_exact=True)


def test_large_integers_of_a_csv_file_are_not_rounded(tmp_path):
    """Those with gaps, and those beyond 64 bits, are no integers of numpy."""
    lines = (f"{'' if n % 7 == 1 else 2**53 + n % 3},{2**70 + n % 3},{n}e20\n" for n in range(99))
    (tmp_path / "t.csv").write_text("a,b,c\n" + "".join(lines))
    frame = read_table(tmp_path / "t.csv")
    assert frame["a"].dropna().tolist() == [2**53 + n % 3 for n in range(99) if n % 7 != 1]
    assert frame["b"].tolist() == [2**70 + n % 3 for n in range(99)]
    kinds = [column.kind for column in Preprocessor.fit(frame).columns]
    assert kinds == ["categorical", "categorical", "continuous"]


def test_kinds_are_set_by_names_and_patterns(tmp_path, caplog):
    caplog.set_level("INFO")
    kinds = {"count": "number", "c*s": "category", "p*": "ignore"}
    _, manifest, _ = prepared(tmp_path, FRAME, columns=kinds)
    assert [each["kind"] for each in manifest["columns"]] == [
        "continuous",
        "continuous",
        "continuous",
        "categorical",
    ]
    assert "class: 2 categories: a, b (as categories)" in caplog.text
    assert manifest["description"][3]["found"] == "2 categories: a, b"


NAMES = [*"0*=-", "sepal.length", "sepal", "..", "a=b", "a,b=c", "a b", "a: b", "it's", '5" pipe']
NAMES += ["Größe (cm)", "x[0]", "${x}"]


def test_printed_settings_of_columns_work_in_a_shell(tmp_path):
    frame = pd.DataFrame({name: RNG.choice([1, 2, 3], N) for name in NAMES}).assign(
        other=RNG.random(N)
    )
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    printed = Preprocessor.fit(frame).description.set_index("column")["change"][NAMES]
    texts = [shlex.split(text) for text in printed]
    assert {len(words) for words in texts} == {1}
    params = parse_params([text for (text,) in texts])
    record = select_experiment(tmp_path, str(path), {}, None, params)
    data = load_configuration(PACKAGED_CONF, record.params).experiment.data
    assert data.columns == dict.fromkeys(NAMES, "category")
    kinds = {column.name: column.kind for column in data.read().preprocessor.columns}
    assert kinds == dict.fromkeys(NAMES, "categorical") | {"other": "continuous"}


def test_names_of_columns_may_be_nested_at_their_dots():
    nested = {"path": "t.csv", "columns": {"sepal": {"length": "ignore"}, "a": "number"}}
    settings = read_data_settings({"source": "table", **nested})
    assert settings.columns == {"sepal.length": "ignore", "a": "number"}


def test_rows_with_missing_values_are_kept_unless_they_are_dropped(tmp_path):
    is_missing = FRAME.index.to_numpy()[:, None] % [3, 7, 999] == [0, 1, 5]
    table = FRAME[INPUTS].mask(is_missing)
    arrays, manifest, _ = prepared(tmp_path, table)
    assert sum(map(len, (arrays[split] for split in arrays))) == len(FRAME)
    assert manifest["dim"] == 3
    masks = [load_events(tmp_path / "out" / f"{split}.npy").context for split in arrays]
    assert np.concatenate(masks).sum(0).tolist() == is_missing.sum(0).tolist()
    arrays, manifest, _ = prepared(tmp_path / "dropped", table, missing="drop")
    assert sum(map(len, (arrays[split] for split in arrays))) == table.notna().all(axis=1).sum()
    assert load_events(tmp_path / "dropped" / "out" / "train.npy").x.dtype == np.float32
    assert not (tmp_path / "dropped" / "out" / "train-context.npy").exists()


def test_text_and_infinities_among_numbers_are_dropped_as_missing_values(tmp_path):
    """The first rows of the table are the broken ones."""
    table = FRAME[[*INPUTS, "class"]].astype({"count": object})
    table.loc[:1, "count"] = "?"
    table.loc[1:3, "ratio"] = np.inf, -np.inf, np.nan
    arrays, manifest, _ = prepared(tmp_path, table, missing="drop")
    assert sum(map(len, arrays.values())) == N - 4
    assert [column["kind"] for column in manifest["columns"]] == [
        "continuous",
        "quantized",
        "continuous",
        "categorical",
    ]
    assert manifest["dropped"] == 4
    assert min(read_sidecar(tmp_path / "out", "rows")["test"]) > 3


def test_other_values_of_columns_that_the_training_rows_have_constant_are_counted(tmp_path):
    table = FRAME.assign(valve=1.0, pump="on")
    table.loc[100, "valve"], table.loc[163, ["valve", "pump"]] = 2.0, [0.0, "off"]
    prepared(tmp_path, table, split="part", drop=["patient"])
    for split, expected in {"train": [], "valid": [(100, 1)], "test": [(163, 2)]}.items():
        events = load_events(tmp_path / "out" / f"{split}.npy")
        changed = events[events.changes > 0]
        assert [*zip(changed.rows, changed.changes, strict=True)] == expected
    prepared(tmp_path / "varying", FRAME)
    assert load_events(tmp_path / "varying" / "out" / "train.npy").changes is None


def test_held_out_rows_of_unseen_categories_are_left_out(tmp_path):
    classes = FRAME["class"].where(FRAME.index % 40 != 3, "c")
    table = FRAME.assign(**{"class": classes})
    table.loc[:99, "class"] = "a"
    table.loc[3, "class"] = "b"
    arrays, manifest, _ = prepared(tmp_path, table, split="part", drop=["patient"])
    numbers = read_sidecar(tmp_path / "out", "rows")["test"]
    assert [len(arrays[split]) for split in ("train", "valid", "test")] == [100, 59, 39]
    assert 163 not in numbers
    assert len(numbers) == 39
    assert "1 valid rows are left out, because they have a category" in manifest["split_note"]
    table.loc[160:, "class"] = "d"
    with pytest.raises(UserError, match="expected test rows whose categories are in the training"):
        prepared(tmp_path / "none", table, split="part", drop=["patient"])
