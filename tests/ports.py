"""Free ports for the servers and the ranks of the tests."""

import random
import socket

# Below those that Linux gives to outgoing connections, so that none of these takes a port before its server does
_PORTS = range(10_000, 32_768)
_random = random.SystemRandom()  # two suites that run at once draw different ones


def free_ports(count: int) -> list[int]:
    """Return this many different free ports."""
    ports: set[int] = set()
    while len(ports) < count:
        port = _random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:  # taken
                continue
            ports.add(port)
    return list(ports)


def free_port() -> int:
    """Return one free port."""
    return free_ports(1)[0]
