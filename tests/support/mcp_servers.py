"""A small MCP server over pipes that lies, dies and hangs as its tools are called: `python mcp_servers.py FOLDER`.

It needs no SDK, so that it says what the SDK would not, and starts at once. `FOLDER/listing.json` is what it lists,
read at each listing; `FOLDER/starts` gets a line at each start.
"""

import json
import os
import sys
import time
from pathlib import Path

ECHO = {
    "name": "echo",
    "description": "Gives the text back.",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "annotations": {"readOnlyHint": True, "idempotentHint": True},
}
LIAR = {
    "name": "liar",
    "inputSchema": {"type": "object"},
    "outputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
}


def plain(name: str) -> dict[str, object]:
    """A tool without arguments."""
    return {"name": name, "description": f"Does {name}.", "inputSchema": {"type": "object"}}


NAMES = ("fail", "stuck", "die", "huge", "binary", "noise", "alien", "orphan", "wrong_id", "many")
LISTING = [ECHO, LIAR, *map(plain, NAMES)]


def send(message: object) -> None:
    """One message on a line."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def call(name: str, arguments: dict[str, object]) -> dict[str, object]:
    """The result of a tool, or worse."""
    match name:
        case "echo":
            return {"content": [{"type": "text", "text": arguments["text"]}]}
        case "fail":
            return {"content": [{"type": "text", "text": "broken on purpose"}], "isError": True}
        case "stuck":
            time.sleep(600)
        case "die":
            sys.stderr.write("the disk is on fire\n")
            sys.stderr.flush()
            os._exit(3)
        case "huge":
            for _ in range(1_600):
                sys.stdout.write("x" * 65_536)
        case "binary":
            blob = {"uri": "file:///a.bin", "mimeType": "application/zip", "blob": "AAECAw=="}
            image = {"type": "image", "data": "AAECAwQ=", "mimeType": "image/png"}
            return {
                "content": [image, {"type": "resource", "resource": blob}, {"type": "text", "text": "\x00\x1b[31m"}]
            }
        case "liar":
            return {"content": [{"type": "text", "text": "7"}], "structuredContent": {"n": "seven"}}
        case "noise":
            sys.stdout.write("Loading…\n{not json}\n[1, 2]\n")
            return {"content": [{"type": "text", "text": "after the noise"}]}
        case "alien":
            return {"content": "a string, not a list"}
        case "many":
            return {"content": [{"type": "text", "text": "y" * 1_000_000}]}
        case "orphan":
            # A child that outlives its parent's death, unless the group is ended.
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
    raise AssertionError(name)


def main(folder: Path) -> None:
    """Serves until the input ends."""
    with (folder / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    listing = folder / "listing.json"
    for line in sys.stdin:
        request = json.loads(line)
        method, given = request.get("method"), request.get("params") or {}
        if "id" not in request:
            continue
        answer: dict[str, object] = {"jsonrpc": "2.0", "id": request["id"]}
        if method == "initialize":
            capabilities = {"tools": {"listChanged": True}}
            answer["result"] = {
                "protocolVersion": "2025-06-18",
                "capabilities": capabilities,
                "serverInfo": {"name": "hostile", "version": "1"},
            }
        elif method == "tools/list":
            pages = json.loads(listing.read_text()) if listing.exists() else [LISTING]
            index = int(given.get("cursor") or 0)
            answer["result"] = {"tools": pages[index % len(pages)]}
            if index + 1 < len(pages) or (folder / "endless").exists():
                answer["result"]["nextCursor"] = str(index + 1)
        elif method == "tools/call":
            if given["name"] == "wrong_id":
                answer["id"] = 10_000
            answer["result"] = call(given["name"] if given["name"] != "wrong_id" else "fail", given["arguments"])
        else:
            answer["error"] = {"code": -32601, "message": "Method not found"}
        send(answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
