"""The tool index: found by description and by use, changed live, saved and loaded, measured."""

import json

import pytest

from nearfar.errors import ConfigError, DataError
from nearfar.types import ToolSpec

np = pytest.importorskip("numpy", reason="vectors are numpy's")
pytest.importorskip("bm25s", reason="bm25s is not installed")
pytest.importorskip("wordllama", reason="wordllama is not installed")

from nearfar.retrieval.embedders import Remembered, StaticEmbedder  # noqa: E402
from nearfar.retrieval.tool_classifier import ToolClassifier  # noqa: E402
from nearfar.retrieval.tool_report import search_and_measure  # noqa: E402
from nearfar.retrieval.tools import ToolIndex, ToolUse, read_tools, read_uses  # noqa: E402

TOOLS = (
    ToolSpec("weather", "Forecasts for any place."),
    ToolSpec("stocks", "Prices of shares."),
    ToolSpec("recipes", "How to cook dishes."),
    ToolSpec("flights", "Connections between airports."),
)
WHERE = (
    "Oslo",
    "Rome",
    "Lima",
    "Cairo",
    "Perth",
    "Quito",
    "Delhi",
    "Kyoto",
    "Accra",
    "Turin",
    "Davos",
    "Split",
    "Graz",
)
USES = tuple(
    ToolUse(said.format(place), (tool,))
    for place in WHERE
    for tool, said in (
        ("weather", "Do I need an umbrella in {} tomorrow?"),
        ("stocks", "How did the exchange in {} close today?"),
        ("recipes", "What do people eat for lunch in {}, and how is it made?"),
        ("flights", "When does the next plane to {} leave?"),
    )
)


@pytest.fixture(scope="module")
def embedder():
    """The static one, loaded once."""
    return Remembered(StaticEmbedder())


@pytest.fixture
def index(embedder):
    """Four tools with thirteen examples each, fitted."""
    made = ToolIndex(embedder)
    made.add(TOOLS)
    made.learn(USES)
    assert made.fit()
    return made


def names(hits):
    """The tools that were found, in order."""
    return [hit.chunk.id for hit in hits]


def test_a_tool_is_found_by_what_it_says(embedder):
    """Without one example."""
    index = ToolIndex(embedder)
    index.add(TOOLS)

    assert not index.fit()
    assert names(index.search("prices of shares", k=2))[0] == "stocks"
    assert ToolIndex(embedder).search("anything") == []


def test_a_tool_is_found_by_what_it_was_used_for(index):
    """In words that its description has not."""
    assert names(index.search("Will I need my umbrella in Bonn?"))[0] == "weather"
    assert names(index.search("the plane to Bonn", k=1)) == ["flights"]
    assert names(index.search("plane", filter={"tool": "stocks"})) == ["stocks"]


def test_tools_come_and_go_without_fitting(index):
    """A new tool with five examples is found at once; a removed one never again, its examples neither."""
    index.add([ToolSpec("translate", "Between languages.")])
    index.learn(
        ToolUse(f"How do I say {word} in Finnish?", ("translate",)) for word in ("yes", "no", "cheers", "sorry", "hi")
    )

    assert names(index.search("How would I say goodbye in Estonian?"))[0] == "translate"

    index.remove("translate")

    assert "translate" not in names(index.search("How would I say goodbye in Estonian?"))
    assert index.num_examples == len(USES)
    with pytest.raises(DataError, match="no tool 'translate'"):
        index.remove("translate")


def test_a_request_may_need_several_tools(index):
    """Learned twice with other tools, it is an example of both."""
    index.learn([ToolUse("a trip to the sun", ("flights",)), ToolUse("a trip to the sun", ("weather", "flights"))])

    assert set(names(index.search("a trip to the sun", k=2))) == {"flights", "weather"}


def test_an_example_does_not_see_itself(index):
    """What the second stage is fitted on is what the index would say had it not learned the example."""
    use = USES[0]
    others = ToolIndex(index._embedder)
    others.add(TOOLS)
    others.learn(each for each in USES if each != use)
    built = index._build()
    own = {hit.chunk.id: hit.signals for hit in index._candidates(built, use.text, but=use.tools)}

    for hit in others._candidates(others._build(), use.text):
        for name in ("description", "centre", "vote", "nearest", "count"):
            assert own[hit.chunk.id][name] == pytest.approx(hit.signals[name], abs=1e-4), (hit.chunk.id, name)


def test_an_index_survives_its_folder(index, embedder, tmp_path):
    """The same tools in the same order with the same scores; another embedder and broken files are refused."""
    index.save(tmp_path / "tools")

    loaded = ToolIndex.load(tmp_path / "tools", embedder)

    assert [(hit.chunk, pytest.approx(hit.score)) for hit in loaded.search("an umbrella")] == [
        (hit.chunk, hit.score) for hit in index.search("an umbrella")
    ]
    said = json.loads((tmp_path / "tools" / "tools.json").read_text())
    (tmp_path / "tools" / "tools.json").write_text(json.dumps({**said, "embedder": "other"}))
    with pytest.raises(ConfigError, match="'other'"):
        ToolIndex.load(tmp_path / "tools", embedder)
    (tmp_path / "tools" / "tools.json").write_text("{")
    with pytest.raises(DataError, match="broken"):
        ToolIndex.load(tmp_path / "tools", embedder)
    with pytest.raises(DataError, match="nearfar tools index"):
        ToolIndex.load(tmp_path / "none", embedder)


def test_a_killed_save_leaves_the_former_index(index, embedder, tmp_path):
    """Vectors without the file that names them are nobody's; the next save clears them up."""
    folder = tmp_path / "tools"
    index.save(folder)
    expected = [hit.chunk.id for hit in index.search("rain", k=4)]
    np.save(folder / "vectors-feed.npy", np.zeros((3, embedder.dim), np.float32))
    (folder / "tools.json.new").write_text('{"format"')

    loaded = ToolIndex.load(folder, embedder)
    assert [hit.chunk.id for hit in loaded.search("rain", k=4)] == expected
    loaded.save(folder)

    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".npy"]


def test_unknown_tools_are_not_learned(index, tmp_path):
    """Neither from Python nor from a file, whose line is named."""
    with pytest.raises(DataError, match="'magic'"):
        index.learn([ToolUse("x", ("magic",))])
    (tmp_path / "uses.jsonl").write_text('{"text": "x", "tools": ["weather"]}\n{"text": "x", "tools": ["magic"]}\n')
    with pytest.raises(DataError, match=r"Line 2 .*'magic'"):
        read_uses(tmp_path / "uses.jsonl", known=index.names)
    (tmp_path / "tools.jsonl").write_text(
        '{"id": "a", "text": "does"}\n{"name": "b", "parameters": {"type": "object"}}'
    )
    assert read_tools(tmp_path / "tools.jsonl") == [ToolSpec("a", "does"), ToolSpec("b", "", {"type": "object"})]


def test_a_report_shows_each_way_and_all_of_them(embedder):
    """The ways that need examples are shown where there are any."""
    report = search_and_measure(
        TOOLS, USES[::5], [use for place, use in enumerate(USES) if place % 5], embedder, resamples=20
    )

    assert next(stage.name for stage in report.stages) == "bm25 over descriptions"
    assert len(report.stages) == 7
    assert report.best.figures["recall@1"].value == 1
    assert len(search_and_measure(TOOLS, USES[:4], [], embedder, resamples=20).stages) == 3


def test_a_classifier_tells_several_tools_from_none(embedder):
    """Each tool's probability is its own: high for both that a request needs, low for all where it needs none."""
    both = [ToolUse(f"the weather in {place} and flights there", ("weather", "flights")) for place in WHERE]

    classifier = ToolClassifier.fit([*USES, *both], embedder)

    said = classifier.probabilities("the weather in Bonn and flights there")
    assert min(said["weather"], said["flights"]) > 0.5 > max(said["stocks"], said["recipes"])
    assert names(classifier.search("Do I need an umbrella in Bonn tomorrow?", k=1)) == ["weather"]
    assert all(0 <= share <= 1 for share in said.values())
    with pytest.raises(DataError, match="No requests"):
        ToolClassifier.fit([], embedder)
