"""The files of a folder over MCP: what is in it can be read, and nothing else."""

import os

import pytest

pytest.importorskip("mcp", reason="needs nearfar[agents]")

from mcp import Client

from nearfar.agents.files_server import main, make_server


@pytest.fixture
def root(tmp_path):
    """A folder with files, and a secret beside it."""
    (tmp_path / "secret.txt").write_text("the password is swordfish")
    root = tmp_path / "root"
    (root / "notes").mkdir(parents=True)
    (root / "notes" / "trip.md").write_text("# Trip\nPack the tent.\nLeave at nine.\n")
    (root / "long.txt").write_text("".join(f"line {i}\n" for i in range(1, 1001)))
    (root / "picture.bin").write_bytes(b"\x89PNG\0\0")
    (root / "way-out").symlink_to(tmp_path)
    (root / "note-out.txt").symlink_to(tmp_path / "secret.txt")
    os.mkfifo(root / "pipe")
    return root


async def ask(root, tool: str, **arguments) -> tuple[bool, str]:
    """Whether the tool failed, and what it said."""
    async with Client(make_server(root)) as client:
        result = await client.call_tool(tool, arguments)
    return result.is_error, "\n".join(each.text for each in result.content)


async def test_files_are_listed_read_and_found(root):
    """The three tools do what they say."""
    assert await ask(root, "list_files", pattern="*.md") == (False, "notes/trip.md")
    assert await ask(root, "read_file", path="notes/trip.md", first_line=2, num_lines=1) == (
        False,
        "Pack the tent.\n… 1 more lines; read on from first_line 3.",
    )
    assert await ask(root, "search_files", text="TENT") == (False, "notes/trip.md:2: Pack the tent.")


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "notes/../../secret.txt",
        "/etc/passwd",
        "way-out/secret.txt",
        "note-out.txt",
        "way-out",
        "pipe",
        "picture.bin",
        "missing.txt",
        "notes",
        "a\0b",
        "notes/trip.md/more",
        "x" * 5000,
    ],
)
async def test_nothing_else_is_read(root, path):
    """A path that leads out, a link, a pipe or a binary file is refused in words."""
    is_error, text = await ask(root, "read_file", path=path)

    assert is_error
    assert "swordfish" not in text
    assert "root:" not in text


async def test_links_are_neither_listed_nor_searched(root):
    """The search goes by files, not by what they point to."""
    _, listed = await ask(root, "list_files")
    _, found = await ask(root, "search_files", text="swordfish")

    assert listed.split() == ["long.txt", "notes/trip.md", "picture.bin"]
    assert found == "No line contains 'swordfish'."
    assert (await ask(root, "list_files", path="way-out"))[0]


async def test_large_files_come_in_parts(root):
    """A long file says where to read on, and what is too large is refused."""
    with (root / "huge.txt").open("wb") as file:
        file.truncate(5 * 2**20)

    _, first = await ask(root, "read_file", path="long.txt")
    is_beyond, beyond = await ask(root, "read_file", path="long.txt", first_line=1001)
    is_huge, huge = await ask(root, "read_file", path="huge.txt")

    assert first.endswith("… 600 more lines; read on from first_line 401.")
    assert (is_beyond, is_huge) == (True, True)
    assert "only 1000 lines" in beyond
    assert "are not read" in huge


async def test_many_hits_are_bounded(root):
    """A search that finds too much says so."""
    _, found = await ask(root, "search_files", text="line")

    assert len(found.splitlines()) == 51
    assert found.endswith("narrow it down.")


@pytest.mark.parametrize("arguments", [[], ["/no/such/folder"], ["a", "b"]])
def test_wrong_start_says_how(arguments, capsys):
    """Without one folder it serves nothing."""
    assert main(arguments) == 2
    assert "FOLDER" in capsys.readouterr().err
