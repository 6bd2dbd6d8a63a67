"""Timed tiles are found again on disk by the GPU, version and shape that they belong to, and by nothing else."""

import json

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; `make test-torch` has it")

import support.triton_interpreter  # noqa: E402, F401 -- skips where there is none, and comes first

from nearfar.serving.kernels.triton_linear import KERNEL_VERSION, Tile  # noqa: E402
from nearfar.serving.kernels.triton_tuning import TileCache, candidates, gpu_name, shape_key, tune  # noqa: E402
from nearfar.serving.kernels.triton_weights import SLACK, TritonWeights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # the interpreter's own

EMPTY = torch.empty(0)
WEIGHTS = TritonWeights(EMPTY, EMPTY, EMPTY, (2, 4, 8), 128, 4096, 14336)


class Clock:
    """Says how long each launched tile takes, from a table; counts what it was asked."""

    def __init__(self, seconds):
        self.seconds, self.launched, self.asked = seconds, [], 0

    def launch(self, tile):
        self.launched.append(tile)
        if self.seconds[tile] is None:
            raise RuntimeError("out of shared memory")

    def time(self, call):
        self.asked += 1
        call()
        return self.seconds[self.launched[-1]]


FAST, SLOW, BROKEN = Tile(16, 128, 4, 4), Tile(16, 64, 4, 4), Tile(16, 256, 4, 8)


@pytest.fixture
def clock():
    """Two tiles that run and one that does not."""
    return Clock({SLOW: 2e-5, FAST: 1e-5, BROKEN: None})


def tuned(clock, cache, rows=16, **options):
    """What `tune` finds among the clock's tiles."""
    return tune(WEIGHTS, rows, timer=clock.time, cache=cache, tiles=clock.seconds, launch=clock.launch, **options)


def test_the_fastest_tile_that_runs_is_kept(clock, tmp_path):
    """For this process and the next."""
    assert tuned(clock, TileCache.open("gpu", tmp_path)) == FAST
    assert clock.asked == 2

    assert tuned(clock, TileCache.open("gpu", tmp_path)) == FAST
    assert clock.asked == 2


def test_other_shapes_widths_and_gpus_are_timed_themselves(clock, tmp_path):
    """Rows count in powers of two."""
    cache = TileCache.open("gpu", tmp_path)
    tuned(clock, cache)

    assert cache.find(WEIGHTS, 9, (2, 4, 8)) == FAST
    assert cache.find(WEIGHTS, 8, (2, 4, 8)) is None
    assert cache.find(WEIGHTS, 17, (2, 4, 8)) is None
    assert cache.find(WEIGHTS, 16, (4,)) is None
    assert TileCache.open("gpu 2", tmp_path).tiles == {}


@pytest.mark.parametrize("key", ["kernel_version", "triton", "gpu"])
def test_a_file_of_another_version_is_ignored_and_replaced(clock, tmp_path, key):
    """Its tiles may mean something else."""
    cache = TileCache.open("gpu", tmp_path)
    tuned(clock, cache)
    page = json.loads(cache.path.read_text())
    cache.path.write_text(json.dumps(page | {key: "0"}))

    opened = TileCache.open("gpu", tmp_path)

    assert opened.tiles == {}
    tuned(clock, opened, rows=1)
    assert json.loads(cache.path.read_text())["kernel_version"] == KERNEL_VERSION
    assert list(TileCache.open("gpu", tmp_path).tiles) == [shape_key(WEIGHTS, 1, (2, 4, 8))]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"tiles": 3}', '{"tiles": {"a": [1]}}', '{"tiles": {"a": [16, 48, 4, 4, 1, false]}}'],
)
def test_a_damaged_file_is_ignored(tmp_path, text):
    """Cut off, of another form, or with tiles that cannot be launched."""
    cache = TileCache.open("gpu", tmp_path)
    head = json.dumps(cache._head())[:-1]
    cache.path.write_text(text.replace("{", head + ", ", 1) if text.startswith('{"') else text)

    assert TileCache.open("gpu", tmp_path).tiles == {}


def test_two_processes_keep_each_others_tiles(clock, tmp_path):
    """What one wrote since the other read is not lost."""
    first, second = TileCache.open("gpu", tmp_path), TileCache.open("gpu", tmp_path)

    tuned(clock, first, rows=1)
    tuned(clock, second, rows=128)

    assert len(TileCache.open("gpu", tmp_path).tiles) == 2


def test_a_folder_that_cannot_be_written_is_let_be(clock, tmp_path):
    """The process has its tile all the same."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    cache = TileCache.open("gpu", blocked)

    assert tuned(clock, cache) == FAST
    assert cache.find(WEIGHTS, 16, (2, 4, 8)) == FAST


def test_no_tile_that_runs_is_an_error(tmp_path):
    """With the last reason."""
    clock = Clock({BROKEN: None})

    with pytest.raises(RuntimeError, match="out of shared memory"):
        tuned(clock, TileCache.open("gpu", tmp_path))


@pytest.mark.parametrize("rows", [1, 16, 17, 32, 33, 64, 128])
def test_candidates_are_distinct_and_fit(rows):
    """And split no further than four blocks a part."""
    found = candidates(rows, 1024)

    assert len(set(found)) == len(found)
    assert max(tile.splits for tile in found) == 2
    assert all(tile.rows <= max(16, 1 << (rows - 1).bit_length()) for tile in found)


def test_tuning_runs_the_kernel(tmp_path):
    """In the interpreter, on a matrix of zeros, with a timer that counts."""
    weights = TritonWeights(
        torch.zeros(128 // 8 * 16 + SLACK * 16, dtype=torch.int16),
        torch.zeros(16 + SLACK, dtype=torch.int32),
        torch.ones(16),
        (2,),
        128,
        16,
        128,
    )
    calls = []

    def timer(call):
        calls.append(call())
        return float(len(calls))

    best = tune(
        weights, 2, timer=timer, cache=TileCache.open("gpu", tmp_path), tiles=[Tile(16, 16, 4, 2), Tile(16, 32, 4, 2)]
    )

    assert best == Tile(16, 16, 4, 2)
    assert all((made == 0).all() for made in calls)
    assert gpu_name(torch.device("cpu")) == "cpu"
