package ebpf

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

func addressOf(bytes *[16]byte) uintptr { return uintptr(unsafe.Pointer(bytes)) }

// Of io_uring_setup(2) and io_uring_enter(2), and linux/io_uring.h.
const (
	uringConnectOp = 16 // IORING_OP_CONNECT
	uringGetEvents = 1  // IORING_ENTER_GETEVENTS
	submissions    = 0  // IORING_OFF_SQ_RING
	completions    = 0x8000000
	entries        = 0x10000000
)

type uringParams struct {
	sqEntries, cqEntries, flags, threadCPU, threadIdle, features, wqFD uint32
	_                                                                  [3]uint32
	// Offsets into the rings.
	sqHead, sqTail, sqMask, sqCount, sqFlags, sqDropped, sqArray, _ uint32
	_                                                               uint64
	cqHead, cqTail, cqMask, cqCount, cqOverflow, cqEvents, cqFlags  uint32
	_                                                               uint32
	_                                                               uint64
}

// uringConnect has the kernel connect the socket, which is no system call of that name.
func uringConnect(fd int, to unix.Sockaddr) error {
	address := to.(*unix.SockaddrInet4)
	name := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: uint16(address.Port)<<8 | uint16(address.Port)>>8, Addr: address.Addr}
	var params uringParams
	ring, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_setup: %w", errno)
	}
	defer unix.Close(int(ring))
	var maps [3][]byte
	for i, offset := range []int64{submissions, completions, entries} {
		m, err := unix.Mmap(int(ring), offset, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			return fmt.Errorf("io_uring: %w", err)
		}
		defer func() { _ = unix.Munmap(m) }() //nolint:gocritic // three, until the end
		maps[i] = m
	}
	entry := (*struct {
		opcode, flags uint8
		priority      uint16
		fd            int32
		length        uint64 // of the address, where others have an offset
		address       uint64
		_             [40]byte
	})(unsafe.Pointer(&maps[2][0]))
	entry.opcode, entry.fd, entry.length, entry.address = uringConnectOp, int32(fd), uint64(unsafe.Sizeof(name)), uint64(uintptr(unsafe.Pointer(&name)))
	*(*uint32)(unsafe.Pointer(&maps[0][params.sqArray])) = 0
	atomic.AddUint32((*uint32)(unsafe.Pointer(&maps[0][params.sqTail])), 1)
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, ring, 1, 1, uringGetEvents, 0, 0); errno != 0 {
		return fmt.Errorf("io_uring_enter: %w", errno)
	}
	result := *(*int32)(unsafe.Pointer(&maps[1][params.cqEvents+8]))
	if result < 0 {
		return unix.Errno(-result)
	}
	return nil
}
