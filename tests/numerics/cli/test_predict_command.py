"""The command ``python -m numerics.predict``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray

from numerics.cli.predict import predict_command
from tests.command_line import assert_one_line_error, run


@pytest.fixture
def table(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    y = np.arange(240) % 2
    X = generator.standard_normal((240, 6)) + 0.7 * y[:, None]
    path = tmp_path / "table.csv"
    rows = [
        ",".join([*(f"{value:.6f}" for value in row), "sick" if label else "well"])
        for row, label in zip(X, y, strict=True)
    ]
    path.write_text("\n".join([",".join([*"abcdef", "state"]), *rows]) + "\n")
    return path


def test_report_and_files(table: Path, tmp_path: Path) -> None:
    stem = tmp_path / "out" / "found"
    flags = ("--teacher-ridge", "0.1,1", "--samples", "40,120", "--fits", "3", "--reliability", "3", "--output", stem)
    result = run(predict_command, table, *flags)
    assert result.exit_code == 0, result.stderr
    for words in (
        "table.csv: 240 samples of N = 6 columns, 50% positive,", "teacher ridge 0.1\n",
        "teacher ridge 1\n", "student fits", "real fits at M = 120", "3 settings, 3 fits each", "- training sets are taken",
    ):  # fmt: skip
        assert words in result.stdout
    assert len(result.stdout.splitlines()) < 50
    for suffix in (".png", ".pdf", ".nc"):
        assert stem.with_suffix(suffix).stat().st_size > 1000
        assert str(stem.with_suffix(suffix)) in result.stdout
    with xarray.open_dataset(stem.with_suffix(".nc"), group="curves") as curves:
        assert curves.sizes == {"setting": 2, "stage": 2, "samples": 2}
        assert np.isfinite(curves.fits.sel(samples=120)).all()


def test_json_and_choices(table: Path, tmp_path: Path) -> None:
    flags = (
        "--samples",
        "60",
        "--fits",
        "4",
        "--choose",
        "--cross-validate",
        "--levels",
        "--json",
        "--output",
        tmp_path / "found",
    )
    result = run(predict_command, table, "--student-columns", "a,c", *flags)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["data"]["samples"] == 240
    assert found["check"]["trusted"] == [True, True]
    assert [choice["method"] for choice in found["choices"]] == ["prediction", "cross-validation"]
    assert set(found["choices"][0]["parameters"]) == {
        "teacher.ridge",
        "student.ridge",
        "student.mixing",
        "student.temperature",
    }
    assert found["curves"]["samples"] == [60]
    errors = found["levels"]["errors"]
    assert errors["instance"] == found["check"]["predicted"][1]
    assert found["levels"]["gains"]["total"]["mean"] == pytest.approx(errors["hard"] - errors["instance"])


def test_features_of_the_student(table: Path, tmp_path: Path) -> None:
    flags = ("--samples", "60", "--fits", "2", "--output", tmp_path / "found")
    result = run(predict_command, table, "--student-features", "tanh:9", *flags)
    assert result.exit_code == 0, result.stderr
    assert "on 9 columns" in result.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--label", "stat"), "--label must be one of the columns"),
        (("--data", "digits"), "--data has no effect beside a FILE"),
        (("--samples", "100,2.5"), "--samples wants whole numbers"),
        (("--samples", "190"), "--samples: alpha must give training sets of at most 172 samples"),
        (("--teacher-ridge", "a"), "--teacher-ridge wants numbers"),
        (("--student-ridge", "-1"), "ridge must be a finite number >= 0"),
        (("--student-ridge", "0"), "ridge of student must be > 0"),
        (("--mixing", "2"), "mixing"),
        (("--student-columns", "z"), "--student-columns must be 'all'"),
        (("--student-features", "tanh"), "--student-features wants ACTIVATION:COUNT"),
        (("--student-features", "sin:3"), "--student-features: activation must be one of"),
        (("--student-features", "tanh:3", "--student-columns", "a"), "no effect with --student-features"),
        (("--classes", "sick,ill"), "--classes must be two of sick, well"),
        (("--drop", "z"), "--drop must be of a, b"),
    ],
)
def test_bad_flags_are_one_line_and_nothing_is_written(table: Path, tmp_path: Path, flags: tuple, words: str) -> None:
    stem = tmp_path / "out" / "found"
    assert_one_line_error(run(predict_command, table, *flags, "--output", stem), words)
    assert not stem.parent.exists()


@pytest.mark.parametrize(("samples", "columns", "shares"), [(12, 3, (6, 6)), (30, 40, (15, 15)), (40, 3, (38, 2))])
def test_few_samples(samples: int, columns: int, shares: tuple, tmp_path: Path) -> None:
    """Fewer than columns, hardly any to train on, two in a class."""
    path = tmp_path / "few.npz"
    X = np.random.default_rng(0).standard_normal((samples, columns))
    np.savez(path, X=X, y=np.repeat([0, 1], shares))
    result = run(predict_command, path, "--fits", "3", "--output", tmp_path / "found")
    assert result.exit_code == 0, result.stderr
    assert "nan" not in result.stdout
    with xarray.open_dataset(tmp_path / "found.nc", group="curves") as curves:
        assert np.isfinite(curves.test_error).all()
        assert (np.diff(curves.samples) > 0).all()


def test_bad_files_are_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    stem, path = tmp_path / "out" / "found", tmp_path / "table.csv"
    path.write_text("a,b\n1,0\n2,0\n,1\n4,1\n")
    assert_one_line_error(run(predict_command, path, "--output", stem), "column 'a' must have no missing value")
    assert_one_line_error(
        run(predict_command, tmp_path / "none.csv", "--output", stem), "FILE: none.csv cannot be read"
    )
    assert not stem.parent.exists()
