"""The examples of docs/clients.md, unchanged, with the real packages, through a proxy that cuts connections."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from sse.event import EndReason, Event
from sse.stores import connect
from tests.docs import CLIENTS_ADDRESS, LOAD, code_blocks, section
from tests.proxies import EventCuttingProxy
from tests.publishing import publish
from tests.servers import ROOT, Gunicorn, HttpServer, RedisServer, wait_until
from tests.tokens import KEY
from tests.writing import Run

PAGE = (ROOT / "docs" / "clients.md").read_text()
# As in a browser: the package asks these for the page's visibility and its timers.
WINDOW = "globalThis.window = globalThis;\nglobalThis.document = new EventTarget();\n"


class Program(NamedTuple):
    """A block of the page.

    Its heading, how it is started, the change that has it print a text, how many requests it makes to follow a run from
    before its end, and the code that Node needs before it.
    """

    heading: str
    command: str
    suffix: str
    for_text: tuple[str, str]
    requests: int
    before: str = ""


PYTHON = 'print(json.loads(event.data)["number"], flush=True)', 'print(event.data, end="", flush=True)'
NODE = (
    '"paid", (event) => console.log(JSON.parse(event.data).number)',
    '"text", (event) => process.stdout.write(event.data)',
)
FETCH = "console.log(JSON.parse(data).number)", "process.stdout.write(data)"
SHELL = 'printf %s "$data"', "printf %s \"${data%$'\\n'}\""
PROGRAMS = {
    "httpx-sse": Program("Python: httpx and httpx-sse", sys.executable, ".py", PYTHON, 3),  # a 410, a stream, the end
    "sseclient-py": Program("Python: requests and sseclient-py", sys.executable, ".py", PYTHON, 3),
    "eventsource": Program("Node: eventsource", "node", ".mjs", NODE, 2),
    "fetch-event-source": Program("Browser: fetch-event-source", "node", ".mjs", FETCH, 1, WINDOW),
    "curl": Program("Shell: curl", "bash", ".sh", SHELL, 2),
}


NODES = ("eventsource", "@microsoft/fetch-event-source", "ai")
# Sends a message by the transport of the page, and prints the answer that the package makes of its parts.
ASK = """
const { readUIMessageStream } = await import("ai");
const text = Array.from({ length: 300 }, (_, number) => number).join(" ");
const messages = [{ id: "1", role: "user", parts: [{ type: "text", text }] }];
const stream = await transport.sendMessages({ trigger: "submit-message", chatId: "7", messages });
let message;
for await (message of readUIMessageStream({ stream, terminateOnError: true }));
console.log(JSON.stringify(message.parts));
"""


def blocks(heading: str) -> list[str]:
    """Return the code blocks below a heading of the page."""
    return [code for _, code in code_blocks(section(PAGE, heading))]


VIEW, TRANSPORT = blocks("AI SDK: parts of an answer")


NUMBER = b'data: {"number":'  # how the data of an event begins


def port_of(server: Gunicorn) -> int:
    return int(server.bind.rpartition(":")[2])


class Running:
    """A program of the page, perhaps with changes, that runs behind its own proxy.

    `output` is what it has printed, and `heard` has the numbers in its lines.
    """

    def __init__(self, directory: Path, name: str, upstream: int, *changes: tuple[str, str]) -> None:
        program = PROGRAMS[name]
        (code,) = blocks(program.heading)
        assert CLIENTS_ADDRESS in code
        for before, after in changes:
            assert code.count(before) == 1
            code = code.replace(before, after)
        self.name = name
        self.proxy = EventCuttingProxy(upstream, NUMBER)
        self.dir = directory / name
        self.dir.mkdir()
        (self.dir / "node_modules").symlink_to(ROOT / "tests" / "node_modules")
        self.file = self.dir / f"program{program.suffix}"
        self.file.write_text(program.before + code.replace(CLIENTS_ADDRESS, self.proxy.url))
        self.command = [program.command, str(self.file)]
        self.heard: list[str] = []
        self.output = ""

    def __enter__(self) -> Self:
        self.proxy.__enter__()
        with (self.dir / "errors").open("wb") as errors:
            self.process = subprocess.Popen(
                self.command, cwd=self.dir, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.proxy.__exit__()  # ends what the program has left running, such as curl
        self.process.wait(10)
        self.reader.join(10)

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.output += line
                self.heard.append(LOAD if line.startswith(LOAD) else re.sub(r"\D", "", line))

    def errors(self) -> str:
        return (self.dir / "errors").read_text()


@contextlib.contextmanager
def unavailable(port: int) -> Iterator[None]:
    """Answer every request on this port as nginx.conf does while the service is away."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if "form=bare" in self.path:
                self.send_error(503)
                return
            if "end=cut" in self.path:
                self.close_connection = True  # without an answer
                return
            body = b'retry: 300\nevent: sse.close\ndata: {"reason":"busy","retry":300}\n\n'
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HttpServer(("127.0.0.1", port), Handler):
        yield


Story = list[str]
"""The lines that each program has to print: the events, and when to load the state."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Running], Story]]:
    """All programs, run side by side through the end of a lifetime, a cut within an event, errors, and two gaps."""
    directory = tmp_path_factory.mktemp("clients")
    redis = RedisServer(directory)
    env = {
        "SSE_REDIS_URL": redis.url,
        "SSE_PUBLIC": "orders",
        "SSE_PUBLISH_KEYS": KEY,
        "SSE_RETRY": "300",
        "SSE_STREAM_LIFETIME": "5",
    }
    numbers = iter(range(1, 10_000))

    with contextlib.ExitStack() as stack:
        stack.enter_context(redis)
        server = stack.enter_context(Gunicorn(directory, env=env))
        programs = [stack.enter_context(Running(directory, name, port_of(server))) for name in PROGRAMS]

        story = [LOAD]

        def publish_next(count: int = 1) -> None:
            for number in (next(numbers) for _ in range(count)):
                publish(server, "orders", {"number": number}, type="paid")
                story.append(str(number))

        def lose() -> None:
            """Have Redis lose all data."""
            with redis.client() as connection:
                connection.flushall()
            story.append(LOAD)

        def all_of(what: str, check: Callable[[Running], object], timeout: float = 30) -> None:
            def missing() -> list[Running]:
                return [one for one in programs if not check(one)]

            try:
                wait_until(lambda: not missing(), timeout, what=what)
            except AssertionError as error:
                for one in missing():
                    error.add_note(f"{one.name}: {one.heard}, not {story} {one.errors()}")
                raise

        all_of("streams", lambda one: one.heard == story and one.proxy.streams)
        publish_next(3)
        all_of("the first events", lambda one: one.heard == story)
        begun = {one.name: one.proxy.streams for one in programs}
        all_of("the next stream", lambda one: one.proxy.streams > begun[one.name])
        for one in programs:
            one.proxy.to_cut = 2
        publish_next()
        all_of("cuts in the middle of an event", lambda one: one.proxy.cuts == 2)
        publish_next(3)
        all_of("events after the cuts", lambda one: one.heard == story)
        for one in programs:
            one.proxy.refuse()
            one.proxy.cut()
        server.stop()
        with unavailable(port_of(server)):
            for one in programs:
                one.proxy.asked = 0
                one.proxy.admit()
            all_of("errors, or no answer", lambda one: one.proxy.errors or one.proxy.asked > 1)
            for one in programs:
                one.proxy.refuse()
                one.proxy.cut()
        server.start()
        for one in programs:
            one.proxy.admit()
        publish_next(3)
        all_of("events after the errors", lambda one: one.heard == story)
        for one in programs:
            one.proxy.refuse()
            one.proxy.cut()
        lose()
        for one in programs:
            one.proxy.admit()
        all_of("a gap while they were away", lambda one: one.heard == story)
        publish_next(3)
        all_of("events after that", lambda one: one.heard == story)
        lose()
        all_of("a gap in the middle of a stream", lambda one: one.heard == story)
        publish_next(3)
        all_of("events after that, too", lambda one: one.heard == story)
        yield {one.name: one for one in programs}, story


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_event_comes_once_and_in_order_and_a_gap_is_told(ran: tuple[dict[str, Running], Story], name: str) -> None:
    programs, story = ran
    assert programs[name].heard == story
    assert not [line for line in programs[name].errors().splitlines() if not line.startswith("curl: (")]
    assert programs[name].process.poll() is None


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Gunicorn]:
    env = {"SSE_REDIS_URL": redis.url, "SSE_PUBLIC": "orders", "SSE_RETRY": "300"}
    with Gunicorn(tmp_path_factory.mktemp("ends"), env=env) as server:
        yield server


@pytest.fixture
def run(redis: RedisServer) -> Iterator[Run]:
    """A run on the channel of the programs."""
    with redis.client() as connection:
        connection.flushall()
    store = connect(redis.url, ring=1000, ring_ttl=3600)
    yield Run(store, "orders")
    store.close()


@pytest.mark.parametrize("reason", ["done", "failed"])
@pytest.mark.parametrize("as_text", [False, True], ids=["events", "text"])
def test_a_program_stops_by_itself_after_the_end_of_a_run(
    server: Gunicorn, run: Run, tmp_path: Path, reason: EndReason, as_text: bool
) -> None:
    items = [f"{number} é\n\n{number}" if as_text else Event(f'{{"number":{number}}}', "paid") for number in range(300)]
    run.write(*items[:200])
    with contextlib.ExitStack() as stack:
        programs = [
            stack.enter_context(Running(tmp_path, name, port_of(server), *([program.for_text] if as_text else [])))
            for name, program in PROGRAMS.items()
        ]

        def are_on() -> bool:
            run.renew()
            return all(one.proxy.streams for one in programs)

        wait_until(are_on, 20, what="streams")
        run.write(*items[200:])
        run.end(reason)
        for one in programs:
            assert one.process.wait(15) == 0, one.name
            one.reader.join(10)
        time.sleep(3)
        for one in programs:
            assert one.proxy.asked == PROGRAMS[one.name].requests, one.name
            assert one.errors() == ""
            assert one.heard[:1] == [LOAD], "none of them begins with a position"
            if as_text:
                assert one.output.removeprefix(f"{LOAD}\n") == "".join(items), one.name
            else:
                assert one.heard[1:] == [str(number) for number in range(300)], one.name


def test_a_program_that_misses_the_end_of_its_last_stream_stops_at_the_204(
    server: Gunicorn, run: Run, tmp_path: Path
) -> None:
    run.write(Event('{"number":1}', "paid"))
    at_the_end = ('lastEventId = ""', f'lastEventId = "orders={run.end()}"')
    with Running(tmp_path, "fetch-event-source", port_of(server), at_the_end) as one:
        assert one.process.wait(15) == 0
        assert (one.proxy.asked, one.heard, one.errors()) == (1, [], "")


def test_a_program_that_is_refused_ends(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Gunicorn(tmp_path))  # where no channel is public
        programs = [stack.enter_context(Running(tmp_path, name, port_of(server))) for name in PROGRAMS]
        for one in programs:
            assert one.process.wait(15) > 0, one.name
    assert [one.heard for one in programs] == [[]] * len(PROGRAMS)


def ask(
    directory: Path, app: str, *, to_cut: int = 0, transport: str = TRANSPORT
) -> tuple[subprocess.CompletedProcess[str], EventCuttingProxy]:
    """Run the page's view, or a changed one, and send it a message by the page's transport."""
    (directory / "chat.py").write_text(app)
    (directory / "node_modules").symlink_to(ROOT / "tests" / "node_modules")
    server = Gunicorn(directory, app="chat:app", env={"PYTHONPATH": str(directory)})
    with server, EventCuttingProxy(port_of(server), b'data: {"type":"text-delta"', to_cut) as proxy:
        program = directory / "chat.mjs"
        program.write_text(transport.replace(CLIENTS_ADDRESS, proxy.url) + ASK)
        return subprocess.run(["node", str(program)], capture_output=True, text=True, timeout=60), proxy


def test_an_answer_in_parts_is_whole_though_its_stream_is_cut(tmp_path: Path) -> None:
    done, proxy = ask(tmp_path, VIEW, to_cut=3)
    assert done.stderr == ""
    (part,) = json.loads(done.stdout)
    assert part["text"] == f"You said: {' '.join(map(str, range(300)))} "
    assert (proxy.cuts, proxy.streams) == (3, 4)


def test_an_answer_that_fails_is_an_error(tmp_path: Path) -> None:
    part = '    yield {"type": "text-end", "id": "t"}\n'
    assert part in VIEW
    done, proxy = ask(tmp_path, VIEW.replace(part, '    raise ValueError("no model")\n'))
    assert "Error: refused: 410" in done.stderr
    assert done.returncode == 1
    assert proxy.asked == 2


def test_an_answer_whose_end_is_missed_is_whole(tmp_path: Path) -> None:
    """The last thing that comes of the first stream is the last event before the end."""
    assert TRANSPORT.count('/^: end .*"done"/') == 1
    done, proxy = ask(tmp_path, VIEW, transport=TRANSPORT.replace('/^: end .*"done"/', "/^: never/"))
    assert done.stderr == ""
    (part,) = json.loads(done.stdout)
    assert part["text"] == f"You said: {' '.join(map(str, range(300)))} "
    assert (proxy.asked, proxy.streams) == (2, 1)


def test_an_answer_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    rule = 'return channel.startswith("answer/")'
    assert rule in VIEW
    done, _ = ask(tmp_path, VIEW.replace(rule, "return False"))
    assert "Error: refused: 403" in done.stderr
    assert done.returncode == 1


def test_every_block_of_the_page_is_run() -> None:
    run = [program.heading for program in PROGRAMS.values()] + ["AI SDK: parts of an answer"]
    assert PAGE.count("\n```") == 2 * sum(len(blocks(heading)) for heading in run)


def test_the_page_names_the_versions_that_are_tried() -> None:
    modules = ROOT / "tests" / "node_modules"
    pythons = [(name, version(name)) for name in ("httpx", "httpx-sse", "requests", "sseclient-py")]
    nodes = [
        (name.rpartition("/")[2], json.loads((modules / name / "package.json").read_text())["version"])
        for name in NODES
    ]
    table = PAGE.partition("| client |")[2].partition("\n\n")[0]
    for name, tried in pythons + nodes:
        assert re.search(rf"\b{name} {re.escape(tried)}\b", table), f"{name} is {tried} here"
