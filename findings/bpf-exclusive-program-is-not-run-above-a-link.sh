#!/usr/bin/env bash
# A BPF program that is attached to a cgroup so that no other one may be below it (flags 0, "NONE")
# is attached, without an error, above one that is there already, and is then not run for that one's
# cgroup.
#
# linux/bpf.h says of NONE: "No further BPF programs allowed in the subtree". In that order the
# kernel keeps to it: a link below such a program is refused with EPERM. In the other order the
# exclusive program attaches, and processes of the cgroup below meet the other program alone. Here
# the exclusive one refuses every connect(), and only the processes outside of the cgroup below are
# refused: who relies on it is passed by, and nobody is told. BPF_PROG_QUERY with
# BPF_F_QUERY_EFFECTIVE on the cgroup below shows it.
#
# Seen on Linux 6.18, as root, in cgroups of its own:
#   exclusive first: a link below is refused, EPERM;
#   link first: attached; connect() in its cgroup: connected, above: EPERM
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "this needs root, for eBPF" >&2; exit 2; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
echo "Linux $(uname -r)"
cat > main.py <<'END'
import ctypes
import errno
import os
import socket
import struct

SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
PROG_LOAD, PROG_ATTACH, PROG_DETACH, LINK_CREATE = 5, 8, 9, 28
CGROUP_SOCK_ADDR, INET4_CONNECT = 18, 10
libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attributes):
    result = libc.syscall(SYS_BPF, command, ctypes.create_string_buffer(attributes, 128), 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def load(verdict):
    """A program that says the same of every connect(): r0 = verdict; exit."""
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0))
    license = ctypes.create_string_buffer(b"GPL")
    return bpf(PROG_LOAD, struct.pack("<IIQQIIQII16sII", CGROUP_SOCK_ADDR, 2, ctypes.addressof(code), ctypes.addressof(license), 0, 0, 0, 0, 0, b"", 0, INET4_CONNECT))


def link(cgroup, program):
    return bpf(LINK_CREATE, struct.pack("<IIII", program, cgroup, INET4_CONNECT, 0))


def exclusive(cgroup, program):
    bpf(PROG_ATTACH, struct.pack("<IIII", cgroup, program, INET4_CONNECT, 0))


def attempt(what, *arguments):
    try:
        what(*arguments)
        return "done"
    except OSError as e:
        return errno.errorcode[e.errno]


def connect(cgroup):
    """What becomes of a connect() of a process of the cgroup."""
    pid = os.fork()
    if pid == 0:
        with open(cgroup + "/cgroup.procs", "w") as procs:
            procs.write("0")
        os._exit(socket.socket().connect_ex(server.getsockname()))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return errno.errorcode[code] if code else "connected"


server = socket.create_server(("127.0.0.1", 0))
mounts = [line.split() for line in open("/proc/mounts")]
above = [m[1] for m in mounts if m[2] == "cgroup2"][0] + "/finding-%d" % os.getpid()
below = above + "/below"
os.makedirs(below)
try:
    a, b = os.open(above, os.O_RDONLY), os.open(below, os.O_RDONLY)
    refuse, pass_ = load(0), load(1)
    exclusive(a, refuse)
    first = attempt(link, b, pass_)
    print("exclusive first: a link below: %s; connect() below: %s" % (first, connect(below)))
    bpf(PROG_DETACH, struct.pack("<III", a, refuse, INET4_CONNECT))
    link(b, pass_)
    second = attempt(exclusive, a, refuse)
    got = connect(below), connect(above)
    print("link first: the exclusive one above: %s; connect() below: %s, above: %s" % (second, *got))
finally:
    os.rmdir(below)
    os.rmdir(above)
ok = (first, second, got) == ("EPERM", "done", ("connected", "EPERM"))
print("as described" if ok else "that has changed")
raise SystemExit(0 if ok else 1)
END
unshare --net sh -c 'ip link set lo up && exec /usr/bin/python3 main.py'
