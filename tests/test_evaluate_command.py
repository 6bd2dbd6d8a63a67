"""`nearfar evaluate`, run as a program on a small table."""

import csv
import html
import json
import random
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

pytest.importorskip("sklearn", reason="routers are fitted with scikit-learn")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def nearfar(*arguments):
    """The command's end: exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "nearfar.cli", "evaluate", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Eighty questions in a CSV, two models."""
    path = tmp_path_factory.mktemp("tables") / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query_id", "query", "model", "correct", "sure"])
        for i in range(80):
            is_hard = i % 3 == 0
            text = f"{'prove the theorem' if is_hard else 'name the river'} {'abcdefghij'[i % 10]}{'klmnopqr'[i // 10]}"
            weak = int(not is_hard) if i % 10 else int(is_hard)
            writer.writerow([i, text, "small", weak, 0.2 + 0.5 * weak + i / 1000])
            writer.writerow([i, text, "large", int(i % 7 > 0), ""])
    return path


MODELS = ("--weak", "small", "--strong", "large", "--resamples", "20")


def test_a_router_is_measured_and_written(table, tmp_path):
    """JSON on stdout, scores as CSV, a page that stands alone, and a router file."""
    scores, page, router = tmp_path / "s.csv", tmp_path / "p.html", tmp_path / "r.router"

    code, out, err = nearfar(
        table, *MODELS, "--router", "auto", "--json", "--scores", scores, "--html", page, "--save", router
    )

    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["router"] == "auto"
    assert found["n"] == 80
    assert 0.5 < found["apgr"] <= found["baselines"]["oracle"]["apgr"]
    assert {"cpt50", "cpt80", "audc", "aiq", "intervals", "matched_cost", "curve"} <= set(found)
    with scores.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["query_id"] for row in rows] == [str(i) for i in range(80)]
    assert len({float(row["score"]) for row in rows}) > 5
    text = page.read_text()
    assert "<svg" in text
    assert "http" not in text
    assert "<script" not in text
    HTMLParser().feed(text)
    assert router.stat().st_size > 100


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt install chromium")
def test_the_page_is_whole_in_a_browser(table, tmp_path):
    """A real browser draws it on a phone's and on a desk's screen, and asks nothing of the network."""
    page = tmp_path / "p.html"
    assert nearfar(table, *MODELS, "--router", "auto", "--html", page)[0] == 0
    look = tmp_path / "look.html"
    look.write_text(f"""<iframe id=f style="border:0" srcdoc="{html.escape(page.read_text())}"></iframe>
        <pre id=out></pre><script>
        const found = []; const frame = document.getElementById("f");
        window.onload = () => {{
          const inside = frame.contentDocument;
          for (const width of [390, 1280]) {{
            frame.style.width = width + "px";
            found.push(inside.documentElement.scrollWidth <= width);
          }}
          const drawn = [...inside.querySelectorAll("svg")].map(each => each.getBoundingClientRect());
          found.push(drawn.length > 0 && drawn.every(each => each.width > 100 && each.height > 50));
          found.push(performance.getEntriesByType("resource").every(each => each.name.startsWith("file:")));
          document.getElementById("out").textContent = JSON.stringify(found);
        }};
        </script>""")

    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", look.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip

    assert re.findall('id="out">([^<]*)', done.stdout) == ["[true,true,true,true]"]


def test_a_signal_is_measured_as_it_is(table):
    """A column of the weak answers; the words on the terminal hold the figures."""
    code, out, _ = nearfar(table, *MODELS, "--signal", "sure")

    assert code == 0
    assert "sure on 80 queries" in out
    assert "tfidf-ridge" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--router NAME"),
        (("--router", "nonsense"), "'tfidf-ridge'"),
        (("--router", "knn"), "--embedder"),
        (("--signal", "nothing"), "no column 'nothing'"),
        (("--router", "auto", "--dataset", "z"), "'z'"),
        (("--router", "auto", "--embedder", "nonsense"), "'nonsense'"),
        (("--signal", "sure", "--train", "x.csv"), "--train"),
    ],
)
def test_misuse_is_told_in_one_line(table, arguments, words):
    """What is wrong, what to do, and no traceback."""
    code, out, err = nearfar(table, *MODELS, *arguments)

    assert code != 0
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_an_embedder_is_named_or_left_out(table):
    """What embedded the texts is said; none is none."""
    pytest.importorskip("wordllama", reason="wordllama is not installed")

    _, embedded, _ = nearfar(table, *MODELS, "--router", "auto", "--embedder", "static")
    _, plain, _ = nearfar(table, *MODELS, "--router", "auto", "--embedder", "none")

    assert "embedded by wordllama" in embedded
    assert "embedded" not in plain
    assert "auto on 80 queries" in plain


def test_held_out_questions_are_scored_by_what_others_taught(tmp_path):
    """A question of the table that is also in the training table is left out of the training, which is said."""
    rows = [
        f"{i},{text},{model},{score}"
        for i in range(60)
        for text in [f"{'prove the theorem' if i % 3 == 0 else 'name the river'} {'abcdefghij'[i % 10]}{i // 10}"]
        for model, score in (("small", int(i % 3 > 0)), ("large", int(i % 7 > 0)))
    ]
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("\n".join(["query_id,query,model,correct", *rows[:90]]))
    test.write_text("\n".join(["query_id,query,model,correct", *rows[86:]]))

    code, out, err = nearfar(test, *MODELS, "--router", "auto", "--train", train, "--json", "--embedder", "none")

    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["n"] == 17
    assert found["how"] == "fitted on 43 other queries"
    assert found["notes"][0].startswith("2 training queries are also in the table")
    assert found["baselines"]["tfidf-ridge"]["apgr"] > found["baselines"]["random"]["apgr"]


def test_an_answers_text_judges_it(tmp_path):
    """Wrong calculations send a query on; the signals are named in the report, and a signal alone is refused."""
    rows = [
        {"query_id": i, "query": f"What is {i} plus {j}?", "model": model, "correct": right, "response": text}
        for i in range(90)
        for j in [3 + i % 5]
        for slip in [i * 7 % 3 == 0]
        for model, right, text in (("small", int(not slip), f"{i} + {j} = {i + j + 5 * slip}"), ("large", 1, ""))
    ]
    table = tmp_path / "sums.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [table, *MODELS, "--signal", "answer_text"]

    code, out, err = nearfar(*options, "--router", "auto", "--json", "--embedder", "none")
    refused = nearfar(*options)

    assert (code, err) == (0, "")
    assert json.loads(out)["apgr"] > 0.8
    assert refused[0] != 0
    assert "needs a --router" in refused[2]


def test_other_tables_are_learned_from(table, tmp_path):
    """`--also` takes any models' outcomes on other questions, and says so where all its questions are the table's."""
    others = tmp_path / "others.jsonl"
    with others.open("w") as file:
        for i in range(60):
            text = f"{'prove the lemma' if i % 3 == 0 else 'name the river'} {i} {'abcdef'[i % 6] * 3}"
            file.write(json.dumps({"query_id": i, "query": text, "model": "third", "correct": int(i % 3 > 0)}) + "\n")
    judged = (table, *MODELS, "--router", "hybrid", "--signal", "sure", "--json")

    plain, told = nearfar(*judged), nearfar(*judged, "--also", others)
    code, out, err = nearfar(*judged, "--also", table)

    assert (plain[0], told[0], told[2]) == (0, 0, "")
    assert json.loads(told[1])["apgr"] != json.loads(plain[1])["apgr"]
    assert code != 0
    assert out == ""
    assert "0 queries of another table are left" in err


def test_confidences_are_read_unless_told_otherwise(tmp_path):
    """`auto` judges the near answer where the table says how sure it was, and says so; --signal none does not."""
    draw, rows, plain = random.Random(0), ["query_id,query,model,correct,confidence,confidence_flat"], []
    for i in range(120):
        right, text = draw.random() < 0.5, f"what of {'abcdefghij'[i % 10]}"
        rows += [
            f"{i},{text}{i},small,{int(right)},{0.5 * draw.random() + 0.5 * right},1",
            f"{i},{text}{i},large,1,{draw.random()},1",
        ]
        plain += [f"{i},{text}{i + 500},small,{int(right)}", f"{i},{text}{i + 500},large,1"]
    table, others = tmp_path / "table.csv", tmp_path / "others.csv"
    table.write_text("\n".join(rows))
    others.write_text("\n".join(["query_id,query,model,correct", *plain]))
    auto = ("--router", "auto", "--json", "--embedder", "none", *MODELS)

    judged, alone, trained = (
        json.loads(nearfar(table, *auto, *options)[1]) for options in ((), ("--signal", "none"), ("--train", others))
    )

    assert judged["router"] == "hybrid"
    assert judged["apgr"] > 0.7 > alone["apgr"] + 0.1
    assert "weak answer's 'confidence' are read too" in judged["notes"][-1]
    assert alone["router"] == "auto"
    assert not any("are read too" in note for note in alone["notes"])
    assert trained["router"] == "auto"
