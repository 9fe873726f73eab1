"""A judge process from its first line to its last, and the pool that starts it, all in this process.

The other side is straw each time: a socket in the place of the box, of the scorer, of the judge.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import socket
import struct
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rune.errors import SandboxError
from rune.sandbox.isolation.limits import Limits
from rune.sandbox.judging import pool
from rune.sandbox.judging import test_worker as worker
from rune.sandbox.protocol import ahead, child, codec, connection, decode
from rune.sandbox.protocol.connection import Broken
from rune.types import FailureKind
from tests.sandbox import test_link_frames as frames
from tests.sandbox import test_pool_parts as pools

# --------------------------------------------------------------------------- the judge's loop


class Ended(BaseException):
    """In the place of a process's end."""


class StrawWorker:
    """Judges by saying which texts it knew."""

    made: list[StrawWorker]

    def __init__(self, options: dict[str, Any], key: bytes) -> None:
        if options.get("fails"):
            raise Broken("no box\x1b[2J")
        self.options, self.key = options, key
        self.texts: dict[str, str] = {}
        self.closed = False
        self.box = types.SimpleNamespace(layers=["walls"], close=self.close)
        StrawWorker.made.append(self)

    def close(self) -> None:
        self.closed = True

    def judge(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["code"] == "breaks":
            raise Broken("x" * 2000)
        return {"code": job["code"], "known": dict(self.texts)}


Loop = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    """Runs `main` with these lines from the scorer; gives what the scorer heard."""
    StrawWorker.made = []
    memory: list[int] = []
    path = list(sys.path)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGHUP)}
    threshold = gc.get_threshold()
    monkeypatch.setattr(worker, "_Worker", StrawWorker)
    monkeypatch.setattr(worker, "_limit_memory", memory.append)
    monkeypatch.setattr(worker.gc, "freeze", lambda: memory.append(-1))

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(worker.os, "_exit", end)

    def run(*lines: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
        ours, theirs = socket.socketpair()
        given = {"site": ["/lent"], "die_with_parent": False, "test_mb": 3, **options}
        monkeypatch.setattr(sys, "argv", ["x", str(theirs.detach()), json.dumps(given)])
        ours.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(Ended) as ended:
            worker.main()
        assert ended.value.args == (0,)
        with ours:
            ours.setblocking(False)
            heard = [json.loads(line) for line in ours.recv(1 << 16).splitlines()]
        return [*heard, {"memory": memory}]

    yield run
    sys.path[:] = path
    gc.set_threshold(*threshold)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_judge_says_what_holds_it_and_answers_each_job_in_order(loop: Loop) -> None:
    *said, _ = loop(
        {"key": "ab" * 4}, {"code": "a", "texts": {"t": "one"}}, {"code": "b"}, {"code": "c", "texts": {"u": "two"}}
    )
    assert said == [
        {"layers": ["walls"]}, {"code": "a", "known": {"t": "one"}}, {"code": "b", "known": {"t": "one"}},
        {"code": "c", "known": {"t": "one", "u": "two"}},
    ]  # fmt: skip
    (made,) = StrawWorker.made
    assert made.key == b"\xab" * 4 and made.closed and made.options["test_mb"] == 3


def test_a_judge_lends_packages_limits_its_memory_and_leaves_ends_to_the_scorer(loop: Loop) -> None:
    *_, seen = loop({"key": ""})
    assert seen["memory"] == [3 << 20, -1] and "/lent" in sys.path
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN is signal.getsignal(signal.SIGHUP)
    assert gc.get_threshold() == (20_000, 20, 50)


@pytest.mark.parametrize(("wanted", "platform", "asked"), [
    (True, "linux", 1), (False, "linux", 0), (True, "darwin", 0),
])  # fmt: skip
def test_a_judge_dies_with_its_scorer_where_that_can_be(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, wanted: bool, platform: str, asked: int
) -> None:
    from rune.sandbox.isolation import seccomp

    heard: list[int] = []
    monkeypatch.setattr(seccomp, "die_with_parent", lambda: heard.append(1))
    monkeypatch.setattr(worker.sys, "platform", platform)
    loop({"key": ""}, die_with_parent=wanted)
    assert len(heard) == asked


def test_what_a_judge_cannot_do_is_its_last_word(loop: Loop) -> None:
    *said, _ = loop({"key": ""}, fails=True)
    assert said == [{"broken": "'no box\\x1b[2J'"}]
    *said, _ = loop({"key": ""}, {"code": "a"}, {"code": "breaks"}, {"code": "b"})
    assert [sorted(one) for one in said] == [["layers"], ["code", "known"], ["broken"]]
    assert 400 < len(said[-1]["broken"]) <= 510 and not StrawWorker.made[-1].closed


# --------------------------------------------------------------------------- one conversation


TEST = "def check(candidate):\n    import random\n    assert candidate(3) == 9, random.random()\n"


def conversation(said: bytes, **job: Any) -> tuple[Any, BaseException | None, bytes]:
    """The link and the error of a test against a child that says all this at once; and what the child heard."""
    lane = worker._Worker.__new__(worker._Worker)
    lane.options = {"cpu_seconds": 2.0, "wall_seconds": 1.0, "test_seconds": 7.0}
    lane.key, lane.texts, lane.tasks = b"k" * 32, {"t": TEST, "p": ""}, {}
    seconds: list[float] = []

    def run(limit: float, ring: Any, step: Callable[[], object]) -> BaseException | None:
        seconds.append(limit)
        try:
            step()
        except BaseException as error:
            return error
        return None

    lane.alarm = types.SimpleNamespace(run=run)  # type: ignore[assignment]
    ours, theirs = socket.socketpair()
    lane.box = types.SimpleNamespace(child=lambda: ours)  # type: ignore[assignment]
    task = lane._task({"test": "t", "prelude": "p", "entry_point": "f"})
    random.seed()  # as another task's test may have left it
    theirs.sendall(said)
    with ours, theirs:
        link, error = lane._converse(task, {"code": "def f(x): ...", **job}, [])
        theirs.setblocking(False)
        heard = theirs.recv(1 << 16)
    assert seconds == [worker._FORESEE_SECONDS, 7.0]
    return link, error, heard


def test_a_test_that_returns_has_loaded_the_program_asked_it_and_heard_no_more() -> None:
    link, error, heard = conversation(frames.READY + frames.DONE + frames.value(9))
    assert error is None and link.finding is None and link.last_result == 9
    size, kind = child.HEAD.unpack_from(heard)
    loaded = heard[child.HEAD.size : child.HEAD.size + size]
    assert kind == child.LOAD and b"def f(x): ..." in loaded
    rest = heard[child.HEAD.size + size :]
    assert child.HEAD.unpack_from(rest)[1] == child.CALL and not link._alone
    assert conversation(frames.READY + frames.DONE + frames.value(9), alone=True)[0]._alone


def test_a_test_draws_the_same_numbers_for_every_program_of_its_task() -> None:
    drawn = set()
    for _ in range(2):
        _, error, _ = conversation(frames.READY + frames.DONE + frames.value(8))
        assert isinstance(error, AssertionError)
        drawn.add(str(error))
    assert len(drawn) == 1


def test_a_program_that_says_more_than_it_was_asked_has_not_passed() -> None:
    link, error, _ = conversation(frames.READY + frames.DONE + frames.value(9) + frames.value(9))
    assert error is link.finding and link.finding.kind is FailureKind.PROTOCOL


def test_a_test_too_slow_for_what_was_returned_is_a_timeout() -> None:
    lane = worker._Worker.__new__(worker._Worker)
    lane.options = {"cpu_seconds": 2.0, "wall_seconds": 1.0, "test_seconds": 7.0}
    lane.alarm = types.SimpleNamespace(run=lambda limit, ring, step: ring())  # type: ignore[assignment]
    ours, theirs = socket.socketpair()
    lane.box = types.SimpleNamespace(child=lambda: ours)  # type: ignore[assignment]
    with ours, theirs:
        link, error = lane._converse(None, {"code": ""}, [])  # type: ignore[arg-type]
    assert link.finding is error and link.finding is not None
    assert (link.finding.kind, link.finding.unsure) == (FailureKind.TIMEOUT, False)  # type: ignore[union-attr]


def test_a_test_that_does_not_compile_is_nobodys_verdict() -> None:
    lane = worker._Worker.__new__(worker._Worker)
    lane.key, lane.tasks = b"k" * 32, {}
    lane.texts = {"bad": "def check(", "t": TEST, "p": "", "bad p": "x = ("}
    for job in ({"test": "bad", "prelude": "p"}, {"test": "t", "prelude": "bad p"}):
        with pytest.raises(Broken, match="the test for f does not compile: "):
            lane._task({**job, "entry_point": "f"})


# --------------------------------------------------------------------------- the box of a judge


class StrawServer:
    """In the place of the fork server's process: it says hello through the descriptor that its command names."""

    hello: dict[str, Any]
    seen: dict[str, Any]

    def __init__(self, line: list[str], **how: Any) -> None:
        StrawServer.seen = {"line": line, **how}
        self.end = socket.socket(fileno=os.dup(int(line[2])))
        data = json.dumps(StrawServer.hello).encode()
        self.end.sendall(struct.pack("<I", len(data)) + data)

    def wait(self, timeout: float) -> None:
        StrawServer.seen["waited"] = timeout
        self.end.setblocking(False)
        assert self.end.recv(10) == b""  # the judge has let go of its end first
        self.end.close()
        if StrawServer.hello.get("stays"):
            raise worker.subprocess.TimeoutExpired("x", timeout)


@pytest.mark.parametrize("stays", [False, True])
def test_a_box_is_started_with_nothing_of_ours_and_says_what_holds_it(
    monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    monkeypatch.setattr(worker.subprocess, "Popen", StrawServer)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/moved")
    monkeypatch.setenv("SECRET", "no")
    StrawServer.hello = {"layers": ["walls", "memory"], "stays": stays}
    box = worker._Box(["run", "--control", "{control}", "fd={control}"])
    seen = StrawServer.seen
    number = seen["line"][2]
    assert seen["line"] == ["run", "--control", number, f"fd={number}"] and seen["pass_fds"] == [int(number)]
    assert seen["env"] == {"PYTHONHASHSEED": "0", "LD_LIBRARY_PATH": "/moved"}
    assert seen["stdin"] == worker.subprocess.DEVNULL and seen["close_fds"]
    with pytest.raises(OSError):
        os.fstat(int(number))  # the judge keeps no second end
    assert box.layers == ["walls", "memory"] and box._control.gettimeout() == worker._START_SECONDS == 60.0
    assert (box.last, box._ending, list(box._children)) == ((0, 0.0), False, [])
    box.close()
    assert StrawServer.seen["waited"] == 5


def test_a_box_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.subprocess, "Popen", StrawServer)
    StrawServer.hello = {"broken": "no walls"}
    with pytest.raises(Broken, match=r"^no walls$"):
        worker._Box(["run", "--control", "{control}"])


# --------------------------------------------------------------------------- the pool starts and ends its judges


class StrawLane:
    made: list[StrawLane]

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.said, self.closed = options, [], None
        self.jobs: list[int] = []
        StrawLane.made.append(self)

    def say(self, message: dict[str, Any]) -> None:
        self.said.append(message)

    def close(self, *, wait: float = 0.0) -> None:
        self.closed = wait


@pytest.fixture
def straw_lanes(monkeypatch: pytest.MonkeyPatch) -> list[StrawLane]:
    StrawLane.made = []
    monkeypatch.setattr(pool, "_Lane", StrawLane)
    monkeypatch.setattr(pool, "box_options", lambda limits: {"memory": limits.memory_mb})
    path = ["/a/site-packages", "/b", "/c/dist-packages", "/site-packages/x"]
    monkeypatch.setattr(pool, "sys", types.SimpleNamespace(path=path))
    return StrawLane.made


def start(**limits: Any) -> pool.Pool:
    return pool.Pool(Limits(workers=2, **limits), lambda options: ["launch", str(options["memory"])], name="fork")


def test_a_pool_starts_its_judges_with_limits_and_one_secret(
    straw_lanes: list[StrawLane], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready: list[Any] = []
    monkeypatch.setattr(pool.Pool, "_ready", lambda self, lane: ready.append((lane, len(straw_lanes))))
    with start(cpu_seconds=2.0, wall_seconds=7.0, memory_mb=99) as made:
        assert [(lane, 2) for lane in straw_lanes] == ready  # all are started before any is waited for
        limits = made.limits
        for lane in straw_lanes:
            assert lane.options == {
                "cpu_seconds": 2.0, "wall_seconds": 7.0, "test_seconds": limits.test_seconds,
                "test_mb": limits.test_mb, "site": ["/a/site-packages", "/c/dist-packages"], "die_with_parent": True,
                "box": ["launch", "99"],
            }  # fmt: skip
        ((key,), (other,)) = (lane.said for lane in straw_lanes)
        assert key == other and len(bytes.fromhex(key["key"])) == 32
        assert made._watch_seconds == 30.0 + 25.0 * 7.0 and made.workers == 2 and made.name == "fork"
        again = made._replace(1)
        assert straw_lanes[1].closed == 0.0 and made._lanes == [straw_lanes[0], straw_lanes[2]]
        assert again is straw_lanes[2] and again.said == [key] and ready[-1][0] is again  # type: ignore[comparison-overlap]
    assert made._closed and [lane.closed for lane in straw_lanes] == [5.0, 0.0, 5.0]
    monkeypatch.setattr(pool.secrets, "token_hex", lambda size: "00" * size)
    with start() as second:
        assert second._watch_seconds == 30.0 + 25.0 * 5.0 and straw_lanes[-1].said == [{"key": "00" * 32}]


def test_a_pool_that_another_thread_makes_lives_on_without_it(
    straw_lanes: list[StrawLane], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool.Pool, "_ready", lambda self, lane: None)
    thread = threading.Thread(target=lambda: start().close())
    thread.start()
    thread.join()
    assert [lane.options["die_with_parent"] for lane in straw_lanes] == [False, False]


@pytest.mark.parametrize("error", [SandboxError("no walls"), KeyboardInterrupt()])
def test_a_pool_that_does_not_start_leaves_no_judge_running(
    straw_lanes: list[StrawLane], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def ready(self: pool.Pool, lane: StrawLane) -> None:
        if lane is straw_lanes[1]:
            raise error

    monkeypatch.setattr(pool.Pool, "_ready", ready)
    with pytest.raises(type(error)):
        start()
    assert [lane.closed for lane in straw_lanes] == [5.0, 5.0]


def test_a_pool_that_is_forgotten_is_closed(straw_lanes: list[StrawLane], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.Pool, "_ready", lambda self, lane: None)
    made = start()
    made.__del__()
    assert made._closed and all(lane.closed is not None for lane in straw_lanes)
    for lane in straw_lanes:
        lane.closed = None
    made.__del__()
    pool.Pool.__new__(pool.Pool).__del__()  # one that was never made
    assert all(lane.closed is None for lane in straw_lanes)


def test_a_judge_is_a_process_with_one_end_of_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Process:
        def __init__(self, command: list[str], **how: Any) -> None:
            seen.update(how, command=command)
            seen["end"] = socket.socket(fileno=os.dup(int(command[-2])))

        def kill(self) -> None:
            seen["log"] = [*seen.get("log", []), "kill"]

        def wait(self, timeout: float | None = None) -> None:
            seen["log"] = [*seen.get("log", []), timeout]
            if timeout == 2.5:
                raise pool.subprocess.TimeoutExpired("x", timeout)

    monkeypatch.setattr(pool.subprocess, "Popen", Process)
    lane = pool._Lane({"a": 1})
    number = int(seen["command"][-2])
    assert json.loads(seen["command"][-1]) == {"a": 1} and seen["pass_fds"] == [number]
    assert "judging.test_worker" in seen["command"][-3]
    assert seen["stdin"] == seen["stdout"] == pool.subprocess.DEVNULL and "stderr" not in seen
    assert lane.socket.getblocking() is False and lane.layers is None and not lane.jobs
    seen["end"].sendall(b'{"x": 2}\n')
    assert lane.receive() == [{"x": 2}]
    for wait, log in ((0.0, ["kill", None]), (2.5, [2.5, "kill", None])):
        seen["log"] = []
        lane.close(wait=wait)
        assert seen["log"] == log
    seen["end"].setblocking(False)
    assert seen["end"].recv(1) == b""
    seen["end"].close()


def test_a_round_leaves_no_selector_open_however_it_ends() -> None:
    found, _ = pools.straw_pool(lambda _: pools.PASSED)
    whole = pool._Round(found, iter([pools.program("a")]))
    list(whole.run())
    cut = pool._Round(found, iter([pools.program("b"), pools.program("c")]))
    each = cut.run()
    next(each)
    assert cut.selector.get_map() is not None
    each.close()
    assert whole.selector.get_map() is None is cut.selector.get_map()


# --------------------------------------------------------------------------- small ends of the protocol


def test_values_are_marshalled_to_the_same_depth_whatever_holds_them() -> None:
    def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = wrap(value)
        return value

    for wrap in (lambda v: [v], lambda v: (v,), lambda v: {1: v}, lambda v: {v: 1} if v == 1 else {1: v}):
        assert codec._marshals(nested(5, wrap), 5) and not codec._marshals(nested(6, wrap), 5)
    assert codec._marshals({(1, (2,)): 1}, 3) and not codec._marshals({(1, (2,)): 1}, 2)
    assert codec._marshals([{1: [2]}], 3) and not codec._marshals([{1: [2]}], 2)


@pytest.mark.parametrize("operation", ["observe", "getattr", "call"])
def test_what_is_foreseen_ends_where_an_answer_would_matter(operation: str) -> None:
    script = ahead.Script()
    recorder = ahead._Recorder(script.calls)
    blank = recorder.operate("call", "f", 1)
    with pytest.raises(ahead.Enough):
        recorder.operate(operation, blank if operation == "call" else "f", 2)
    with pytest.raises(ahead.Enough):
        recorder.operate("call", "f", 3)  # also for a test that caught the first
    with pytest.raises(ahead.Enough):
        recorder.construct("call", "A")
    assert len(script.calls) == 1


def test_where_the_system_does_not_say_how_large_a_process_is_it_has_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no /proc here")

    monkeypatch.setattr("builtins.open", refuse)
    assert worker._address_space() == 0 and isinstance(worker._address_space(), int)


def test_whose_clock_to_read_is_the_kernel_s_word() -> None:
    if not hasattr(socket, "SO_PASSCRED"):
        pytest.skip("needs Linux")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        link = connection.Link(ours, cpu_seconds=1.0, wall_seconds=1.0)
        theirs.sendall(frames.READY)
        assert link._arrived() and link._pid == os.getpid()

        def waited() -> float:
            return int(Path(f"/proc/{os.getpid()}/schedstat").read_text(encoding="utf-8").split()[1]) / 1e9

        before, queued, after = waited(), link._queued(), waited()
        assert before <= queued <= after
        assert link._in_kernel() <= os.times().system + 0.02


@pytest.mark.parametrize("size", range(child.HEAD.size + 3))
def test_a_word_that_has_not_come_whole_when_the_test_is_over_is_no_finding(size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = connection.Link(ours, cpu_seconds=1.0, wall_seconds=1.0)
        frames.load(link, [frames.call(1)])
        link._loading = False
        theirs.sendall(frames.frame(child.READY, b"what is said here does not count yet")[:size])
        link.finish()


def test_what_one_message_may_hold_is_part_of_what_a_verdict_means() -> None:
    """Another cap could turn a verdict: it is a new version of the scorer."""
    assert codec.OUT == (64 * 2**20, 100, 8_000_000, 4 * 2**20, 65_536, 10_000, 100_000)
    assert codec.IN == (512 * 2**20, 130, 64_000_000, 32 * 2**20, 524_288, 80_000, 800_000)
    kinds = {"set": 4, "deque": 14, "Counter": 6, "OrderedDict": 6, "defaultdict": 6, "array": 8, "handle": 4}
    assert kinds == codec.WEIGHTS


PLAIN: list[tuple[type, Any]] = [
    (str, "ab\ud800"), (int, -(1 << 70)), (int, 5), (float, -0.5), (bytes, b"a\0"), (bytearray, bytearray(b"b")),
    (list, [1, "x"]), (tuple, (1, 2)), (set, {1}), (frozenset, frozenset({2})), (dict, {"k": [1]}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), PLAIN, ids=lambda v: getattr(v, "__name__", None))
def test_a_subclass_of_every_plain_type_crosses_as_its_content(kind: type, value: Any) -> None:
    def refuse(_: object) -> Any:
        raise AssertionError("asked about")

    def lie(self: Any, *_: Any) -> Any:
        raise AssertionError("asked itself")

    lies = dict.fromkeys(("__eq__", "__len__", "__iter__", "__str__", "__add__", "__pos__", "items", "encode"), lie)
    lying = type("Lying", (kind,), {**lies, "__hash__": None})(value)
    data = codec.encode(lying, refuse)
    back = decode.decode(data, refuse)
    assert type(back) is kind and back == value
    assert data == codec.encode(value, refuse)
