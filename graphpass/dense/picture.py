"""Pictures as network inputs. Reading picture files needs Pillow (`graphpass[image]`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphpass.dense.map_geometry import set_metadata
from graphpass.errors import ModelError, UsageError
from graphpass.ir.weight import Array

# what torchvision's and most other published classifiers were trained with
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
_LARGEST_PIXEL = 255.0
_NOTED = "graphpass."  # before the names of the fields, in the metadata of a model


@dataclass(frozen=True)
class Preprocessing:
    """(pixel · scale − mean) / std, for each channel; None: a default that fits the input.

    Defaults: scale 1/255; mean and std of ImageNet for three channels, otherwise 0 and 1. An
    input of integers gets the pixels as they are.
    """

    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def resolved(self, channels: int, dtype: np.dtype[Any]) -> Preprocessing:
        """Fill in the defaults. Raises `UsageError` where the numbers are not one a channel."""
        plain = dtype.kind in "ui" or channels != len(IMAGENET_MEAN)
        scale = self.scale
        if scale is None:
            scale = 1.0 if dtype.kind in "ui" else 1 / _LARGEST_PIXEL
        mean = self.mean or ((0.0,) if plain else IMAGENET_MEAN)
        std = self.std or ((1.0,) if plain else IMAGENET_STD)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise UsageError(
                    f"--{name} has {len(values)} numbers, but the network sees {channels} channels"
                )
        return Preprocessing(scale, mean, std)

    def apply(self, pixels: Array, dtype: np.dtype[Any]) -> Array:
        """Turn pixels [height, width, channels], 0 to 255, into numbers of `dtype`."""
        how = self.resolved(pixels.shape[2], dtype)
        assert how.scale is not None and how.mean is not None and how.std is not None
        values = (pixels.astype(np.float64) * how.scale - np.array(how.mean)) / np.array(how.std)
        result: Array = values.astype(dtype)
        return result

    def over(self, weaker: Preprocessing) -> Preprocessing:
        """Take from `weaker` what is left open."""
        scale = weaker.scale if self.scale is None else self.scale
        return Preprocessing(scale, self.mean or weaker.mean, self.std or weaker.std)

    def note(self, model: onnx.ModelProto) -> None:
        """Write what is given into the metadata of a model."""
        for name, values in vars(self).items():
            if values is None:
                continue
            numbers = values if isinstance(values, tuple) else (values,)
            set_metadata(model, {_NOTED + name: ",".join(map(repr, numbers))})

    @classmethod
    def noted(cls, model: onnx.ModelProto) -> Preprocessing:
        """Read what `note` wrote. Raises `ModelError` where somebody wrote something else."""
        found: dict[str, tuple[float, ...]] = {}
        for entry in model.metadata_props:
            name = entry.key.removeprefix(_NOTED)
            if entry.key != name and name in ("scale", "mean", "std"):
                try:
                    found[name] = tuple(float(part) for part in entry.value.split(","))
                except ValueError:
                    raise ModelError(f"{entry.key} is no list of numbers: {entry.value}") from None
        scale = found.get("scale", (None,))[0]
        return cls(scale, found.get("mean"), found.get("std"))

    def __str__(self) -> str:
        mean, std = (
            ", ".join(f"{v:.4g}" for v in values or ()) for values in (self.mean, self.std)
        )
        return f"(pixel · {self.scale or 0:.4g} − [{mean}]) / [{std}]"


def read_picture(path: Path, channels: int) -> Array:
    """Return the pixels of a picture file as uint8 [height, width, channels] (1, 3 or 4)."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UsageError("reading pictures needs Pillow: pip install 'graphpass[image]'") from None
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None:
        raise UsageError(f"the network sees {channels} channels, which no picture has")
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert(mode))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no picture that Pillow can read"
        raise UsageError(f"cannot read {path}: {reason}") from None
    return pixels.reshape(*pixels.shape[:2], channels)


@dataclass(frozen=True)
class ImageInput:
    """What a network wants: `size` (height, width) or None for any, channels, layout, dtype."""

    name: str
    size: tuple[int, int] | None
    channels: int
    layout: str
    dtype: np.dtype[Any]

    def batch(self, images: Array) -> Array:
        """Lay images [n, height, width, channels] out as the network reads them."""
        return np.ascontiguousarray(
            images if self.layout == "NHWC" else images.transpose(0, 3, 1, 2)
        )


def read_inputs(path: Path, wanted: ImageInput, preprocessing: Preprocessing) -> Array:
    """Read many inputs at the network's own size: a folder of pictures, an .npz or an .npy.

    Pictures are scaled so that the shorter side fits, and cropped in the middle. Arrays are taken
    as they are: the input's own name in an .npz (or its only array), a batch first.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in _PICTURES)
        if not files:
            raise UsageError(f"there is no picture in {path}")
        images = [preprocessing.apply(_fitted(f, wanted), wanted.dtype) for f in files]
        return wanted.batch(np.stack(images))
    return _read_arrays(path, wanted)


def _read_arrays(path: Path, wanted: ImageInput) -> Array:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no .npz or .npy file"
        raise UsageError(f"cannot read {path}: {reason}") from None
    if isinstance(loaded, np.lib.npyio.NpzFile):
        names = loaded.files
        if not names:
            raise UsageError(f"{path} holds no arrays")
        if wanted.name not in names and len(names) != 1:
            raise UsageError(f"{path} has no array '{wanted.name}'; it has {', '.join(names)}")
        array = loaded[wanted.name if wanted.name in names else names[0]]
    else:
        array = loaded
    assert wanted.size is not None
    height, width = wanted.size
    shape = (height, width, wanted.channels)
    shape = shape if wanted.layout == "NHWC" else (wanted.channels, height, width)
    if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
        raise UsageError(f"{path} holds {list(array.shape)}, but '{wanted.name}' is n x {shape}")
    result: Array = array.astype(wanted.dtype)
    return result


def _fitted(path: Path, wanted: ImageInput) -> Array:
    from PIL import Image

    assert wanted.size is not None
    height, width = wanted.size
    pixels = read_picture(path, wanted.channels)
    factor = max(height / pixels.shape[0], width / pixels.shape[1])
    size = (
        max(width, round(pixels.shape[1] * factor)),
        max(height, round(pixels.shape[0] * factor)),
    )
    squeezed = pixels[:, :, 0] if wanted.channels == 1 else pixels
    scaled = np.asarray(Image.fromarray(squeezed).resize(size, Image.Resampling.BILINEAR))
    scaled = scaled.reshape(size[1], size[0], wanted.channels)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return scaled[top : top + height, left : left + width]
