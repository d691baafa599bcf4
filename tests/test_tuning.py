"""--tune: choices are measured where the model will run, and kept where they pay.

No test here depends on a clock: what measuring would say is given.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from rich.console import Console

import graphpass
from graphpass import Choice, Op, Pass, Rule, Tensor, Weight, any_, const
from graphpass.cli import run
from graphpass.errors import RuleError, UsageError
from graphpass.report.data import SCHEMA_PATH, Report, without_times
from graphpass.report.markdown import markdown
from graphpass.report.page.page import page
from graphpass.report.rows import choices
from graphpass.report.terminal import terminal
from graphpass.rewrite.registry import TUNED, make
from graphpass.rewrite.window import Window
from graphpass.run import tuning
from graphpass.run.tuning_cache import cache_folder
from graphpass.testing import graph, operators
from graphpass.testing.checks import session
from graphpass.validate import Latency
from graphpass.validate.latency import is_settled
from graphpass.validate.process.runtime import RunError
from graphpass.validate.validator import Validator

SIBLINGS = "merge-siblings"
SCHEMA = json.loads(SCHEMA_PATH.read_text())


def latency(ratio: float, spread: float = 0.005) -> Latency:
    return Latency(1.0, ratio, ratio, ratio - spread, ratio + spread, 9, "normal", "cpu")


class Clock:
    """Says how long things take. `sites`: what a site's ratio is; `whole`: that of two models."""

    def __init__(self) -> None:
        self.sites: Callable[[Window], Latency] = lambda window: latency(0.8)
        self.whole: Callable[[onnx.ModelProto, onnx.ModelProto], float] = lambda one, two: 0.9
        self.measured: list[Window] = []

    def time_site(self, validator: Validator, window: Window, shapes: Any) -> Latency:
        self.measured.append(window)
        return self.sites(window)

    def latency(
        self, validator: Validator, before: onnx.ModelProto, after: onnx.ModelProto
    ) -> Latency:
        return latency(self.whole(before, after))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    found = Clock()
    monkeypatch.setattr(Validator, "time_site", lambda *given: found.time_site(*given))
    monkeypatch.setattr(Validator, "latency", lambda *given: found.latency(*given))
    monkeypatch.setenv("GRAPHPASS_CACHE", str(tmp_path / "cache"))
    return found


def network(blocks: int = 2, last: int = 5) -> onnx.ModelProto:
    """Blocks of two products of one tensor: those of all blocks but the last are alike."""
    lines: list[str] = []
    weights: dict[str, Any] = {}
    for k in range(blocks):
        for side in "vw":
            wide = last if k == blocks - 1 and side == "w" else 4
            weights[f"{side}{k}"] = np.full((4, wide), 0.1 * (k + 1), np.float32)
        lines.append(f"a{k} = MatMul(x{k}, v{k}) b{k} = MatMul(x{k}, w{k})")
        if k < blocks - 1:
            lines.append(f"x{k + 1} = Mul(a{k}, b{k})")
    end = blocks - 1
    text = f"(float[N,4] x0) => (float[N,4] a{end}, float[N,?] b{end}) {{{' '.join(lines)}}}"
    return graph(text, **weights)


def tuned(model: onnx.ModelProto | None = None, passes: Any = SIBLINGS, **options: Any) -> Any:
    given = network(3) if model is None else model
    with graphpass.optimize(given, passes, tune=True, **options) as result:
        jsonschema.validate(json.loads(result.report.to_json()), SCHEMA)
        return result


# ------------------------------------------------------------------------------ which are kept


def test_what_pays_is_kept_and_sites_that_are_alike_are_measured_once(clock: Clock) -> None:
    result = tuned()
    assert operators(result.model) == "MatMul Split Mul MatMul Split Mul MatMul Split"
    assert len(clock.measured) == 2
    sites = result.report.tuning.sites
    assert [(site.site, site.kept, site.source) for site in sites] == [
        ("a0", True, "measured"),
        ("a1", True, "measured"),
        ("a2", True, "measured"),
    ]
    assert sites[0].alike == sites[1].alike != sites[2].alike
    assert result.report.tuning.whole.ratio == 0.9


@pytest.mark.parametrize(
    "measured",
    [latency(1.2), latency(1.0), latency(0.985), latency(0.9, spread=0.12)],
    ids=["slower", "equal", "faster by the noise between sessions", "faster by less than noise"],
)
def test_what_does_not_pay_is_left(clock: Clock, measured: Latency) -> None:
    clock.sites = lambda window: measured
    before = network(3)
    result = tuned(before)
    assert result.model.graph.node == before.graph.node
    assert [site.kept for site in result.report.tuning.sites] == [False] * 3
    assert "not faster here" in result.report.tuning.sites[0].reason
    assert result.report.tuning.whole is None


def test_each_site_has_its_own_answer(clock: Clock) -> None:
    def by_width(window: Window) -> Latency:
        wide = any(5 in weight.dims for weight in window.before.graph.initializer)
        return latency(0.7 if wide else 1.1)

    clock.sites = by_width
    result = tuned()
    assert operators(result.model) == "MatMul MatMul Mul MatMul MatMul Mul MatMul Split"
    assert [site.kept for site in result.report.tuning.sites] == [False, False, True]


def test_without_tuning_nothing_is_measured_nor_said(clock: Clock) -> None:
    with graphpass.optimize(network(3), SIBLINGS) as result:
        assert not result.changed
        assert not clock.measured
        assert result.report.tuning is None
        assert not result.report.passes[0].refusals


def test_what_is_measured_is_what_stands_there_with_the_activation_behind(clock: Clock) -> None:
    model = graph(
        "(float[N,8,6,6] x) => (float[N,4,6,6] a, float[N,6,6,6] b) {"
        "c = Conv(x, V) a = Clip(c, low, high) d = Conv(x, W) e = Clip(d, low, high) b = Neg(e)}",
        V=(4, 8, 1, 1),
        W=(6, 8, 1, 1),
        low=np.array(0, np.float32),
        high=np.array(6, np.float32),
    )
    result = tuned(model)
    (window,) = clock.measured
    kinds = [[node.op_type for node in side.graph.node] for side in (window.before, window.after)]
    assert kinds == [
        ["Conv", "Conv", "Clip", "Clip", "Neg"],
        ["Conv", "Split", "Clip", "Clip", "Neg"],
    ]
    assert [value.name for value in window.before.graph.output] == ["a", "b"]
    feed = {"x": np.random.default_rng(0).normal(size=(2, 8, 6, 6)).astype(np.float32)}
    before, after = (session(side).run(None, feed) for side in (window.before, window.after))
    for one, two in zip(before, after, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
    assert operators(result.model) == "Conv Split Clip Clip Neg"


def test_without_passes_all_that_may_pay_is_run(clock: Clock) -> None:
    clock.sites = lambda window: latency(1.5)
    model = graph("(float[N,8] x) => (float[N,5] y) {y = Gemm<transB=1>(x, W)}", W=(5, 8))
    result = tuned(model, None)
    assert [entry.name for entry in result.report.passes] == list(TUNED)
    assert result.report.settings["pipeline"] is None
    assert operators(result.model) == "Gemm"
    (site,) = result.report.tuning.sites
    assert (site.step, site.rule, site.kept) == ("gemm-to-conv", "DenseOnRows", False)


def test_a_pipeline_whose_form_is_asked_for_is_measured_only_with_tune(clock: Clock) -> None:
    model = graph("(float[N,8] x) => (float[N,5] y) {y = Gemm<transB=1>(x, W)}", W=(5, 8))
    clock.sites = lambda window: latency(1.5)
    with graphpass.optimize(model) as plain:
        assert operators(plain.model) == "Unsqueeze Conv Flatten"
    assert operators(tuned(model, "default").model) == "Gemm"


# ------------------------------------------------------------------------------ the whole model


def test_what_pays_alone_and_not_in_the_whole_is_undone(clock: Clock) -> None:
    clock.whole = lambda one, two: 1.1 if len(two.graph.node) > len(one.graph.node) - 1 else 0.9
    before = network(3)
    result = tuned(before)
    assert result.model.graph.node == before.graph.node
    told = result.report.tuning
    assert "takes 1.10 times as long" in told.given_up
    assert [(site.kept, site.reason) for site in told.sites] == [(False, told.given_up)] * 3
    assert "no choice was kept" in printed(result.report)
    assert len(clock.measured) == 2  # not again


def merged(model: onnx.ModelProto) -> list[int]:
    """Return how wide the products are that were merged."""
    held = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    wide = [held[node.input[1]][1] for node in model.graph.node if node.op_type == "MatMul"]
    return sorted(size for size in wide if size > 5)


def test_of_what_pays_alone_those_are_kept_that_the_whole_is_no_slower_by(clock: Clock) -> None:
    # the two sites of width 8 cost 5 % each, that of width 9 saves 4 %
    clock.whole = lambda one, two: (
        1
        + sum(
            sign * (0.05 if size == 8 else -0.04)
            for sign, model in ((-1, one), (1, two))
            for size in merged(model)
        )
    )
    result = tuned()
    assert merged(result.model) == [9]
    told = result.report.tuning
    assert told.given_up == "" and told.whole.ratio == pytest.approx(0.96)
    alone = "it pays alone, but the whole model is no faster by it"
    assert [(site.kept, site.reason) for site in told.sites] == [
        (False, alone),
        (False, alone),
        (True, ""),
    ]
    assert len(clock.measured) == 2  # not again


def test_what_was_narrowed_and_is_slower_all_the_same_is_given_up(clock: Clock) -> None:
    asked: list[int] = []

    def moody(one: onnx.ModelProto, two: onnx.ModelProto) -> float:
        asked.append(len(merged(two)))
        return 1.1 if len(asked) in (1, 2, 4) and merged(two) else 0.9

    clock.whole = moody
    result = tuned()
    assert merged(result.model) == []
    assert "takes 1.10 times as long" in result.report.tuning.given_up
    assert asked[:4] == [3, 1, 2, 1] or asked[:4] == [3, 2, 1, 1]


def test_a_pass_that_makes_the_whole_slower_is_left_out(clock: Clock) -> None:
    def without_identity(one: onnx.ModelProto, two: onnx.ModelProto) -> float:
        had, has = ("Identity" in operators(model) for model in (one, two))
        return 1.3 if had and not has else 1.0

    clock.whole = without_identity
    clock.sites = lambda window: latency(1.5)
    model = graph("(float[N,4] x) => (float[N,4] y) {a = Identity(x) b = Relu(a) y = Relu(b)}")
    result = tuned(model, "clean-up,merge-siblings")
    assert operators(result.model) == "Identity Relu Relu"
    assert [(entry.step, entry.ratio) for entry in result.report.tuning.left_out] == [
        ("clean-up", 1.3)
    ]
    assert "clean-up was left out" in printed(result.report)


class WrongSum(Rule):
    """MatMul(x, W) = MatMul(x, 2·W): wrong."""

    pattern = Op("MatMul", any_("x"), const("weight"))
    choice = Choice.MEASURED

    def rewrite(self, x: Tensor, weight: Weight) -> Op | None:
        doubled = 2 * weight.array()
        return Op("MatMul", x, doubled) if weight.array().max() < 1 else None


class WrongPass(Pass):
    """Wrong."""

    name = "wrong"
    rules = (WrongSum(),)


def test_what_pays_and_is_wrong_is_undone_and_said_so() -> None:
    result = tuned(network(1), WrongPass())
    assert not result.changed
    assert not any(site.kept for site in result.report.tuning.sites)
    assert all(site.reason.startswith("it was undone") for site in result.report.tuning.sites)


def test_a_choice_of_a_pass_is_one_of_its_rules(clock: Clock) -> None:
    class Squares(Rule):
        """Mul(x, x) = Pow(x, 2), but for rounding."""

        pattern = Op("Mul", any_("x"), any_("x"))

        def rewrite(self, x: Tensor) -> Op:
            return Op("Pow", x, np.array(2, np.float32))

    class SquaresPass(Pass):
        """Squares."""

        name = "squares"
        rules = (Squares(),)
        choice = Choice.MEASURED

    model = graph("(float[N,4] x) => (float[N,4] y) {y = Mul(x, x)}")
    assert operators(tuned(model, SquaresPass()).model) == "Pow"
    clock.sites = lambda window: latency(2.0)
    assert operators(tuned(model, SquaresPass(), tune_cache=False).model) == "Mul"
    with graphpass.optimize(model, SquaresPass()) as plain:
        assert operators(plain.model) == "Mul"


def test_a_pass_by_hand_has_no_sites_to_choose() -> None:
    with pytest.raises(RuleError, match="by hand, which has no sites"):

        class ByHand(Pass):
            """By hand."""

            name = "by-hand"
            choice = Choice.MEASURED

            def run(self, graph: Any) -> list[str]:
                return []


# ------------------------------------------------------------------------ what cannot be measured


def test_a_site_that_does_not_run_alone_is_not_kept(clock: Clock) -> None:
    def fails(window: Window) -> Latency:
        raise RunError("load", "ONNX Runtime cannot load the model: no kernel")

    clock.sites = fails
    result = tuned(network(1))
    (site,) = result.report.tuning.sites
    assert not site.kept
    assert site.reason == "it was not measured: ONNX Runtime cannot load the model: no kernel"
    assert "no kernel" in printed(result.report)


def test_with_its_readers_or_without_them(clock: Clock) -> None:
    def only_bare(window: Window) -> Latency:
        if any(node.op_type == "Mul" for node in window.before.graph.node):
            raise RunError("run", "it does not fit")
        return latency(0.5)

    clock.sites = only_bare
    assert tuned(network(2)).report.tuning.sites[0].kept


def test_time_for_measuring_ends(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_BUDGET_S", -1.0)
    result = tuned()
    assert not clock.measured
    assert "the -1 s for measuring were up" in result.report.tuning.sites[0].reason


def test_sizes_that_only_a_run_tells_are_those_of_the_run(clock: Clock) -> None:
    seen = []

    def noted(window: Window) -> Latency:
        seen.append([value.name for value in window.before.graph.input])
        return latency(0.5)

    clock.sites = noted
    model = graph(
        "(float[N,8] z, int64[2] s) => (float[?,?] a, float[?,?] b) {"
        "x = Reshape(z, s) a = MatMul(x, V) b = MatMul(x, W)}",
        V=(4, 3),
        W=(4, 5),
    )
    given = {"z": np.ones((2, 8), np.float32), "s": np.array([4, 4])}
    result = tuned(model, inputs=given)
    assert result.report.tuning.sites[0].kept
    assert seen == [["x"]]


# ------------------------------------------------------------------------------ kept between runs


def test_what_was_measured_on_this_machine_is_not_measured_again(clock: Clock) -> None:
    tuned()
    clock.measured.clear()
    again = tuned()
    assert not clock.measured
    assert {site.source for site in again.report.tuning.sites} == {"cache"}
    assert Path(again.report.tuning.cache).is_relative_to(cache_folder())
    tuned(tune_cache=False)
    assert len(clock.measured) == 2
    tuned(threads=3)  # another way to run it
    assert len(clock.measured) == 4


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"latency": {"ratio": 3}}', "\0"])
def test_a_spoilt_file_of_the_cache_is_measured_anew(clock: Clock, content: str) -> None:
    folder = Path(tuned().report.tuning.cache)
    for path in folder.iterdir():
        path.write_text(content)
    clock.measured.clear()
    assert {site.source for site in tuned().report.tuning.sites} == {"measured"}
    assert len(clock.measured) == 2
    assert {site.source for site in tuned().report.tuning.sites} == {"cache"}


def test_where_nothing_can_be_kept_a_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAPHPASS_CACHE", str(tmp_path / "file"))
    report = tuned().report
    assert all(site.kept for site in report.tuning.sites)
    assert [line for line in report.warnings if "nothing is kept in" in line]


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("GRAPHPASS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/graphpass")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "graphpass"


# ------------------------------------------------------------------------------ from a report


def by_width(window: Window) -> Latency:
    return latency(0.7 if any(5 in w.dims for w in window.before.graph.initializer) else 1.1)


@pytest.fixture
def written(clock: Clock, tmp_path: Path) -> Path:
    """A report of a run in which one of three sites pays."""
    clock.sites = by_width
    result = tuned()
    path = tmp_path / "report.json"
    path.write_text(result.report.to_json())
    (tmp_path / "expected.onnx").write_bytes(result.model.SerializeToString())
    clock.sites = lambda window: pytest.fail("it was measured")
    clock.whole = lambda one, two: pytest.fail("it was measured")
    return path


@pytest.mark.parametrize("validate", [True, False])
def test_a_report_decides_the_same_again_without_measuring(written: Path, validate: bool) -> None:
    with graphpass.optimize(
        network(3), SIBLINGS, tune_from=written, validate=validate, tune_cache=False
    ) as again:
        assert again.model.SerializeToString() == (written.with_name("expected.onnx").read_bytes())
        jsonschema.validate(json.loads(again.report.to_json()), SCHEMA)
        assert again.report.tuning is not None
        assert [(site.kept, site.source) for site in again.report.tuning.sites] == [
            (False, "report"),
            (False, "report"),
            (True, "report"),
        ]
        from_it = written.with_name("again.json")
        from_it.write_text(again.report.to_json())
    with graphpass.optimize(network(3), SIBLINGS, tune_from=from_it) as third:
        assert third.report.tuning is not None
        assert third.report.tuning.sites == again.report.tuning.sites


def test_other_weights_of_the_same_shapes_fit(written: Path) -> None:
    retrained = network(3)
    for weight in retrained.graph.initializer:
        noise = np.random.default_rng(1).normal(size=tuple(weight.dims)).astype(np.float32)
        weight.CopyFrom(onnx.numpy_helper.from_array(noise, weight.name))
    with graphpass.optimize(retrained, SIBLINGS, tune_from=written) as result:
        assert operators(result.model).endswith("MatMul Split")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (network(4), "it does not say whether SiblingProducts at 'a2' pays"),
        (network(3, last=6), "it does not say whether SiblingProducts at 'a2' pays"),
    ],
    ids=["more sites", "another size"],
)
def test_a_report_that_does_not_fit_the_model(
    written: Path, model: onnx.ModelProto, sentence: str
) -> None:
    with pytest.raises(UsageError, match=f"does not fit the model: .*{sentence}"):
        graphpass.optimize(model, SIBLINGS, tune_from=written)


def test_a_report_of_a_model_with_more_sites(written: Path) -> None:
    told = json.loads(written.read_text())
    told["tuning"]["sites"].append({**told["tuning"]["sites"][0], "site": "a7"})
    written.write_text(json.dumps(told))
    with pytest.raises(UsageError, match="it has no place for SiblingProducts at 'a7'"):
        graphpass.optimize(network(3), SIBLINGS, tune_from=written)


def test_a_report_of_other_passes(written: Path) -> None:
    with pytest.raises(UsageError, match="other passes: give --passes 'merge-siblings'"):
        graphpass.optimize(network(3), "clean-up,merge-siblings", tune_from=written)


def test_what_is_no_report_of_tuning(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(UsageError, match="cannot read"):
        graphpass.optimize(network(), SIBLINGS, tune_from=path)
    path.write_text("[")
    with pytest.raises(UsageError, match="is no report"):
        graphpass.optimize(network(), SIBLINGS, tune_from=path)
    with graphpass.optimize(network(), SIBLINGS) as plain:
        path.write_text(plain.report.to_json())
    with pytest.raises(UsageError, match="a run without --tune"):
        graphpass.optimize(network(), SIBLINGS, tune_from=path)
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "tuning": {"sites": [{}]}}))
    with pytest.raises(UsageError, match="its tuning is not complete"):
        graphpass.optimize(network(), SIBLINGS, tune_from=path)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("settings", "passes"), ["merge-siblings", ["x"]]),
        (("settings", "passes"), 3),
        (("tuning", "sites", 0, "site"), {"a": 1}),
        (("tuning", "sites", 0, "kept"), 2),
        (("tuning", "sites", 0, "reason"), None),
        (("tuning", "given_up"), 1e9),
        (("tuning", "left_out"), [{"step": "merge-siblings"}]),
        (("tuning", "left_out"), [{"step": "merge-siblings", "ratio": "1"}]),
        (("tuning", "left_out"), 1),
        (("tuning",), [1]),
    ],
)
def test_a_report_of_wrong_types_is_none(written: Path, where: tuple[Any, ...], value: Any) -> None:
    told = inner = json.loads(written.read_text())
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    written.write_text(json.dumps(told))
    with pytest.raises(UsageError, match="its tuning is not complete"):
        graphpass.optimize(network(3), SIBLINGS, tune_from=written)


def test_what_was_left_out_is_left_out_again(clock: Clock, tmp_path: Path) -> None:
    clock.sites = lambda window: latency(1.5)
    clock.whole = lambda one, two: 1.3 if len(two.graph.node) < len(one.graph.node) else 1.0
    model = graph("(float[N,4] x) => (float[N,4] y) {a = Identity(x) y = Relu(a)}")
    first = tuned(model, "clean-up,merge-siblings")
    path = tmp_path / "r.json"
    path.write_text(first.report.to_json())
    with graphpass.optimize(model, "clean-up,merge-siblings", tune_from=path) as again:
        assert operators(again.model) == operators(first.model) == "Identity Relu"


# ------------------------------------------------------------------------------ what is told


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=200)
    terminal(report, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_all_forms_of_the_report_tell_of_each_site(clock: Clock) -> None:
    clock.sites = by_width
    result = tuned()
    shown = printed(result.report)
    assert "merge-siblings: SiblingProducts 2 × 'a0'" in " ".join(shown.split())
    assert "refused" not in shown.partition("choice")[2]
    assert "| merge-siblings: SiblingProducts | 'a2' | 1 ms | 0.7 ms | yes |" in markdown(
        result.report
    )
    held = page(result.report, result.skeletons)
    assert '"choices": {"header": ["choice", "site", "before", "after", "kept"]' in held
    assert "0.7 ms" in held
    assert "tuning" not in without_times(result.report.to_dict())


def test_a_site_that_looks_otherwise_later_is_shown_once(clock: Clock) -> None:
    clock.sites = lambda window: latency(1.5)
    result = tuned(network(1))
    (site,) = result.report.tuning.sites
    result.report.tuning.sites.append(replace(site, form="0" * 16))
    assert len(list(choices(result.report))) == 1
    result.report.tuning.sites[0] = replace(site, kept=True)
    assert len(list(choices(result.report))) == 2


# ------------------------------------------------------------------------------ the command line


def test_the_command_line(clock: Clock, tmp_path: Path, capfd: Any) -> None:
    model, out, report = (str(tmp_path / name) for name in ("m.onnx", "o.onnx", "r.json"))
    onnx.save(network(3), model)
    clock.sites = by_width
    arguments = ["optimize", model, "-o", out, "--passes", SIBLINGS]
    assert run([*arguments, "--tune", "--report", report]) == 0
    made = Path(out).read_bytes()
    assert "2 × 'a0'" in capfd.readouterr().out
    clock.sites = lambda window: latency(0.1)
    assert run([*arguments, "--tune"]) == 0
    assert Path(out).read_bytes() == made  # from the cache
    assert run([*arguments, "--tune", "--no-tune-cache"]) == 0
    assert Path(out).read_bytes() != made
    assert run([*arguments, "--tune-from", report]) == 0
    assert Path(out).read_bytes() == made
    assert run([*arguments, "--tune", "--no-validate"]) == 2
    assert "--tune runs the model, which --no-validate forbids" in capfd.readouterr().err


def test_the_catalogue_says_when_a_choice_is_made(capfd: Any) -> None:
    assert run(["passes", SIBLINGS]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "SiblingProducts (only where --tune finds it faster): MatMul(x, V)" in shown
    assert "FocusAsStride (where it is less work, or --tune finds it faster): Conv" in shown
    assert "NestedMaxPools: MaxPool" in shown
    assert run(["passes", "gemm-to-conv"]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "DenseOnRows (unless --tune finds it no faster): Gemm" in shown


def test_the_configuration_may_ask_for_it(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(3), "m.onnx")
    Path("graphpass.toml").write_text('tune = true\npasses = "merge-siblings"\n')
    assert run(["optimize", "m.onnx", "-q", "--report", "r.json"]) == 0
    assert json.loads(Path("r.json").read_text())["settings"]["tune"]
    assert run(["optimize", "m.onnx", "-q", "-o", "b.onnx", "--tune-from", "r.json"]) == 0
    assert Path("b.onnx").read_bytes() == Path("m.opt.onnx").read_bytes()


def test_many_models_are_tuned_each(tmp_path: Path) -> None:
    onnx.save(network(2), tmp_path / "m.onnx")
    report = graphpass.optimize_many([tmp_path / "m.onnx"], tmp_path / "out", tune=True)
    (outcome,) = report.outcomes
    assert outcome.status == "written", outcome.message
    assert outcome.report is not None
    told = outcome.report["tuning"]["sites"]
    assert {site["source"] for site in told} <= {"measured", "cache"}
    assert {site["step"] for site in told} == {"merge-siblings", "gemm-to-conv"}
    again = graphpass.optimize_many([tmp_path / "m.onnx"], tmp_path / "out", tune=True)
    assert again.outcomes[0].status == "skipped"
    with pytest.raises(UsageError, match="the report of one model"):
        graphpass.optimize_many([tmp_path / "m.onnx"], tmp_path / "out", tune_from="r.json")


# ------------------------------------------------------------------------------ the arithmetic


def test_rounds_end_once_the_side_is_known() -> None:
    near = [[1.0, 0.97 + 0.002 * (k % 2)] for k in range(30)]
    assert is_settled(near, 0.98)
    assert not is_settled([[1.0, 0.9 + 0.1 * (k % 3)] for k in range(30)], 0.98)
    assert not is_settled(near[:3], 0.98)


def test_pays() -> None:
    assert latency(0.9).pays
    assert not latency(0.979).pays  # the interval reaches what two sessions may differ by
    assert make(SIBLINGS).rules[-1].choice is Choice.MEASURED
