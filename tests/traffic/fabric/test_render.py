"""Rendered files byte for byte, and that each says where it goes. After a wanted change write the golden files anew:

for f in infiniband roce ethernet; do
  dualpath fabric render --fabric $f --config tests/traffic/fabric/cluster.toml --out tests/traffic/fabric/golden/$f
done
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dualpath.cli.main import main
from dualpath.traffic.fabric import Fabric, render
from dualpath.validation.fabric_nodes import read_fabric

HERE = Path(__file__).parent
CLUSTER = HERE / "cluster.toml"
RENDERED = {fabric: render(read_fabric(CLUSTER, fabric)) for fabric in Fabric}
EVERY_FILE = [(fabric, path) for fabric, files in RENDERED.items() for path in files]


def ids(value: object) -> str:
    return value.value if isinstance(value, Fabric) else str(value)


@pytest.mark.parametrize("fabric", Fabric, ids=ids)
def test_golden_files(fabric: Fabric) -> None:
    golden = HERE / "golden" / fabric.value
    expected = {str(path.relative_to(golden)): path.read_text() for path in golden.rglob("*") if path.is_file()}
    assert RENDERED[fabric] == expected


@pytest.mark.parametrize(("fabric", "path"), EVERY_FILE, ids=ids)
def test_every_file_says_where_how_and_what_to_check(fabric: Fabric, path: str) -> None:
    head = RENDERED[fabric][path].split("\n\n")[0]
    for label in ("# Where: ", "# Apply: ", "# Check: "):
        assert head.count(f"\n{label}") == 1
    assert max(map(len, head.splitlines())) <= 100


@pytest.mark.parametrize(
    ("fabric", "path"), [(fabric, path) for fabric, path in EVERY_FILE if path.endswith((".sh", ".env"))], ids=ids
)
def test_scripts_and_environments_are_valid_bash(fabric: Fabric, path: str) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    subprocess.run([bash, "-n"], input=RENDERED[fabric][path], text=True, check=True)


@pytest.mark.parametrize("fabric", Fabric, ids=ids)
def test_every_engine_has_an_environment_and_every_node_a_script(fabric: Fabric) -> None:
    nodes = {path for path in RENDERED[fabric] if "/" in path}
    assert nodes == {
        "pe0/setup.sh",
        "pe0/engine0.env",
        "pe0/engine1.env",
        "pe0/node.env",
        "de0/setup.sh",
        "de0/engine0.env",
    }


def test_out_writes_what_is_printed_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fabric", "render", "--fabric", "roce", "--config", str(CLUSTER)]
    assert main([*arguments, "--out", str(tmp_path / "new" / "dir")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {str(path.relative_to(tmp_path / "new" / "dir")): path.read_text() for path in written} == RENDERED[
        Fabric.ROCE
    ]
    assert all(os.access(path, os.X_OK) == (path.suffix == ".sh") for path in written)

    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"==> {path} <==\n{text}" in printed for path, text in RENDERED[Fabric.ROCE].items())


NODE = '[[nodes]]\nname = "pe0"\nrole = "prefill"\n'
NICS = 'compute_nics = ["e1"]\ncompute_nic_mbps = 100\n'

RDMA = 'rdma_devices = ["m"]\n'

BAD_CONFIGS = [
    ("", "nodes: none has compute_nics"),
    ("nodes = 3", "[[nodes]] must be a list of tables"),
    ("x = ", "not valid TOML"),
    ("[fabrik]", "unknown table [fabrik] (did you mean fabric?)"),
    ('[[nodes]]\nrole = "prefill"', "[[nodes]] 1 name: is required"),
    ('[[nodes]]\nname = "a/../b"\nrole = "prefill"', "[[nodes]] 1 name: must be lower-case letters"),
    (NODE, "nodes: none has compute_nics"),
    (NODE + 'compute_nics = ["e1"]', "node pe0: compute_nic_mbps: is required where there are compute_nics"),
    (NODE + 'compute_nics = ["e1; reboot"]\ncompute_nic_mbps = 1', "node pe0: compute_nics: must be device names"),
    (NODE + 'compute_nics = ["e1"]\ncompute_nic_mbps = 0', "[[nodes]] 1 compute_nic_mbps: must be more than 0"),
    (NODE + 'compute_nics = ["e1", "e1"]\ncompute_nic_mbps = 1', "node pe0: compute_nics: e1 is listed twice"),
    (NODE + NICS, "node pe0: rdma_devices: roce needs the RDMA device of e1 (compute NIC 0)"),
    (NODE + NICS + 'rdma_devices = ["a", "b"]', "node pe0: rdma_devices: 2 for 1 compute_nics"),
    (NODE + NICS + 'rdma_devices = ["mlx5_0:x"]', "node pe0: rdma_devices: must be DEVICE or DEVICE:PORT"),
    (NODE + NICS + 'rdma_devices = ["mlx5_0:0"]', "node pe0: rdma_devices: a port must be 1 to 254, not 0"),
    (NODE + NICS + RDMA + "gid_index = 256", "[[nodes]] 1 gid_index: must be at most 255, not 256"),
    (NODE + NICS + RDMA + 'storage_nic = "e1"', "node pe0: storage_nic: e1 is a compute NIC too"),
    ((NODE + NICS + RDMA) * 2, "nodes: pe0 is listed twice"),
    (NODE + NICS + RDMA + '[fabric]\nkv_network = "10.2.1.0/24"', "[fabric] kv_network: 10.2.1.0/24 overlaps"),
    (NODE + NICS + RDMA + '[fabric]\nkv_network = "10.9.0.0/25"', "[fabric] kv_network: 10.9.0.0/25 has no /24"),
    (NODE + NICS + RDMA + '[fabric]\nkv_network = "10.9.1.0/16"', "[fabric] kv_network: 10.9.1.0/16 has host bits"),
    (NODE + NICS + RDMA + '[fabric]\nkv_network = "moon"', "[fabric] kv_network: must be an IPv4 network"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_CONFIGS, ids=lambda value: value[-40:])
def test_bad_config_is_one_line_that_names_file_and_field(
    text: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    assert main(["fabric", "render", "--fabric", "roce", "--config", str(file)]) == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"dualpath: error: {file}: {reason}")
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_the_file_of_a_whole_cluster_is_read_as_it_is(tmp_path: Path) -> None:
    """Tables that other verbs read do not matter here, and the [fabric] table is honoured."""
    file = tmp_path / "cluster.toml"
    others = '[model]\ndir = "/m"\n[store]\nurl = "s3://b/p"\n[ray]\naddress = "auto"\n'
    file.write_text(others + '[fabric]\nkv_network = "10.9.0.0/16"\n' + NODE + NICS)
    assert "ip addr replace 10.9.0.1/24 dev kv0\n" in render(read_fabric(file, Fabric.ETHERNET))["pe0/setup.sh"]
