#!/usr/bin/env bash
# A raw ICMP socket takes another connection's ICMP error for the answer to its ping, where the
# address is one that netfilter translates.
#
# A connected raw socket is given the ICMP messages that come from its peer's address. Without
# translation an error about a connection comes from whoever found it, a router or the last hop.
# With DNAT the kernel translates the error back, and not only the packet that it quotes: its source
# becomes the address that was asked, too (nf_nat_icmp_reply_translation). So a program that pings a
# service's address, for which nobody answers, reads "host unreachable" about a TCP connection of
# somebody else on the same host, and from the address that it pinged. Whoever reads raw ICMP has to
# look at the type, and for an echo reply at its identifier.
#
# Seen on Linux 6.18, in a network namespace, with nftables 1.0.6, of a server that is not there:
#   no translation: ICMP type 3 from 10.9.1.1, the ping's socket reads nothing
#   DNAT: ICMP type 3 from 169.254.170.2, the ping's socket reads it
set -euo pipefail
if [ "${1:-}" != inside ]; then
    for tool in nft ip python3 unshare; do
        command -v "$tool" >/dev/null || { echo "this needs $tool" >&2; exit 2; }
    done
    echo "Linux $(uname -r), $(nft --version)"
    # /run is where ip keeps the names of its namespaces.
    exec unshare -Urnm bash -c 'mount -t tmpfs tmpfs /run && exec bash "$0" inside' "$0"
fi
ip link set lo up
ip netns add client
ip link add toclient type veth peer name eth0 netns client
ip netns add servers
ip link add toserver type veth peer name eth0 netns servers
ip address add 10.9.1.1/24 dev toclient
ip address add 10.9.2.1/24 dev toserver
ip link set toclient up
ip link set toserver up
ip -n client address add 10.9.1.2/24 dev eth0
ip -n client link set eth0 up
ip -n servers link set eth0 up # where nobody is 10.9.2.9
ip -n client route add default via 10.9.1.1
echo 1 >/proc/sys/net/ipv4/ip_forward
nft -f - <<'END'
table ip translation {
    chain ping { type filter hook prerouting priority raw; icmp type echo-request drop; }
    chain connection {
        type nat hook prerouting priority dstnat
        ip daddr 169.254.170.2 tcp dport 80 dnat to 10.9.2.9
    }
}
END
cat >/run/ask.py <<'END'
import socket
import sys
import threading

address = sys.argv[1]
every = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)  # of any source
ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
ping.connect((address, 0))
ping.send(bytes([8, 0, 0xF7, 0xFF, 0, 0, 0, 0]))  # nobody answers it


def connect():
    with socket.socket() as s:
        s.settimeout(20)
        try:
            s.connect((address, 80))
        except OSError:
            pass


threading.Thread(target=connect).start()
every.settimeout(20)
error = every.recv(2000)
while error[44:48] != socket.inet_aton(address):  # the quoted packet's: another one's comes late
    error = every.recv(2000)
ping.settimeout(0.5)  # whatever there is has come by now
try:
    ping.recv(2000)
    reads = "it"
except TimeoutError:
    reads = "nothing"
print("ICMP type", error[20], "from", socket.inet_ntoa(error[12:16]) + ", the ping's socket reads", reads)
END
plain=$(ip netns exec client python3 /run/ask.py 10.9.2.9)
dnat=$(ip netns exec client python3 /run/ask.py 169.254.170.2)
echo "no translation: $plain"
echo "DNAT: $dnat"
[ "$plain" = "ICMP type 3 from 10.9.1.1, the ping's socket reads nothing" ]
[ "$dnat" = "ICMP type 3 from 169.254.170.2, the ping's socket reads it" ]
