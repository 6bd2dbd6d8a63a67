"""Every kind of dense index against comparing with every vector."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import DataError
from nearfar.retrieval.dense import Dense, kind_for, sample_size

np = pytest.importorskip("numpy", reason="vectors are numpy's")
pytest.importorskip("faiss", reason="needs nearfar[retrieval]")

KINDS = ["flat", "hnsw", "ivf", "ivfpq"]
DIM = 32


def unit(num_rows, seed=0):
    """Vectors in clumps, as texts' are."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((20, DIM))
    rows = centres[random.integers(20, size=num_rows)] + 0.7 * random.standard_normal((num_rows, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


VECTORS = unit(1500)
QUERIES = unit(40, seed=1)


@pytest.fixture(scope="module", params=KINDS)
def index(request):
    """One of each kind, over the same vectors."""
    return Dense.build(VECTORS, kind=request.param)


def recall(index, *, allowed=None):
    """Share of the true ten that are found."""
    shares = []
    for query in QUERIES:
        products = VECTORS @ query
        if allowed is not None:
            products[~allowed] = -2
        size = 10 if allowed is None else min(10, allowed.sum())
        truth = set(np.argsort(-products)[:size].tolist())
        shares.append(len(truth & set(index.top(query, 10, allowed=allowed)[0].tolist())) / size)
    return np.mean(shares)


def least(index):
    """Codes of four numbers a byte are coarse; the others are not."""
    return 0.6 if "PQ" in type(index._index).__name__ else 0.95


def test_nearest_are_found(index):
    """By each kind, with the loss that it is known for."""
    assert recall(index) >= least(index)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.005])
def test_filters_cost_no_hits(index, share):
    """However few are allowed, the nearest of them are found and nothing else is."""
    allowed = np.random.default_rng(2).random(len(VECTORS)) < share

    assert allowed[index.top(QUERIES[0], 50, allowed=allowed)[0]].all()
    assert len(index.top(QUERIES[0], 10, allowed=allowed)[0]) == min(10, allowed.sum())
    assert recall(index, allowed=allowed) >= least(index)


def test_saved_index_finds_the_same(index, tmp_path):
    """Mapped or read whole."""
    index.save(tmp_path / "x.faiss")

    for mapped in (True, False):
        again = Dense.load(tmp_path / "x.faiss", mapped=mapped)
        for query in QUERIES[:5]:
            assert again.top(query, 10)[0].tolist() == index.top(query, 10)[0].tolist()


def test_removed_vectors_are_found_no_more(index, tmp_path):
    """Where a kind can remove at all, the others keep their positions."""
    index.save(tmp_path / "x.faiss")
    whole = Dense.load(tmp_path / "x.faiss", mapped=False)
    gone = index.top(QUERIES[0], 20)[0][::2]
    stay = [position for position in index.top(QUERIES[0], 20)[0].tolist() if position not in gone]

    if not whole.remove(np.sort(gone)):
        assert type(index._index).__name__ in {"IndexFlatIP", "IndexFlat", "IndexHNSWSQ"}
        return
    found = whole.top(QUERIES[0], 10)[0].tolist()

    assert not set(found) & set(gone.tolist())
    assert found == stay
    assert (tmp_path / "x.faiss").stat().st_size > _size(whole, tmp_path)


def _size(index, folder):
    index.save(folder / "y.faiss")
    return (folder / "y.faiss").stat().st_size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0, 1, 7])
def test_no_more_hits_than_vectors(kind, k):
    """Asking a small index for more than it has gives all that it has."""
    index = Dense.build(unit(300), kind=kind)

    assert len(index.top(QUERIES[0], k)[0]) == k
    assert len(index.top(QUERIES[0], 1000)[0]) <= 300


def test_broken_and_missing_files_are_told_apart(tmp_path):
    """One is replaced by a writer, the other is damaged."""
    (tmp_path / "bad.faiss").write_bytes(b"IxFI" + b"\xff" * 40)

    with pytest.raises(DataError, match="is damaged"):
        Dense.load(tmp_path / "bad.faiss")
    with pytest.raises(FileNotFoundError):
        Dense.load(tmp_path / "none.faiss")


def test_kinds_follow_the_size():
    """Exact while that is fast; codes once vectors do not fit."""
    assert [kind_for(size) for size in (0, 20_000, 20_001, 200_001, 1_000_000, 10_000_000)] == [
        "flat",
        "flat",
        "hnsw",
        "ivf",
        "ivf",
        "ivfpq",
    ]


@given(st.integers(1, 10_000_000))
@settings(max_examples=50)
def test_samples_are_no_larger_than_what_is_sampled(size):
    """For whatever number of vectors."""
    assert 1 <= sample_size(size) <= size
