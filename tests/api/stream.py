"""A reader of server-sent events, as a client would write it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.api.rig import Api


@dataclass
class Block:
    """What stands between two empty lines. `name` is empty where it is no event."""

    name: str = ""
    id: str = ""
    data: Any = None
    comments: int = 0

    @property
    def tells(self) -> tuple[str, str]:
        """`volume.changed` and the status that came with it."""
        return self.name, self.data["status"]


@dataclass
class Stream:
    """An open stream. `last_id` is that of the last block that was read."""

    answer: aiohttp.ClientResponse
    last_id: str = ""
    blocks: list[Block] = field(default_factory=list)

    async def block(self) -> Block:
        """The next block. Raises EOFError."""
        block = Block()
        async with asyncio.timeout(10):
            while line := (await self.answer.content.readline()).decode():
                name, _, value = line.rstrip("\n").partition(": ")
                match name:
                    case "":
                        self.last_id = block.id or self.last_id
                        self.blocks.append(block)
                        return block
                    case "event":
                        block.name = value
                    case "id":
                        block.id = value
                    case "data":
                        block.data = json.loads(value)
                    case ":":
                        block.comments += 1
                    case _:
                        assert name == "retry", line
        raise EOFError

    async def event(self) -> Block:
        """The next block that is an event."""
        while not (block := await self.block()).name:
            pass
        return block

    async def until(self, name: str, status: str) -> list[Block]:
        """All events up to the first that tells this."""
        found = [await self.event()]
        while found[-1].tells != (name, status):
            found.append(await self.event())
        return found


@asynccontextmanager
async def following(
    api: Api, query: str = "", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Stream]:
    """A stream, of which the first block, which tells where it begins, is read."""
    url = f"http://blockd/host/v1/events{query}"
    async with api.session.get(url, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        stream = Stream(answer)
        await stream.block()
        yield stream
