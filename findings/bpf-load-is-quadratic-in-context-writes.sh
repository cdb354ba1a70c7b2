#!/usr/bin/env bash
# Loading a BPF program takes the square of the number of its writes to the context.
#
# What a program reads and writes through its context is no memory: after verification the kernel
# replaces each access by several instructions (convert_ctx_accesses), one access after the other,
# and each time copies the whole program and looks through it for jumps to adjust. So four times as
# many writes to the address of a connect() take far more than four times as long to load, while as
# many writes to the stack stay in proportion. A program made by a generator, with a branch that
# sets the address for each of its cases, should choose registers there and write once.
#
# Seen on Linux 6.18, as root, the shortest of 7 loads each, on a busy machine:
#   context:  1000 writes  56.1 ms, 4000 writes 1238.3 ms, 22.1 times as long
#   stack:    1000 writes   1.0 ms, 4000 writes    5.0 ms,  5.0 times as long
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
PROG_LOAD, CGROUP_SOCK_ADDR, INET4_CONNECT = 5, 18, 10
libc = ctypes.CDLL(None, use_errno=True)


def instruction(code, dst=0, src=0, off=0, imm=0):
    return struct.pack("<BBhi", code, dst | src << 4, off, imm)


def program(count, register, offset):
    """r2 = number; *(u32 *)(register + offset) = r2, so many times; r0 = 1; exit."""
    writes = [instruction(0xB7, 2, imm=i) + instruction(0x63, register, 2, offset) for i in range(count)]
    return b"".join(writes) + instruction(0xB7, 0, imm=1) + instruction(0x95)


def load(code):
    """How long it takes, in seconds."""
    text, license = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attributes = ctypes.create_string_buffer(struct.pack(
        "<IIQQIIQII16sII", CGROUP_SOCK_ADDR, len(code) // 8, ctypes.addressof(text), ctypes.addressof(license), 0, 0, 0, 0, 0, b"", 0, INET4_CONNECT), 128)
    begin = time.monotonic()
    file = libc.syscall(SYS_BPF, PROG_LOAD, attributes, 128)
    took = time.monotonic() - begin
    if file < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(file)
    return took


def times_as_long(name, register, offset):
    few, many = ([load(program(count, register, offset)) for _ in range(7)] for count in (1000, 4000))
    ratio = min(many) / min(few)
    print("%-9s 1000 writes %5.1f ms, 4000 writes %6.1f ms, %4.1f times as long" % (name + ":", min(few) * 1000, min(many) * 1000, ratio))
    return ratio


context = times_as_long("context", 1, 4)  # user_ip4
stack = times_as_long("stack", 10, -4)
ok = context > 2 * stack
print("as described" if ok else "that has changed")
raise SystemExit(0 if ok else 1)
END
/usr/bin/python3 main.py
