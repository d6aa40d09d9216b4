"""Namespace: a device's own network: a namespace, a pair of interfaces, and the kernel's queues between."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

from tests.faults.fleet import FAR_HOST, Fleet
from tests.faults.proxy import Proxy

NAME, NEAR, FAR = "hw-faults", "hwf0", "hwf1"
FAR_DEVICE = "10.219.77.2"


def allowed() -> bool:
    """Whether this machine lets us make one."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
        return False
    made = subprocess.run(["ip", "netns", "add", f"{NAME}-try"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", f"{NAME}-try"], capture_output=True, check=False)
    return made.returncode == 0


class Namespace:
    """Use it as a context. ``prefix`` runs a command in it; it reaches this machine as ``FAR_HOST``."""

    prefix = ("ip", "netns", "exec", NAME)

    def __enter__(self) -> Namespace:
        self.__exit__()
        _do(f"ip netns add {NAME}")
        _do(f"ip link add {NEAR} type veth peer name {FAR}")
        for end in (NEAR, FAR):  # packets as on a real line, not 64 kB at once
            _do(f"ip link set {end} gso_max_segs 1")
        _do(f"ip link set {FAR} netns {NAME}")
        _do(f"ip addr add {FAR_HOST}/30 dev {NEAR}")
        _do(f"ip link set {NEAR} up")
        self._inside(f"ip addr add {FAR_DEVICE}/30 dev {FAR}")
        self._inside(f"ip link set {FAR} up")
        self._inside("ip link set lo up")
        return self

    def __exit__(self, *error: object) -> None:
        for command in (f"ip link del {NEAR}", f"ip netns del {NAME}"):
            subprocess.run(command.split(), capture_output=True, check=False)

    def cut(self) -> None:
        """No packet passes, and neither end is told."""
        _do(f"ip link set {NEAR} down")

    def mend(self) -> None:
        _do(f"ip link set {NEAR} up")

    def limit(self, kilobytes_per_s: int) -> None:
        """Each way."""
        rate = f"root tbf rate {8 * kilobytes_per_s}kbit burst 8kb latency 400ms"
        _do(f"tc qdisc replace dev {NEAR} {rate}")
        self._inside(f"tc qdisc replace dev {FAR} {rate}")

    def lose(self) -> None:
        """Every sixteenth packet of a connection, each way: those whose IP id ends in 5 (a SYN-ACK has 0)."""
        for run, device in ((_do, NEAR), (self._inside, FAR)):
            run(f"tc qdisc replace dev {device} root handle 1: htb default 10")
            run(f"tc class add dev {device} parent 1: classid 1:10 htb rate 1gbit")
            run(f"tc class add dev {device} parent 1: classid 1:20 htb rate 8bit burst 1 cburst 1")
            run(f"tc qdisc add dev {device} parent 1:20 handle 20: pfifo limit 0")
            match = "u32 match u16 0x0005 0x000f at 4"
            run(f"tc filter add dev {device} parent 1: protocol ip {match} flowid 1:20")

    def lost(self) -> int:
        """Packets that were dropped."""
        said = subprocess.run(
            ["tc", "-s", "qdisc", "show", "dev", NEAR], capture_output=True, text=True, check=True
        ).stdout
        said += subprocess.run(
            [*self.prefix, "tc", "-s", "qdisc", "show", "dev", FAR],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        parts = said.split("qdisc pfifo 20:")[1:]
        return sum(int(part.split("dropped ")[1].split(",")[0]) for part in parts)

    def clear(self) -> None:
        for prefix, device in (((), NEAR), (self.prefix, FAR)):
            command = [*prefix, "tc", "qdisc", "del", "dev", device, "root"]
            subprocess.run(command, capture_output=True, check=False)

    def _inside(self, command: str) -> None:
        _do(" ".join((*self.prefix, command)))


@contextlib.contextmanager
def in_namespace(fleet: Fleet, number: int, namespace: Namespace) -> Iterator[Proxy]:
    """This device of the fleet lives there; it is ended before and after, and not started.

    Yields:
        What counts its bytes.
    """
    proxy = Proxy(fleet.network.ports[0], FAR_HOST)
    name, agent = fleet.names[number], fleet.agents[number]
    before = (fleet.device(name) / "agent.toml").read_text()
    namespace.clear()
    agent.end()
    fleet.readdress(name, f"{FAR_HOST}:{proxy.port}")
    agent.prefix = namespace.prefix
    yield proxy
    namespace.clear()
    agent.end()
    agent.prefix = ()
    (fleet.device(name) / "agent.toml").write_text(before)
    proxy.close()


def _do(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
