"""The main benchmark: how it grades, and a small run of it on real questions with the live model."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.weights import smollm2_path

pytest.importorskip("pyarrow", reason="the tables are parquet")
pytest.importorskip("sklearn", reason="fitting needs scikit-learn")

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("NEARFAR_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/main.py as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("main_benchmark", ROOT / "benchmarks" / "main.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


class Tags(HTMLParser):
    """Collects what a page refers to and whether its tags close in order."""

    VOID = frozenset({"meta", "br", "line", "circle", "rect", "polyline"})

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.count = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.sources += [value for name, value in attrs if name == "src" or (tag == "link" and name == "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So 2 + 2 = 4.\n#### 4", 4),
        ("#### $1,234.50 in all", Decimal("1234.50")),
        ("#### 5\nThe answer is 7.", 5),
        ("He has 3 apples and 12 pears.", 12),
        ("It falls to -7.", -7),
        ("#### none", None),
        ("I cannot say.", None),
        ("", None),
    ],
)
def test_the_final_number_is_the_marked_one_or_the_last(benchmark, text, number):
    """The mark wins; commas, signs and money are read."""
    assert benchmark.final_number(text) == number


@pytest.mark.parametrize(
    ("text", "gold", "is_right"),
    [("18", "18", True), ("18.0", "18", True), ("1200", "1,200", True), ("18", "19", False), ("", "0", False)],
)
def test_numbers_are_compared_as_numbers(benchmark, text, gold, is_right):
    """18.0 is 18, and no number is not 0."""
    assert benchmark.is_right_number(text, gold) is is_right


@pytest.mark.parametrize(("text", "is_right"), [("B", True), (" B. Jealousy", True), ("A", False), ("", False)])
def test_an_exam_answer_is_its_first_letter(benchmark, text, is_right):
    """What is not a letter is wrong."""
    assert benchmark.is_right_letter(text, "B") is is_right


def test_the_committed_page_is_made_of_the_committed_figures(benchmark):
    """Nobody edits the page by hand."""
    results = json.loads((ROOT / "benchmarks/results/main.json").read_text())

    page = (ROOT / "benchmarks/results/main.html").read_text()

    assert benchmark.render(results) == page
    for workload in results["workloads"].values():
        assert workload["n"] == 200
        assert workload["decisions_logged"] == workload["decisions_expected"]


@pytest.mark.timeout(600)
def test_a_small_run_measures_both_workloads(tmp_path):
    """Two questions each, live: every figure is there, every query is in the decision log, the page stands alone."""
    if not (DATA / "router").is_dir():
        pytest.skip("no evaluation data: set NEARFAR_DATA")
    smollm2_path()  # fetched where it is not there
    command = [sys.executable, "benchmarks/main.py", "--limit", "2", "--labels", "2", "--out", str(tmp_path)]

    run = subprocess.run([*command, "--data", str(DATA)], cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "main.json").read_text())
    assert set(results["workloads"]) == {"gsm8k", "mmlu_pro"}
    for workload in results["workloads"].values():
        assert workload["n"] == len(workload["answers"]) == 2
        assert workload["decisions_logged"] == workload["decisions_expected"] == 8
        assert "too few" in workload["calibration"]["refusal"]
        by_name = {system["name"]: system for system in workload["systems"]}
        assert by_name["oracle"]["accuracy"] >= by_name["far alone"]["accuracy"]
        assert by_name["far alone"]["usd_per_1000"] > by_name["near alone"]["usd_per_1000"] == 0
    page = (tmp_path / "main.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.sources == []
    assert tags.count["svg"] == 6
    assert not re.search(r"\bnan\b|\bNone\b|/(home|root|work|tmp)/", page + (tmp_path / "main.json").read_text())
