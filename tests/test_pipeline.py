"""What is wrong is found, named, undone and left out; what is right stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphpass
from graphpass.errors import DifferenceError, RuntimeUnavailableError, UsageError
from graphpass.report.data import Check
from graphpass.rewrite.building import Built
from graphpass.rewrite.match import Match
from graphpass.rewrite.rule import Pass
from graphpass.rewrite.surgery import Surgeon
from graphpass.rewrite.window import WindowVerdict
from graphpass.run.judge import Judge
from graphpass.testing import graph
from graphpass.validate import Runtime
from graphpass.validate.exact.verdict import ExactVerdict

from .toys import (
    ByHand,
    Endless,
    Kernelless,
    Mysterious,
    Negate,
    Raising,
    Renamer,
    Restless,
    Tidy,
    Untidy,
    chain,
    operators,
)


@pytest.fixture
def no_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave it to the outputs of the whole model to find what is wrong."""

    def not_run(judge: Judge, windows: Sequence[Any]) -> list[WindowVerdict]:
        return [WindowVerdict("not run")] * len(windows)

    def not_replayed(judge: Judge, sites: Sequence[Any]) -> list[ExactVerdict]:
        return [ExactVerdict("not replayed")] * len(sites)

    monkeypatch.setattr(Judge, "check_windows", not_run)
    monkeypatch.setattr(Judge, "check_exactly", not_replayed)


def test_the_wrong_rewrite_is_known_by_its_own_window() -> None:
    result = graphpass.optimize(chain(24), Negate("c5 c19"))
    (entry,) = result.report.passes
    assert [out.rewrite.site for out in entry.quarantined] == ["a5", "a19"]
    assert all("times the bound" in out.reason for out in entry.quarantined)
    assert len(entry.rewrites) == 24 + 22  # the Identities and the other Adds
    assert all(rewrite.proof is not None and rewrite.proof.ok for rewrite in entry.rewrites)
    assert entry.checks == 1


@pytest.mark.usefixtures("no_windows")
def test_the_wrong_rewrite_is_named_and_undone_and_the_right_ones_stay() -> None:
    result = graphpass.optimize(chain(5), [Tidy(), Negate("c3")])
    (tidy, negate) = result.report.passes
    assert [out.rewrite.site for out in negate.quarantined] == ["a3"]
    assert negate.quarantined[0].rewrite.rule == "AddIsSub"
    assert negate.quarantined[0].rewrite.before == ("Add of 'a3'",)
    assert "output 'y' differs by" in negate.quarantined[0].reason
    assert [r.site for r in negate.rewrites] == ["a0", "a1", "a2", "a4"]
    assert tidy.outcome == negate.outcome == "kept" and len(tidy.rewrites) == 5
    assert negate.check is not None and negate.check.ok
    assert operators(result.model.graph.node) == ["Add"] + ["Relu"] * 5 + ["Sub"] * 4


def test_rewrites_are_numbered_through_the_run() -> None:
    result = graphpass.optimize(chain(3), [Tidy(), Negate()])
    numbers = [rewrite.number for entry in result.report.passes for rewrite in entry.rewrites]
    assert numbers == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("no_windows")
def test_several_wrong_rewrites_are_found_in_few_checks() -> None:
    result = graphpass.optimize(chain(24), Negate("c5 c19"))
    (entry,) = result.report.passes
    assert {out.rewrite.site for out in entry.quarantined} == {"a5", "a19"}
    assert len(entry.rewrites) == 24 + 22  # the Identities and the other Adds
    assert entry.checks < 20


@pytest.mark.usefixtures("no_windows")
def test_a_rule_that_is_wrong_everywhere_is_left_out_after_three_strikes() -> None:
    result = graphpass.optimize(chain(12), Negate("*"))
    (entry,) = result.report.passes
    assert len(entry.quarantined) == 12
    reasons = [out.reason for out in entry.quarantined]
    assert sum("other places" in reason for reason in reasons) == 12 - 3
    assert {rewrite.rule for rewrite in entry.rewrites} == {"DropIdentity"}
    assert operators(result.model.graph.node) == ["Add"] * 12 + ["Relu"] * 12


@pytest.mark.parametrize("windows", [True, False])
def test_strict_stops_and_names_pass_rule_and_site(
    windows: bool, request: pytest.FixtureRequest
) -> None:
    if not windows:
        request.getfixturevalue("no_windows")
    text = "off by" if windows else "output 'y' differs by"
    with pytest.raises(DifferenceError, match=f"pass negate: AddIsSub at 'a1': {text}") as info:
        graphpass.optimize(chain(), [Tidy(), Negate("c1")], strict=True)
    assert [entry.outcome for entry in info.value.report.passes] == ["kept", "rolled back"]


def test_a_rule_that_raises_costs_only_its_site() -> None:
    result = graphpass.optimize(chain(), [Raising(), Negate()])
    raising, negate = result.report.passes
    assert raising.outcome == "kept" and len(raising.rewrites) == 4  # the Identities are gone
    assert [entry.rewrite.rule for entry in raising.quarantined] == ["Raises"] * 4
    first = raising.quarantined[0]
    assert first.rewrite.before == ("Relu of 'r0'",) and not first.rewrite.after
    assert first.reason.startswith("NotImplementedError: not yet (in rewrite, toys.py line ")
    assert raising.faulty and negate.outcome == "kept"
    with pytest.raises(DifferenceError, match="pass raising: rule Raises failed at Relu of 'r0'"):
        graphpass.optimize(chain(), Raising(), strict=True)


def test_what_fails_half_way_through_a_change_is_put_back_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = Surgeon.commit

    def failing(surgeon: Surgeon, found: Match, built: Built) -> list[Any]:
        again = commit(surgeon, found, built)
        assert found.results[0].name != "i1"
        return again

    monkeypatch.setattr(Surgeon, "commit", failing)
    result = graphpass.optimize(chain(), Tidy())
    tidy = result.report.passes[0]
    assert len(tidy.rewrites) == 3 and tidy.outcome == "kept"
    assert [entry.rewrite.key for entry in tidy.quarantined] == [("DropIdentity", "i1")]
    assert tidy.quarantined[0].reason.startswith("AssertionError")
    assert operators(result.model.graph.node).count("Identity") == 1


def test_a_model_is_copied_once_for_each_change(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = 0

    def counted(proto: onnx.ModelProto) -> onnx.ModelProto:
        nonlocal copies
        copies += 1
        copied = onnx.ModelProto()
        copied.CopyFrom(proto)
        return copied

    monkeypatch.setattr("graphpass.run.pipeline._copy", counted)
    result = graphpass.optimize(chain(), [Tidy(), Negate(), Untidy(), Tidy()])
    changes = result.report.rounds * 4 - sum(
        entry.outcome == "unchanged" for entry in result.report.passes
    )
    assert result.report.rounds >= 2 and copies <= 1 + 5 < changes


def test_a_pass_that_does_not_settle_is_undone_and_named() -> None:
    model = chain(1)
    result = graphpass.optimize(model, Restless())
    reason = result.report.passes[0].reason
    assert reason == "it does not settle: begun anew 32 times, rule Wander still changes 'y'"
    assert result.model == model


def test_a_rule_without_end_is_stopped() -> None:
    model = chain(1)
    result = graphpass.optimize(model, Endless())
    assert "does not come to an end" in result.report.passes[0].reason
    assert result.model == model


@pytest.mark.parametrize("silent", [False, True])
def test_a_wrong_change_by_hand_is_undone_announced_or_not(silent: bool) -> None:
    model = chain()
    result = graphpass.optimize(model, ByHand(0.01, silent))
    assert result.report.passes[0].outcome == "rolled back"
    assert "output 'y' differs" in result.report.passes[0].reason
    assert result.model == model
    right = graphpass.optimize(model, ByHand(0.0, silent))
    assert right.report.passes[0].outcome == ("unchanged" if silent else "kept")


def test_a_model_that_the_runtime_has_no_kernel_for_is_undone() -> None:
    model = chain(2, kind="double")
    result = graphpass.optimize(model, [Kernelless(), Tidy()])
    kernelless, tidy = result.report.passes
    assert not kernelless.rewrites and tidy.outcome == "kept"
    assert len(kernelless.quarantined) == 2
    assert "cannot load the model" in kernelless.quarantined[0].reason


def test_an_interface_changes_only_where_the_pass_says_so() -> None:
    model = chain(1)
    result = graphpass.optimize(model, Renamer())
    assert result.report.passes[0].outcome == "rolled back"
    assert result.model == model


def test_one_check_answers_for_all_passes_that_are_right() -> None:
    steps = [Tidy(), Negate(), Untidy()]
    reports = graphpass.optimize(chain(), steps).report.passes
    assert sum(entry.checks for entry in reports) == 1
    assert {id(entry.check) for entry in reports} == {id(reports[0].check)}
    assert reports[0].check is not None and reports[0].check.ok


def test_a_pass_is_not_blamed_for_what_an_earlier_one_broke() -> None:
    for steps in ([Renamer(), Tidy(), Raising()], [Tidy(), Renamer(), Negate("c1")]):
        reports = graphpass.optimize(chain(), steps).report.passes
        outcome = {entry.name: entry.outcome for entry in reports}
        assert outcome["renamer"] == "rolled back" and outcome["tidy"] == "kept"
        assert outcome.get("raising", "unchanged") == "unchanged"
        assert outcome.get("negate", "kept") == "kept"


@pytest.mark.usefixtures("no_windows")
def test_strict_names_the_pass_that_broke_it_not_the_one_that_stumbled() -> None:
    with pytest.raises(DifferenceError, match=r"^pass negate: AddIsSub at 'a1': output 'y' diff"):
        graphpass.optimize(chain(), [Negate("c1"), Raising()], strict=True)


def test_a_pass_that_changes_nothing_is_not_validated() -> None:
    result = graphpass.optimize(chain(), [Tidy(), Tidy()])
    assert result.report.passes[0].checks == 1
    assert result.report.passes[1].checks == 0 and result.report.passes[1].check is None


def test_passes_that_make_work_for_each_other_run_until_nothing_changes(tmp_path: Path) -> None:
    steps = [Tidy(), Negate(), Untidy()]
    result = graphpass.optimize(chain(), steps)
    assert result.report.rounds == 3
    assert operators(result.model.graph.node) == ["Relu"] * 4 + ["Sum"] * 4
    first = result.save(tmp_path / "a.onnx").model.path
    again = graphpass.optimize(first, steps)
    assert again.report.rewrites == 0 and not again.changed
    second = again.save(tmp_path / "b.onnx").model.path
    assert first.read_bytes() == second.read_bytes()


def test_what_was_quarantined_is_not_tried_in_the_next_round() -> None:
    result = graphpass.optimize(chain(), [Negate("c1"), Untidy()])
    assert [out.rewrite.site for out in result.report.passes[0].quarantined] == ["a1"]


@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_the_first_rewrites_of_a_run_are_the_same_however_many_follow(count: int) -> None:
    steps = [Tidy(), Negate()]
    whole = graphpass.optimize(chain(), steps)
    part = graphpass.optimize(chain(), steps, max_rewrites=count)
    done = [r for entry in part.report.passes for r in entry.rewrites]
    assert done == [r for entry in whole.report.passes for r in entry.rewrites][:count]


def test_random_outputs_give_no_ground_to_keep_a_change() -> None:
    model = graph("() => (float[2] y) { r = RandomNormal<shape=[2]>() y = Identity(r) }")
    result = graphpass.optimize(model, Tidy())
    assert result.report.passes[0].outcome == "rolled back"
    assert "every output differs between two runs" in result.report.passes[0].reason
    assert result.model == model


def test_a_random_output_beside_another_is_named_and_left_out() -> None:
    model = graph(
        "(float[2] x) => (float[2] y, float[2] z) "
        "{ a = Identity(x) y = Relu(a) z = RandomNormal<shape=[2]>() }"
    )
    result = graphpass.optimize(model, Tidy())
    assert result.report.passes[0].outcome == "kept"
    assert any("'z'" in warning for warning in result.report.warnings)


def test_a_model_in_memory_stays_as_it_is() -> None:
    model, same = chain(), chain()
    result = graphpass.optimize(model, Tidy())
    assert model == same
    assert result.report.input.files == ()
    assert graphpass.optimize(model.SerializeToString(), Tidy()).model == result.model


def test_without_validation_nothing_is_run(monkeypatch: Any, tmp_path: Path) -> None:
    def load(*arguments: Any) -> None:
        raise AssertionError("a model was run")

    monkeypatch.setattr(Runtime, "load", load)
    result = graphpass.optimize(chain(), Negate("c1"), validate=False, latency=True)
    result.save(tmp_path / "out.onnx")
    entry = result.report.passes[0]
    assert entry.check is not None and entry.check.status == "not validated"
    assert not entry.quarantined and result.report.latency is None
    renamed = graphpass.optimize(chain(), Renamer(), validate=False)
    assert renamed.report.passes[0].outcome == "rolled back"  # its structure is looked at


def _unknown_operator(*constants: str) -> onnx.ModelProto:
    """Return a model that ONNX Runtime cannot run, with sound and wrong rewrites in it."""
    return graph(
        "(float[N,7] x) => (float[N,7] y) "
        "{ a = Identity(x) a0 = Add(a, c0) a1 = Add(a0, c1) y = other.Thing(a1) }",
        domains={"other": 1},
        c0=(7,),
        c1=(7,),
    )


def test_of_a_model_that_does_not_run_each_rewrite_is_run_on_its_own(tmp_path: Path) -> None:
    result = graphpass.optimize(_unknown_operator(), [Tidy(), Negate("c1")])
    tidy, negate = result.report.passes
    assert [r.site for r in tidy.rewrites] == ["a"] and [r.site for r in negate.rewrites] == ["a0"]
    assert [out.rewrite.site for out in negate.quarantined] == ["a1"]
    assert "times the bound" in negate.quarantined[0].reason
    assert tidy.check is not None and tidy.check.status == "windows only"
    assert "not the model: the original model does not run" in result.report.warnings[0]
    result.save(tmp_path / "out.onnx")
    assert result.report.delivery is not None and result.report.delivery.ok


def test_what_did_not_run_is_said_and_nothing_is_called_validated_that_was_not() -> None:
    report = graphpass.optimize(_unknown_operator(), Tidy()).report
    assert report.validated and [entry.level for entry in report.not_run] == [3, 4]
    assert report.levels_not_run.startswith("levels 3, 4 of validation did not run: the original")
    with pytest.raises(RuntimeUnavailableError, match="cannot load the model"):
        graphpass.optimize(_unknown_operator(), [])  # no rewrite: nothing was run
    unasked = graphpass.optimize(chain(), Tidy(), validate=False).report
    assert not unasked.validated and [entry.level for entry in unasked.not_run] == [2, 3, 4, 5]
    assert graphpass.optimize(chain(), Tidy()).report.not_run == []


@pytest.mark.parametrize("steps", [[Tidy()], []])
def test_inputs_of_nan_throughout_blame_no_rule(steps: list[Pass]) -> None:
    inputs = {"x": np.full((2, 7), np.nan, np.float32)}
    result = graphpass.optimize(chain(), steps, inputs=inputs)
    report = result.report
    assert not report.faulty and bool(report.rewrites) == bool(steps)
    assert report.validated == bool(steps)
    assert [entry.level for entry in report.not_run] == ([3] if steps else [2, 3])
    with pytest.raises(RuntimeUnavailableError, match="NaN throughout"):
        graphpass.optimize(chain(), steps, inputs=inputs, strict=True)
    wrong = graphpass.optimize(chain(), [Negate("c1")], inputs=inputs).report  # its window tells
    assert [out.rewrite.site for out in wrong.passes[0].quarantined] == ["a1"]


def test_strict_does_not_do_without_running_the_model() -> None:
    with pytest.raises(RuntimeUnavailableError, match="the original model does not run"):
        graphpass.optimize(_unknown_operator(), Tidy(), strict=True)


def test_where_neither_the_model_nor_any_rewrite_runs_nothing_is_kept() -> None:
    model = _unknown_operator()
    with pytest.raises(RuntimeUnavailableError, match="its window cannot be run either"):
        graphpass.optimize(model, Mysterious())
    with pytest.raises(RuntimeUnavailableError, match="other than by rules"):
        graphpass.optimize(_unknown_operator(), ByHand(0.01))
    assert graphpass.optimize(model, Mysterious(), validate=False).report.rewrites == 1


def test_the_users_inputs_are_used() -> None:
    inputs = {"x": np.ones((9, 7), np.float32)}
    result = graphpass.optimize(chain(), Tidy(), inputs=inputs)
    check = result.report.passes[0].check
    assert check is not None
    assert [c.feed for c in check.comparisons] == ["inputs", "inputs, default optimization"]
    assert result.report.settings["inputs"] == ["x"]
    bound = graphpass.optimize(chain(), Tidy(), bind={"N": 5}).report.passes[0].check
    assert bound is not None and all("N=5" in c.feed for c in bound.comparisons)
    with pytest.raises(UsageError, match="no symbolic dimension 'M'"):
        graphpass.optimize(chain(), Tidy(), bind={"M": 5})


def test_a_tolerance_that_is_given_replaces_the_noise_floor() -> None:
    loose = graphpass.optimize(chain(), ByHand(0.01), rtol=0.5)
    assert loose.report.passes[0].outcome == "kept"
    assert graphpass.optimize(chain(), ByHand(0.01)).report.passes[0].outcome == "rolled back"


def test_skip_leaves_a_pass_out_and_must_name_one() -> None:
    result = graphpass.optimize(chain(), [Tidy(), Negate()], skip=["negate"])
    assert [entry.name for entry in result.report.passes] == ["tidy"]
    with pytest.raises(UsageError, match="no pass 'nope' to skip"):
        graphpass.optimize(chain(), Tidy(), skip=["nope"])


@pytest.mark.parametrize("ir_version", [3, 8])
def test_inputs_with_a_default_become_constants_where_that_is_asked_for(
    ir_version: int, tmp_path: Path
) -> None:
    model = graph(
        "(float[N,2,3,3] x, float[2,2,1,1] W) => (float[N,2,3,3] y)"
        "{ c = Conv(x, W) y = BatchNormalization(c, s, t, m, v) }",
        ir_version=ir_version,
        W=(2, 2, 1, 1),
        s=(2,),
        t=(2,),
        m=(2,),
        v=np.ones(2, np.float32),
    )
    onnx.save(model, tmp_path / "in.onnx")
    if ir_version > 3:
        assert not graphpass.optimize(model, "fold-batchnorm").report.rewrites
    frozen = graphpass.optimize(model, "fold-batchnorm", freeze_initializers=True)
    frozen.save(tmp_path / "out.onnx")
    assert operators(frozen.model.graph.node) == ["Conv"]
    inputs = [value.name for value in frozen.model.graph.input]
    if ir_version > 3:
        assert inputs == ["x"] and "constants now, as was asked: 'W'" in frozen.report.warnings[0]
        assert not graphpass.compare(model, tmp_path / "out.onnx").ok
        assert graphpass.compare(model, tmp_path / "out.onnx", freeze_initializers=True).ok
    else:
        assert not frozen.report.warnings  # it was a constant all along
        assert graphpass.compare(model, tmp_path / "out.onnx").ok


# -------------------------------------------------------------------------------- delivery


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    onnx.save(chain(), source)
    written = [
        graphpass.optimize(source, [Tidy(), Negate("c1")]).save(tmp_path / name).model.path
        for name in ("a.onnx", "b.onnx")
    ]
    assert written[0].read_bytes() == written[1].read_bytes()
    assert graphpass.compare(source, written[0]).ok


def test_weights_that_were_in_a_file_of_their_own_stay_so_though_all_are_new(
    tmp_path: Path,
) -> None:
    model = chain(1)
    big = onnx.numpy_helper.from_array(np.linspace(1, 2, 3000, dtype=np.float32), "c0")
    model.graph.initializer[0].CopyFrom(big)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = 3000
    onnx.save(model, tmp_path / "in.onnx", save_as_external_data=True, location="weights")
    result = graphpass.optimize(tmp_path / "in.onnx", Negate())
    written = result.save(tmp_path / "out.onnx")
    assert written.data is not None and written.data.size_bytes >= 12000
    assert graphpass.compare(tmp_path / "in.onnx", tmp_path / "out.onnx").ok


def test_a_model_whose_outputs_are_nan_on_the_first_inputs_is_delivered(tmp_path: Path) -> None:
    model = graph(
        "(float[N,4] x) => (float[N,4] y) { a = Identity(x) b = Add(a, c) y = Log(b) }",
        c=np.full(4, -50, np.float32),
    )
    with graphpass.optimize(model, Tidy()) as result:
        result.save(tmp_path / "out.onnx")
    check = result.report.passes[0].check
    assert check is not None and check.ok
    assert check.comparisons[0].blank and not all(c.blank for c in check.comparisons)


def test_a_file_that_is_not_what_was_checked_is_not_delivered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / "out.onnx"
    target.write_bytes(b"what was there")
    result = graphpass.optimize(chain(), Tidy())
    check_file = Judge.check_file

    def damaged(judge: Judge, path: Path, checked: onnx.ModelProto) -> Check:
        assert path != target
        model = onnx.load(path)
        weight = model.graph.initializer[0]
        weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
        onnx.save(model, path)
        return check_file(judge, path, checked)

    monkeypatch.setattr(Judge, "check_file", damaged)
    with pytest.raises(DifferenceError, match="the written file failed its check"):
        result.save(target)
    assert target.read_bytes() == b"what was there"
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_compare_names_output_and_error() -> None:
    model, other = chain(), chain()
    other.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.full(7, 2.0, np.float32), "c0")
    )
    assert graphpass.compare(model, chain()).status == "equal"
    check = graphpass.compare(model, other)
    assert check.status == "differs" and "output 'y' differs by" in check.reason
    other.graph.output[0].name = other.graph.node[-1].output[0] = "z"
    assert graphpass.compare(model, other).status in ("interface changed", "invalid")


# ------------------------------------------------------------------------------------ metadata


def noted(text: str) -> onnx.ModelProto:
    """Return a model with something noted wherever it can be."""
    model = graph(
        "(float[N,3] x) => (float[N,3] y) { i = Identity(x) r = Mul(i, w) y = Relu(r) }", w=(3,)
    )
    model.graph.value_info.add(name="r").type.tensor_type.elem_type = 1
    parts = (*model.graph.node, *model.graph.value_info, model.graph.initializer[0])
    for part in (*parts, model, model.graph, model.graph.input[0], model.graph.output[0]):
        part.doc_string = text
        part.metadata_props.add(key="trace", value=text)
    return model


def test_what_exporters_note_goes_where_that_is_asked_for(tmp_path: Path) -> None:
    text = "File model.py, line 7 " * 40
    with graphpass.optimize(noted(text), "clean-up", strip_metadata=True) as result:
        stripped = result.model
    assert not any(node.doc_string or node.metadata_props for node in stripped.graph.node)
    assert not any(v.doc_string or v.metadata_props for v in stripped.graph.value_info)
    assert not stripped.graph.initializer[0].doc_string
    for part in (stripped, stripped.graph, stripped.graph.input[0], stripped.graph.output[0]):
        assert part.doc_string == text and len(part.metadata_props) == 1
    with graphpass.optimize(noted(text), "clean-up") as result:
        assert any(node.doc_string == text for node in result.model.graph.node)
        assert not result.report.warnings
    with graphpass.optimize(noted(text * 30), "clean-up") as result:
        assert "--strip-metadata leaves them out" in result.report.warnings[0]
