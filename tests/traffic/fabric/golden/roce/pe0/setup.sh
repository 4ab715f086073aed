#!/usr/bin/env bash
# Traffic classes on the compute NICs of pe0 (NVIDIA ConnectX; needs mlnx-tools).
# Where: pe0, as root
# Apply: run it, and again after each boot and each driver restart. lldpad and other DCBX tools must
#        not run on these NICs: they would write their own settings over these
# Check: mlnx_qos -i ens2f0 shows trust state dscp, the priorities with PFC and each tc's share;
#        under KV load ethtool -S ens2f0 counts tx_prio3_bytes and no tx_prio0_bytes to speak of;
#        /sys/class/infiniband/mlx5_0/tc/1/traffic_class must be unset, it would override both
#        classes

set -euo pipefail

# ens2f0, mlx5_0:1
mlnx_qos -i ens2f0 --dcbx os
mlnx_qos -i ens2f0 --trust dscp
mlnx_qos -i ens2f0 --dscp2prio set,8,1
mlnx_qos -i ens2f0 --dscp2prio set,16,2
mlnx_qos -i ens2f0 --dscp2prio set,24,3
mlnx_qos -i ens2f0 --dscp2prio set,32,4
mlnx_qos -i ens2f0 --prio_tc 0,1,2,3,4,0,6,7
mlnx_qos -i ens2f0 --tsa ets,ets,ets,ets,ets,strict,strict,strict --tcbw 1,1,96,1,1,0,0,0
mlnx_qos -i ens2f0 --pfc 0,1,1,1,1,0,0,0
for prio in 1 2 3 4; do
  echo 1 > /sys/class/net/ens2f0/ecn/roce_np/enable/$prio
  echo 1 > /sys/class/net/ens2f0/ecn/roce_rp/enable/$prio
done
echo 48 > /sys/class/net/ens2f0/ecn/roce_np/cnp_dscp
cma_roce_mode -d mlx5_0 -p 1 -m 2
# Whoever connects by rdma_cm and asks for no class gets KV's.
cma_roce_tos -d mlx5_0 -p 1 -t 98

# ens3f0, mlx5_1:1
mlnx_qos -i ens3f0 --dcbx os
mlnx_qos -i ens3f0 --trust dscp
mlnx_qos -i ens3f0 --dscp2prio set,8,1
mlnx_qos -i ens3f0 --dscp2prio set,16,2
mlnx_qos -i ens3f0 --dscp2prio set,24,3
mlnx_qos -i ens3f0 --dscp2prio set,32,4
mlnx_qos -i ens3f0 --prio_tc 0,1,2,3,4,0,6,7
mlnx_qos -i ens3f0 --tsa ets,ets,ets,ets,ets,strict,strict,strict --tcbw 1,1,96,1,1,0,0,0
mlnx_qos -i ens3f0 --pfc 0,1,1,1,1,0,0,0
for prio in 1 2 3 4; do
  echo 1 > /sys/class/net/ens3f0/ecn/roce_np/enable/$prio
  echo 1 > /sys/class/net/ens3f0/ecn/roce_rp/enable/$prio
done
echo 48 > /sys/class/net/ens3f0/ecn/roce_np/cnp_dscp
cma_roce_mode -d mlx5_1 -p 1 -m 2
# Whoever connects by rdma_cm and asks for no class gets KV's.
cma_roce_tos -d mlx5_1 -p 1 -t 98
