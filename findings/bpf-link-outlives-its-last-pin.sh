#!/usr/bin/env bash
# Linux goes on running the program of a BPF link for some time after its last pin was removed.
#
# A link that was attached to a cgroup and pinned in a BPF file system is detached when its last
# reference goes. Where that is a file descriptor, the program is detached when close() has
# returned. Where it is the pin, unlink() returns while the kernel still runs the program, for up
# to a tenth of a second and more: the reference is given up with the file system's inode, after an
# RCU grace period. Who removes several pins in an order, so that what one program lets pass is
# dropped by none, has no order. BPF_LINK_DETACH, before the pin is removed, is done at once.
#
# Seen on Linux 6.18, as root, in a cgroup of its own:
#   closed: still run after 0 of 1000; unpinned: after 615 of 1000, for up to 607 ms on a busy machine;
#   detached, then unpinned: after 0 of 1000
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "this needs root, for eBPF" >&2; exit 2; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
echo "Linux $(uname -r)"
cat > main.py <<'END'
import ctypes
import os
import struct
import time

SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
PROG_LOAD, OBJ_PIN, PROG_QUERY, LINK_CREATE, LINK_DETACH = 5, 6, 16, 28, 34
CGROUP_SOCK_ADDR, INET4_CONNECT = 18, 10
libc = ctypes.CDLL(None, use_errno=True)
TIMES = 1000


def bpf(command, attributes):
    attributes = ctypes.create_string_buffer(attributes, 128)
    result = libc.syscall(SYS_BPF, command, attributes, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result, attributes.raw


def text(content):
    return ctypes.create_string_buffer(content)


def load():
    """A program that lets every connect() pass: r0 = 1; exit."""
    code, license = text(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)), text(b"GPL")
    return bpf(PROG_LOAD, struct.pack("<IIQQIIQII16sII", CGROUP_SOCK_ADDR, 2, ctypes.addressof(code), ctypes.addressof(license), 0, 0, 0, 0, 0, b"", 0, INET4_CONNECT))[0]


def run(cgroup):
    """How many programs the kernel runs."""
    ids = ctypes.create_string_buffer(256)
    return struct.unpack_from("<I", bpf(PROG_QUERY, struct.pack("<IIIIQI", cgroup, INET4_CONNECT, 1, 0, ctypes.addressof(ids), 64))[1], 24)[0]


def link(cgroup, program):
    return bpf(LINK_CREATE, struct.pack("<IIII", program, cgroup, INET4_CONNECT, 0))[0]


def pin(link):
    name = text(b"bpf/link")
    bpf(OBJ_PIN, struct.pack("<QI", ctypes.addressof(name), link))


def closed(cgroup, program):
    os.close(link(cgroup, program))


def unpinned(cgroup, program):
    l = link(cgroup, program)
    pin(l)
    os.close(l)
    os.unlink("bpf/link")


def detached(cgroup, program):
    l = link(cgroup, program)
    pin(l)
    bpf(LINK_DETACH, struct.pack("<I", l))
    os.close(l)
    os.unlink("bpf/link")


def late(end, cgroup, program):
    count, longest = 0, 0.0
    for _ in range(TIMES):
        end(cgroup, program)
        begin = time.monotonic()
        if run(cgroup):
            count += 1
            while run(cgroup):
                pass
            longest = max(longest, time.monotonic() - begin)
    print("%s: still run after %d of %d, for up to %.0f ms" % (end.__name__, count, TIMES, longest * 1000))
    return count


mounts = [line.split() for line in open("/proc/mounts")]
tree = [m[1] for m in mounts if m[2] == "cgroup2"][0] + "/finding-%d" % os.getpid()
os.mkdir(tree)
os.mkdir("bpf")
if libc.mount(b"bpf", b"bpf", b"bpf", 0, None):
    raise OSError(ctypes.get_errno(), "mounting a BPF file system")
try:
    cgroup, program = os.open(tree, os.O_RDONLY), load()
    counts = [late(end, cgroup, program) for end in (closed, unpinned, detached)]
finally:
    os.rmdir(tree)
ok = counts[0] == counts[2] == 0 < counts[1]
print("as described" if ok else "that has changed")
raise SystemExit(0 if ok else 1)
END
unshare --mount --propagation private /usr/bin/python3 main.py
