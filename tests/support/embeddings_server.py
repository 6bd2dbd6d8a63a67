"""A real local server that speaks OpenAI's embeddings, with vectors that anybody can foresee."""

from aiohttp import web

from .wire_server import WireServer


class EmbeddingsServer(WireServer):
    """Gives every text the vector (its length, 1, 0, 0), last text first; `statuses` are given in place of answers."""

    path = "/embeddings"
    query_of = whole = events = None  # nothing of a chat

    def __init__(self, *, statuses=(), reply=None):
        super().__init__([])
        self.statuses = list(statuses)
        self.reply = reply

    async def _serve(self, request):
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if self.statuses:
            return web.json_response({"error": {"message": "not now"}}, status=self.statuses.pop(0))
        rows = [{"index": i, "embedding": [len(text), 1.0, 0.0, 0.0]} for i, text in enumerate(body["input"])]
        return web.json_response(self.reply if self.reply is not None else {"data": rows[::-1]})
