"""Stream an answer: the first event says which tier was committed to."""

import asyncio

from nearfar import Message, Nearfar
from nearfar.types import StreamStart, TextDelta


async def main() -> None:
    async with Nearfar.from_config() as nearfar:
        conversation = (
            Message("system", "Answer in one short sentence."),
            Message("user", "Why do leaves turn red in autumn?"),
        )
        async for event in nearfar.stream(conversation):
            match event:
                case StreamStart():
                    print(f"[{event.tier}] ", end="")
                case TextDelta():
                    print(event.text, end="", flush=True)
        print()


asyncio.run(main())
