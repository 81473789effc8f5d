"""The main job, whole, in small: one epoch, two rounds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hubel import demo, lab
from hubel.errors import DataError
from hubel.records import Document


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> demo.Demo:
    folder = tmp_path_factory.mktemp("demo") / "hubel-demo"
    stages: list[tuple[float, str]] = []
    result = demo.run(
        folder, epochs=1, rounds=2, progress=lambda done, total, stage: stages.append((done / total, stage))
    )
    shares = [share for share, _ in stages]
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares), "progress only goes forward"
    assert {stage.split(",")[0] for _, stage in stages} >= {
        "training lenet5",
        "timing the training step against PyTorch",
    }
    return result


def test_it_writes_a_page_a_document_and_a_run(done: demo.Demo) -> None:
    folder = done.report.parent
    assert sorted(path.name for path in folder.iterdir()) == ["arrays.npz", "document.json", "report.html", "run"]
    assert lab.load_run(folder / "run").accuracy == done.run.accuracy
    document = Document.load(folder)
    wanted = {
        "curves",
        "accuracy",
        "classes",
        "kernels",
        "feature_maps",
        "one_number",
        "ablation",
        "ablation_scores",
        "step",
    }
    assert wanted <= {record.id for record in document.records}
    assert len(document.record("step").arrays["ratios"].data) == document.record("step").method["params"]["rounds"]


def test_accuracy_is_of_the_thousand_held_out_digits(done: demo.Demo) -> None:
    row = done.document.record("accuracy").rows[0]
    assert row["images"] == row["accuracy"].n == 1000
    text = done.report.read_text(encoding="utf-8").replace("\u00a0", " ")
    assert f"{100 * row['accuracy'].value:.1f} % of 1,000 images" in text


def test_it_shows_one_right_and_one_wrong_digit(done: demo.Demo) -> None:
    maps = done.document.record("feature_maps")
    labels, answers = maps.arrays["labels"].data, maps.arrays["scores"].data.argmax(1)
    assert (labels == answers).tolist() == [True, False]
    one = done.document.record("one_number").rows[0]
    assert one["value"] == pytest.approx(one["map"], rel=1e-5, abs=1e-6)


def test_it_ends_with_the_page_and_three_commands(done: demo.Demo) -> None:
    text = str(done)
    assert str(done.report) in text
    commands = re.findall(r"^  (hubel .*?)\s{2,}#", text, re.M)
    assert len(commands) == 3 and "your.module:factory" in commands[-1]
    assert "training step" in text and "1,000 images" in text


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    wanted = tmp_path / "hubel-demo"
    assert demo.free_folder(wanted) == wanted
    (wanted / "mine.txt").write_text("mine")
    assert demo.free_folder(wanted) == tmp_path / "hubel-demo-2"
    assert demo.free_folder(wanted) == tmp_path / "hubel-demo-3"
    assert [path.name for path in wanted.iterdir()] == ["mine.txt"]


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"writes a new folder\. Received: .*file/hubel-demo \(Not a directory\)"):
        demo.run(tmp_path / "file" / "hubel-demo")
