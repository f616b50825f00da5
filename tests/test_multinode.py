"""launchers/multinode.sh: a job on two hosts with their own addresses, and the input that it refuses."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, without_ranks

from mdmscale.training.metrics import read_metrics

SCRIPT = ROOT / "launchers" / "multinode.sh"
ADDRESSES = ("10.213.7.1", "10.213.7.2")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Path]:
    """Two network namespaces joined by a cable, and an ssh substitute that runs a command in one of them."""
    names = [f"mdm-{uuid.uuid4().hex[:8]}" for _ in ADDRESSES]
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}"]
    for name, address in zip(names, ADDRESSES, strict=True):
        commands += [
            f"ip -n {name} address add {address}/24 dev eth0",
            f"ip -n {name} link set eth0 up",
            f"ip -n {name} link set lo up",
        ]
    shell = tmp_path / "shell"
    cases = "".join(f"{address}) name={name} ;; " for name, address in zip(names, ADDRESSES, strict=True))
    # gloo would look its own name up, which these hosts share
    shell.write_text(
        f"#!/bin/bash\ncase $1 in {cases}esac\n"
        'GLOO_SOCKET_IFNAME=eth0 exec ip netns exec "$name" bash -c "$2"\n'
    )
    shell.chmod(0o755)
    try:
        for command in commands:
            try:
                done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            except FileNotFoundError:
                pytest.skip("needs iproute2")
            if done.returncode:
                pytest.skip(f"network namespaces are not to be had: {done.stderr.strip()}")
        yield shell
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *arguments],
        env={**without_ranks(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.distributed
def test_two_hosts_train_together(hosts: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(tiny))
    hostfile = tmp_path / "hosts.txt"
    hostfile.write_text("# two\n" + "".join(f"{address} slots=1\n" for address in ADDRESSES))
    done = run("--hostfile", str(hostfile), "--shell", str(hosts), "--", "--config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks" in done.stdout and "finished at step 20 of 20" in done.stdout
    assert len(read_metrics(tmp_path / "runs" / "tiny")) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing after --"),
        (["--hosts", "a"], "nothing after --"),
        (["--", "--config", "x.yaml"], "no hosts: give --hosts, --hostfile or --node-rank"),
        (["--bogus", "1"], "unknown option --bogus"),
        (["--hosts"], "--hosts needs a value"),
        (
            ["--hostfile", "/no/such/file", "--", "--config", "x.yaml"],
            "--hostfile /no/such/file: no such file",
        ),
        (["--node-rank", "0", "--", "--config", "x.yaml"], "--node-rank 0 goes with --nodes and --master"),
        (
            ["--node-rank", "2", "--nodes", "2", "--master", "a", "--", "--config", "x.yaml"],
            "--node-rank 2 is not below --nodes 2",
        ),
    ],
)
def test_refuses(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and "see --help" in done.stderr


@pytest.mark.parametrize(
    ("hostfile", "hosts", "slots"),
    [
        ("node1 slots=2\nnode2 slots=2", ["node1", "node2"], "2"),
        ("node1 slots=2", ["node1"], "2"),
        ("node1 slots=2\r\nnode2 slots=2\r\n", ["node1", "node2"], "2"),
        ("\r\n# two\r\n\n  a\tslots=08 # first\r\nb slots=8 max_slots=9\n#", ["a", "b"], "8"),
        ("\ufeffa\nb", ["a", "b"], None),
    ],
    ids=["no end of line", "one host", "CRLF", "comments", "no slots"],
)
def test_every_host_of_a_hostfile_is_started(
    tmp_path: Path, hostfile: str, hosts: list[str], slots: str | None
) -> None:
    (tmp_path / "hosts").write_bytes(hostfile.encode())
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/bash\nprintf "<%s> %s\\n" "$1" "$2"\n')
    shell.chmod(0o755)
    done = run("--hostfile", str(tmp_path / "hosts"), "--shell", str(shell), "--", "--config", "c.yaml")
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert len(lines) == len(hosts)
    for number, (line, host) in enumerate(zip(lines, hosts, strict=True)):
        assert line.startswith(f"<{host}> ")
        assert f"--node-rank {number} --nodes {len(hosts)} --master {hosts[0]} --port" in line
        assert ("--ranks-per-node" in line) == (slots is not None)
        assert slots is None or f"--ranks-per-node {slots} " in line


@pytest.mark.parametrize(
    ("hostfile", "message"),
    [
        ("# none\n\n", "names no host"),
        ("a slots=2\nb slots=4", "line 2: b has slots=4, the hosts before slots=2"),
        ("a\nb slots=4", "line 2: b has slots=4, the hosts before slots=none"),
        ("a slots=two", "line 1: 'a slots=two' is not"),
        ("a slots=0", "line 1: 'a slots=0' is not"),
        ("\na 8", "line 2: 'a 8' is not"),
        ("a slots=2 b slots=2", "line 1: 'a slots=2 b slots=2' is not"),
        ("a\nb\na", "line 3 names a again"),
    ],
)
def test_refuses_a_hostfile(tmp_path: Path, hostfile: str, message: str) -> None:
    (tmp_path / "hosts").write_text(hostfile)
    done = run("--hostfile", str(tmp_path / "hosts"), "--shell", "false", "--", "--config", "c.yaml")
    assert done.returncode == 2
    assert f"error: --hostfile {tmp_path / 'hosts'}: {message}" in done.stderr


def test_help_shows_the_ways_to_start() -> None:
    done = run("--help")
    assert done.returncode == 0
    for option in ("--hosts", "--hostfile", "--node-rank", "--shell"):
        assert option in done.stdout
