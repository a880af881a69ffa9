"""Nodes for the tests: two namespaces of network, processes, mounts and host name, each with a real sshd.

What runs on a node sees its own network, its own processes, and the files of this machine. To kill a node is to SIGKILL
all its processes at once.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from launching import CHECKOUT

NAMES = ("maskfeat1", "maskfeat2")
TOOLS = ("ip", "unshare", "nsenter", "sshd", "ssh-keygen", "pdsh")


def missing() -> str:
    """Return why nodes are impossible here; empty if they are possible."""
    if os.geteuid():
        return "network namespaces need root"
    absent = [tool for tool in TOOLS if not _which(tool)]
    return f"not installed: {', '.join(absent)} (Debian: iproute2 openssh-server pdsh)" if absent else ""


class Node:
    """One of the nodes, up until it is killed, and after `start` again."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name, self.address = NAMES[number], f"10.231.77.{number + 1}"
        self._folder = folder
        self._space = f"{self.name}-{os.getpid()}"
        self._boot: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Boot the node: sshd is the first process, and answers when this returns."""
        files = self._folder
        boot = [
            f"hostname {self.name}",
            f"mount --bind {files}/hosts /etc/hosts",
            f"mount --bind {files}/ssh_config /etc/ssh/ssh_config",
            "mount -t tmpfs tmpfs /run",
            "mkdir /run/sshd",
            "if [ -e ~/.bashrc ]; then mount --bind /dev/null ~/.bashrc; fi",
            f"exec {_which('sshd')} -D -f {files}/sshd_config -o ListenAddress={self.address} -E {files}/{self.name}",
        ]
        spaces = ["unshare", "--pid", "--mount-proc", "--uts", "--fork", "--kill-child"]  # and, so, --mount
        command = ["ip", "netns", "exec", self._space, *spaces, "bash", "-ec", "; ".join(boot)]
        self._boot = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        while subprocess.run(self._inside("ssh", self.name, "true"), capture_output=True).returncode:
            assert self._boot.poll() is None and time.monotonic() < deadline, f"{self.name} does not answer"
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL all its processes."""
        if self._boot:
            self._boot.kill()  # its child, the first process of the node, dies with it, and so do all others there
            self._boot.wait()
            self._boot = None

    def cable(self, state: Literal["up", "down"]) -> None:
        """Cut what joins it to the other, or join them again; all its processes stay."""
        _ip("-n", self._space, "link", "set", "eth0", state)

    def popen(self, *command: str, **options: Any) -> "subprocess.Popen[str]":
        """Start a command on it, in the checkout."""
        return subprocess.Popen(self._inside("env", "--chdir", str(CHECKOUT), *command), text=True, **options)

    @staticmethod
    def signal(process: "subprocess.Popen[str]", number: int) -> None:
        """Signal a command that `popen` started, whose parent is what brought it onto the node."""
        [inside] = _children(process.pid)
        os.kill(inside, number)

    def _inside(self, *command: str) -> list[str]:
        assert self._boot
        first = (_children(self._boot.pid) or ["none yet"])[0]
        return ["nsenter", "--target", str(first), "--net", "--pid", "--mount", "--uts", *command]


@contextmanager
def two_nodes(folder: Path) -> Iterator[list[Node]]:
    """Two nodes that are joined by a cable, reach each other by name over ssh without a password, and both are up."""
    nodes = [Node(number, folder) for number in range(2)]
    _write_configuration(folder, nodes)
    spaces = [node._space for node in nodes]
    try:
        for space in spaces:
            _ip("netns", "add", space)
        _ip("link", "add", "eth0", "netns", spaces[0], "type", "veth", "peer", "name", "eth0", "netns", spaces[1])
        for node, space in zip(nodes, spaces, strict=True):
            _ip("-n", space, "address", "add", f"{node.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", space, "link", "set", device, "up")
        for node in nodes:
            node.start()
        yield nodes
    finally:
        for node, space in zip(nodes, spaces, strict=True):
            node.kill()
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)


def _write_configuration(folder: Path, nodes: list[Node]) -> None:
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{node.address} {node.name}\n" for node in nodes))
    server = ["UsePAM no", "StrictModes no", f"HostKey {folder}/host", f"AuthorizedKeysFile {folder}/authorized_keys"]
    (folder / "sshd_config").write_text("\n".join([*server, "PidFile none", "PermitRootLogin yes", ""]))
    client = [f"IdentityFile {folder}/user", "StrictHostKeyChecking no", "UserKnownHostsFile /dev/null"]
    (folder / "ssh_config").write_text("\n".join([*client, "LogLevel ERROR", ""]))


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin")
