"""`graphpass convolutionalize` and `graphpass heatmap`: thin, as all commands."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphpass.commands.options import (
    CUSTOM_OPS,
    MEMORY_LIMIT,
    TIMEOUT,
    Finite,
    FiniteRange,
    beside,
)
from graphpass.errors import OutputError, UsageError
from graphpass.wording import visible

if TYPE_CHECKING:
    from graphpass.dense.approximate import ApproximationReport
    from graphpass.dense.convolutionalize import DenseReport
    from graphpass.dense.map_geometry import Size

_SIZE = re.compile(r"\d+(?:[xX×]\d+){0,2}")


def _size(context: click.Context, parameter: click.Parameter, text: str | None) -> Size | None:
    if text is None:
        return None
    size = tuple(int(part) for part in re.split("[xX×]", text)) if _SIZE.fullmatch(text) else (0,)
    if 0 in size:
        raise click.BadParameter(
            f"{text!r} is not HEIGHTxWIDTH in pixels, as in 384x512 (one number for a signal, three"
            " for a volume)"
        )
    return size


def _sizes(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[Size, ...]:
    read = [_size(context, parameter, text) for text in given]
    return tuple(size for size in read if size is not None)


def _numbers(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number or several with commas") from None


def _preprocessing(command: Any) -> Any:
    """Add the options that say how a picture becomes numbers."""
    for option in (
        click.option(
            "--scale",
            type=Finite(),
            help="Factor on the pixels (0 to 255).  [default: 1/255, 1 for an input of bytes]",
        ),
        click.option(
            "--std",
            callback=_numbers,
            metavar="R,G,B",
            help="Divided by, after --mean.  [default: that of ImageNet; 1 for grey pictures]",
        ),
        click.option(
            "--mean",
            callback=_numbers,
            metavar="R,G,B",
            help="Subtracted, after --scale.  [default: that of ImageNet; 0 for grey pictures]",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: MODEL.dense.onnx.")
@click.option(
    "--head",
    type=click.Choice(["dense", "global"]),
    default="dense",
    help="dense: a map of answers; global: a pooled head stays global.  [default: dense]",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    callback=_sizes,
    metavar="HxW",
    help="Image size to report and check. May be repeated.",
)
@click.option(
    "--native",
    callback=_size,
    metavar="HxW",
    help="What the network was made for, if its input does not say.",
)
@click.option("--keep-batch/--free-batch", default=True, help="A fixed batch stays, or varies.")
@click.option("--logits", is_flag=True, help="Leave out the final Softmax.")
@click.option("--cam", is_flag=True, help="With --head global: add the class activation map.")
@click.option(
    "--approximate",
    type=click.Choice(["gap"]),
    help="LOSSY: replace a Flatten head by a pooled one, fitted by least squares.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FOLDER|NPZ",
    help="Inputs that --approximate fits its weights on.",
)
@click.option(
    "--test",
    "test_inputs",
    type=click.Path(path_type=Path),
    metavar="FOLDER|NPZ",
    help="Other inputs that it is judged on.  [default: a quarter of --calibration, held out]",
)
@_preprocessing
@click.option("--no-validate", is_flag=True, help="Leave out the window oracle.")
@TIMEOUT
@MEMORY_LIMIT
@CUSTOM_OPS
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print every step and every check.")
def convolutionalize(
    model: Path,
    output: Path | None,
    head: Any,
    sizes: tuple[Size, ...],
    native: Size | None,
    keep_batch: bool,
    logits: bool,
    cam: bool,
    approximate: str | None,
    calibration: Path | None,
    test_inputs: Path | None,
    scale: float | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    no_validate: bool,
    time_limit_s: float,
    memory_limit_mib: int | None,
    custom_ops: tuple[str, ...],
    quiet: bool,
    verbose: bool,
) -> None:
    """Turn the classifier MODEL into a network that scores every place of an image of any size.

    Height and width become symbolic, outputs become maps [N, classes, h, w]; of signals the length,
    of volumes and videos depth, height and width. Whether the map is
    right is decided by the original: its own head, run on every window of its own feature map.
    """
    target = output or beside(model, ".dense.onnx")
    _require_target(target, model)
    if approximate is None and (calibration or test_inputs):
        raise UsageError("--calibration and --test go with --approximate gap")
    if approximate is not None and calibration is None:
        raise UsageError(
            "--approximate gap fits weights to data: it needs --calibration FOLDER|NPZ"
        )
    from graphpass.dense import convolutionalize as dense
    from graphpass.dense.picture import Preprocessing

    source: Any = model
    how = Preprocessing(scale, mean, std)
    if calibration is not None:
        from graphpass.dense.approximate import approximate_gap

        source, approximation = approximate_gap(model, calibration, test_inputs, how, native=native)
        _print_approximation(approximation)
        native = None
    result = dense.convolutionalize(
        source,
        head=head,
        sizes=sizes,
        native=native,
        logits=logits,
        cam=cam,
        keep_batch=keep_batch,
        check=not no_validate,
        preprocessing=how,
        time_limit_s=time_limit_s,
        memory_limit_mib=memory_limit_mib,
        custom_ops=custom_ops,
    )
    result.save(target)
    if not quiet:
        _print_report(result.report, model, target, verbose, checked=not no_validate)


def _require_target(target: Path, model: Path) -> None:
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.parent}")
    if target.exists() and model.exists() and target.samefile(model):
        raise UsageError(f"{target} is the input: give another -o")


def _print_report(
    report: DenseReport, model: Path, target: Path, verbose: bool, *, checked: bool
) -> None:
    say = _say
    say(f"{model} → {target}")
    if report.unchanged:
        say("height and width vary already: nothing to do")
        return
    say(f"made for {_pair(report.native)} pixels ({report.layout}), {report.head} head")
    for where in report.geometry:
        say(
            f"'{where.output}': cells {_pair(where.stride)} pixels apart, each sees "
            f"{_pair(where.window)} pixels from {_at(where.offset)} on"
        )
    if report.global_context:
        count = len(report.global_context)
        say(f"and the whole image through {count} global poolings inside the trunk")
    for size, maps in report.map_sizes.items():
        shown = ", ".join(f"'{name}' {_pair(cells)}" for name, cells in maps.items())
        say(f"  image {_pair(size)}: {shown}")
    for step in report.steps if verbose else ():
        say(f"  {step}")
    for check in report.checks if verbose else ():
        done = check.comparison
        say(
            f"  '{check.output}' at {done.feed}: {check.cells} cells, error {done.error:.2g} "
            f"(tolerance {done.tolerance:.2g})"
        )
    if not checked:
        say("not checked (--no-validate)")
    worst = report.worst
    if worst is not None:
        cells = sum(check.cells for check in report.checks)
        say(
            f"window oracle: {cells} cells in {len(report.checks)} comparisons are what the "
            f"original's own head says; error {worst.comparison.error:.2g} of the scale at most "
            f"(tolerance {worst.comparison.tolerance:.2g})"
        )


def _say(text: str) -> None:
    click.echo(visible(text))


def _print_approximation(report: ApproximationReport) -> None:
    click.echo(
        "APPROXIMATION: the dense layer over the map became pooling and a layer fitted to "
        f"{report.calibration_count} inputs; on {report.test_count} other inputs it gives the "
        f"original's top class in {report.top1_agreement:.1%}, outputs differ by "
        f"{report.relative_error:.2g} of their spread (root mean square)",
        err=True,
    )
    for warning in report.warnings:
        click.echo(visible(f"warning: {warning}"), err=True)


def _pair(size: Size) -> str:
    return "x".join(map(str, size))


def _at(offset: Size) -> str:
    return f"({', '.join(map(str, offset))})"


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: IMAGE.heatmap.png.")
@click.option("--class", "class_index", type=click.IntRange(min=0), help="Default: the strongest.")
@click.option("--labels", type=click.Path(path_type=Path), help="Names of the classes, one a line.")
@click.option("--map", "map_name", metavar="OUTPUT", help="Which output to draw.")
@click.option("--top", type=click.IntRange(min=0), default=3, help="Boxes to draw.  [default: 3]")
@click.option(
    "--threshold",
    type=Finite(),
    help="Smallest score of a box.  [default: half of the strongest, where scores lie in 0 to 1]",
)
@click.option(
    "--overlap",
    type=FiniteRange(min=0, max=1),
    default=0.1,
    help="Of boxes that share more (intersection over union), the strongest.  [default: 0.1]",
)
@click.option("--softmax", is_flag=True, help="The scores are logits: make probabilities of them.")
@click.option(
    "--overlay-only",
    is_flag=True,
    help="Draw only map and boxes, transparent, as large as the picture.",
)
@_preprocessing
def heatmap(
    model: Path,
    image: Path,
    output: Path | None,
    class_index: int | None,
    labels: Path | None,
    map_name: str | None,
    top: int,
    threshold: float | None,
    overlap: float,
    softmax: bool,
    overlay_only: bool,
    scale: float | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> None:
    """Run a dense MODEL on a picture of any size and draw where it sees a class.

    Needs graphpass[image]. The strongest cells are listed with the crop that each of them scores;
    of those that overlap, the strongest. How pixels become numbers is said, and taken from the
    model where `convolutionalize` was told.
    """
    from graphpass.dense import heatmap as scoring
    from graphpass.dense.drawing import Drawing, said
    from graphpass.dense.picture import Preprocessing

    if not image.name:
        raise UsageError(f"{image} is a folder, not a picture")
    target = output or image.with_suffix(".heatmap.png")
    if target.suffix.lower() != ".png":
        raise UsageError(f"the picture is a PNG: give -o a name that ends in .png, not {target}")
    _require_target(target, image)
    names = scoring.read_labels(labels) if labels is not None else None
    scores = scoring.score(model, image, Preprocessing(scale, mean, std), map_name)
    if softmax:
        scores = scores.softmax()
    chosen = scores.strongest_class if class_index is None else class_index
    scores.require_class(chosen)
    label = scoring.class_name(scores, chosen, names)
    best = float(scores.values[:, :, chosen].max())
    if threshold is None:
        threshold = best / 2 if scores.probabilities else -math.inf
    cells = scores.strongest_cells(chosen, top, least=threshold, overlap=overlap)
    title = f"{label}  {said(best)}  ·  {model.name}"
    Drawing(scores, chosen, label, cells, title).write(target, overlay_only=overlay_only)
    _say(f"{label}: {scores.height}x{scores.width} cells → {target}")
    _say(f"input: {scores.preprocessing}")
    for cell in cells:
        left, upper, right, lower = cell.box
        _say(f"  {cell.score:.4g} at x {left}..{right}, y {upper}..{lower}")
    if flat := scores.flat(chosen):
        click.echo(visible(f"warning: {label}: {flat}"), err=True)
    if not scores.probabilities:
        hint = "warning: the scores are no probabilities (--softmax makes some of logits)"
        click.echo(hint, err=True)
