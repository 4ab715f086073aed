#!/usr/bin/env bash
# Sockets of collectives (gloo, NCCL's bootstrap) of de0 in the model's partition. RDMA needs
# nothing here: UCX and NCCL name their service level themselves.
# Where: de0, as root, after the subnet manager has the new partitions
# Apply: run it, and again after each boot
# Check: ip -d link show model0 says pkey 0x8001, and nodes ping each other on it

set -euo pipefail

ip link show model0 >/dev/null 2>&1 || ip link add link ens2f0 name model0 type ipoib pkey 0x8001
ip addr replace 10.2.0.2/24 dev model0
ip link set model0 up
