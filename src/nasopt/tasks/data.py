"""Data sets of labelled images: loading, checking, splitting in three, and the statistics of the training part.

What can be wrong with a data set is found here, before a search starts, and raised as `nasopt.errors.InputError`.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nasopt.errors import InputError, unknown
from nasopt.files import write_whole
from nasopt.seed import rng
from nasopt.tasks import readers
from nasopt.tasks.images import LAYOUTS, Layout, guess_layout
from nasopt.tasks.readers import PARTS, Raw

Array = NDArray[Any]
Indices = NDArray[np.int64]

WORDS: Final = {"digits": readers.read_digits}
FRACTION: Final = 0.2
CHUNK_BYTES: Final = 1 << 23  # of float64: large enough for numpy's speed, small beside any data set


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, checked.

    Attributes:
        x: images as the user has them, uint8 or float32, axes in the order of ``layout``; wider floats are converted.
        y: labels, shape (N,), from 0 to k - 1, each of which occurs.
        classes: the k names of the classes.
        layout: "NHW", "NHWC" or "NCHW".
        name: what to call it.
        given: indices of the parts (train, val, test) that the source itself names, none of them empty; no part, or
            with train among them.
        notes: what is allowed but should be known, such as images that stand in two parts.
    """

    x: Array
    y: Indices
    classes: tuple[str, ...]
    layout: Layout
    name: str
    given: Mapping[str, Indices]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what a network gets."""
        sizes = dict(zip(self.layout, self.x.shape, strict=True))
        return sizes.get("C", 1), sizes["H"], sizes["W"]


# --- loading ---


def load(source: str | Path, image_size: tuple[int, int] | None = None) -> Dataset:
    """The data set at ``source``, checked.

    Args:
        source: the word ``digits`` (scikit-learn's 8 x 8 digits; a file of that name is ``./digits``) or a path:
            a ``.npz`` (`nasopt.tasks.readers.read_npz`), a folder of images (`read_folder`), or a folder with the
            official binary files of CIFAR-10 (`read_cifar10`).
        image_size: (height, width) to which the images of a folder are resized; None requires equal sizes.

    Raises:
        InputError: the source is missing, damaged or no data set to search on; the sentence names the remedy.
    """
    raw = _read(source, image_size)
    found = _made(raw)
    return replace(found, notes=(*found.notes, *_unused(raw), *_duplicates(found.x, found.given)))


def checked(data: Dataset) -> Dataset:
    """A data set that was made in Python, checked as one that is loaded; labels of any whole type, or names, become numbers,
    wider floats float32.

    Raises:
        InputError: it is no data set to search on; the sentence names the remedy.
    """
    x, y = np.asarray(data.x), np.asarray(data.y)
    if not len(x) or y.shape != (len(x),):
        raise InputError(f"labels of '{data.name}' have shape {y.shape}: give one for each of the {len(x)} images.")
    if set(data.given) - set(PARTS):
        raise InputError(f"'{data.name}' has the parts {', '.join(data.given)}: name them {', '.join(PARTS)}.")
    if data.layout not in LAYOUTS:
        raise InputError(f"the layout of '{data.name}' is {data.layout!r}: give one of {', '.join(LAYOUTS)}.")
    given = readers.check_given(f"'{data.name}'", {part: np.asarray(indices) for part, indices in data.given.items()}, len(x))
    return _made(Raw(data.name, x, y, given, data.classes, data.layout, data.notes))


def _made(raw: Raw) -> Dataset:
    """The data set, if it is one to search on."""
    labels, classes = _classes(raw)
    _check_classes(raw, labels, classes)
    return Dataset(_pixels(raw), labels, classes, _layout(raw), raw.name, raw.given, raw.notes)


def _read(source: str | Path, image_size: tuple[int, int] | None) -> Raw:
    if isinstance(source, str) and source in WORDS:
        _refuse_size(source, image_size)
        return WORDS[source]()
    path = Path(os.path.expanduser(source))
    try:
        if not str(source).strip() or not path.exists():
            raise _missing(str(source))
        if path.is_dir():
            return _read_directory(path, image_size)
        _refuse_size(str(source), image_size)
        if path.suffix.lower() != ".npz":
            raise InputError(
                f"'{source}' is no folder and no .npz file: save the data with np.savez(path, x=..., y=...)."
            )
        return readers.read_npz(path)
    except OSError as e:
        what = f"'{e.filename or source}' cannot be read ({e.strerror or e})"
        raise InputError(f"{what}: check the path and its permissions.") from e


def _read_directory(path: Path, image_size: tuple[int, int] | None) -> Raw:
    cifar10 = readers.cifar10_folder(path)
    if cifar10:
        _refuse_size(str(path), image_size)
        return readers.read_cifar10(cifar10)
    if image_size is not None and min(image_size) < 1:
        raise InputError(f"image_size {image_size} is not positive: give (height, width) in pixels.")
    return readers.read_folder(path, image_size)


def _missing(source: str) -> InputError:
    if difflib.get_close_matches(source, WORDS, 1, 0.5):
        return unknown("data source", source, WORDS)
    return InputError(
        f"data source '{source}' does not exist: give the path of a .npz file or of a folder of images, "
        f"or the word {' or '.join(WORDS)}."
    )


def _refuse_size(source: str, image_size: tuple[int, int] | None) -> None:
    if image_size is not None:
        raise InputError(f"image_size resizes folders of images only, and '{source}' is none: leave image_size out.")


# --- checking ---


def _classes(raw: Raw) -> tuple[Indices, tuple[str, ...]]:
    """The labels as numbers 0..k-1, and the names of the k classes."""
    if raw.labels.dtype.kind in "US":
        return _named_classes(raw)
    labels = _whole_labels(raw)
    present = np.unique(labels)
    k = len(raw.classes) if raw.classes else int(present[-1]) + 1
    if present[-1] >= k:
        raise InputError(f"labels of '{raw.name}' go up to {present[-1]} but it names {k} classes: use 0..{k - 1}.")
    if len(present) < k:
        gap = next((i for i, label in enumerate(present) if i != label), len(present))
        raise InputError(
            f"labels of '{raw.name}' should be 0..{k - 1} but none is {gap}: number the classes 0..k-1 without gaps."
        )
    return labels, raw.classes or tuple(str(c) for c in range(k))


def _named_classes(raw: Raw) -> tuple[Indices, tuple[str, ...]]:
    try:
        texts = np.char.decode(raw.labels, "utf-8") if raw.labels.dtype.kind == "S" else raw.labels
    except UnicodeDecodeError as e:
        raise InputError(f"labels of '{raw.name}' are bytes that are no UTF-8 ({e}): save them as text.") from e
    names, labels = np.unique(texts, return_inverse=True)
    if not names[0].strip():
        missing = int(np.sum(texts == names[0]))
        raise InputError(f"{missing} labels of '{raw.name}' are missing (empty text): label or remove these images.")
    if raw.classes is None:
        return labels.astype(np.int64), tuple(names.tolist())
    if set(raw.classes) != set(names.tolist()):
        odd = min(set(raw.classes) ^ set(names.tolist()))
        raise InputError(
            f"'{odd}' stands in only one of the labels and the 'classes' of '{raw.name}': give the same names in both."
        )
    order = np.array([raw.classes.index(name) for name in names.tolist()], np.int64)
    return order[labels], raw.classes


def _whole_labels(raw: Raw) -> Indices:
    labels = raw.labels
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        missing = int(np.sum(~np.isfinite(labels)))
        raise InputError(
            f"{missing} labels of '{raw.name}' are missing (NaN or infinite): label or remove these images."
        )
    if labels.dtype.kind not in "iub":
        raise InputError(f"labels of '{raw.name}' are {labels.dtype}: save them as whole numbers 0..k-1 or as text.")
    if labels.min() < 0:
        i = int(np.argmin(labels))
        raise InputError(
            f"labels of '{raw.name}' are negative (image {i} has {labels[i]}): use 0..k-1, or remove such images."
        )
    return labels.astype(np.int64)


def _check_classes(raw: Raw, labels: Indices, classes: tuple[str, ...]) -> None:
    """Every class is in the part that is trained on, often enough to draw the parts that are not given."""
    if len(classes) < 2:
        raise InputError(f"all images of '{raw.name}' are of one class ('{classes[0]}'): give at least two classes.")
    absent = [part for part in ("val", "test") if part not in raw.given]
    needed = 1 + len(absent)
    pool = raw.given.get("train", np.arange(len(labels)))
    counts = np.bincount(labels[pool], minlength=len(classes))
    rarest = int(np.argmin(counts))
    if counts[rarest] == 0:
        part = next((p for p in ("val", "test") if p in raw.given and rarest in labels[raw.given[p]]), "unused")
        raise InputError(
            f"class '{classes[rarest]}' is in the {part} part of '{raw.name}' but not in train: add some to train."
        )
    if counts[rarest] < needed:
        parts = " and ".join(["train", *absent])
        raise InputError(
            f"class '{classes[rarest]}' of '{raw.name}' has too few images to draw from, {counts[rarest]}: "
            f"add images until there are at least {needed} (one each for {parts}), or remove the class."
        )


def _layout(raw: Raw) -> Layout:
    layout = raw.layout or guess_layout(raw.x.shape)
    if layout is None:
        raise InputError(
            f"images of '{raw.name}' have shape {raw.x.shape[1:]}, which does not tell where the channels are: "
            "add the key layout='NHWC' or layout='NCHW' to the .npz."
        )
    if len(layout) != raw.x.ndim:
        raise InputError(f"images of '{raw.name}' have shape {raw.x.shape}, not {layout}: correct its key 'layout'.")
    return layout


def _pixels(raw: Raw) -> Array:
    """The images as uint8 or float32, all finite."""
    if raw.x.dtype == np.uint8:
        return raw.x
    if raw.x.dtype.kind != "f":
        raise InputError(f"images of '{raw.name}' are {raw.x.dtype}: save them as uint8 (0..255) or float32.")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused below
        x = raw.x.astype(np.float32, copy=False)
    for start in range(0, len(x), rows := _rows(x)):
        bad = ~np.isfinite(x[start : start + rows]).reshape(len(x[start : start + rows]), -1).all(axis=1)
        if bad.any():
            i = start + int(np.argmax(bad))
            raise InputError(f"image {i} of '{raw.name}' holds NaN or infinity: replace these values or remove it.")
    return x


def _rows(x: Array) -> int:
    """How many images make a chunk."""
    size: int = x[0].size
    return max(1, CHUNK_BYTES // (8 * size))


def _unused(raw: Raw) -> Iterator[str]:
    unused = len(raw.x) - sum(len(indices) for indices in raw.given.values())
    if raw.given and unused:
        yield f"{unused} images are in no given part and are not used."


def _duplicates(x: Array, given: Mapping[str, Indices]) -> Iterator[str]:
    """A note for every pair of given parts that share exact copies of images."""
    parts = [part for part in PARTS if part in given]
    if len(parts) < 2:
        return
    digests = {part: [hashlib.blake2b(x[i].tobytes(), digest_size=16).digest() for i in given[part]] for part in parts}
    for i, first in enumerate(parts):
        known = set(digests[first])
        for second in parts[i + 1 :]:
            copies = sum(digest in known for digest in digests[second])
            if copies:
                yield f"{copies} of {len(digests[second])} {second} images are exact copies of {first} images."


# --- splitting ---


@dataclass(frozen=True, eq=False)
class Split:
    """Indices into a data set of what is trained on, what the search validates on, and what only the final report sees.

    Raises:
        InputError: a part is empty, not whole numbers, negative or repeated, or two parts overlap.
    """

    train: Indices
    val: Indices
    test: Indices

    def __post_init__(self) -> None:
        parts = {part: getattr(self, part) for part in PARTS}
        for part, indices in parts.items():
            readers.check_indices(f"part {part} of the split", indices, np.iinfo(np.int64).max)
        readers.check_disjoint("the split", parts)

    def save(self, path: str | Path) -> None:
        """Writes ``train``, ``val`` and ``test`` to a .npz; a file of that name is replaced at once or not at all."""
        content = io.BytesIO()
        np.savez(content, train=self.train, val=self.val, test=self.test)
        write_whole(path, content.getvalue())

    @staticmethod
    def load(path: str | Path) -> Split:
        """What `save` wrote.

        Raises:
            InputError: the file is missing, damaged or no split.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as npz:
                parts = {part: npz[part] for part in PARTS}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as e:
            what = f"split '{path}' cannot be read ({e})"
            raise InputError(f"{what}: give a .npz with the index arrays train, val and test.") from e
        checked = Split(**parts)
        return Split(*(indices.astype(np.int64) for indices in (checked.train, checked.val, checked.test)))


def split(dataset: Dataset, seed: int, val: float | None = None, test: float | None = None) -> Split:
    """A three-way split, stratified by class; given parts stay as they are, and what is missing is drawn from train.

    Every class is in each part that is drawn, and its share there is within one image of the fraction asked for, except
    where at least one image per class is more than that. The same arguments give the same split.

    Args:
        seed: the run's seed, at least 0.
        val, test: the fraction of what is drawn from; None means 0.2, or that the part is given.

    Raises:
        InputError: the fractions are not in (0, 1) or add up to 1 or more, or one stands for a given part.
    """
    wanted = {part: value for part, value in (("val", val), ("test", test)) if value is not None}
    fractions = {part: wanted.get(part, FRACTION) for part in ("val", "test") if part not in dataset.given}
    _check_fractions(dataset, wanted, fractions)
    pool = dataset.given.get("train", np.arange(len(dataset)))
    positions = _draw(dataset.y[pool], list(fractions.values()), rng(seed, 0, "split"))
    drawn = {part: pool[chosen] for part, chosen in zip(("train", *fractions), positions, strict=True)}
    return Split(**{part: np.sort(indices) for part, indices in {**dataset.given, **drawn}.items()})


def _check_fractions(dataset: Dataset, wanted: Mapping[str, float], fractions: Mapping[str, float]) -> None:
    for part, value in wanted.items():
        if part in dataset.given:
            raise InputError(f"'{dataset.name}' has its own {part} part: leave out {part}={value}.")
        if not 0 < value < 1:
            raise InputError(f"{part}={value} is no fraction: give a number between 0 and 1.")
    if sum(fractions.values()) >= 1:
        shares = " and ".join(f"{part}={value}" for part, value in fractions.items())
        raise InputError(f"{shares} leave nothing to train on: give fractions that add up to less than 1.")


def _draw(labels: Indices, fractions: list[float], generator: np.random.Generator) -> list[Indices]:
    """Positions of the samples left over, then of each fraction's, shuffled within each class."""
    shares = np.array([1 - sum(fractions), *fractions])
    counts = apportion(np.bincount(labels), shares)
    chosen: list[list[Indices]] = [[] for _ in shares]
    for c, row in enumerate(counts):
        members = generator.permutation(np.flatnonzero(labels == c))
        for part, block in zip(chosen, np.split(members, np.cumsum(row)[:-1]), strict=True):
            part.append(block)
    return [np.concatenate(part) for part in chosen]


def apportion(sizes: Indices, shares: NDArray[np.float64]) -> Indices:
    """Whole numbers, shape (classes, parts): rows add up to ``sizes``, and each is its exact share rounded up or down.

    Largest remainders (Hamilton's method) per row, with the rounding error of earlier rows carried over so that the
    columns' sums stay near their shares too. A part that would get nothing of a class takes one from the largest part.

    Args:
        sizes: shape (classes,), each at least the number of parts.
        shares: shape (parts,), positive, summing to 1.

    Raises:
        InputError: a class has fewer images than there are parts.
    """
    if sizes.min() < len(shares):
        raise InputError(f"a class has {sizes.min()} images to share among {len(shares)} parts: add images of it.")
    counts = np.zeros((len(sizes), len(shares)), np.int64)
    owed = np.zeros(len(shares))
    for row, size in zip(counts, sizes, strict=True):
        exact = size * shares
        row[:] = np.floor(exact + 1e-9)  # 10 * 0.3 may be just below 3
        left = size - row.sum()
        row[np.argsort(row - exact - owed, kind="stable")[:left]] += 1
        while (row == 0).any():
            row[np.argmax(row)] -= 1
            row[np.argmin(row)] += 1
        owed += exact - row
    return counts


# --- statistics ---


def normalisation(dataset: Dataset, train: Indices) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and population standard deviation of each channel over the training images alone, in the data's own units.

    Computed in float64, a chunk at a time, and merged pairwise (Chan, Golub & LeVeque, 1979). A channel constant up
    to float32's resolution gets a standard deviation of 1, so that dividing by it is safe.

    Args:
        train: indices of the training images, at least one.

    Returns:
        Two float32 arrays of shape (C,).
    """
    axes = tuple(i for i, axis in enumerate(dataset.layout) if axis != "C")
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    rows = _rows(dataset.x)
    for start in range(0, len(train), rows):
        chunk = dataset.x[train[start : start + rows]].astype(np.float64)
        n = chunk.size // dataset.input_shape[0]
        shift = np.atleast_1d(chunk.mean(axes)) - mean
        # M2 = M2_a + M2_b + (mean_b - mean_a)^2 n_a n_b / n (eq. 2.1b)
        squares = squares + np.atleast_1d(chunk.var(axes)) * n + shift**2 * (count * n / (count + n))
        mean = mean + shift * (n / (count + n))
        count += n
    std = np.sqrt(squares / count)
    std = np.where(std > 1e-7 * np.abs(mean), std, 1.0)
    return mean.astype(np.float32), std.astype(np.float32)
