"""Which model goes where; nothing is written over an input or over another result."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphpass.errors import OutputError, UsageError
from graphpass.many.plan import Place, folder_of, make_folders, plan

from .models import small


def planned(models: list[Place], folder: Path | str) -> dict[str, str]:
    return {item.name: item.source for item in plan(models, folder_of(folder))}


def test_files_keep_their_names(tmp_path: Path) -> None:
    one, two = tmp_path / "a.onnx", tmp_path / "sub/b.onnx"
    found = planned([one, two], tmp_path / "out")
    assert found == {"a.onnx": str(one), "b.onnx": str(two)}


def test_a_folder_keeps_its_structure_without_hidden_files_and_former_results(
    tmp_path: Path,
) -> None:
    for name in ("m/a.onnx", "b.onnx", ".hidden/c.onnx", "out/a.onnx", "x.txt"):
        small(tmp_path / name)
    assert list(planned([tmp_path], tmp_path / "out")) == ["b.onnx", "m/a.onnx"]


def test_the_same_model_twice_is_done_once(tmp_path: Path) -> None:
    one = small(tmp_path / "a.onnx")
    assert list(planned([one, tmp_path / "../" / tmp_path.name / "a.onnx", tmp_path], "out")) == [
        "a.onnx"
    ]


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    one, two = small(tmp_path / "a/m.onnx"), small(tmp_path / "b/m.onnx")
    with pytest.raises(UsageError, match=f"{one} and {two} would both be written to .*m.onnx"):
        planned([one, two], tmp_path / "out")


def test_an_input_is_not_written_over(tmp_path: Path) -> None:
    one = small(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="is an input and would be overwritten"):
        planned([one], tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b.onnx").hardlink_to(one)
    two = small(tmp_path / "b.onnx")
    with pytest.raises(UsageError, match=r"a\.onnx is an input and would be overwritten"):
        planned([one, two], tmp_path / "out")


def test_an_empty_folder_and_standard_input_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no \.onnx file below"):
        planned([tmp_path], tmp_path / "out")
    with pytest.raises(UsageError, match="standard input has no name"):
        planned(["-"], tmp_path / "out")


def test_a_file_url_is_a_file(tmp_path: Path) -> None:
    one = small(tmp_path / "a.onnx")
    assert planned([f"file://{one}"], f"file://{tmp_path}/out") == {"a.onnx": str(one)}
    assert folder_of(f"file://{tmp_path}/out") == str(tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    one = small(tmp_path / "a.onnx")
    with pytest.raises(OutputError, match="cannot make the folder"):
        make_folders(plan([one], str(one)), str(one))
