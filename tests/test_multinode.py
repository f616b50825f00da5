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


def test_help_shows_the_ways_to_start() -> None:
    done = run("--help")
    assert done.returncode == 0
    for option in ("--hosts", "--hostfile", "--node-rank", "--shell"):
        assert option in done.stdout
