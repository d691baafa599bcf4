"""Networks as torch exports them, of their own size, with random weights: for docs/targets.md.

Needs torch, torchvision, timm and transformers.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

SIDE_PX = 224
TOKENS = 128
_OPSET = 17


def _torchvision(name: str) -> tuple[Any, tuple[Any, ...]]:
    network = getattr(import_module("torchvision").models, name)(weights=None)
    return network, (import_module("torch").randn(1, 3, SIDE_PX, SIDE_PX),)


def _timm(name: str) -> tuple[Any, tuple[Any, ...]]:
    network = import_module("timm").create_model(name, pretrained=False)
    return network, (import_module("torch").randn(1, 3, SIDE_PX, SIDE_PX),)


def _bert() -> tuple[Any, tuple[Any, ...]]:
    """Turc et al.'s BERT-tiny: two layers, two heads, 128 features."""
    torch, transformers = import_module("torch"), import_module("transformers")
    sizes = {"hidden_size": 128, "intermediate_size": 512}
    config = transformers.BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    tokens = torch.randint(0, config.vocab_size, (1, TOKENS))

    class Bert(torch.nn.Module):  # type: ignore[misc, name-defined]
        """BERT without arguments in between, which the exporter would pass by their place."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = transformers.BertModel(config)

        def forward(self, tokens: Any, mask: Any) -> tuple[Any, Any]:
            found = self.bert(input_ids=tokens, attention_mask=mask)
            return found.last_hidden_state, found.pooler_output

    return Bert(), (tokens, torch.ones_like(tokens))


NETWORKS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "vgg16": lambda: _torchvision("vgg16"),
    "resnet50": lambda: _torchvision("resnet50"),
    "mobilenet_v3_large": lambda: _torchvision("mobilenet_v3_large"),
    "convnext_tiny": lambda: _torchvision("convnext_tiny"),
    "vit_tiny": lambda: _timm("vit_tiny_patch16_224"),
    "bert_tiny": _bert,
}


def export(name: str, folder: Path) -> Path:
    """Write one of `NETWORKS` below `folder`, unless it is there, and return its file."""
    path = folder / f"{name}.onnx"
    if path.exists():
        return path
    torch = import_module("torch")
    torch.manual_seed(0)
    network, inputs = NETWORKS[name]()
    network.eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            # what training leaves behind: with 0 and 1 there would be nothing to fold
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        torch.onnx.export(network, inputs, str(path), dynamo=False, opset_version=_OPSET)
    return path
