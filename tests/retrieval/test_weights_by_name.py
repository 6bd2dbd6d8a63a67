"""Models by name: a cross-encoder and a token classifier, with tiny real weights that are made here."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

WORDS = ("the", "volcano", "of", "island", "erupted", "in", "1893", "river", "ended")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vocabulary and a configuration of two small layers."""
    path = tmp_path_factory.mktemp("weights")
    (path / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)) + "\n")
    return path


def saved(folder, kind, labels):
    """A model of this kind with random weights, saved with its tokenizer."""
    torch.manual_seed(0)
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, num_labels=labels,
    )  # fmt: skip
    path = folder / kind
    getattr(transformers, kind)(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_a_cross_encoder_scores_pairs(folder):
    """One number a passage, the same whoever is beside it."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from nearfar.retrieval.cross_encoder import CrossEncoder

    encoder = CrossEncoder(saved(folder, "BertForSequenceClassification", 1), device="cpu")

    scores = encoder.scores("the volcano", ["the river ended", "the volcano erupted in 1893"])

    assert len(set(scores)) == 2
    assert encoder.scores("the volcano", ["the volcano erupted in 1893"]) == [pytest.approx(scores[1], abs=1e-4)]
    assert encoder.scores("the volcano", []) == []


def test_a_token_classifier_values_words(folder):
    """One value a word, also of texts longer than the model reads; dropping keeps digits and the best words."""
    from nearfar.retrieval.word_dropping import TokenClassifier, drop_words

    classifier = TokenClassifier(saved(folder, "BertForTokenClassification", 2), device="cpu")
    text = "the volcano of the island erupted in 1893"

    values = classifier.values(text.split())

    assert len(values) == 8
    assert all(0 < value < 1 for value in values)
    assert len(classifier.values(text.split() * 40)) == 320
    assert classifier.values([]) == []
    left = drop_words(text, 0.5, classifier).split()
    assert len(left) == 4
    assert "1893" in left
