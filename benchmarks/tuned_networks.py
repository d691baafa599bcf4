"""Networks in which there is less to do, or may be: see `tuned`. Needs torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.branches import randomize

Network = tuple[Any, tuple[Any, ...]]  # a torch module and the inputs that it is exported with


def _conv_class(torch: Any, activation: str) -> Any:
    """Return a module class: Conv, BatchNormalization and an activation."""
    nn = torch.nn

    class Conv(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            self.bn = nn.BatchNorm2d(outputs)
            self.act = getattr(nn, activation)()

        def forward(self, x: Any) -> Any:
            return self.act(self.bn(self.conv(x)))

    return Conv


def _yolo(torch: Any, activation: str, size_px: int = 320, width: int = 16) -> Network:
    """Return a detector shaped as YOLOv5n: Focus, CSP blocks, SPP, a head with upsampling."""
    nn = torch.nn

    layer = _conv_class(torch, activation)

    class Focus(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.conv = layer(4 * inputs, outputs, 3)

        def forward(self, x: Any) -> Any:
            pieces = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
            return self.conv(torch.cat(pieces, 1))

    class CSP(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inputs: int, outputs: int, depth: int = 1, add: bool = True) -> None:
            super().__init__()
            half = outputs // 2
            self.one, self.two = layer(inputs, half), layer(inputs, half)
            self.last = layer(outputs, outputs)
            self.blocks = nn.ModuleList(
                nn.Sequential(layer(half, half), layer(half, half, 3)) for _ in range(depth)
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
            self.first, self.last = layer(channels, channels // 2), layer(2 * channels, channels)
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
                layer(w, 2 * w, 3, 2), CSP(2 * w, 2 * w), layer(2 * w, 4 * w, 3, 2),
                CSP(4 * w, 4 * w, 3),
            )  # fmt: skip
            self.middle = nn.Sequential(layer(4 * w, 8 * w, 3, 2), CSP(8 * w, 8 * w, 3))
            self.high = nn.Sequential(
                layer(8 * w, 16 * w, 3, 2), SPP(16 * w), CSP(16 * w, 16 * w, 1, False)
            )
            self.up = nn.Upsample(scale_factor=2)
            self.reduce, self.join = layer(16 * w, 8 * w), CSP(16 * w, 8 * w, 1, False)
            self.reduce2, self.join2 = layer(8 * w, 4 * w), CSP(8 * w, 4 * w, 1, False)
            self.heads = nn.ModuleList(nn.Conv2d(k * w, 255, 1) for k in (4, 8, 16))

        def forward(self, x: Any) -> Any:
            low = self.low(self.stem(x))
            middle = self.middle(low)
            high = self.high(middle)
            y = self.join(torch.cat([self.up(self.reduce(high)), middle], 1))
            z = self.join2(torch.cat([self.up(self.reduce2(y)), low], 1))
            return tuple(head(part) for head, part in zip(self.heads, (z, y, high), strict=True))

    return Detector(), (torch.randn(1, 3, size_px, size_px),)


def _yolov8(torch: Any, size_px: int = 320, width: int = 16) -> Network:
    """Return a detector shaped as YOLOv8n: C2f blocks, SPPF, heads for boxes and for classes."""
    nn = torch.nn
    layer = _conv_class(torch, "SiLU")

    class C2f(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inputs: int, outputs: int, depth: int, add: bool) -> None:
            super().__init__()
            half = outputs // 2
            self.first, self.last = layer(inputs, outputs), layer((2 + depth) * half, outputs)
            self.blocks = nn.ModuleList(
                nn.Sequential(layer(half, half, 3), layer(half, half, 3)) for _ in range(depth)
            )
            self.add = add

        def forward(self, x: Any) -> Any:
            parts = list(self.first(x).chunk(2, 1))
            for block in self.blocks:
                made = block(parts[-1])
                parts.append(parts[-1] + made if self.add else made)
            return self.last(torch.cat(parts, 1))

    class SPPF(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.first, self.last = layer(channels, channels // 2), layer(2 * channels, channels)
            self.pool = nn.MaxPool2d(5, 1, 2)

        def forward(self, x: Any) -> Any:
            parts = [self.first(x)]
            for _ in range(3):
                parts.append(self.pool(parts[-1]))
            return self.last(torch.cat(parts, 1))

    class Detector(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            w = width
            self.low = nn.Sequential(
                layer(3, w, 3, 2), layer(w, 2 * w, 3, 2), C2f(2 * w, 2 * w, 1, True),
                layer(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w, 2, True),
            )  # fmt: skip
            self.middle = nn.Sequential(layer(4 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w, 2, True))
            self.high = nn.Sequential(
                layer(8 * w, 16 * w, 3, 2), C2f(16 * w, 16 * w, 1, True), SPPF(16 * w)
            )
            self.up = nn.Upsample(scale_factor=2)
            self.join, self.join2 = C2f(24 * w, 8 * w, 1, False), C2f(12 * w, 4 * w, 1, False)
            self.down, self.down2 = layer(4 * w, 4 * w, 3, 2), layer(8 * w, 8 * w, 3, 2)
            self.back, self.back2 = C2f(12 * w, 8 * w, 1, False), C2f(24 * w, 16 * w, 1, False)
            self.heads = nn.ModuleList(
                nn.ModuleList(
                    nn.Sequential(layer(k * w, c, 3), layer(c, c, 3), nn.Conv2d(c, c, 1))
                    for c in (64, 80)
                )
                for k in (4, 8, 16)
            )

        def forward(self, x: Any) -> Any:
            low = self.low(x)
            middle = self.middle(low)
            high = self.high(middle)
            y = self.join(torch.cat([self.up(high), middle], 1))
            one = self.join2(torch.cat([self.up(y), low], 1))
            two = self.back(torch.cat([self.down(one), y], 1))
            three = self.back2(torch.cat([self.down2(two), high], 1))
            return tuple(
                torch.cat([head(part) for head in heads], 1)
                for heads, part in zip(self.heads, (one, two, three), strict=True)
            )

    return Detector(), (torch.randn(1, 3, size_px, size_px),)


def _fpn(torch: Any, size_px: int = 256) -> Network:
    """Return torchvision's feature pyramid on a ResNet-18, whose way up is nearest."""
    make = import_module("torchvision.models.detection.backbone_utils").resnet_fpn_backbone
    pyramid = make(backbone_name="resnet18", weights=None, trainable_layers=5)

    class Maps(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.pyramid = pyramid

        def forward(self, x: Any) -> Any:
            return tuple(self.pyramid(x).values())

    return Maps(), (torch.randn(1, 3, size_px, size_px),)


def _pruned(torch: Any) -> Network:
    """Return a ResNet-50 pruned by filters: 40 % inside of blocks, 25 % of each residual stream."""
    network = import_module("torchvision").models.resnet50(weights=None)
    prune = import_module("torch.nn.utils.prune")

    def dead(conv: Any, share: float) -> Any:
        prune.ln_structured(conv, "weight", amount=share, n=2, dim=0)
        prune.remove(conv, "weight")
        return (conv.weight.abs().sum((1, 2, 3)) == 0).nonzero().flatten()

    def silence(conv: Any, norm: Any, channels: Any) -> None:
        for parameter in (conv.weight, norm.weight, norm.bias):
            parameter[channels] = 0

    with torch.no_grad():
        randomize(network, torch)
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            stream = dead(stage[0].conv3, 0.25)
            silence(stage[0].downsample[0], stage[0].downsample[1], stream)
            for block in stage:
                silence(block.conv3, block.bn3, stream)
                for conv, norm in ((block.conv1, block.bn1), (block.conv2, block.bn2)):
                    silence(conv, norm, dead(conv, 0.4))
    return network, (torch.randn(1, 3, 224, 224),)


def _resnet_v1(torch: Any) -> Network:
    """Return a ResNet-50 as first published: the stride of a stage is that of its 1x1 Convs."""
    network = import_module("torchvision").models.resnet50(weights=None)
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return network, (torch.randn(1, 3, 224, 224),)


def _lora(torch: Any, width: int = 256, rank: int = 8) -> Network:
    """Return feed-forward blocks whose layers have an adapter beside them, as PEFT leaves them."""
    nn = torch.nn

    class Adapted(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.base = nn.Linear(inputs, outputs)
            self.a = nn.Linear(inputs, rank, bias=False)
            self.b = nn.Linear(rank, outputs, bias=False)

        def forward(self, x: Any) -> Any:
            return self.base(x) + self.b(self.a(x)) * 2.0

    layers: list[Any] = []
    for _ in range(4):
        layers += [Adapted(width, 4 * width), nn.GELU(), Adapted(4 * width, width)]
    return nn.Sequential(*layers), (torch.randn(1, 128, width),)


def _diverse(torch: Any) -> Network:
    """Return two blocks of diverse branches (DBB), one padded with the bias of its 1x1 Conv."""
    nn, functional = torch.nn, torch.nn.functional

    class Padded(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(channels)

        def forward(self, x: Any) -> Any:
            norm = self.norm
            made = functional.pad(norm(x), (1, 1, 1, 1))
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            edge = (norm.bias - norm.running_mean * scale).view(1, -1, 1, 1)
            made[:, :, :1], made[:, :, -1:], made[..., :1], made[..., -1:] = [edge] * 4
            return made

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            conv, norm = partial(nn.Conv2d, bias=False), nn.BatchNorm2d
            self.branches = nn.ModuleList(
                [
                    nn.Sequential(conv(inputs, outputs, 3, padding=1), norm(outputs)),
                    nn.Sequential(conv(inputs, outputs, 1), norm(outputs)),
                    nn.Sequential(
                        conv(inputs, outputs, 1),
                        Padded(outputs),
                        nn.AvgPool2d(3, 1),
                        norm(outputs),
                    ),
                    nn.Sequential(
                        conv(inputs, inputs, 1),
                        Padded(inputs),
                        conv(inputs, outputs, 3),
                        norm(outputs),
                    ),
                ]
            )

        def forward(self, x: Any) -> Any:
            return functional.relu(sum(branch(x) for branch in self.branches))

    return nn.Sequential(Block(32, 64), Block(64, 64)), (torch.randn(1, 32, 56, 56),)


def _unet(torch: Any, nearest: bool = False, size_px: int = 256, width: int = 16) -> Network:
    """Return a U-Net whose way up is ConvTranspose of 2x2, or nearest pixels and a 1x1 Conv."""
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
                nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(2 * size, size, 1))
                if nearest
                else nn.ConvTranspose2d(2 * size, size, 2, 2)
                for size in sizes[-2::-1]
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
    "yolov8-shaped": _yolov8,
    "unet": _unet,
    "unet, nearest": lambda torch: _unet(torch, nearest=True),
    "fpn, nearest": _fpn,
    "resnet50, pruned": _pruned,
    "resnet50 v1": _resnet_v1,
    "lora": _lora,
    "dbb": _diverse,
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
        if name != "resnet50, pruned":  # whose dead channels stay so
            randomize(network, torch)
        settings: dict[str, Any] = {"dynamo": False, "opset_version": 17}
        if name in _NEWER_EXPORTER:
            settings = {"dynamo": True, "optimize": False, "external_data": False}
        torch.onnx.export(network, inputs, path, input_names=["x"], verbose=False, **settings)
    return path
