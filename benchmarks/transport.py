"""MB/s of one large message down to a device and up again: TLS on loopback, both ends in one process.

    python benchmarks/transport.py [--mib 50] [--times 3]

Measures Flower's Fleet API as Headwater mounts it: signatures, hashes and the request authenticator included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' server on loopback

from headwater.flower import unpack
from tests.flower_layer.deployment import running


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=50)
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    size = args.mib * 2**20
    down, up, calls = [], [], []
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), max_reply=size) as server:
        agent = server.connect(server.enrol("a"))
        agent.activate()
        for _ in range(args.times):
            data = os.urandom(size)
            message_id = server.send("a", envelope=b"", state=data)
            at = [time.perf_counter()]
            delivery = agent.receive()
            at.append(time.perf_counter())
            agent.reply(delivery, data)
            at.append(time.perf_counter())
            (reply,) = server.pull(message_id)
            assert unpack(reply.content, "reply") == (delivery.parts["state"],) == (data,)
            down.append(size / 1e6 / (at[1] - at[0]))
            up.append(size / 1e6 / (at[2] - at[1]))
            began = time.perf_counter()
            for _ in range(50):
                agent.heartbeat()
            calls.append((time.perf_counter() - began) / 50 * 1e3)
        agent.close()
    print(f"{args.mib} MiB, median of {args.times}:")
    print(f"down {statistics.median(down):.0f} MB/s, up {statistics.median(up):.0f} MB/s")
    print(f"a call (heartbeat) {statistics.median(calls):.1f} ms")


if __name__ == "__main__":
    main()
