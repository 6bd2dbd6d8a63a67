"""The GPU benchmark's script runs whole without a GPU: kernels in Triton's interpreter, times out of a stub."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; `make test-torch` has it")

from support.triton_interpreter import interpreting  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # the interpreter's own

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def script():
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("nested_gemm_script", ROOT / "benchmarks/gpu/nested_gemm.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with interpreting():
        spec.loader.exec_module(module)
        module.kernels("triton_tuning")
    return module


def microseconds(calls):
    """A timer: every call takes a microsecond, and none is made."""
    assert calls
    return 1e-6


@pytest.fixture(scope="module")
def results(script, tmp_path_factory):
    """Of two small shapes."""
    out = tmp_path_factory.mktemp("out")
    arguments = ["--out", str(out), "--shapes", "256x32,128x48", "--rows", "1,8"]
    path = script.main(arguments, timer=microseconds, device="cpu")
    return json.loads(path.read_text())


def test_every_cell_is_right_and_timed(script, results):
    """Ours and cuBLAS', at each width, nested, dedicated, mixed and without assembly."""
    kernels = {"cuBLAS fp16", *(kind.name for kind in script.ours())}

    assert len(kernels) == 19
    assert len(results["cells"]) == len(kernels) * 2 * 2
    assert {cell["kernel"] for cell in results["cells"]} == kernels
    for cell in results["cells"]:
        assert cell["status"] == "timed", cell
        assert cell["error"] <= script.TOLERANCE
        assert cell["time_us"] == pytest.approx(1)
        assert cell["over_cublas"] == pytest.approx(1)


def test_baselines_that_do_not_load_are_listed(results):
    """With the reason, and the run goes on."""
    assert set(results["missing"]) == {
        f"{name} w{bits}" for name in ("Marlin", "Machete", "Humming") for bits in (4, 8)
    }
    assert all(results["missing"].values())


def test_the_bytes_are_those_that_are_read(results):
    """Planes of two bits, and four bytes for each group of 128."""
    read = {cell["kernel"]: cell["read_bytes"] for cell in results["cells"] if cell["columns"] == 256}

    assert read["cuBLAS fp16"] == 2 * 256 * 32
    assert read["nested w4"] == 256 * 32 // 2 + 4 * 32 * 2 + 4 * 32
    assert read["nested w3"] == read["nested w4"] == read["dedicated w4"]
    assert read["nested mixed"] == read["nested w8"]


def test_a_wrong_result_is_not_timed(script):
    """Off by one percent, not finite, or not written."""
    bench = script.Bench(torch.device("cpu"), microseconds, lambda: 0.0, 60, 1 << 12, copy_bytes_s=1e12)
    x, exact = torch.randn(4, 64).half(), torch.randn(64, 8).double()

    def wrong(x, out):
        return out.copy_(x.double() @ exact * 1.01 + 1)

    def unwritten(x, out):
        return out

    def failing(x, out):
        raise RuntimeError("no kernel image")

    for call in (wrong, unwritten, failing):
        bench.measure(script.Product(call.__name__, 1, [call], exact), x)

    assert [cell.time_us for cell in bench.cells] == [None, None, None]
    assert bench.cells[0].status.startswith("wrong: off by")
    assert bench.cells[1].status == "wrong: off by inf of what is added up"
    assert bench.cells[2].status == "failed: RuntimeError: no kernel image"


def test_a_spent_budget_skips_what_is_left(script, tmp_path, capsys):
    """The table and the file still come."""
    seconds = iter(range(0, 1_000_000, 3))

    path = script.main(
        ["--out", str(tmp_path), "--shapes", "128x16", "--rows", "1", "--budget", "20"],
        timer=microseconds,
        clock=lambda: float(next(seconds)),
        device="cpu",
    )

    statuses = [cell["status"].split(":")[0] for cell in json.loads(path.read_text())["cells"]]
    assert statuses[0] == "timed"
    assert statuses[-1] == "skipped"
    assert "skipped" in capsys.readouterr().out


def test_buffers_are_larger_than_the_cache(script):
    """Twice, unless that is more than 128 of them."""
    bench = script.Bench(torch.device("cpu"), microseconds, lambda: 0.0, 60, 50 << 20)

    for read in (1 << 20, 15 << 20, 200 << 20):
        count = bench.copies(read)
        assert count >= 2
        assert (count - 1) * read >= 2 * bench.cache_bytes


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_jobs_cover_what_is_timed(script, capability):
    """Each tile that some kernel is timed on is compiled beforehand, once."""
    bench = script.Bench(torch.device("cpu"), microseconds, lambda: 0.0, 60, 1 << 12, capability=capability)
    jobs = script.jobs_for(bench, script.ROWS)
    compiled = {(kind.told, kind.uses_assembly, dataclasses.replace(tile, splits=1)) for kind, tile, _ in jobs}

    for kind in script.ours():
        for rows in script.ROWS:
            for tile in script.tiles(bench, rows, (4096, 14336), kind):
                assert (kind.told, kind.uses_assembly, dataclasses.replace(tile, splits=1)) in compiled
    assert len(jobs) < 200


def test_torch_and_triton_are_all_it_needs():
    """It loads the kernels by their path, and nothing else of nearfar; without a GPU it says so."""
    code = """
import runpy, sys
path, sys.argv = sys.argv[1], ["nested_gemm.py", "--out", "nowhere"]
sys.modules["nearfar"] = None
script = runpy.run_path(path)
for name in ("triton_linear", "triton_weights", "triton_tuning", "triton_census"):
    script["kernels"](name)
script["main"]()
"""
    path = str(ROOT / "benchmarks/gpu/nested_gemm.py")

    made = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, and the whole run takes minutes")
    assert made.stderr.splitlines()[-1] == "skipped: torch finds no GPU here"
    assert made.returncode == 1
