#!/usr/bin/env bash
# Traffic classes on the compute NICs of de0: model execution by the NIC's own addresses, KV by
# those of a macvlan device over it. tc is software: from some tens of Gbit/s on, take RoCE, where
# the NIC does this.
# Where: de0, as root; needs iproute2, nftables and the kernel's htb, u32, macvlan
# Apply: run it, and again after each boot
# Check: tc -s class show dev ens2f0 counts KV in class 1:20 and all else in 1:10; ip -d link show
#        kv0 says macvlan mode bridge

set -euo pipefail

# Packets carry their class to the switches as DSCP.
nft add table ip dualpath
nft flush table ip dualpath
nft 'add chain ip dualpath stamp { type filter hook postrouting priority mangle; }'

# ens2f0: 10000 Mbit/s
ip link show kv0 >/dev/null 2>&1 || ip link add link ens2f0 name kv0 type macvlan mode bridge
ip addr replace 10.3.0.2/24 dev kv0
ip link set kv0 up
# Each device answers for its own address only, else peers may send KV to the NIC's own.
echo 1 > /proc/sys/net/ipv4/conf/ens2f0/arp_ignore
echo 2 > /proc/sys/net/ipv4/conf/ens2f0/arp_announce
echo 1 > /proc/sys/net/ipv4/conf/kv0/arp_ignore
echo 2 > /proc/sys/net/ipv4/conf/kv0/arp_announce
nft add rule ip dualpath stamp oifname kv0 ip daddr 10.3.0.0/24 ip dscp set 24
nft add rule ip dualpath stamp oifname ens2f0 ip dscp set 16
tc qdisc del dev ens2f0 root 2>/dev/null || true
tc qdisc add dev ens2f0 root handle 1: htb default 10
tc class add dev ens2f0 parent 1: classid 1:1 htb rate 9500000kbit ceil 9500000kbit cburst 118750 burst 118750 quantum 16000
tc class add dev ens2f0 parent 1:1 classid 1:10 htb rate 9405000kbit ceil 9500000kbit cburst 118750 burst 118750 quantum 16000 prio 0
tc class add dev ens2f0 parent 1:1 classid 1:20 htb rate 95000kbit ceil 9500000kbit cburst 118750 burst 1600 quantum 1600 prio 7
tc qdisc add dev ens2f0 parent 1:10 bfifo limit 4mb
tc qdisc add dev ens2f0 parent 1:20 bfifo limit 512kb
tc filter add dev ens2f0 parent 1: protocol ip prio 1 u32 match ip dst 10.3.0.0/24 flowid 1:20
