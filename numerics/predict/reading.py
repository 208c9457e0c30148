"""Samples from files and from scikit-learn, checked, and scaled."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from numerics.models import LinearMap, ParameterError, require_count
from numerics.models.measured import Samples

Array = NDArray[np.float64]

SCALES = ("columns", "together", "none")
"""What is divided by a standard deviation: every column by its own, all by one, none."""

BUILT_IN = ("digits", "breast-cancer")
"""Data that come with scikit-learn."""

ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda h: np.maximum(h, 0.0),
    "sign": np.sign,
    "cos": np.cos,
}
"""Of random features of measured data."""

EXTRA = "install the extra 'predict' (pip install 'replica-distillation[predict]')"


@dataclass(frozen=True, eq=False)
class Table:
    """Samples of two classes with names.

    Attributes
    ----------
    samples : Samples
    columns : tuple of str
    title : str
    notes : tuple of str
        What was done to them, a line each.
    half : array of int
        Columns that a student sees of whom it is only said that it sees half.
    """

    samples: Samples
    columns: tuple[str, ...]
    title: str
    notes: tuple[str, ...]
    half: NDArray[np.intp]

    @property
    def X(self) -> Array:
        return self.samples.X

    @property
    def y(self) -> Array:
        return self.samples.y

    @property
    def labels(self) -> NDArray:
        """Of each sample, as they were given."""
        lower, upper = self.samples.labels
        return np.where(self.y > 0, upper, lower)

    def map_of(self, chosen: str) -> LinearMap | None:
        """What a stage sees: ``"all"``, ``"half"``, names or numbers of columns with commas between, or ``LOW:HIGH``.

        Raises
        ------
        ParameterError
            For a column that does not exist, or none at all.
        """
        if chosen == "all":
            return None
        rows = self.half if chosen == "half" else np.array(self._numbers(chosen), dtype=np.intp)
        if len(rows) == len(self.columns):
            return None
        return LinearMap(np.eye(len(self.columns))[rows])

    def _numbers(self, chosen: str) -> list[int]:
        size = len(self.columns)
        if ":" in chosen and chosen not in self.columns:
            low, _, high = chosen.partition(":")
            try:
                found = list(range(size))[int(low or 0) : int(high or size)]
            except ValueError:
                raise ParameterError(f"columns must be LOW:HIGH in whole numbers, got {chosen!r}") from None
            if not found:
                raise ParameterError(f"columns must be some of the {size}, got {chosen!r}")
            return found
        found = []
        for name in chosen.split(","):
            if name in self.columns:
                found.append(self.columns.index(name))
            elif name.isdigit() and int(name) < size:
                found.append(int(name))
            else:
                raise ParameterError(
                    f"columns must be 'all', 'half', LOW:HIGH, or of {_listed(self.columns)}, got {name!r}"
                )
        return sorted(set(found))

    def with_features(self, activation: str, count: int, seed: int = 0) -> Table:
        """The same with further columns, ``phi(F x/sqrt(p))`` of the centred inputs, F standard normal.

        Raises
        ------
        ParameterError
            For an unknown activation, or a count below 1.
        """
        if activation not in ACTIVATIONS:
            raise ParameterError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        count = require_count("count", count, 1)
        features = random_features(self.X, activation, count, seed)
        columns = (*self.columns, *(f"{activation}{k}" for k in range(count)))
        return replace(
            self,
            samples=Samples(np.hstack([self.X, features]), self.labels, columns),
            columns=columns,
            notes=(*self.notes, f"{count} columns more, {activation} of random combinations"),
        )


def random_features(X: Array, activation: str, count: int, seed: int = 0) -> Array:
    """``phi(F x/sqrt(p))`` of centred inputs scaled to a mean square of 1, shape (n, count); F is standard normal."""
    centred = X - X.mean(axis=0)
    centred = centred / math.sqrt(float(np.mean(centred**2)))
    first = np.random.default_rng(seed).standard_normal((count, X.shape[1]))
    return ACTIVATIONS[activation](centred @ first.T / math.sqrt(X.shape[1]))


def scaled(X: Array, how: str) -> Array:
    """Inputs divided by standard deviations, see :data:`SCALES`.

    Raises
    ------
    ParameterError
        For another way.
    """
    if how not in SCALES:
        raise ParameterError(f"scale must be one of {', '.join(SCALES)}, got {how!r}")
    if how == "columns":
        return X / X.std(axis=0)
    return X / math.sqrt(float(np.mean((X - X.mean(axis=0)) ** 2))) if how == "together" else X


def read_file(
    path: Path, label: str | None = None, classes: Sequence[str] = (), scale: str = "columns", drop: Sequence[str] = ()
) -> Table:
    """Samples of a file: ``.npz`` with X and y, ``.csv`` or ``.parquet`` with a column of labels.

    Parameters
    ----------
    label : str, optional
        Column of the labels, by default the last; not of ``.npz``.
    classes : sequence of str
        The two labels that are kept; all if empty.
    scale : str
        See :data:`SCALES`.
    drop : sequence of str
        Columns that are left out.

    Raises
    ------
    ParameterError
        If the file cannot be read, or what it holds cannot be used: one line that says what.
    """
    kind = path.suffix.lower()
    if kind == ".npz":
        if label is not None:
            raise ParameterError(f"label has no effect on {path.name}, whose labels are its y")
        X, y = _arrays_of(path)
        columns = tuple(map(str, range(np.shape(X)[1] if np.ndim(X) == 2 else 0)))
    elif kind in (".csv", ".parquet"):
        X, y, columns = _columns_of(path, label)
    else:
        raise ParameterError(f"file must end in .npz, .csv or .parquet, got {path.name!r}")
    missing = [name for name in drop if name not in columns]
    if missing:
        raise ParameterError(f"drop must be of {_listed(columns)}, got {missing[0]!r}")
    if drop:
        kept = [k for k, name in enumerate(columns) if name not in drop]
        X, columns = np.asarray(X)[:, kept], tuple(columns[k] for k in kept)
    return _table(X, y, columns, path.name, classes, scale)


def built_in(name: str, classes: Sequence[str] = (), scale: str | None = None) -> Table:
    """Data of scikit-learn: handwritten digits, odd ones against even ones or two of them, and tumours.

    Columns that are constant are left out.

    Raises
    ------
    ParameterError
        For another name, if scikit-learn is missing, or as of :func:`read_file`.
    """
    if name not in BUILT_IN:
        raise ParameterError(f"data must be one of {', '.join(BUILT_IN)}, got {name!r}")
    try:
        from sklearn.datasets import load_breast_cancer, load_digits
    except ImportError:
        raise ParameterError(f"scikit-learn is missing: {EXTRA}") from None
    if name == "breast-cancer":
        found = load_breast_cancer()
        columns = tuple(str(column).replace(",", " ") for column in found.feature_names)
        return _table(
            found.data, found.target_names[found.target], columns, "breast cancer", classes, scale or "columns"
        )
    pixels, digit = load_digits(return_X_y=True)
    labels = digit.astype(str) if classes else np.where(digit % 2 == 1, "odd", "even")
    kept = pixels if not classes else pixels[np.isin(labels, list(classes))]
    varying = np.flatnonzero(np.ptp(kept, axis=0) > 0) if len(kept) else np.arange(pixels.shape[1])
    side = math.isqrt(pixels.shape[1])
    columns = tuple(f"pixel{k // side}{k % side}" for k in varying)
    found = _table(pixels[:, varying], labels, columns, "digits", classes, scale or "together")
    board = np.flatnonzero((varying // side + varying % side) % 2 == 0)
    note = f"{pixels.shape[1] - len(varying)} constant columns are left out; a student's half is a checkerboard"
    return replace(found, half=board, notes=(*found.notes, note))


def _table(X: object, y: object, columns: Sequence[str], title: str, classes: Sequence[str], scale: str) -> Table:
    if classes:
        X, y = _two_classes(X, y, classes)
    samples = Samples(X, y, columns)
    lower, upper = samples.labels
    notes = [f"classes {upper} (+1) and {lower} (-1)"]
    said = {"columns": "every column has standard deviation 1", "together": "all columns are divided by one number"}
    notes += [said[scale]] if scale in said else []
    return Table(
        Samples(scaled(samples.X, scale), y, columns),
        tuple(columns),
        title,
        tuple(notes),
        np.arange(0, samples.size, 2),
    )


def _two_classes(X: object, y: object, classes: Sequence[str]) -> tuple[object, object]:
    labels = np.asarray(y)
    names = np.array([str(label) for label in labels.tolist()]) if labels.ndim == 1 else np.empty(0)
    known = sorted(set(names.tolist()))
    if len(classes) != 2 or classes[0] == classes[1] or not set(classes) <= set(known):
        raise ParameterError(f"classes must be two of {_listed(known)}, got {','.join(classes)}")
    kept = np.isin(names, list(classes))
    if len(X) != len(kept):
        raise ParameterError(f"y must have as many labels as X has rows, {len(X)}, got {len(kept)}")
    return np.asarray(X)[kept], names[kept]


def _arrays_of(path: Path) -> tuple[object, object]:
    try:
        with np.load(path, allow_pickle=False) as found:
            missing = [name for name in ("X", "y") if name not in found.files]
            if missing:
                raise ParameterError(f"{path.name} must hold X and y, it has {_listed(found.files)}")
            return found["X"], found["y"]
    except ParameterError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ParameterError(f"{path.name} cannot be read: {_reason(error)}") from None


def _columns_of(path: Path, label: str | None) -> tuple[Array, object, tuple[str, ...]]:
    import pandas  # here: it takes half a second

    try:
        frame = pandas.read_csv(path) if path.suffix.lower() == ".csv" else pandas.read_parquet(path)
    except ImportError:
        raise ParameterError(f"pyarrow is missing, which reads {path.name}: {EXTRA}") from None
    except (OSError, ValueError, UnicodeDecodeError, pandas.errors.ParserError) as error:
        raise ParameterError(f"{path.name} cannot be read: {_reason(error)}") from None
    names = tuple(str(name) for name in frame.columns)
    if len(names) < 2 or not len(frame):
        raise ParameterError(f"{path.name} must have rows and at least two columns, got shape {frame.shape}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ParameterError(f"{path.name} must have columns of different names, {repeated[0]!r} is there twice")
    frame.columns = list(names)
    label = names[-1] if label is None else label
    if label not in names:
        raise ParameterError(f"label must be one of the columns {_listed(names)}, got {label!r}")
    columns = tuple(name for name in names if name != label)
    for name in columns:
        column = frame[name]
        if column.isna().any():
            raise ParameterError(f"column {name!r} must have no missing value, it has {int(column.isna().sum())}")
        if not pandas.api.types.is_numeric_dtype(column) or pandas.api.types.is_complex_dtype(column):
            numbers = pandas.to_numeric(column, errors="coerce")
            wrong = column[numbers.isna()] if numbers.isna().any() else column
            raise ParameterError(f"column {name!r} must hold real numbers, got {wrong.iloc[0]!r}")
    if frame[label].isna().any():
        raise ParameterError(f"label {label!r} must have no missing value, it has {int(frame[label].isna().sum())}")
    return frame[list(columns)].to_numpy(dtype=float), frame[label].to_numpy(), columns


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
