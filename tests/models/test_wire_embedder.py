"""Embeddings over the wire: batches, order, retries and every failure with the embedder's name."""

import pytest
from support.embeddings_server import EmbeddingsServer

from nearfar.errors import MalformedAnswer, UpstreamRejected, UpstreamUnavailable
from nearfar.models.wire_embedder import WireEmbedder

np = pytest.importorskip("numpy", reason="vectors are numpy's")


@pytest.fixture
def embedder_of():
    """Makes embedders, and closes them."""
    made = []

    def make(server, **options):
        made.append(WireEmbedder(name="bge", url=server.url, model="bge-m3", **options))
        return made[-1]

    yield make
    for embedder in made:
        embedder.close()


def test_rows_are_in_the_texts_order_and_of_length_one(embedder_of):
    """Whatever order the server answers in and however many requests it takes."""
    with EmbeddingsServer() as server:
        rows = embedder_of(server, batch_size=2, api_key="sk-123456").embed(["abc", "abcd", "", "a\ud800"])

    assert [len(body["input"]) for body in server.bodies] == [2, 2]
    assert server.headers[0]["Authorization"] == "Bearer sk-123456"
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1)
    assert rows[:, 0] / rows[:, 1] == pytest.approx([3, 4, 1, 2])


def test_prompts_go_before_the_texts_and_into_the_name(embedder_of):
    """Queries and documents differ, and so do vectors of other prompts."""
    with EmbeddingsServer() as server:
        embedder = embedder_of(server, query_prompt="query: ", document_prompt="passage: ", dim=3)
        embedder.embed(["a"])
        embedder.embed_queries(["b"])

        assert [body["input"] for body in server.bodies] == [["passage: a"], ["query: b"]]
        assert embedder.name == "bge-m3-3 'query: ' 'passage: '"


def test_length_is_asked_for_once(embedder_of):
    """The dimension is the server's, found out where nobody has asked for a vector yet."""
    with EmbeddingsServer() as server:
        embedder = embedder_of(server)

        assert (embedder.dim, embedder.dim) == (4, 4)
        assert len(server.bodies) == 1
        assert embedder.embed([]).shape == (0, 4)


def test_passing_failure_is_tried_again(embedder_of):
    """503 and then an answer: nobody notices but for the wait."""
    with EmbeddingsServer(statuses=[503]) as server:
        assert embedder_of(server).embed(["abc"]).shape == (1, 4)
        assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"statuses": [503, 503]}, UpstreamUnavailable),
        ({"statuses": [400]}, UpstreamRejected),
        ({"reply": {"data": []}}, MalformedAnswer),
        ({"reply": {"data": "none"}}, MalformedAnswer),
        ({"reply": {"data": [{"index": 7, "embedding": [1.0]}]}}, MalformedAnswer),
    ],
)
def test_failures_name_the_embedder(embedder_of, options, error):
    """Each is an error of the tree."""
    with EmbeddingsServer(**options) as server, pytest.raises(error) as raised:
        embedder_of(server, attempts=2).embed(["abc"])

    assert raised.value.model == "bge"


def test_shorter_vectors_than_asked_for_are_refused(embedder_of):
    """A model of four numbers has no first eight."""
    with EmbeddingsServer() as server, pytest.raises(MalformedAnswer, match="4 numbers, not of 8"):
        embedder_of(server, dim=8).embed(["abc"])
