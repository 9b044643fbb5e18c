"""Data sets: every kind of source, every message for bad input, the split and the statistics."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nasopt.errors import InputError
from nasopt.nets.export import nchw
from nasopt.tasks.data import Dataset, Split, apportion, checked, load, normalisation, split
from nasopt.tasks.images import guess_layout

REAL = Path(os.environ.get("NASOPT_DATA", Path(__file__).parents[2] / "shared" / "data" / "datasets"))


def images(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *(shape or (5, 5))), np.uint8)


def labels(n: int, k: int = 3) -> np.ndarray:
    return np.arange(n) % k


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "set.npz"
    np.savez(path, **arrays)
    return path


def picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def folders(root: Path, n: int = 3, shape: tuple[int, ...] = (4, 6, 3), classes: str = "ab") -> Path:
    for c in classes:
        for i in range(n):
            picture(root / c / f"{i}.png", images(1, *shape, seed=100 * ord(c) + i)[0])
    return root


def cifar10(folder: Path, n: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for f, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        rows = np.concatenate([labels(n, 10).astype(np.uint8)[:, None], images(n, 3072, seed=f)], axis=1)
        (folder / name).write_bytes(rows.tobytes())
    return folder


# --- sources ---


def test_digits() -> None:
    data = load("digits")
    assert (data.x.shape, data.x.dtype, data.layout, data.input_shape) == ((1797, 8, 8), np.float32, "NHW", (1, 8, 8))
    assert (data.x.min(), data.x.max(), len(data), data.name) == (0, 16, 1797, "digits")
    # class counts of the published test part of the data set
    assert np.bincount(data.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.classes == tuple("0123456789")
    assert not data.given
    assert not data.notes


def test_loading_does_not_import_torch() -> None:
    code = "import sys; from nasopt.tasks.data import load; load('digits'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("shape", "layout", "input_shape"),
    [
        ((5, 7), "NHW", (1, 5, 7)),
        ((5, 7, 3), "NHWC", (3, 5, 7)),
        ((3, 5, 7), "NCHW", (3, 5, 7)),
        ((6, 6, 12), "NHWC", (12, 6, 6)),
        ((12, 6, 6), "NCHW", (12, 6, 6)),
        ((4, 4, 3), "NHWC", (3, 4, 4)),
        ((1, 2, 2), "NCHW", (1, 2, 2)),
    ],
)
def test_npz_layouts(tmp_path: Path, shape: tuple[int, ...], layout: str, input_shape: tuple[int, ...]) -> None:
    data = load(npz(tmp_path, x=images(9, *shape), y=labels(9)))
    assert (data.layout, data.input_shape, data.name) == (layout, input_shape, "set")
    assert data.y.dtype == np.int64


def test_npz_layout_by_key(tmp_path: Path) -> None:
    x = images(9, 3, 3, 3)
    for layout in ("NHWC", "NCHW"):
        assert load(npz(tmp_path, x=x, y=labels(9), layout=layout)).layout == layout


@pytest.mark.parametrize(
    "names", [("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("X_{}", "Y_{}"), ("{}_data", "{}_targets")]
)
def test_npz_parts(tmp_path: Path, names: tuple[str, str]) -> None:
    sizes = {"train": 9, "val": 4, "test": 3}
    parts = {part: (images(n, seed=n), labels(n)[:, None]) for part, n in sizes.items()}
    data = load(npz(tmp_path, **{names[i].format(p): pair[i] for p, pair in parts.items() for i in (0, 1)}))
    assert {part: len(i) for part, i in data.given.items()} == sizes
    for part, (x, y) in parts.items():
        assert np.array_equal(data.x[data.given[part]], x)
        assert np.array_equal(data.y[data.given[part]], y[:, 0])
    drawn = split(data, seed=3)
    assert all(np.array_equal(getattr(drawn, part), data.given[part]) for part in sizes)


def test_npz_index_arrays(tmp_path: Path) -> None:
    arrays = {"x": images(20), "y": labels(20)}
    only_test = load(npz(tmp_path, **arrays, test=np.array([3, 1, 2])))
    assert only_test.given["test"].tolist() == [3, 1, 2]
    assert only_test.given["train"].tolist() == [0, *range(4, 20)]
    some = load(npz(tmp_path, **arrays, train=np.arange(9), valid=np.arange(9, 12), test=np.arange(12, 15)))
    assert {part: len(i) for part, i in some.given.items()} == {"train": 9, "val": 3, "test": 3}
    assert some.notes == ("5 images are in no given part and are not used.",)


def test_npz_text_labels_and_class_names(tmp_path: Path) -> None:
    words = np.array(["dog", "cat", "eel"] * 3)
    data = load(npz(tmp_path, x=images(9), y=words))
    assert data.classes == ("cat", "dog", "eel")
    assert [data.classes[i] for i in data.y] == words.tolist()
    named = load(npz(tmp_path, x=images(9), y=words, classes=np.array(["eel", "dog", "cat"])))
    assert named.classes == ("eel", "dog", "cat")
    assert [named.classes[i] for i in named.y] == words.tolist()
    coded = load(npz(tmp_path, x=images(9), y=np.char.encode(np.array(["naïve", "été", "eel"] * 3), "utf-8")))
    assert coded.classes == ("eel", "naïve", "été")
    with pytest.raises(InputError, match=r"bytes that are no UTF-8 .*save them as text"):
        load(npz(tmp_path, x=images(9), y=np.array([b"caf\xe9", b"a", b"b"] * 3)))
    numbers = load(npz(tmp_path, x=images(9), y=labels(9), classes=np.array(["p", "q", "r"])))
    assert numbers.classes == ("p", "q", "r")


def test_npz_floats_become_float32_and_other_keys_are_noted(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((9, 5, 5))
    data = load(npz(tmp_path, x=x, y=labels(9), when=np.array(2020)))
    assert data.x.dtype == np.float32
    assert np.array_equal(data.x, x.astype(np.float32))
    assert data.notes == ("keys of 'set.npz' that were not used: when.",)


def test_copies_in_two_given_parts_are_noted(tmp_path: Path) -> None:
    x = images(12)
    test = np.concatenate([x[:2], images(3, seed=5)])
    data = load(npz(tmp_path, x_train=x, y_train=labels(12), x_test=test, y_test=labels(5)))
    assert data.notes == ("2 of 5 test images are exact copies of train images.",)


def test_folder_of_colour_images(tmp_path: Path) -> None:
    root = folders(tmp_path / "pets", shape=(4, 6, 3))
    (root / "a" / "notes.txt").write_text("no image")
    (root / ".DS_Store").write_text("")
    data = load(root)
    assert (data.x.shape, data.x.dtype, data.layout, data.classes) == ((6, 4, 6, 3), np.uint8, "NHWC", ("a", "b"))
    assert data.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(data.x[4], np.asarray(Image.open(root / "b" / "1.png")))
    assert data.name == "pets"


@pytest.mark.parametrize("suffix", ["png", "bmp", "jpg", "PGM", "tif"])
def test_folder_of_grey_images(tmp_path: Path, suffix: str) -> None:
    for c in "ab":
        for i in range(3):
            picture(tmp_path / c / f"{i}.{suffix}", np.full((4, 6), 40 * i, np.uint8))
    data = load(str(tmp_path))
    assert (data.layout, data.input_shape) == ("NHW", (1, 4, 6))
    assert data.x[:, 2, 3].tolist() == [0, 40, 80, 0, 40, 80]


def test_folder_with_one_colour_image_is_colour(tmp_path: Path) -> None:
    folders(tmp_path, shape=(4, 6))
    picture(tmp_path / "b" / "9.png", images(1, 4, 6, 4)[0])
    assert load(tmp_path).x.shape == (7, 4, 6, 3)


def test_folder_with_parts(tmp_path: Path) -> None:
    for part, n in (("train", 5), ("validation", 2), ("test", 1)):
        folders(tmp_path / part, n)
    data = load(tmp_path)
    assert {part: len(i) for part, i in data.given.items()} == {"train": 10, "val": 4, "test": 2}
    assert data.y[data.given["val"]].tolist() == [0, 0, 1, 1]


def test_folder_with_a_class_called_train(tmp_path: Path) -> None:
    for c in ("car", "plane", "train"):
        for i in range(3):
            picture(tmp_path / c / f"{i}.png", images(1, seed=i)[0])
    assert load(tmp_path).classes == ("car", "plane", "train")


def test_folder_resized(tmp_path: Path) -> None:
    folders(tmp_path, shape=(4, 6, 3))
    picture(tmp_path / "a" / "big.png", np.full((40, 30, 3), 7, np.uint8))
    data = load(tmp_path, image_size=(8, 9))
    assert data.input_shape == (3, 8, 9)
    assert np.all(data.x[3] == 7)


def test_cifar10_files(tmp_path: Path) -> None:
    cifar10(tmp_path / "cifar-10-batches-bin")
    data = load(tmp_path)
    assert (data.x.shape, data.x.dtype, data.layout, data.name) == ((120, 3, 32, 32), np.uint8, "NCHW", "CIFAR-10")
    assert {part: (i[0], i[-1]) for part, i in data.given.items()} == {"train": (0, 99), "test": (100, 119)}
    record = np.fromfile(tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin", np.uint8).reshape(-1, 3073)[5]
    assert data.y[25] == record[0]
    assert data.x[25, 1, 2, 3] == record[1 + 1024 + 2 * 32 + 3]
    assert data.classes[8] == "ship"
    assert data.notes[0] == "data_batch_1.bin has 20 images; the official file has 10000."
    (tmp_path / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert load(tmp_path).classes == tuple("abcdefghij")


def real(name: str) -> Path:
    path = REAL / name
    if not path.exists():
        pytest.skip(f"real data '{name}' is absent; NASOPT_DATA names the folder that holds it")
    return path


def test_real_medical_images() -> None:
    data = load(real("pneumoniamnist.npz"))
    # counts, mean and standard deviation as published with MedMNIST v2
    assert {part: len(i) for part, i in data.given.items()} == {"train": 4708, "val": 524, "test": 624}
    assert np.bincount(data.y[data.given["train"]]).tolist() == [1214, 3494]
    mean, std = normalisation(data, data.given["train"])
    assert mean[0] / 255 == pytest.approx(0.5719, abs=5e-5)
    assert std[0] / 255 == pytest.approx(0.1684, abs=5e-5)
    assert any("val images are exact copies of train" in note for note in data.notes)


def test_real_cifar10(tmp_path: Path) -> None:
    subprocess.run([sys.executable, real("write_cifar10_bin.py"), tmp_path], check=True, capture_output=True)
    data = load(tmp_path)
    assert (data.x.shape, len(data.given["train"]), data.input_shape) == ((60000, 3, 32, 32), 50000, (3, 32, 32))
    mean, std = normalisation(data, data.given["train"])
    assert mean == pytest.approx([125.307, 122.950, 113.865], abs=1e-3)  # the training set's published statistics
    assert std == pytest.approx([62.993, 62.089, 66.705], abs=1e-3)
    parts = split(data, seed=0, val=0.1)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (45000, 5000, 10000)


# --- bad input: the whole message, so that each is seen to name the input and the remedy ---


def refusal(source: str | Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(r": [^:]+\.$", message), "the remedy follows the last colon"
    return message


def refused(source: str | Path, *words: str, **options: Any) -> None:
    message = refusal(source, **options)
    assert not [word for word in words if word not in message], message


def test_unknown_word_and_missing_path(tmp_path: Path) -> None:
    assert refusal("digit").startswith("unknown data source 'digit': did you mean 'digits'?")
    refused("nothing_here", "data source 'nothing_here' does not exist", "or the word digits")
    refused(tmp_path / "absent.npz", "absent.npz' does not exist", "give the path")
    refused("", "data source '' does not exist")
    refused("~nobody-has-this-name/photos", "data source '~nobody-has-this-name/photos' does not exist")
    refused("a" * 5000, "cannot be read", "check the path")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    refused(tmp_path / "a.csv", "a.csv' is no folder and no .npz file", "np.savez")


def test_image_size_where_it_has_no_effect(tmp_path: Path) -> None:
    for source in ("digits", npz(tmp_path, x=images(9), y=labels(9)), cifar10(tmp_path / "c")):
        refused(source, f"'{source}'", "leave image_size out", image_size=(4, 4))
    refused(folders(tmp_path / "f"), "image_size (0, 4) is not positive", image_size=(0, 4))


def test_folders_without_images(tmp_path: Path) -> None:
    refused(tmp_path, "is empty", "one folder of images per class")
    (tmp_path / "readme.txt").write_text("")
    refused(tmp_path, "has no images", "folder named after the class")
    picture(tmp_path / "0.png", images(1)[0])
    refused(tmp_path, "has images but no folders", "folder named after the class")
    (tmp_path / "a").mkdir()
    refused(tmp_path, "has no images in its folders", "CLASS/*.png")
    folders(tmp_path)
    (tmp_path / "c").mkdir()
    refused(tmp_path, f"class folder '{tmp_path / 'c'}' has no images", "add some, or remove")


def test_folders_with_odd_parts(tmp_path: Path) -> None:
    for part in ("train", "val"):
        folders(tmp_path / part)
    (tmp_path / "extra").mkdir()
    refused(tmp_path, "has 'extra' beside 'train'", "keep only")
    (tmp_path / "extra").rename(tmp_path / "valid")
    refused(tmp_path, "two folders of validation images", "keep one")
    (tmp_path / "valid").rename(tmp_path / "test")
    refused(tmp_path, "test' has no images")


@pytest.mark.parametrize("content", [b"", b"no image", "half", "mangled"])
def test_unreadable_image(tmp_path: Path, content: bytes | str) -> None:
    bad = folders(tmp_path, shape=(40, 60, 3)) / "b" / "1.png"
    if isinstance(content, str):
        whole = bytearray(bad.read_bytes())
        content = bytes(whole[: len(whole) // 2]) if content == "half" else bytes(whole[:30]) + b"\0" * 100
    bad.write_bytes(content)
    refused(tmp_path, f"image '{bad}' cannot be read", "replace or remove it")


def test_images_that_differ_in_size_or_depth(tmp_path: Path) -> None:
    folders(tmp_path)
    picture(tmp_path / "b" / "9.png", images(1, 4, 7, 3)[0])
    refused(tmp_path, "images differ in size", "0.png' is 6x4", "9.png' 7x4", "image_size=(height, width)")
    picture(tmp_path / "b" / "9.png", np.zeros((4, 6), np.uint16))
    refused(tmp_path, "9.png' has pixels of more than 8 bits", "save it with 8 bits")


def test_cifar10_damaged(tmp_path: Path) -> None:
    cifar10(tmp_path)
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    refused(tmp_path, "batches.meta.txt' names 2 classes, not 10", "delete this file")
    (tmp_path / "batches.meta.txt").unlink()
    batch = tmp_path / "data_batch_3.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-10])
    refused(tmp_path, "data_batch_3.bin' is truncated (61450 bytes", "download it again")
    batch.write_bytes(b"")
    refused(tmp_path, "data_batch_3.bin' is truncated (0 bytes")
    batch.write_bytes(whole[:3073] + b"\xff" + whole[3074:])
    refused(tmp_path, "data_batch_3.bin' is damaged (record 1 has label 255", "download it again")
    batch.unlink()
    refused(tmp_path, "lacks data_batch_3.bin", "unpack the archive again")


def test_npz_damaged(tmp_path: Path) -> None:
    path = npz(tmp_path, x=images(9), y=labels(9))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "set.npz' is damaged", "np.savez")
    path.write_bytes(b"")
    refused(path, "set.npz' is damaged", "np.savez")
    path.write_bytes(whole[:200] + b"~~~" + whole[203:])
    refused(path, "set.npz' is damaged", "np.savez")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.txt", "text")
    refused(path, "'x.txt', which is no array")


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_npz_with_any_byte_changed_loads_or_is_refused(
    at: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=images(9, 2, 2), y=labels(9))
    content = bytearray(buffer.getvalue())
    content[at % len(content)] = byte
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    path.write_bytes(content)
    try:
        load(path)
    except InputError as e:
        assert str(path) in str(e) or path.stem in str(e)  # noqa: PT017 - either outcome is right, but no other exception


def test_npz_with_pickles_is_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    np.savez(tmp_path / "set.npz", x=np.array([Bomb()], dtype=object), y=labels(9))
    refused(tmp_path / "set.npz", "array 'x'", "holds pickled objects", "save it as numbers or text")
    assert not (tmp_path / "exploded").exists()


X, Y = images(12), labels(12)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, ["has x but no y", "add it"]),
        ({"y": Y}, ["has y but no x"]),
        ({"x_train": X, "y_train": Y, "x_test": X}, ["has x_test but no y_test"]),
        ({"a": X, "b": Y}, ["has the arrays a, b", "save it with x and y"]),
        ({}, ["has the arrays (none)"]),
        ({"x_test": X, "y_test": Y}, ["has the arrays x_test, y_test", "x_train and y_train"]),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y}, ["both with and without a part's name"]),
        ({"x": X, "images": X, "y": Y}, ["has both x and images", "keep one"]),
        ({"x": X, "y": Y[:-1]}, ["12 images in x but 11 labels in y", "one label each"]),
        ({"x": images(12, 25), "y": Y}, ["x of", "shape (12, 25)", "(N, H, W)"]),
        ({"x": images(12, 2, 2, 2, 2), "y": Y}, ["shape (12, 2, 2, 2, 2)"]),
        ({"x": X, "y": np.eye(12)}, ["y of", "shape (12, 12)", "one label per image"]),
        ({"x": X[:0], "y": Y[:0]}, ["is empty", "shape (0, 5, 5)"]),
        ({"x": images(12, 3, 3, 3), "y": Y}, ["shape (3, 3, 3)", "layout='NHWC'"]),
        ({"x": X, "y": Y, "layout": "NWH"}, ["'layout' of", "is 'NWH'", "NHW, NHWC, NCHW"]),
        ({"x": X, "y": Y, "layout": "NCHW"}, ["shape (12, 5, 5), not NCHW", "correct its key 'layout'"]),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :4], "y_test": Y}, ["shape (5, 5)", "(4, 5)", "all parts alike"]),
        ({"x_train": X, "y_train": Y, "x_test": X / 255, "y_test": Y}, ["uint8 images", "float64", "all parts alike"]),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y.astype(str)}, ["int64 labels", "save all parts alike"]),
        ({"x": X.astype(np.int64), "y": Y}, ["are int64", "save them as uint8"]),
        ({"x": X > 9, "y": Y}, ["are bool", "save them as uint8"]),
        ({"x": np.where(np.arange(12)[:, None, None] == 7, np.nan, X), "y": Y}, ["image 7", "NaN or infinity"]),
        ({"x": np.where(np.arange(12)[:, None, None] == 4, 1e300, X), "y": Y}, ["image 4", "NaN or infinity"]),
        ({"x": X, "y": Y.astype(float)}, ["labels of", "are float64", "whole numbers 0..k-1"]),
        ({"x": X, "y": np.where(Y == 1, np.nan, Y)}, ["4 labels of", "missing (NaN or infinite)", "label or remove"]),
        ({"x": X, "y": np.where(np.arange(12) == 5, -1, Y)}, ["negative (image 5 has -1)", "or remove such images"]),
        ({"x": X, "y": np.where(Y == 1, "", Y.astype(str))}, ["4 labels of", "empty text", "label or remove"]),
        ({"x": X, "y": Y * 2}, ["should be 0..4 but none is 1", "without gaps"]),
        ({"x": X, "y": Y + 1}, ["should be 0..3 but none is 0", "without gaps"]),
        ({"x": X, "y": Y * 10**15}, ["but none is 1", "without gaps"]),
        ({"x": X, "y": Y, "classes": np.array(["p", "q"])}, ["go up to 2 but it names 2 classes", "use 0..1"]),
        ({"x": X, "y": Y, "classes": np.array([*"pqrs"])}, ["should be 0..3 but none is 3"]),
        ({"x": X, "y": Y, "classes": np.array([*"ppq"])}, ["'classes' of", "distinct names"]),
        ({"x": X, "y": Y.astype(str), "classes": np.array([*"01x"])}, ["'2' stands in only one", "same names in both"]),
        ({"x": X, "y": Y * 0}, ["of one class ('0')", "at least two classes"]),
        ({"x": X, "y": np.minimum(np.arange(12), 1)}, ["class '0'", "too few images to draw from, 1", "at least 3"]),
        (
            {"x_train": X, "y_train": np.minimum(np.arange(12), 1), "x_test": X, "y_test": Y % 2},
            ["class '0'", "at least 2 (one each for train and val)"],
        ),
        (
            {"x_train": X, "y_train": Y % 2, "x_test": X, "y_test": Y},
            ["class '2' is in the test part", "not in train", "add some to train"],
        ),
        ({"x": X, "y": Y, "train": np.arange(8), "test": np.arange(6, 12)}, ["train and test", "overlap in 2", "is 6"]),
        ({"x": X, "y": Y, "test": np.array([3, 12])}, ["'test' of", "holds 12, out of range for 12", "from 0 to 11"]),
        ({"x": X, "y": Y, "test": np.array([-1])}, ["'test' of", "holds -1, out of range"]),
        ({"x": X, "y": Y, "val": np.array([1, 2, 1])}, ["'val' of", "holds 1 more than once", "each index once"]),
        ({"x": X, "y": Y, "val": np.array([0.5])}, ["'val' of", "is float64", "give whole numbers"]),
        ({"x": X, "y": Y, "val": Y[:0]}, ["'val' of", "is empty", "leave it out"]),
        ({"x": X, "y": Y, "test": np.arange(12)}, ["leaves nothing to train on", "take some out"]),
        ({"x": X, "y": Y, "val": Y[:1], "valid": Y[:1]}, ["has both val and valid", "keep one"]),
    ],
)
def test_npz_refused(tmp_path: Path, arrays: dict[str, Any], words: list[str]) -> None:
    path = npz(tmp_path, **arrays)
    refused(path, "set", *words)
    assert list(tmp_path.iterdir()) == [path]


# --- split ---


def dataset(y: np.ndarray, given: dict[str, np.ndarray] | None = None) -> Dataset:
    k = int(y.max()) + 1
    return Dataset(images(len(y), 2, 2), y, tuple(map(str, range(k))), "NHW", "made", given or {})


def counts(data: Dataset, indices: np.ndarray) -> np.ndarray:
    return np.bincount(data.y[indices], minlength=len(data.classes))


fractions = st.floats(0.01, 0.49)
sizes = st.lists(st.integers(3, 60), min_size=2, max_size=12)


@settings(max_examples=200, deadline=None)
@given(sizes=sizes, val=fractions, test=fractions, seed=st.integers(0, 2**31))
def test_split_properties(sizes: list[int], val: float, test: float, seed: int) -> None:
    data = dataset(np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)))
    parts = split(data, seed, val, test)
    everything = np.concatenate([parts.train, parts.val, parts.test])
    assert np.array_equal(np.sort(everything), np.arange(len(data)))  # disjoint and complete
    for indices, share in ((parts.train, 1 - val - test), (parts.val, val), (parts.test, test)):
        got, exact = counts(data, indices), np.array(sizes) * share
        assert got.min() >= 1
        roomy = np.min(np.outer(sizes, [1 - val - test, val, test]), axis=1) >= 1
        assert np.all(np.abs(got - exact)[roomy] <= 1 + 1e-6)
        assert np.all(np.diff(indices) > 0)
    again = split(data, seed, val, test)
    assert all(np.array_equal(getattr(parts, p), getattr(again, p)) for p in ("train", "val", "test"))


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(30, 500), min_size=2, max_size=40), val=st.floats(0.05, 0.45), test=st.floats(0.05, 0.45)
)
def test_apportion_keeps_column_sums(sizes: list[int], val: float, test: float) -> None:
    shares = np.array([1 - val - test, val, test])
    got = apportion(np.array(sizes), shares)
    assert np.array_equal(got.sum(1), sizes)
    assert np.all(np.abs(got - np.outer(sizes, shares)) <= 1 + 1e-6)
    assert np.all(np.abs(got.sum(0) - sum(sizes) * shares) <= 1.5)


def test_apportion_refuses_too_small_a_class() -> None:
    with pytest.raises(InputError, match="a class has 2 images to share among 3 parts: add images"):
        apportion(np.array([5, 2]), np.array([0.6, 0.2, 0.2]))


def test_split_of_the_given_parts(tmp_path: Path) -> None:
    test = np.arange(0, 90, 9)
    train = np.setdiff1d(np.arange(90), test)
    data = dataset(labels(90), {"train": train, "test": test})
    parts = split(data, seed=1, val=0.25)
    assert np.array_equal(parts.test, test)
    assert np.array_equal(np.sort(np.concatenate([parts.train, parts.val])), train)
    assert len(parts.val) == 20
    data = dataset(labels(90), {"train": train, "val": test})
    assert np.array_equal(split(data, seed=1, test=0.25).test, parts.val)
    assert np.array_equal(split(data, seed=1, test=0.25).val, test)


def test_split_depends_on_the_seed_and_fractions_default_to_a_fifth() -> None:
    data = dataset(labels(300))
    one, other = split(data, 1), split(data, 2)
    assert not np.array_equal(one.test, other.test)
    assert (len(one.train), len(one.val), len(one.test)) == (180, 60, 60)


def test_every_image_is_equally_likely_to_be_tested() -> None:
    data = dataset(labels(30))
    drawn = np.bincount(np.concatenate([split(data, seed).test for seed in range(600)]), minlength=30)
    expected = 600 * 0.2
    # each count is binomial(600, 1/5); 5 standard deviations
    assert np.all(np.abs(drawn - expected) < 5 * np.sqrt(expected * 0.8))


@pytest.mark.parametrize(
    ("val", "test", "words"),
    [
        (0.0, None, "val=0.0 is no fraction"),
        (None, 1.5, "test=1.5 is no fraction"),
        (0.6, 0.4, "val=0.6 and test=0.4 leave"),
    ],
)
def test_split_fractions_refused(val: float | None, test: float | None, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        split(dataset(labels(30)), 0, val, test)


def test_split_refuses_a_fraction_of_a_given_part() -> None:
    data = dataset(labels(30), {"train": np.arange(20), "test": np.arange(20, 30)})
    with pytest.raises(InputError, match=r"'made' has its own test part: leave out test=0\.1"):
        split(data, 0, test=0.1)


def test_split_saved_and_loaded(tmp_path: Path) -> None:
    parts = split(dataset(labels(30)), 0)
    parts.save(tmp_path / "split.npz")
    parts.save(tmp_path / "split.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["split.npz"]
    again = Split.load(tmp_path / "split.npz")
    assert all(np.array_equal(getattr(parts, p), getattr(again, p)) for p in ("train", "val", "test"))


def test_split_files_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.npz"
    with pytest.raises(InputError, match="cannot be read"):
        Split.load(path)
    path.write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be read"):
        Split.load(path)
    np.savez(path, train=[1], val=[2])
    with pytest.raises(InputError, match="cannot be read"):
        Split.load(path)
    np.savez(path, train=[1], val=[2], test=[0.5])
    with pytest.raises(InputError, match="give whole numbers"):
        Split.load(path)
    np.savez(path, train=[1, 2], val=[2], test=[3])
    with pytest.raises(InputError, match="parts train and val of the split overlap"):
        Split.load(path)
    np.save(tmp_path / "one.npy", np.arange(3))
    with pytest.raises(InputError, match="cannot be read"):
        Split.load(tmp_path / "one.npy")


# --- statistics and layouts ---


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_normalisation_against_numpy(monkeypatch: pytest.MonkeyPatch, layout: str, kind: str) -> None:
    monkeypatch.setattr("nasopt.tasks.data.CHUNK_BYTES", 5000)  # several chunks, the last one partial
    shape = {"NHW": (6, 5), "NHWC": (6, 5, 3), "NCHW": (3, 6, 5)}[layout]
    x = images(101, *shape) if kind == "uint8" else np.float32(1000) + images(101, *shape).astype(np.float32) / 255
    data = Dataset(x, labels(101), ("a", "b", "c"), layout, "made", {})  # type: ignore[arg-type]
    train = np.arange(3, 98, 2)
    mean, std = normalisation(data, train)
    reference = nchw(torch.from_numpy(x[train]), layout).numpy().astype(np.float64)
    assert mean == pytest.approx(reference.mean((0, 2, 3)), rel=1e-6)
    assert std == pytest.approx(reference.std((0, 2, 3)), rel=1e-6)
    assert (mean.dtype, std.dtype, mean.shape) == (np.float32, np.float32, (data.input_shape[0],))
    z = (reference - mean[:, None, None]) / std[:, None, None]
    assert z.mean((0, 2, 3)) == pytest.approx(np.zeros(len(mean)), abs=1e-3)
    assert z.std((0, 2, 3)) == pytest.approx(np.ones(len(mean)), abs=1e-4)


def test_normalisation_uses_the_given_indices_only_and_never_gives_0() -> None:
    x = np.full((10, 4, 4, 3), 0.1, np.float32)
    x[:5, :2, :, 1] = 9
    x[:5, :2, :, 2] = np.nextafter(np.float32(0.1), np.float32(1))  # constant but for float32's last digit
    x[5:] = 77
    data = Dataset(x, labels(10), ("a", "b", "c"), "NHWC", "made", {})
    mean, std = normalisation(data, np.arange(5))
    assert mean == pytest.approx([0.1, 4.55, 0.1])
    assert std == pytest.approx([1, 4.45, 1])


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_nchw_keeps_every_pixel(layout: str) -> None:
    shape = {"NHW": (2, 4, 5), "NHWC": (2, 4, 5, 3), "NCHW": (2, 3, 4, 5)}[layout]
    x = images(2, *shape[1:])
    out = nchw(torch.from_numpy(x), layout)
    for n, c, h, w in np.ndindex(tuple(out.shape)):
        assert out[n, c, h, w] == x[tuple({"N": n, "C": c, "H": h, "W": w}[axis] for axis in layout)]


def test_layouts_that_the_shape_does_not_tell() -> None:
    assert guess_layout((9, 3, 3, 3)) is None
    assert guess_layout((9, 7, 8, 9)) is None
    assert guess_layout((9, 3, 3, 32)) is None  # 3 x 3 images of 32 channels, or 3 x 32 images of 3 channels
    assert guess_layout((9, 25)) is None


# ------------------------------------------------------------------------------------------------------- made in Python
def made(y: np.ndarray, **other: Any) -> Dataset:
    given_ = {"x": np.zeros((len(y), 4, 4), np.uint8), "layout": "NHW", "classes": ("a", "b", "c"), "given": {}, **other}
    return Dataset(given_["x"], y, given_["classes"], given_["layout"], "made", given_["given"])


def test_a_data_set_made_in_python_is_checked_as_one_that_is_loaded() -> None:
    y = np.arange(30) % 3
    found = checked(made(y.astype(np.int32), x=np.zeros((30, 4, 4), np.float64)))
    assert found.y.dtype == np.int64 and found.x.dtype == np.float32 and np.array_equal(found.y, y)
    named = checked(made(np.array(["a", "b", "c"])[y]))
    assert np.array_equal(named.y, y)
    tested = checked(made(y, given={"test": np.arange(9)}))
    assert np.array_equal(tested.given["train"], np.arange(9, 30)), "what the others leave"


@pytest.mark.parametrize(("y", "other", "words"), [
    (np.arange(30) % 4, {}, "go up to 3 but it names 3 classes"),
    (np.arange(30)[:, None] % 3, {}, r"have shape \(30, 1\): give one for each of the 30 images"),
    (np.arange(30) % 3, {"x": np.zeros((29, 4, 4), np.uint8)}, "give one for each of the 29 images"),
    (np.arange(30) % 3, {"x": np.full((30, 4, 4), np.nan)}, "image 0 of 'made' holds NaN"),
    (np.arange(30) % 3 + 1, {}, "go up to 3"),
    (np.arange(30) % 3 * 0.5, {}, "save them as whole numbers"),
    (np.arange(30) % 3, {"layout": "NHWC"}, "correct its key 'layout'"),
    (np.arange(30) % 3, {"layout": "nhw"}, "layout of 'made' is 'nhw': give one of NHW, NHWC, NCHW"),
    (np.arange(30) % 3, {"given": {"validation": np.arange(9)}}, "has the parts validation: name them train, val, test"),
    (np.arange(30) % 3, {"given": {"train": np.arange(9), "val": np.arange(8, 12)}}, "parts train and val of 'made' overlap")])
def test_what_is_wrong_with_one_is_said(y: np.ndarray, other: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        checked(made(y, **other))
