#!/usr/bin/env bash
# aws-c-auth as of 2023 sends HTTP/1.1 requests without a Host header to the metadata service.
#
# EC2 answers them. HTTP/1.1 asks for the header, so servers of Go's net/http, for one, say 400
# before any handler sees the request, with no line in a log. The library is below AWS's SDKs for
# IoT, among others.
#
# Seen with Debian 12's python3-awscrt 0.16.8, in a network namespace of its own with a server on
# 169.254.169.254:
#   PUT /latest/api/token HTTP/1.1
#   x-aws-ec2-metadata-token-ttl-seconds, … and no Host
set -euo pipefail
version=0.16.8+dfsg-1
if [ "${1-}" != inside ]; then
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	(cd "$dir" && apt-get download -qq "python3-awscrt=$version" && dpkg -x ./*.deb unpacked)
	unshare --user --map-root-user --net "$0" inside "$dir"
	exit
fi
cd "$2"
ip link set lo up
ip address add 169.254.169.254/32 dev lo
echo "python3-awscrt $version"
cat > main.py <<'END'
import socket
import sys
import threading

from awscrt.auth import AwsCredentialsProvider
from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup

requests = []
asked = threading.Event()
server = socket.create_server(("169.254.169.254", 80))


def serve():
    while True:
        connection, _ = server.accept()
        head = b""
        while b"\r\n\r\n" not in head:
            more = connection.recv(4096)
            if not more:
                break
            head += more
        requests.append(head.decode())
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.close()
        asked.set()


threading.Thread(target=serve, daemon=True).start()
group = EventLoopGroup(1)
provider = AwsCredentialsProvider.new_default_chain(ClientBootstrap(group, DefaultHostResolver(group)))
provider.get_credentials()
if not asked.wait(30):
    print("nothing was asked in 30 s: that has changed")
    sys.exit(1)
lines = requests[0].split("\r\n")
print("\n".join("  " + line for line in lines if line))
names = [line.split(":")[0].lower() for line in lines[1:]]
ok = lines[0] == "PUT /latest/api/token HTTP/1.1" and "host" not in names
print("as described: no Host" if ok else "that has changed")
sys.stdout.flush()
import os
os._exit(0 if ok else 1)
END
env -i PATH="$PATH" HOME="$PWD" PYTHONPATH="$PWD/unpacked/usr/lib/python3/dist-packages" /usr/bin/python3 main.py
