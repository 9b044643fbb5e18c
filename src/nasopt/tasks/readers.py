"""One reader for each kind of source. A reader finds images and labels; `nasopt.tasks.data` checks what they say."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nasopt.errors import InputError
from nasopt.tasks.images import LAYOUTS, Layout

Array: TypeAlias = NDArray[Any]

PARTS: Final = ("train", "val", "test")
PART_NAMES: Final = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
GREY_MODES: Final = frozenset({"1", "L", "LA", "La"})
CIFAR10_FILES: Final = {**{f"data_batch_{i}.bin": "train" for i in range(1, 6)}, "test_batch.bin": "test"}
CIFAR10_CLASSES: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORD: Final = 1 + 3 * 32 * 32  # bytes: the label, then red, green and blue rows (cs.toronto.edu/~kriz/cifar.html)
DAMAGED: Final = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, RuntimeError)
UNREADABLE: Final = (
    *(OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, struct.error, zlib.error),
    Image.DecompressionBombError,
)
DAMAGED_HEADER: Final = (ValueError, SyntaxError, tokenize.TokenError, TypeError, MemoryError, OverflowError)


@dataclass(frozen=True, eq=False)
class Raw:
    """What a reader found, unchecked: images, a label (number or name) for each, and the parts the source names."""

    name: str
    x: Array
    labels: Array
    given: Mapping[str, Array] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    layout: Layout | None = None
    notes: tuple[str, ...] = ()


def read_digits() -> Raw:
    """The 1,797 handwritten 8 x 8 digits of scikit-learn, float32 from 0 to 16 (Alpaydin & Kaynak, UCI, 1998)."""
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    digits = load_digits()
    return Raw("digits", digits.images.astype(np.float32), digits.target, classes=tuple("0123456789"), layout="NHW")


def concatenate(parts: Mapping[str, tuple[Array, Array]]) -> tuple[Array, Array, dict[str, Array]]:
    """The parts' images and labels one after the other, and each part's indices."""
    ends = np.cumsum([len(labels) for _, labels in parts.values()])
    given = {part: np.arange(end - len(y), end) for (part, (_, y)), end in zip(parts.items(), ends, strict=True)}
    return np.concatenate([x for x, _ in parts.values()]), np.concatenate([y for _, y in parts.values()]), given


# --- the official binary files of CIFAR-10 ---


def cifar10_folder(path: Path) -> Path | None:
    """The folder with the binary files: ``path`` or its ``cifar-10-batches-bin``; None where neither has one."""
    for folder in (path, path / "cifar-10-batches-bin"):
        if any((folder / name).is_file() for name in CIFAR10_FILES):
            return folder
    return None


def read_cifar10(folder: Path) -> Raw:
    """CIFAR-10 in its official binary form: uint8 (N, 3, 32, 32), with the test batch as the given test part.

    Raises:
        InputError: a file is missing, truncated or damaged.
    """
    missing = [name for name in CIFAR10_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"CIFAR-10 folder '{folder}' lacks {', '.join(missing)}: unpack the archive again.")
    records = {name: _cifar10_records(folder / name) for name in CIFAR10_FILES}
    rows = np.concatenate(list(records.values()))
    train = len(rows) - len(records["test_batch.bin"])
    given = {"train": np.arange(train), "test": np.arange(train, len(rows))}
    x = np.ascontiguousarray(rows[:, 1:]).reshape(-1, 3, 32, 32)
    notes = [f"{n} has {len(r)} images; the official file has 10000." for n, r in records.items() if len(r) != 10_000]
    return Raw("CIFAR-10", x, rows[:, 0].astype(np.int64), given, _cifar10_classes(folder), "NCHW", tuple(notes))


def _cifar10_records(path: Path) -> NDArray[np.uint8]:
    data = np.fromfile(path, np.uint8)
    if data.size == 0 or data.size % RECORD:
        raise InputError(
            f"'{path}' is truncated ({data.size} bytes are not a whole number of {RECORD}-byte records): "
            "unpack or download it again."
        )
    rows = data.reshape(-1, RECORD)
    if rows[:, 0].max() > 9:
        record = int(np.argmax(rows[:, 0] > 9))
        what = f"record {record} has label {rows[record, 0]}, not 0..9"
        raise InputError(f"'{path}' is damaged ({what}): unpack or download it again.")
    return rows


def _cifar10_classes(folder: Path) -> tuple[str, ...]:
    path = folder / "batches.meta.txt"
    if not path.is_file():
        return CIFAR10_CLASSES
    names = tuple(path.read_text(encoding="utf-8", errors="replace").split())
    if len(names) != len(CIFAR10_CLASSES):
        raise InputError(f"'{path}' names {len(names)} classes, not 10: unpack the archive again or delete this file.")
    return names


# --- folders of images ---


def read_folder(root: Path, image_size: tuple[int, int] | None) -> Raw:
    """Images in ``root/class/`` or ``root/{train,val,test}/class/``: uint8 (N, H, W) if all are grey, or (N, H, W, 3).

    Classes are the names of the folders in ``train``, in alphabetical order. Alpha channels are dropped.

    Args:
        image_size: (height, width) to which every image is resized; None requires equal sizes.

    Raises:
        InputError: no images, a class without images, an image that cannot be read, images that differ in size.
    """
    parts = _part_folders(root)
    found = [(p, c, f) for p, folder in parts.items() for c in _class_folders(folder) for f in _image_files(c)]
    grey = {_mode(file) for _, _, file in found} <= GREY_MODES
    x = _decode([file for _, _, file in found], "L" if grey else "RGB", image_size)
    of_part = np.array([part for part, _, _ in found])
    given = {part: np.flatnonzero(of_part == part) for part in parts} if parts.keys() != {""} else {}
    labels = np.array([c.name for _, c, _ in found])
    return Raw(root.resolve().name, x, labels, given, layout="NHW" if grey else "NHWC")


def _visible(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: p.name)


def _part_folders(root: Path) -> dict[str, Path]:
    """The folder of each part, or ``{"": root}`` for a folder without parts."""
    if not _visible(root):
        raise InputError(f"folder '{root}' is empty: put one folder of images per class into it.")
    folders = [p for p in _visible(root) if p.is_dir()]
    # a class may be called "train" too (cars, planes, trains); a part holds folders, a class holds images
    if not any(p.name == "train" and any(q.is_dir() for q in _visible(p)) for p in folders):
        return {"": root}
    strange = [p.name for p in folders if p.name not in PART_NAMES]
    if strange:
        raise InputError(f"folder '{root}' has '{strange[0]}' beside 'train': keep only train, val and test there.")
    parts = {PART_NAMES[p.name]: p for p in folders}
    if len(parts) < len(folders):
        raise InputError(f"folder '{root}' has two folders of validation images: keep one, called val.")
    return {part: parts[part] for part in PARTS if part in parts}


def _class_folders(folder: Path) -> list[Path]:
    folders = [p for p in _visible(folder) if p.is_dir()]
    if not folders:
        what = "has images but no folders" if any(_is_image(p) for p in _visible(folder)) else "has no images"
        raise InputError(f"folder '{folder}' {what}: put the images of each class into a folder named after the class.")
    if not any(_is_image(q) for p in folders for q in _visible(p)):
        raise InputError(
            f"folder '{folder}' has no images in its folders: put them at '{folder}/CLASS/*.png' (or jpg, ...)."
        )
    return folders


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _image_files(folder: Path) -> list[Path]:
    files = [p for p in _visible(folder) if _is_image(p)]
    if not files:
        raise InputError(f"class folder '{folder}' has no images: add some, or remove the folder.")
    return files


def _open(path: Path, mode: str | None) -> Image.Image:
    """The image, decoded and converted to ``mode``; with None only its header is read."""
    try:
        with Image.open(path) as image:
            return image.convert(mode) if mode else image
    except UNREADABLE as e:
        raise InputError(f"image '{path}' cannot be read ({e}): replace or remove it.") from e


def _mode(path: Path) -> str:
    """Pillow's name for the kind of pixels, at most 8 bits a channel."""
    mode = _open(path, None).mode
    if mode[0] in "IF":
        raise InputError(
            f"image '{path}' has pixels of more than 8 bits (mode {mode}): save it with 8 bits, "
            "or all images as float32 in a .npz."
        )
    return mode


def _decode(files: Sequence[Path], mode: str, image_size: tuple[int, int] | None) -> NDArray[np.uint8]:
    size = (image_size[1], image_size[0]) if image_size else _open(files[0], None).size
    shape = (len(files), size[1], size[0], *([3] if mode == "RGB" else []))
    try:
        x = np.empty(shape, np.uint8)
    except MemoryError as e:
        raise InputError(
            f"{len(files)} images of {size[0]}x{size[1]} pixels take {math.prod(shape) / 1e9:.0f} GB, more than there is: "
            "resize them with image_size=(height, width), on the command line --image-size."
        ) from e
    for i, file in enumerate(files):
        image = _open(file, mode)
        if image.size != size and image_size is None:
            raise InputError(
                f"images differ in size ('{files[0]}' is {size[0]}x{size[1]}, '{file}' {image.width}x{image.height}): "
                "resize them to one size, or give image_size=(height, width), on the command line --image-size."
            )
        x[i] = np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR))
    return x


# --- .npz files ---

X_NAMES: Final = ("x", "images", "image", "data")
Y_NAMES: Final = ("y", "labels", "label", "targets")
AGAIN: Final = "make it again with np.savez(path, x=..., y=...)"


def read_npz(path: Path) -> Raw:
    """A .npz with ``x, y`` (and perhaps index arrays ``train, val, test``) or with ``x_train, y_train, x_test, ...``.

    ``images``, ``image`` and ``data`` stand for x too and ``labels``, ``label`` and ``targets`` for y, before or after
    the part's name, in capitals or not. Optional keys: ``classes`` (names, in the order of the labels) and ``layout``
    ("NHW", "NHWC" or "NCHW").

    Raises:
        InputError: the file is damaged, needs pickle or lacks arrays, or its arrays do not fit together.
    """
    arrays = _arrays(path)
    parts = {part: _pair(path, arrays, part) for part in ("", *PARTS)}
    found = {part: pair for part, pair in parts.items() if pair}
    if "" in found and len(found) > 1:
        raise InputError(
            f"'{path}' has arrays both with and without a part's name: keep either x, y or x_train, y_train."
        )
    if not found or not found.keys() & {"", "train"}:
        raise InputError(
            f"'{path}' has the arrays {', '.join(arrays) or '(none)'}: save it with x and y, or x_train and y_train."
        )
    _check_alike(path, found)
    used = {key for pair in found.values() for key in (pair.x_key, pair.y_key)}
    x, labels, given = concatenate({part: (pair.x, pair.y) for part, pair in found.items()})
    if "" in found:
        keys = {part: _one_key(path, arrays, {a for a, p in PART_NAMES.items() if p == part}) for part in PARTS}
        given = check_given(f"'{path}'", {part: arrays[key] for part, key in keys.items() if key}, len(x))
        used |= {key for key in keys.values() if key}
    ignored = sorted(arrays.keys() - used - {"classes", "layout"})
    notes = (f"keys of '{path.name}' that were not used: {', '.join(ignored)}.",) if ignored else ()
    return Raw(path.stem, x, labels, given, _class_names(path, arrays), _layout(path, arrays), notes)


def _arrays(path: Path) -> dict[str, Array]:
    # opened here, because np.load leaves a damaged file open
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise InputError(f"'{path}' is damaged or no .npz file: {AGAIN}.")
        file.seek(0)
        arrays = _members(path, file)
    strange = [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]
    if strange:
        raise InputError(f"'{path}' has '{strange[0]}', which is no array: {AGAIN}.")
    return arrays


def _members(path: Path, file: BinaryIO) -> dict[str, Array]:
    key = ""
    arrays: dict[str, Array] = {}
    try:
        with np.load(file, allow_pickle=False) as npz:
            for key in npz.files:
                arrays[key] = npz[key]
    except (*DAMAGED, *DAMAGED_HEADER) as e:
        if "allow_pickle" in str(e):
            what = f"array '{key}' of '{path}' holds pickled objects"
            raise InputError(f"{what}, which are never loaded: save it as numbers or text.") from e
        raise InputError(f"'{path}' is damaged ({next(iter(str(e).splitlines()), type(e).__name__)}): {AGAIN}.") from e
    return arrays


@dataclass(frozen=True, eq=False)
class _Pair:
    x_key: str
    y_key: str
    x: Array
    y: Array


def _keys(part: str, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if not part:
            yield name
        for alias in (alias for alias, canonical in PART_NAMES.items() if canonical == part):
            yield from (f"{name}_{alias}", f"{alias}_{name}")


def _pair(path: Path, arrays: Mapping[str, Array], part: str) -> _Pair | None:
    """The images and labels of a part ("" for a file without parts), None where it has neither."""
    x_key, y_key = (_one_key(path, arrays, set(_keys(part, names))) for names in (X_NAMES, Y_NAMES))
    if x_key is None and y_key is None:
        return None
    suffix = f"_{part}" if part else ""
    if x_key is None or y_key is None:
        have, lacks = (y_key, f"x{suffix}") if x_key is None else (x_key, f"y{suffix}")
        raise InputError(f"'{path}' has {have} but no {lacks}: add it.")
    x, y = arrays[x_key], arrays[y_key]
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise InputError(f"{y_key} of '{path}' has shape {y.shape}: give one label per image, shape (N,) or (N, 1).")
    if x.ndim not in (3, 4):
        raise InputError(f"{x_key} of '{path}' has shape {x.shape}: give (N, H, W), (N, H, W, C) or (N, C, H, W).")
    if len(x) != len(y):
        raise InputError(
            f"'{path}' has {len(x)} images in {x_key} but {len(y)} labels in {y_key}: give one label each."
        )
    if x.size == 0:
        raise InputError(f"{x_key} of '{path}' is empty, shape {x.shape}: fill it, or leave {x_key} and {y_key} out.")
    return _Pair(x_key, y_key, x, y)


def _one_key(path: Path, arrays: Mapping[str, Array], names: set[str]) -> str | None:
    found = [key for key in arrays if key.lower() in names]
    if len(found) > 1:
        raise InputError(f"'{path}' has both {found[0]} and {found[1]}: keep one.")
    return found[0] if found else None


def _check_alike(path: Path, pairs: Mapping[str, _Pair]) -> None:
    first, *others = pairs.values()
    for other in others:
        if (first.x.shape[1:], first.x.dtype) != (other.x.shape[1:], other.x.dtype):
            raise InputError(
                f"'{path}' has {first.x.dtype} images of shape {first.x.shape[1:]} in {first.x_key} but "
                f"{other.x.dtype} of {other.x.shape[1:]} in {other.x_key}: save all parts alike."
            )
        if (first.y.dtype.kind in "US") != (other.y.dtype.kind in "US"):
            raise InputError(
                f"'{path}' has {first.y.dtype} labels in {first.y_key} but {other.y.dtype} in "
                f"{other.y_key}: save all parts alike."
            )


def check_given(what: str, parts: Mapping[str, Array], n: int) -> dict[str, Array]:
    """Index arrays for x and y, checked; a train part that is not named is what the others leave."""
    for part, indices in parts.items():
        check_indices(f"index array '{part}' of {what}", indices, n)
    check_disjoint(what, parts)
    if not parts or "train" in parts:
        return {part: parts[part].astype(np.int64) for part in PARTS if part in parts}
    rest = np.setdiff1d(np.arange(n), np.concatenate(list(parts.values())))
    if not rest.size:
        raise InputError(f"{what} leaves nothing to train on: its index arrays hold every image, so take some out.")
    return {"train": rest, **{part: parts[part].astype(np.int64) for part in ("val", "test") if part in parts}}


def check_indices(what: str, indices: Array, n: int) -> None:
    """Raises InputError unless ``indices`` are distinct whole numbers from 0 to n - 1, at least one."""
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise InputError(f"{what} is {indices.dtype} of shape {indices.shape}: give whole numbers, shape (n,).")
    if not indices.size:
        raise InputError(f"{what} is empty: fill it or leave it out.")
    bad = indices[(indices < 0) | (indices >= n)]
    if bad.size:
        raise InputError(f"{what} holds {bad[0]}, out of range for {n} images: give indices from 0 to {n - 1}.")
    values, counts = np.unique(indices, return_counts=True)
    if counts.max() > 1:
        raise InputError(f"{what} holds {values[counts > 1][0]} more than once: give each index once.")


def check_disjoint(what: str, parts: Mapping[str, Array]) -> None:
    """Raises InputError where two parts share an index."""
    names = list(parts)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            both = np.intersect1d(parts[a], parts[b])
            if both.size:
                raise InputError(
                    f"parts {a} and {b} of {what} overlap in {both.size} indices (the first is {both[0]}): "
                    "give each image to one part."
                )


def _class_names(path: Path, arrays: Mapping[str, Array]) -> tuple[str, ...] | None:
    if "classes" not in arrays:
        return None
    names = arrays["classes"]
    if names.ndim != 1 or names.dtype.kind != "U" or len(set(names.tolist())) < len(names):
        raise InputError(
            f"'classes' of '{path}' is {names.dtype} of shape {names.shape}: give distinct names as text, shape (k,)."
        )
    return tuple(names.tolist())


def _layout(path: Path, arrays: Mapping[str, Array]) -> Layout | None:
    if "layout" not in arrays:
        return None
    for layout in LAYOUTS:
        if str(arrays["layout"]) == layout:
            return layout
    raise InputError(f"'layout' of '{path}' is '{arrays['layout']}': give one of {', '.join(LAYOUTS)}.")
