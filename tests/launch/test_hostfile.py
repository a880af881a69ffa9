"""The host file: what is taken, as DeepSpeed takes it, and what is refused in one line before anything is started."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launching import CHECKOUT

from pipeline.supervisor.hostfile import HostFileError, read_hostfile
from pipeline.supervisor.hosts import PROBE, Hosts

SUPERVISE = [sys.executable, str(CHECKOUT / "scripts" / "launch" / "supervise.py")]

TAKEN = {
    b"node1 slots=8\nnode2 slots=4\n": {"node1": 8, "node2": 4},
    b"# comment\n\n  \t\nnode1\tslots=8   \n # another\n": {"node1": 8},
    b"node1 slots=8\r\nnode2 slots=4\r\n": {"node1": 8, "node2": 4},
    b"node1 slots=8": {"node1": 8},
    b"node1 slots=08 # \xe9\xff, in Latin-1": {"node1": 8},
    b"node1 slots=8#rack 3\n": {"node1": 8},
    b"node1 slots=8 max_slots=16\n": {"node1": 8},
    b"node-1.rack_2.example.org slots=1\n10.0.0.7 slots=2\nme@n3 slots=9999\n": {
        "node-1.rack_2.example.org": 1,
        "10.0.0.7": 2,
        "me@n3": 9999,
    },
}

REFUSED = [
    # The place, and a part of the message
    (b"", "", "names no node, it is empty or all comments: write 'NAME slots=N' for each node"),
    (b"\n \n\t\r\n", "", "names no node"),
    (b"# node1 slots=8\n# node2 slots=8\n", "", "names no node"),
    (b"\xef\xbb\xbf", "", "names no node"),
    (b"node1 slots=4\nnode1 slots=4\n", ", line 2", "node1 is already in line 1: keep one line for it"),
    (b"node1 slots=4\n#\nNODE1 slots=4\n", ", line 3", "node NODE1 is already in line 1"),
    (b"n.example.org slots=4\nn.example.org. slots=4\n", ", line 2", "is already in line 1"),
    (b"node1 slots=4\nme@node1 slots=4\n", ", line 2", "node me@node1 is already in line 1"),
    (b"node1\n", ", line 1", "node node1: slots are missing: write 'node1 slots=N'"),
    (b"a slots=1\nnode1 slots=0\n", ", line 2", "'slots=0' is not its number of slots"),
    (b"node1 slots=x\n", ", line 1", "'slots=x' is not its number of slots"),
    (b"node1 slots=-1\n", ", line 1", "'slots=-1' is not its number of slots"),
    (b"node1 slots=4x\n", ", line 1", "'slots=4x' is not its number of slots"),
    (b"node1 slots=4.0\n", ", line 1", "'slots=4.0' is not its number of slots"),
    (b"node1 slots=\n", ", line 1", "'slots=' is not its number of slots"),
    (b"node1 slots=" + b"9" * 5000, ", line 1", "9999999...' is not its number of slots"),
    ("node1 slots=٤\n".encode(), ", line 1", "'slots=٤' is not its number of slots"),
    (b"node1 slots = 4\n", ", line 1", "'slots = 4' is not its number of slots"),
    (b"node1 Slots=4\n", ", line 1", "'Slots=4' is not its number of slots"),
    (b"node1 gpus=4\n", ", line 1", "'gpus=4' is not its number of slots"),
    (b"node 1 slots=4\n", ", line 1", "'1 slots=4' is not its number of slots"),
    (b"node1 slots=4 gpus=4\n", ", line 1", "'gpus=4' is not understood: leave only 'node1 slots=4'"),
    ("node1 slots=4\u2028node2 slots=4\n".encode(), ", line 1", "'node2' is not understood"),
    (b"-oProxyCommand=touch${IFS}x slots=1\n", ", line 1", "'-oProxyCommand=touch${IFS}x' is not the name of a node"),
    (b"--help slots=1\n", ", line 1", "'--help' is not the name of a node"),
    (b"me@-oProxyCommand=x slots=1\n", ", line 1", "is not the name of a node"),
    (b"-l@node slots=1\n", ", line 1", "is not the name of a node"),
    (b"a;reboot slots=1\n", ", line 1", "'a;reboot' is not the name of a node"),
    (b"$(reboot) slots=1\n", ", line 1", "is not the name of a node"),
    (b"`reboot` slots=1\n", ", line 1", "is not the name of a node"),
    (b"a|b slots=1\n", ", line 1", "is not the name of a node"),
    (b"node[1-4] slots=8\n", ", line 1", "'node[1-4]' is not the name of a node"),  # pdsh would make four of it
    (b"^/etc/passwd slots=8\n", ", line 1", "is not the name of a node"),  # and a file's lines of this
    (b"n1,n2 slots=8\n", ", line 1", "'n1,n2' is not the name of a node"),
    (b"fe80::1 slots=8\n", ", line 1", "give it a name in /etc/hosts"),
    (b"{host} slots=8\n", ", line 1", "is not the name of a node"),
    (b"../n slots=8\n", ", line 1", "is not the name of a node"),
    ("nöde slots=8\n".encode(), ", line 1", "'nöde' is not the name of a node"),
    (b"n\x1b[31m slots=8\n", ", line 1", r"'n\x1b[31m' is not the name of a node"),
    (b"n\xff slots=8\n", ", line 1", "is not the name of a node"),
    ("\u202enode slots=8\n".encode(), ", line 1", r"'\u202enode' is not the name of a node"),
    (b"\x7fELF\x02\x01\x01\x00\x00", "", "is not a text of at most 1 MiB"),
    ("node1 slots=8\n".encode("utf-16"), "", "is not a text of at most 1 MiB: save it as UTF-8"),
    (b"# " + b"x" * (1 << 20), "", "is not a text of at most 1 MiB"),
]


def deepspeeds(content: bytes) -> dict[str, int]:
    """Return the result of DeepSpeed's own parser."""
    runner = pytest.importorskip("deepspeed.launcher.runner")
    lines = content.decode(errors="surrogateescape").replace("\r\n", "\n").splitlines(keepends=True)
    return dict(runner._parse_hostfile(lines))


@pytest.mark.parametrize("content", TAKEN)
def test_what_is_taken_deepspeed_takes_alike(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(content)
    taken = read_hostfile(tmp_path / "hosts")
    assert list(taken.items()) == list(TAKEN[content].items()) == list(deepspeeds(content).items())
    Hosts(taken, ["true"], tmp_path).command(["deepspeed"], list(taken))
    assert deepspeeds((tmp_path / "hosts").read_bytes()) == taken


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(b"\xef\xbb\xbfnode1 slots=8\n")
    assert read_hostfile(tmp_path / "hosts") == {"node1": 8}


@pytest.mark.parametrize(("content", "where", "why"), REFUSED)
def test_what_is_refused_is_named_with_its_line(content: bytes, where: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_bytes(content)
    with pytest.raises(HostFileError) as refused:
        read_hostfile(file)
    message = str(refused.value)
    assert message.startswith(f"--hostfile {file}{where}: ")
    assert why in message
    assert message.isprintable() and len(message) < 500


def test_nothing_is_started_or_asked_where_a_host_file_is_wrong(tmp_path: Path) -> None:
    """Neither the launcher nor the probe nor ssh, whose option it would be; one line, and no folder for the run."""
    launcher = tmp_path / "deepspeed"
    launcher.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    launcher.chmod(0o755)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "unreadable \x1b[31m").mkdir()
    (tmp_path / "option").write_text(f"-oProxyCommand=touch${{IFS}}{tmp_path}/started slots=1\n")
    (tmp_path / "empty").touch()
    for name, why in {
        "option": ", line 1: '-oProxyCommand=",
        "empty": ": names no node",
        "nowhere": ": No such file or directory: give the path",
        "pipe": ": is not a file: give the path",
        "unreadable \x1b[31m": ": is not a file: give the path",
    }.items():
        for probe in ([], ["--probe", f"touch {tmp_path}/started"]):
            options = ["--hostfile", str(tmp_path / name), *probe]
            command = [*SUPERVISE, *options, "--", str(launcher), "x.py", f"run.dir={tmp_path}/run"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 2, done.stderr
            shown = str(tmp_path / name).replace("\x1b", r"\x1b")
            assert done.stderr.startswith(f"supervise.py: error: --hostfile {shown}{why}")
            assert done.stderr.count("\n") == 1 and done.stderr.rstrip("\n").isprintable() and not done.stdout
    assert not (tmp_path / "started").exists() and not (tmp_path / "run").exists()


def test_ssh_takes_no_name_for_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where a name passed that begins with a dash: `--` stands before it, wherever ssh is called."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{tmp_path}/asked\necho Welcome to node 5; echo 2\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    hosts = Hosts({"-oNode": 8}, PROBE.split(), tmp_path)
    assert hosts.answering() == ["-oNode"]
    assert hosts.signal_ranks(15) == 2  # the last line counts: a shell may greet
    options = re.escape("-o BatchMode=yes -o ConnectTimeout=10 -- -oNode ")
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert re.fullmatch(f"{options}true", first)
    assert re.fullmatch(f"{options}.*python.* .*/stop.py {re.escape(str(tmp_path))} --signal TERM", second)


def test_the_real_ssh_understands_it() -> None:
    """It looks for a host of that name, and does not read it as an option."""
    try:
        ssh = subprocess.run(
            ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=1", "--", "-oProxyCommand=true", "true"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except FileNotFoundError:
        pytest.skip("ssh is not installed")
    assert ssh.returncode == 255 and "invalid characters" in ssh.stderr
