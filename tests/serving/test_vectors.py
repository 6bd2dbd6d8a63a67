"""`/v1/embeddings` and `/v1/rerank` over a real socket, asked by the official client and by hand."""

import base64
import json
import struct
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest
from support.gateway import gateway_thread, router_of

from nearfar.errors import ConfigError
from nearfar.retrieval.embedders import StaticEmbedder
from nearfar.retrieval.passage_scores import CosineScores, HybridScores
from nearfar.serving.gateway.embeddings import EmbeddingsDoor
from nearfar.serving.gateway.rerank import RerankDoor
from nearfar.testing import ScriptedModel

np = pytest.importorskip("numpy", reason="vectors are numpy's")
pytest.importorskip("wordllama", reason="needs nearfar[retrieval]")

STATIC = StaticEmbedder()


def load_embedder(name):
    """Static vectors; the other name's extra is not installed."""
    if name == "minilm":
        raise ConfigError("MiniLM needs sentence-transformers.")
    return STATIC


def load_reranker(name):
    """By vectors, or by both."""
    return CosineScores(STATIC) if name == "static" else HybridScores(STATIC)


@pytest.fixture(scope="module")
def url():
    """A gateway with both doors."""
    doors = {
        "/v1/embeddings": EmbeddingsDoor(["static", "minilm"], "static", load_embedder),
        "/v1/rerank": RerankDoor(["hybrid", "static"], "hybrid", load_reranker),
    }
    with gateway_thread(router_of(ScriptedModel(["hi"])), doors=doors) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    """OpenAI's own."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(url, path, body):
    """Status and body of a POST."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(f"{url}{path}", data, {"Content-Type": "application/json"})
    try:
        with urlopen(request) as reply:
            return reply.status, json.load(reply)
    except HTTPError as exc:
        with exc:
            return exc.code, json.load(exc)


def test_official_client_gets_vectors(client):
    """The client asks for base64 of its own accord and unpacks it."""
    reply = client.embeddings.create(model="static", input=["Cats purr.", "Dogs bark."])

    assert [item.index for item in reply.data] == [0, 1]
    assert np.asarray([item.embedding for item in reply.data]) == pytest.approx(
        STATIC.embed(["Cats purr.", "Dogs bark."])
    )
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 0
    assert reply.model == "static"


def test_floats_and_base64_are_the_same_numbers(client, url):
    """Little-endian 32-bit floats, as OpenAI packs them."""
    floats = client.embeddings.create(model="default", input="Cats purr.", encoding_format="float").data[0].embedding
    _, packed = post(url, "/v1/embeddings", {"input": "Cats purr.", "encoding_format": "base64"})

    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(floats, abs=1e-7)


def test_fewer_dimensions_have_length_one_again(client):
    """A prefix of the vector, scaled."""
    whole = client.embeddings.create(model="static", input="Cats purr.").data[0].embedding
    short = client.embeddings.create(model="static", input="Cats purr.", dimensions=64).data[0].embedding

    assert len(short) == 64
    assert sum(x * x for x in short) == pytest.approx(1, abs=1e-5)
    scale = short[0] / whole[0]
    assert short == pytest.approx([x * scale for x in whole[:64]], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "param"),
    [
        ({"input": []}, openai.BadRequestError, "input"),
        ({"input": ["ok", ""]}, openai.BadRequestError, "input[1]"),
        ({"input": [[1, 2, 3]]}, openai.BadRequestError, "input"),
        ({"input": [1, 2, 3]}, openai.BadRequestError, "input"),
        ({"input": ["x"] * 2049}, openai.BadRequestError, "input"),
        ({"input": "x", "dimensions": 257}, openai.BadRequestError, "dimensions"),
        ({"input": "x", "dimensions": 0}, openai.BadRequestError, "dimensions"),
        ({"input": "x", "encoding_format": "hex"}, openai.BadRequestError, "encoding_format"),
        ({"input": "x", "extra_body": {"colour": "red"}}, openai.BadRequestError, "body.colour"),
        ({"input": "x", "model": "ada"}, openai.NotFoundError, "model"),
        ({"input": "x", "model": "minilm"}, openai.InternalServerError, None),
    ],
)
def test_errors_are_openais(client, options, error, param):
    """The client raises its own exception, which names the field."""
    with pytest.raises(error) as caught:
        client.embeddings.create(**{"model": "static", **options})

    assert caught.value.param == param
    assert "\n" not in caught.value.body["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"input": null}', b'{"model": "static"}', b"\xff"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
def test_bodies_that_are_none_are_refused(url, path, body):
    """In OpenAI's shape."""
    status, page = post(url, path, body)

    assert status == 400
    assert set(page["error"]) >= {"message", "type", "param", "code"}


ANIMALS = ["Dogs bark at strangers.", "Cats hunt mice at night.", "Trout swim upstream."]


@pytest.mark.parametrize("model", ["default", "hybrid", "static"])
def test_best_document_comes_first(url, model):
    """With its index among those that were sent."""
    body = {"model": model, "query": "Which animal hunts mice?", "documents": ANIMALS, "return_documents": True}

    status, page = post(url, "/v1/rerank", body)

    assert status == 200
    assert page["results"][0]["index"] == 1
    assert page["results"][0]["document"] == {"text": ANIMALS[1]}
    scores = [result["relevance_score"] for result in page["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert sorted(result["index"] for result in page["results"]) == [0, 1, 2]
    assert page["model"] == model


def test_top_n_and_objects(url):
    """Fewer results, without their texts unless asked, from documents that are objects."""
    documents = [{"text": text, "id": i} for i, text in enumerate(ANIMALS)]

    _, page = post(url, "/v1/rerank", {"query": "fish", "documents": documents, "top_n": 1})

    assert len(page["results"]) == 1
    assert set(page["results"][0]) == {"index", "relevance_score"}


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"query": " ", "documents": ["x"]}, "query", 400),
        ({"query": "x", "documents": []}, "documents", 400),
        ({"query": "x", "documents": ["a", 3]}, "documents[1]", 400),
        ({"query": "x", "documents": ["a"], "top_n": 0}, "top_n", 400),
        ({"query": "x", "documents": ["a"] * 2049}, "documents", 400),
        ({"query": "x", "documents": ["a"], "model": "none"}, "model", 404),
    ],
)
def test_wrong_rerank_requests_are_refused(url, body, param, status):
    """By the field at fault."""
    found, page = post(url, "/v1/rerank", body)

    assert (found, page["error"]["param"]) == (status, param)


def test_equal_documents_keep_their_order(url):
    """Ties go by index."""
    _, page = post(url, "/v1/rerank", {"query": "cats", "documents": ["same", "same", "same"]})

    assert [result["index"] for result in page["results"]] == [0, 1, 2]


def test_only_post_is_taken(url):
    """And the path is a real one."""
    with pytest.raises(HTTPError) as caught:
        urlopen(f"{url}/v1/embeddings")

    assert caught.value.code == 405
    caught.value.close()
