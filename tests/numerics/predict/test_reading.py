"""Files of samples, scikit-learn's data, scaling, and what stages see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from numerics import ParameterError
from numerics.predict.reading import Table, built_in, read_file, scaled

HEAD = "length,width,kind"
ROWS = ("1,2,a", "2,1,b", "3,5,a", "4,4,b")


def written(folder: Path, *rows: str, head: str = HEAD, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text("\n".join((head, *rows)) + "\n")
    return path


def saved(folder: Path, **arrays: object) -> Path:
    path = folder / "table.npz"
    np.savez(path, **arrays)
    return path


def test_a_table_of_text_is_read(tmp_path: Path) -> None:
    found = read_file(written(tmp_path, *ROWS), scale="none")
    assert found.columns == ("length", "width")
    assert found.samples.labels == ("a", "b")
    np.testing.assert_array_equal(found.y, [-1, 1, -1, 1])
    np.testing.assert_array_equal(found.X, [[1, 2], [2, 1], [3, 5], [4, 4]])
    first = read_file(written(tmp_path, *("a,1", "b,2", "a,3", "b,5"), head="kind,size"), label="kind")
    assert first.columns == ("size",)
    assert first.X.std() == pytest.approx(1.0)


def test_parquet_and_arrays_hold_the_same(tmp_path: Path) -> None:
    X, y = np.arange(8.0).reshape(4, 2) ** 2, [0, 1, 0, 1]
    expected = read_file(saved(tmp_path, X=X, y=y))
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    path = tmp_path / "table.parquet"
    pandas.DataFrame({"u": X[:, 0], "v": X[:, 1], "y": y}).to_parquet(path)
    assert read_file(path).samples == expected.samples


def test_two_of_several_classes_and_columns_that_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, *ROWS, "9,9,c", "7,8,c", head=HEAD)
    found = read_file(path, classes=("a", "c"), drop=("length",), scale="none")
    assert found.samples.labels == ("a", "c")
    np.testing.assert_array_equal(found.X[:, 0], [2, 5, 9, 8])


BAD = [
    ("1,2,a 2,1,b 3,,a 4,4,b", {}, "column 'width' must have no missing value, it has 1"),
    ("1,2,a 2,x,b 3,5,a 4,4,b", {}, "column 'width' must hold real numbers, got 'x'"),
    ("1,2,a 2,1,b 3,5,a 4,inf,b", {}, "X must have finite numbers, got inf in column 'width', row 3"),
    ("1,2,a 2,2,b 3,2,a 4,2,b", {}, "X must have no constant column; leave out 'width'"),
    ("1,2,a 2,1,a 3,5,a 4,4,a", {}, "y must have two classes, got 1 (a)"),
    ("1,2,a 2,1,b 3,5,a 4,4,a", {}, "y must have at least 2 samples of each class, got 1 of b"),
    ("1,2,0.5 2,1,1.5 3,5,0.5 4,4,1.5", {}, "y must be labels of classes, not numbers such as 0.5"),
    ("1,2,a 2,1,b 3,5, 4,4,b", {}, "label 'kind' must have no missing value, it has 1"),
    ("1,2,a 2,1,b 3,5,a 4,4,b", {"label": "sort"}, "label must be one of the columns length, width, kind, got 'sort'"),
    ("1,2,a 2,1,b 3,5,a 4,4,b", {"classes": ("a", "z")}, "classes must be two of a, b, got a,z"),
    ("1,2,a 2,1,b 3,5,a 4,4,b", {"drop": ("height",)}, "drop must be of length, width, got 'height'"),
    ("", {}, "table.csv must have rows and at least two columns"),
]  # fmt: skip
"""Rows with blanks between, further arguments, and what is said."""


@pytest.mark.parametrize(("rows", "arguments", "words"), BAD)
def test_tables_that_are_refused(rows: str, arguments: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError) as caught:
        read_file(written(tmp_path, *rows.split(" ")) if rows else written(tmp_path), **arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_refused(tmp_path: Path) -> None:
    nothing, text = tmp_path / "nothing.npz", tmp_path / "text.npz"
    nothing.write_bytes(b"")
    text.write_text("no archive")
    cases = [
        (nothing, "nothing.npz cannot be read"),
        (text, "text.npz cannot be read"),
        (saved(tmp_path, a=1), "table.npz must hold X and y, it has a"),
        (tmp_path / "table.txt", "file must end in .npz, .csv or .parquet, got 'table.txt'"),
        (written(tmp_path, '1,"2', name="open.csv"), "open.csv cannot be read"),
    ]
    for path, words in cases:
        with pytest.raises(ParameterError) as caught:
            read_file(path)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ParameterError, match="label has no effect"):
        read_file(saved(tmp_path, X=1, y=1), label="y")
    with pytest.raises(ParameterError, match="X must be a matrix, a row a sample, got shape"):
        read_file(saved(tmp_path, X=np.arange(4.0), y=[0, 0, 1, 1]))
    with pytest.raises(ParameterError, match="y must have as many labels as X has rows, 5, got 4"):
        read_file(saved(tmp_path, X=np.eye(5), y=[0, 0, 1, 1]))


def table() -> Table:
    pytest.importorskip("sklearn")
    return built_in("digits", ("4", "9"))


def test_digits_and_tumours() -> None:
    pytest.importorskip("sklearn")
    digits, tumours = built_in("digits"), built_in("breast-cancer")
    assert (digits.samples.count, digits.samples.size, digits.samples.labels) == (1797, 61, ("even", "odd"))
    assert np.mean((digits.X - digits.X.mean(axis=0)) ** 2) == pytest.approx(1.0)
    assert len(digits.half) == 30
    assert (tumours.samples.count, tumours.samples.size) == (569, 30)
    np.testing.assert_allclose(tumours.X.std(axis=0), 1.0)
    assert table().samples.labels == ("4", "9")
    assert "constant columns are left out" in " ".join(table().notes)
    for arguments, words in ((("letters",), "data must be one of"), (("digits", ("4", "x")), "classes must be two of")):
        with pytest.raises(ParameterError, match=words):
            built_in(*arguments)


def test_what_stages_see() -> None:
    found = table()
    size = found.samples.size
    assert found.map_of("all") is None
    np.testing.assert_array_equal(found.map_of("half").matrix @ np.arange(size), found.half)
    np.testing.assert_array_equal(found.map_of("2:5").matrix @ np.arange(size), [2, 3, 4])
    np.testing.assert_array_equal(found.map_of(f"7,{found.columns[3]}").matrix @ np.arange(size), [3, 7])
    for chosen, words in (
        ("9:9", "columns must be some of"),
        ("a:b", "LOW:HIGH in whole"),
        ("height", "columns must be 'all'"),
    ):
        with pytest.raises(ParameterError, match=words):
            found.map_of(chosen)


def test_random_features_are_further_columns() -> None:
    found = table()
    wide = found.with_features("tanh", 7, seed=1)
    assert wide.samples.size == found.samples.size + 7
    assert wide.samples.labels == found.samples.labels
    np.testing.assert_array_equal(wide.X[:, :-7], found.X)
    assert np.abs(wide.X[:, -7:]).max() < 1.0
    for arguments, words in (("sin", 7), "activation must be one of"), (("tanh", 0), "count must be an integer >= 1"):
        with pytest.raises(ParameterError, match=words):
            found.with_features(*arguments)


def test_scales() -> None:
    X = np.random.default_rng(0).standard_normal((50, 3)) * [1.0, 2.0, 3.0] + 5.0
    np.testing.assert_allclose(scaled(X, "columns").std(axis=0), 1.0)
    together = scaled(X, "together")
    np.testing.assert_allclose(together / X, together[0, 0] / X[0, 0])
    assert np.mean((together - together.mean(axis=0)) ** 2) == pytest.approx(1.0)
    assert scaled(X, "none") is X
    with pytest.raises(ParameterError, match="scale must be one of columns, together, none"):
        scaled(X, "rows")
