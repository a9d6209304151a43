"""What a crowd of hostile clients costs the others: python bench/load.py

1,000 connections that do nothing, 50 senders of garbage and a subscriber that never reads, while a dag runs.
Prints a Markdown table: how long a `ping` takes, how long the dag takes and how large the daemon is, before and under
this load. The crowd and the one who pings are processes of their own, so that they measure jobd and not each other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import selectors
import socket
import statistics
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

from daemon import Daemon
from peers import layers
from run import AT_ONCE, Figure, machine, print_figures, toml

IDLE, GARBAGE = 1_000, 50
JOBS, ROUNDS = 200, 15
PINGS = 2_000
#: Between two pings, so that they are no load themselves.
PING_PAUSE_S = 0.002
PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
SUBSCRIBE = b'{"jsonrpc":"2.0","id":1,"method":"subscribe","params":{"since":0}}\n'


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


# ---- the crowd -------------------------------------------------------------------------------------


def crowd(path: str, lines_per_s: float, told: Connection, ending: Event) -> None:
    """Be the crowd, in this process. Tells how many of the idle ones are served once all of them are there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, IDLE + GARBAGE + 100), hard))
    deaf = connect(path)
    deaf.sendall(SUBSCRIBE)
    senders = [connect(path) for _ in range(GARBAGE)]
    idle = [connect(path) for _ in range(IDLE)]
    told.send(sum(is_served(sock) for sock in idle))
    send_garbage(path, senders, lines_per_s, ending)


def is_served(sock: socket.socket) -> bool:
    try:
        sock.sendall(PING)
    except BrokenPipeError:
        pass  # turned away; why is read next
    return b"result" in sock.recv(10_000)


def send_garbage(path: str, senders: list[socket.socket], lines_per_s: float, ending: Event) -> None:
    """From all of them, as fast as it is taken or at most so many lines a second in all."""
    dice = random.Random(1)
    selector = selectors.DefaultSelector()
    for sock in senders:
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, sock)
    sent, began = 0, time.monotonic()
    while not ending.is_set():
        for key, mask in selector.select(0.1):
            sock = key.data
            try:
                if mask & selectors.EVENT_READ:
                    sock.recv(1 << 16)
                if mask & selectors.EVENT_WRITE:
                    sock.send(dice.randbytes(100).replace(b"\n", b" ") + b"\n")
                    sent += 1
            except (BlockingIOError, ConnectionError):
                pass  # it has to wait, or jobd has left
        if lines_per_s:
            time.sleep(max(0.0, began + sent / lines_per_s - time.monotonic()))


# ---- who measures ----------------------------------------------------------------------------------


def pinger(sock: socket.socket, told: Connection, ending: Event) -> None:
    """Ping until the end; tells the times in ms."""
    took_ms = []
    while not ending.is_set():
        began = time.perf_counter()
        sock.sendall(PING)
        sock.recv(10_000)
        took_ms.append(1000 * (time.perf_counter() - began))
        time.sleep(PING_PAUSE_S)
    told.send(took_ms)


class Helper:
    """A function in a process of its own; `told` is what it has to say."""

    def __init__(self, function: object, *arguments: object) -> None:
        context = multiprocessing.get_context("fork")  # it gets our sockets
        self._ending = context.Event()
        self.told, end = context.Pipe(duplex=False)
        self._process = context.Process(target=function, args=(*arguments, end, self._ending))  # type: ignore[arg-type]
        self._process.start()

    def end(self) -> None:
        self._ending.set()

    def join(self) -> None:
        self._process.join()


def measure(jobd: Daemon, sock: socket.socket, under: str, aim_ms: str) -> list[Figure]:
    """Pings while nothing runs, the dag, and pings while it runs."""
    figures = []
    for what in ("nothing runs", "the dag runs"):
        helper = Helper(pinger, sock)
        if what == "nothing runs":
            time.sleep(PINGS * PING_PAUSE_S)
        else:
            dag = Figure(f"dag, {under}", "s", f"{JOBS} x sh -c 'exit 0' in layers, {AT_ONCE} at once")
            dag.rounds += [jobd.run("night") for _ in range(ROUNDS)]
            figures.append(dag)
        helper.end()
        took_ms = sorted(helper.told.recv())
        helper.join()
        how = f"{len(took_ms)} pings while {what}"
        figures.append(Figure(f"ping, {under}, median", "ms", how, "", [statistics.median(took_ms)]))
        figures.append(Figure(f"ping, {under}, p99", "ms", how, aim_ms, [took_ms[int(0.99 * len(took_ms))]]))
    rss_mb = jobd.own()[0].memory_info().rss / 1e6
    return [*figures, Figure(f"memory, {under}", "MB", "resident, jobd itself", "flat" if aim_ms else "", [rss_mb])]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure jobd among hostile clients.")
    parser.add_argument(
        "--lines-per-s", type=float, default=0, help="of garbage in all (default: as fast as jobd takes it)"
    )
    options = parser.parse_args()
    print("; ".join(f"{key}: {value}" for key, value in machine().items()), end="\n\n")
    with Daemon(toml({"night": layers(JOBS, 20)})) as jobd:
        jobd.run("night")
        sock = connect(jobd.socket_path)  # before there is no place left
        figures = measure(jobd, sock, "alone", "")
        helper = Helper(crowd, jobd.socket_path, options.lines_per_s)
        served = Figure("connections served", "", f"of {IDLE} + {GARBAGE} + 3", "250 or more")
        served.rounds.append(helper.told.recv() + GARBAGE + 2)
        figures += [served, *measure(jobd, sock, "crowded", "under 50")]
        helper.end()
        helper.join()
    print_figures(figures)


if __name__ == "__main__":
    main()
