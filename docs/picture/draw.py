#!/usr/bin/env python3
"""Draws ../tenants.svg: tenants' usage over time, one of them flooding.

    cargo build --release -p tenant-server
    pip install matplotlib
    docs/picture/draw.py target/release/tenant-server

Three tenants live in one process. "steady" and "small" keep a working set and read it all the
time; "flood" begins to write fresh keys as fast as it can, and is flushed at the end. What is
drawn is what the server answers to `INFO tenants`, sampled every 50 ms.
"""

import pathlib
import socket
import subprocess
import sys
import threading
import time

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

MIB = 1 << 20
TENANTS = {1: ("steady", 48), 2: ("small", 16), 3: ("flood", 64)}
FLOOD_FROM, FLOOD_TO, FLUSH_AT, END = 3.0, 12.0, 14.0, 17.0


class Client:
    """A connection to one database that sends commands in batches."""

    def __init__(self, address, database):
        self.socket = socket.create_connection(address)
        self.reader = self.socket.makefile("rb")
        self.batch([("SELECT", str(database))])

    def batch(self, commands):
        out = bytearray()
        for command in commands:
            parts = [part if isinstance(part, bytes) else part.encode() for part in command]
            out += b"*%d\r\n" % len(parts)
            for part in parts:
                out += b"$%d\r\n%s\r\n" % (len(part), part)
        self.socket.sendall(out)
        return [self.reply() for _ in commands]

    def reply(self):
        line = self.reader.readline()
        if line[:1] == b"$" and line[1:2] != b"-":
            return self.reader.read(int(line[1:]) + 2)[:-2]
        return line.rstrip()


def keep_busy(address, database, mib, stop):
    """Fills a working set of `mib` and reads it, counting misses."""
    client, keys = Client(address, database), mib * 800
    value, misses, turn = b"v" * 1000, 0, 0
    for first in range(0, keys, 100):
        client.batch([("SET", f"k{i}", value) for i in range(first, first + 100)])
    while not stop.is_set():
        turn = (turn + 7919) % keys
        answers = client.batch([("GET", f"k{(turn + i) % keys}") for i in range(20)])
        misses += sum(len(answer) < 1000 for answer in answers)
        time.sleep(0.002)
    print(f"{TENANTS[database][0]}: {misses} misses of its {keys} keys")


def flood(address, start):
    time.sleep(FLOOD_FROM)
    client, value, key = Client(address, 3), b"f" * 1000, 0
    while time.monotonic() - start < FLOOD_TO:
        client.batch([("SET", f"f{key + i}", value) for i in range(100)])
        key += 100
    time.sleep(max(0, FLUSH_AT - (time.monotonic() - start)))
    client.batch([("FLUSHDB",)])
    print(f"flood: {key} keys written")


def usages(client):
    text = client.batch([("INFO", "tenants")])[0].decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("db"):
            name, fields = line.split(":", 1)
            fields = dict(field.split("=", 1) for field in fields.split(","))
            found[int(name[2:])] = int(fields["usage"]) / MIB
    return found


def main():
    limits = [f"--tenant={n}={mib}mb" for n, (_, mib) in TENANTS.items()]
    command = [sys.argv[1], "--port", "0", "--total-max", "128mb", *limits]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        host, port = server.stdout.readline().split()[-1].rsplit(":", 1)
        address, start, stop = (host, int(port)), time.monotonic(), threading.Event()
        work = [
            threading.Thread(target=keep_busy, args=(address, 1, 30, stop)),
            threading.Thread(target=keep_busy, args=(address, 2, 8, stop)),
            threading.Thread(target=flood, args=(address, start)),
        ]
        for thread in work:
            thread.start()
        sampler, samples = Client(address, 0), []
        while (now := time.monotonic() - start) < END:
            samples.append((now, usages(sampler)))
            time.sleep(0.05)
        stop.set()
        for thread in work:
            thread.join()
    finally:
        server.terminate()
        server.wait()
    plot(samples)


def plot(samples):
    plt.rcParams["svg.hashsalt"] = "memcg"
    figure, axes = plt.subplots(figsize=(8, 3.4))
    for (number, (name, mib)), colour in zip(TENANTS.items(), ("C0", "C2", "C3")):
        line = [(t, usage.get(number, 0)) for t, usage in samples]
        axes.plot(*zip(*line), colour, label=f"{name}: max {mib} MiB", linewidth=1.6)
        axes.axhline(mib, color=colour, linestyle=":", linewidth=1)
    axes.axvspan(FLOOD_FROM, FLOOD_TO, color="C3", alpha=0.07)
    axes.text((FLOOD_FROM + FLOOD_TO) / 2, 70, "flood writes fresh keys", ha="center", color="C3")
    axes.annotate("FLUSHDB", (FLUSH_AT, 32), rotation=90, ha="right", va="center", color="C3")
    axes.set(xlabel="seconds", ylabel="usage, MiB", xlim=(0, END), ylim=(0, 78))
    axes.legend(loc=(0.27, 0.4), fontsize=8)
    figure.tight_layout()
    figure.savefig(pathlib.Path(__file__).parent.parent / "tenants.svg", metadata={"Date": None})
    peak = max(usage.get(3, 0) for _, usage in samples)
    print(f"flood at most {peak:.3f} MiB in {len(samples)} samples")


if __name__ == "__main__":
    main()
