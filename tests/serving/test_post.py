"""From the engine's thread to the event loop: all arrives, once and in order, and a burst wakes the loop once."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from rune.serving.drawing import Heard, Post
from rune.types import Delta
from tests.serving.world import PATIENCE


def said(number: int) -> Delta:
    return Delta(draw=0, seed=0, text="", num_tokens=number)


async def heard_of(queue: Heard, count: int) -> list[int]:
    found = []
    for _ in range(count):
        _, what = await asyncio.wait_for(queue.get(), PATIENCE)
        assert isinstance(what, Delta)
        found.append(what.num_tokens)
    return found


def test_a_burst_for_many_requests_wakes_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def burst() -> int:
        loop, post, woken = asyncio.get_running_loop(), Post(), []
        queues: list[Heard] = [asyncio.Queue() for _ in range(50)]
        real = loop.call_soon_threadsafe

        def counted(*args: Any) -> Any:
            woken.append(args)
            return real(*args)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        thread = threading.Thread(
            target=lambda: [post.put(loop, queue, 0, said(look)) for look in range(4) for queue in queues]
        )
        thread.start()
        thread.join()  # the loop stands still: nothing is delivered meanwhile
        assert len(woken) == 1
        assert [await heard_of(queue, 4) for queue in queues] == [[0, 1, 2, 3]] * 50
        return len(woken)

    assert asyncio.run(burst()) == 1


def test_what_is_said_while_the_post_is_delivered_is_not_left_lying() -> None:
    async def during() -> list[int]:
        loop, post, second = asyncio.get_running_loop(), Post(), asyncio.Queue[Any]()

        class Slow(asyncio.Queue[Any]):
            def put_nowait(self, item: Any) -> None:
                post.put(loop, second, 0, said(2))
                super().put_nowait(item)

        first = Slow()
        post.put(loop, first, 0, said(1))
        return [*await heard_of(first, 1), *await heard_of(second, 1)]

    assert asyncio.run(during()) == [1, 2]


def test_several_threads_lose_nothing_and_each_keeps_its_order() -> None:
    async def many() -> list[list[int]]:
        loop, post = asyncio.get_running_loop(), Post()
        queues: list[Heard] = [asyncio.Queue() for _ in range(4)]
        threads = [
            threading.Thread(target=lambda queue=queue: [post.put(loop, queue, 0, said(n)) for n in range(2000)])
            for queue in queues
        ]
        for thread in threads:
            thread.start()
        found = await asyncio.gather(*(heard_of(queue, 2000) for queue in queues))
        for thread in threads:
            thread.join()
        return list(found)

    assert asyncio.run(many()) == [list(range(2000))] * 4
