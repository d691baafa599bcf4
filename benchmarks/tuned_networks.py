"""Networks in which choices occur: siblings, Focus, ConvTranspose. Needs torch; see `tuned`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.branches import randomize

Network = tuple[Any, tuple[Any, ...]]  # a torch module and the inputs that it is exported with


def _yolo(torch: Any, activation: str, size_px: int = 320, width: int = 16) -> Network:
    """Return a detector shaped as YOLOv5n: Focus, CSP blocks, SPP, a head with upsampling."""
    nn = torch.nn

    class Conv(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            self.bn = nn.BatchNorm2d(outputs)
            self.act = getattr(nn, activation)()

        def forward(self, x: Any) -> Any:
            return self.act(self.bn(self.conv(x)))

    class Focus(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.conv = Conv(4 * inputs, outputs, 3)

        def forward(self, x: Any) -> Any:
            pieces = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
            return self.conv(torch.cat(pieces, 1))

    class CSP(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inputs: int, outputs: int, depth: int = 1, add: bool = True) -> None:
            super().__init__()
            half = outputs // 2
            self.one, self.two = Conv(inputs, half), Conv(inputs, half)
            self.last = Conv(outputs, outputs)
            self.blocks = nn.ModuleList(
                nn.Sequential(Conv(half, half), Conv(half, half, 3)) for _ in range(depth)
            )
            self.add = add

        def forward(self, x: Any) -> Any:
            y = self.one(x)
            for block in self.blocks:
                y = y + block(y) if self.add else block(y)
            return self.last(torch.cat([y, self.two(x)], 1))

    class SPP(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.first, self.last = Conv(channels, channels // 2), Conv(2 * channels, channels)
            self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))

        def forward(self, x: Any) -> Any:
            y = self.first(x)
            return self.last(torch.cat([y, *(pool(y) for pool in self.pools)], 1))

    class Detector(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            w = width
            self.stem = Focus(3, w)
            self.low = nn.Sequential(
                Conv(w, 2 * w, 3, 2), CSP(2 * w, 2 * w), Conv(2 * w, 4 * w, 3, 2),
                CSP(4 * w, 4 * w, 3),
            )  # fmt: skip
            self.middle = nn.Sequential(Conv(4 * w, 8 * w, 3, 2), CSP(8 * w, 8 * w, 3))
            self.high = nn.Sequential(
                Conv(8 * w, 16 * w, 3, 2), SPP(16 * w), CSP(16 * w, 16 * w, 1, False)
            )
            self.up = nn.Upsample(scale_factor=2)
            self.reduce, self.join = Conv(16 * w, 8 * w), CSP(16 * w, 8 * w, 1, False)
            self.reduce2, self.join2 = Conv(8 * w, 4 * w), CSP(8 * w, 4 * w, 1, False)
            self.heads = nn.ModuleList(nn.Conv2d(k * w, 255, 1) for k in (4, 8, 16))

        def forward(self, x: Any) -> Any:
            low = self.low(self.stem(x))
            middle = self.middle(low)
            high = self.high(middle)
            y = self.join(torch.cat([self.up(self.reduce(high)), middle], 1))
            z = self.join2(torch.cat([self.up(self.reduce2(y)), low], 1))
            return tuple(head(part) for head, part in zip(self.heads, (z, y, high), strict=True))

    return Detector(), (torch.randn(1, 3, size_px, size_px),)


def _unet(torch: Any, size_px: int = 256, width: int = 16) -> Network:
    """Return a U-Net whose way up is ConvTranspose with kernel and strides of 2."""
    nn = torch.nn

    def twice(inputs: int, outputs: int) -> Any:
        layers = []
        for first in (inputs, outputs):
            layers += [nn.Conv2d(first, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers)

    class UNet(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            sizes = [width << k for k in range(5)]
            self.down = nn.ModuleList(twice(a, b) for a, b in zip([3, *sizes], sizes, strict=False))
            self.up = nn.ModuleList(
                nn.ConvTranspose2d(2 * size, size, 2, 2) for size in sizes[-2::-1]
            )
            self.join = nn.ModuleList(twice(2 * size, size) for size in sizes[-2::-1])
            self.last = nn.Conv2d(width, 2, 1)

        def forward(self, x: Any) -> Any:
            kept = []
            for index, block in enumerate(self.down):
                x = block(x if index == 0 else nn.functional.max_pool2d(x, 2))
                kept.append(x)
            for up, join, side in zip(self.up, self.join, kept[-2::-1], strict=True):
                x = join(torch.cat([side, up(x)], 1))
            return self.last(x)

    return UNet(), (torch.randn(1, 3, size_px, size_px),)


def _vision(name: str, size_px: int = 224, **options: Any) -> Callable[[Any], Network]:
    def make(torch: Any) -> Network:
        models = import_module("torchvision").models
        network = getattr(models, name)(weights=None, **options)
        return network, (torch.randn(1, 3, size_px, size_px),)

    return make


def _transformer(kind: str) -> Callable[[Any], Network]:
    """Return what makes a small language or vision model; its heads are of a usual size."""

    def make(torch: Any) -> Network:
        lib = import_module("transformers")
        sizes = {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        }
        ids = torch.randint(0, 900, (1, 128))
        inputs: tuple[Any, ...] = (ids,)
        if kind == "bert":
            network = lib.BertModel(lib.BertConfig(**sizes, vocab_size=1000))
        elif kind == "gpt2":
            config = lib.GPT2Config(n_embd=256, n_layer=4, n_head=4, vocab_size=1000)
            config.use_cache = False
            network = lib.GPT2Model(config)
        elif kind == "llama":
            config = lib.LlamaConfig(
                **sizes, vocab_size=1000, num_key_value_heads=2, use_cache=False
            )
            network = lib.LlamaModel(config)
        else:
            network = lib.ViTModel(lib.ViTConfig(**sizes, image_size=160, patch_size=16))
            inputs = (torch.randn(1, 3, 160, 160),)

        class First(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, x: Any) -> Any:
                return self.network(x)[0]

        return First(), inputs

    return make


NETWORKS: Mapping[str, Callable[[Any], Network]] = {
    "yolov5-shaped, SiLU": lambda torch: _yolo(torch, "SiLU"),
    "yolov5-shaped, LeakyReLU": lambda torch: _yolo(torch, "LeakyReLU"),
    "unet": _unet,
    "googlenet": _vision("googlenet", aux_logits=False, init_weights=False),
    "inception_v3": _vision("inception_v3", 299, aux_logits=False, init_weights=False),
    "shufflenet_v2_x1_0": _vision("shufflenet_v2_x1_0"),
    "densenet121": _vision("densenet121"),
    "mobilenet_v3_small": _vision("mobilenet_v3_small"),
    "resnet50": _vision("resnet50"),
    "bert": _transformer("bert"),
    "vit": _transformer("vit"),
    "gpt2": _transformer("gpt2"),
    "llama": _transformer("llama"),
}


_NEWER_EXPORTER = ("gpt2", "llama")  # whose masks the older one cannot trace


def exported(name: str, folder: Path) -> Path:
    """Return a network as torch writes it, with random parameters; made if need be."""
    path = folder / f"{name.replace(', ', '_')}.onnx"
    if path.exists():
        return path
    torch = import_module("torch")
    torch.manual_seed(0)
    network, inputs = NETWORKS[name](torch)
    network = network.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        randomize(network, torch)
        settings: dict[str, Any] = {"dynamo": False, "opset_version": 17}
        if name in _NEWER_EXPORTER:
            settings = {"dynamo": True, "optimize": False, "external_data": False}
        torch.onnx.export(network, inputs, path, input_names=["x"], verbose=False, **settings)
    return path
