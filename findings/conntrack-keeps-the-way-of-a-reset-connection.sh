#!/usr/bin/env bash
# Linux keeps the translation of a connection for ten seconds after netfilter itself has reset it,
# and a new connection from the same port goes the old way.
#
# A rule translates connections to a virtual address to one of its servers; a second one resets
# (`reject with tcp reset`) what would go to a server that has left. The reset puts the connection
# into CLOSE and the client's port is free. A SYN from that port within the ten seconds of
# nf_conntrack_tcp_timeout_close does not begin a new connection: it is "ignored" (there was no
# FIN, and the reset was not seen as a packet of the client), keeps the old translation and meets
# the reset again, whatever the translating rule says by then. From any other port all is well.
# An object `ct timeout` with `close : 0` on the connection avoids it.
#
# Seen on Linux 6.18 with Debian 12's nft 1.0.6, in a network namespace of its own:
#   same port: refused, CLOSE; another port: answered by the server that is there;
#   same port, with close : 0: answered by the server that is there
set -euo pipefail
version=1.0.6-2+deb12u2
if [ "${1-}" != inside ]; then
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	(cd "$dir" && apt-get download -qq "nftables=$version" "libnftables1=$version" && for p in ./*.deb; do dpkg -x "$p" unpacked; done)
	unshare --user --map-root-user --net "$0" inside "$dir"
	exit
fi
cd "$2"
export LD_LIBRARY_PATH="$PWD/unpacked/usr/lib/$(uname -m)-linux-gnu"
nft=$PWD/unpacked/usr/sbin/nft
ip link set lo up
ip address add 192.0.2.1/32 dev lo
ip address add 192.0.2.2/32 dev lo
echo "Linux $(uname -r), $("$nft" --version)"
cat > main.py <<'END'
import socket
import subprocess
import sys
import threading

VIRTUAL = ("192.0.2.2", 80)
OLD, NEW = 8081, 8082


def serve(port):
    server = socket.create_server(("192.0.2.1", port))

    def answer(connection):
        while connection.recv(1):
            connection.sendall(str(port).encode())

    while True:
        threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()


def nft(text):
    subprocess.run([sys.argv[1], "-f", "-"], input=text, text=True, check=True)


def table(timeout):
    nft("""
table ip t
delete table ip t
table ip t {
  ct timeout short {
    protocol tcp
    l3proto ip
    policy = { %s }
  }
  chain nat { type nat hook output priority -100; }
  chain guard { type filter hook output priority 0; }
}
""" % timeout)


def lead(to):
    nft("""
flush chain ip t nat
flush chain ip t guard
add rule ip t nat ip daddr 192.0.2.2 tcp dport 80 ct timeout set "short" dnat to 192.0.2.1:%d
add rule ip t guard ct direction original ct original ip daddr 192.0.2.2 tcp dport != %d reject with tcp reset
""" % (to, to))


def connect(port=0):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("192.0.2.1", port))
    s.settimeout(20)
    try:
        s.connect(VIRTUAL)
        return s, ask(s)
    except ConnectionRefusedError:
        return s, "refused"


def ask(s):
    try:
        s.sendall(b"?")
        return "answered by " + s.recv(16).decode()
    except ConnectionResetError:
        return "reset"


def again(timeout):
    table(timeout)
    lead(OLD)
    first, was = connect()
    port = first.getsockname()[1]
    lead(NEW)
    ended = ask(first)
    first.close()
    same, another = connect(port)[1], connect()[1]
    print("policy { %s }: %s, then %s; same port: %s; another port: %s" % (timeout, was, ended, same, another))
    return was, ended, same, another


for p in (OLD, NEW):
    threading.Thread(target=serve, args=(p,), daemon=True).start()
usual = again("close : 10")
short = again("close : 0")
there = "answered by %d" % NEW
want = ("answered by %d" % OLD, "reset", "refused", there), ("answered by %d" % OLD, "reset", there, there)
ok = (usual, short) == want
print("as described" if ok else "that has changed")
sys.stdout.flush()
import os
os._exit(0 if ok else 1)
END
/usr/bin/python3 main.py "$nft"
