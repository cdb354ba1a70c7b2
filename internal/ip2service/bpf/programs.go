//go:build linux

package bpf

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
)

// Bits of what is known of a socket, in the map marks.
const (
	// led: its connection was led to an endpoint.
	led = 1
	// ofHost: it was made in the host's network namespace.
	ofHost = 2
	// ended: nothing of its connection may be sent any more.
	ended = 4
)

// Names of the maps that programs use.
const (
	marksMap    = "marks"
	countersMap = "counters"
	// programPrefix begins the names of programs, and so those of their links' pins.
	programPrefix = "iam4kube_"
)

// Offsets of fields, linux/bpf.h.
const (
	addrIPv4, addrIPv6, addrPort, addrProtocol, addrSocket = 4, 8, 24, 36, 64 // bpf_sock_addr
	skbProtocol, skbSocket                                 = 16, 168          // __sk_buff
	sockSource4, sockSource6, sockPort                     = 24, 28, 48       // bpf_sock
	sockDestination4, sockDestination6                     = 52, 56
	opsOp, opsReply, opsFlags, opsSocket                   = 0, 4, 84, 184 // bpf_sock_ops
)

// domain is the port of DNS, RFC 1035, section 4.2.
const domain = 53

// deadline is how long, in milliseconds, what was sent to an endpoint may stay without an
// acknowledgement. A connection that is being opened to a dead endpoint ends then, so that
// the client can try again, which goes to an endpoint at random.
const deadline = 3000

// features are what programs depend on of the machine.
type features struct {
	// refuse says that a program can choose the error of a refused connect (Linux 5.18).
	refuse bool
	// skbCookie says that programs that see packets know the network namespace (Linux 6.15).
	skbCookie bool
	// host is the cookie of the host's network namespace, SO_NETNS_COOKIE of socket(7). 0:
	// not known, that of the first network namespace is taken for it (before Linux 5.14).
	host uint64
}

// writer writes the programs for routes.
type writer struct {
	features
	routes routes.Routes
}

// counter is the index in the map counters.
func counter(family routes.Family, refused bool) int32 {
	i := int32(2 * slices.Index(routes.Families, family))
	if refused {
		i++
	}
	return i
}

// programs are all of them, in the order in which they are attached: who sees packets comes
// last, so that a connection that is being opened at the first start is led, if it can be.
func programs(r routes.Routes, f features) (specs []*ebpf.ProgramSpec) {
	w := writer{f, r}
	add := func(name string, of ebpf.ProgramType, at ebpf.AttachType, ins asm.Instructions) {
		specs = append(specs, &ebpf.ProgramSpec{Name: programPrefix + name, Type: of, AttachType: at, Instructions: ins, License: "Apache-2.0"})
	}
	if !f.skbCookie {
		add("create", ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate, w.create())
	}
	add("ops", ebpf.SockOps, ebpf.AttachCGroupSockOps, w.ops())
	add("connect4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, w.address(true, false))
	add("connect6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect, w.address(true, true))
	add("sendmsg4", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Sendmsg, w.address(false, false))
	add("sendmsg6", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Sendmsg, w.address(false, true))
	add("egress", ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress, w.egress())
	return specs
}

// guarded are the addresses that a program of the family has to know. Sockets of IPv6 can
// have addresses of IPv4, too.
func (w writer) guarded(fieldsOf6 bool) []netip.Addr {
	addresses := w.routes.Guarded(routes.IPv4)
	if fieldsOf6 {
		addresses = append(addresses, w.routes.Guarded(routes.IPv6)...)
	}
	return addresses
}

// endpoints are those that connections of the family are led to. What nobody can jump to, the
// kernel does not accept.
func (w writer) endpoints(family routes.Family) []netip.AddrPort {
	of := w.routes.Of(family)
	if len(of.Intercept) == 0 {
		return nil
	}
	return of.New
}

// dns says that packets to the domain port of the address may pass.
func (w writer) dns(a netip.Addr) bool {
	return w.routes.DNS && slices.Contains(w.routes.Intercepted(), a)
}

// ofHost compares the network namespace of the context in R6 with the host's: R0 and R7 are
// equal then.
func (w writer) ofHost(p *program) {
	p.add(asm.Mov.Reg(asm.R1, asm.R6), asm.FnGetNetnsCookie.Call(), asm.Mov.Reg(asm.R7, asm.R0))
	if w.host == 0 { // that of the first one, which is the host's if the node is no container
		p.add(asm.Mov.Imm(asm.R1, 0), asm.FnGetNetnsCookie.Call())
	} else {
		p.add(asm.LoadImm(asm.R0, int64(w.host), asm.DWord))
	}
}

// passHost lets what is sent from the host's network namespace pass.
func (w writer) passHost(p *program) {
	w.ofHost(p)
	p.add(asm.JEq.Reg(asm.R0, asm.R7, "pass"))
}

// address is the program for connect, or for sendmsg of sockets that are not connected.
func (w writer) address(connect, fieldsOf6 bool) asm.Instructions {
	p := &program{}
	offset := int16(addrIPv4)
	families := routes.Families[:1]
	if fieldsOf6 {
		offset, families = addrIPv6, routes.Families
	}
	p.add(asm.Mov.Reg(asm.R6, asm.R1))
	for i, a := range w.guarded(fieldsOf6) {
		next := fmt.Sprintf("other-than-%d", i)
		p.unless(a, fieldsOf6, asm.R6, offset, next)
		if !slices.Contains(w.routes.Host, a) {
			w.passHost(p)
		}
		p.add(asm.LoadMem(asm.R1, asm.R6, addrPort, asm.Word), asm.LoadMem(asm.R2, asm.R6, addrProtocol, asm.Word))
		if w.dns(a) {
			p.add(asm.JNE.Imm32(asm.R1, network16(domain), fmt.Sprintf("no-domain-%d", i)),
				asm.JEq.Imm(asm.R2, unix.IPPROTO_TCP, "pass"), asm.JEq.Imm(asm.R2, unix.IPPROTO_UDP, "pass"))
			p.at(fmt.Sprintf("no-domain-%d", i))
		}
		family := routes.FamilyOf(a)
		if connect && len(w.endpoints(family)) > 0 {
			p.add(asm.JNE.Imm(asm.R2, unix.IPPROTO_TCP, "refuse-"+string(family)))
			for _, at := range w.routes.Intercept {
				if at.Addr() == a {
					p.add(asm.JEq.Imm32(asm.R1, network16(at.Port()), "lead-"+string(family)))
				}
			}
		}
		p.jump("refuse-" + string(family))
		p.at(next)
	}
	if connect {
		w.forget(p)
	}
	p.jump("pass")
	for _, family := range families {
		if len(w.routes.Guarded(family)) == 0 {
			continue // nobody would jump there, which the kernel does not accept
		}
		if connect {
			w.lead(p, family, fieldsOf6, offset)
		}
		w.refusalError(p, family)
	}
	p.at("pass")
	p.end(1)
	return p.ins
}

// forget is for a socket that was led and is connected to somebody else now.
func (w writer) forget(p *program) {
	p.add(asm.LoadMem(asm.R2, asm.R6, addrSocket, asm.DWord))
	p.marks(false)
	p.add(asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word), asm.And.Imm(asm.R1, ^(led|ended)), asm.StoreMem(asm.R0, 0, asm.R1, asm.Word))
}

// lead replaces the address by that of an endpoint.
func (w writer) lead(p *program, family routes.Family, fieldsOf6 bool, offset int16) {
	endpoints := w.endpoints(family)
	if len(endpoints) == 0 {
		return
	}
	of := string(family)
	p.at("lead-" + of)
	// Without the mark nothing would end the connection when the endpoint goes.
	p.add(asm.LoadMem(asm.R2, asm.R6, addrSocket, asm.DWord))
	p.marks(true)
	p.add(asm.JEq.Imm(asm.R0, 0, "refuse-"+of),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.Word), asm.And.Imm(asm.R1, ^ended), asm.Or.Imm(asm.R1, led), asm.StoreMem(asm.R0, 0, asm.R1, asm.Word))
	// The application's own time-out stays. Before Linux 6.1 it cannot be read.
	p.add(asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word))
	p.socketOption(asm.FnGetsockopt)
	p.add(asm.JNE.Imm(asm.R0, 0, "set-"+of), asm.LoadMem(asm.R1, asm.RFP, -4, asm.Word), asm.JNE.Imm(asm.R1, 0, "choose-"+of))
	p.at("set-" + of)
	p.userTimeout(deadline)
	p.at("choose-" + of)
	p.add(asm.FnGetPrandomU32.Call(), asm.Mod.Imm32(asm.R0, int32(len(endpoints))))
	for i, e := range endpoints {
		if i > 0 {
			p.at(fmt.Sprintf("endpoint-%s-%d", of, i))
		}
		if i+1 < len(endpoints) {
			p.add(asm.JNE.Imm(asm.R0, int32(i), fmt.Sprintf("endpoint-%s-%d", of, i+1)))
		}
		for j, word := range words(e.Addr(), fieldsOf6) {
			p.add(asm.Mov.Imm32(asm.R1+asm.Register(j), word))
		}
		p.add(asm.Mov.Imm32(asm.R5, network16(e.Port())))
		p.jump("led-" + of)
	}
	// Once and not at each endpoint: the kernel makes several instructions of a write to the
	// context, and moves all behind them each time.
	p.at("led-" + of)
	for j := range words(endpoints[0].Addr(), fieldsOf6) {
		p.add(asm.StoreMem(asm.R6, offset+int16(4*j), asm.R1+asm.Register(j), asm.Word))
	}
	p.add(asm.StoreMem(asm.R6, addrPort, asm.R5, asm.Word))
	p.count(counter(family, false), "counted-led-"+of)
	p.jump("pass")
}

// refusal makes the call fail.
func (w writer) refusalError(p *program, family routes.Family) {
	p.at("refuse-" + string(family))
	p.count(counter(family, true), "counted-refused-"+string(family))
	if w.refuse {
		p.add(asm.Mov.Imm(asm.R1, -int32(unix.ECONNREFUSED)), asm.FnSetRetval.Call())
	}
	p.end(0) // EPERM, unless another error was set
}

// create marks the sockets of the host.
func (w writer) create() asm.Instructions {
	p := &program{}
	p.add(asm.Mov.Reg(asm.R6, asm.R1))
	w.ofHost(p)
	p.add(asm.JNE.Reg(asm.R0, asm.R7, "pass"), asm.Mov.Reg(asm.R2, asm.R6))
	p.marks(true)
	p.add(asm.JEq.Imm(asm.R0, 0, "pass"), asm.Mov.Imm(asm.R1, ofHost), asm.StoreMem(asm.R0, 0, asm.R1, asm.Word))
	p.at("pass")
	p.end(1)
	return p.ins
}

// egress drops what is still sent to a guarded address: by raw sockets, by those that were
// connected before the programs came, and by everything else that calls no connect. Of the
// connections that were led it drops what ops has found to have no way any more.
func (w writer) egress() asm.Instructions {
	p := &program{}
	p.add(asm.Mov.Reg(asm.R6, asm.R1), asm.LoadMem(asm.R2, asm.R6, skbProtocol, asm.Word),
		asm.JNE.Imm32(asm.R2, network16(unix.ETH_P_IP), "no-"+string(routes.IPv4)))
	w.packet(p, routes.IPv4, 16, 4) // RFC 791
	p.at("no-" + string(routes.IPv4))
	p.add(asm.JNE.Imm32(asm.R2, network16(unix.ETH_P_IPV6), "pass"))
	w.packet(p, routes.IPv6, 24, 16) // RFC 8200
	for _, family := range routes.Families {
		p.at("drop-" + string(family))
		p.count(counter(family, true), "counted-"+string(family))
		p.end(0)
	}
	p.at("pass")
	p.end(1)
	return p.ins
}

// packet judges one of the family, whose destination is at an offset and has so many bytes.
func (w writer) packet(p *program, family routes.Family, offset, size int32) {
	const destination = -16
	fieldsOf6, drop := family == routes.IPv6, "drop-"+string(family)
	p.add(asm.Mov.Imm(asm.R2, offset), asm.Mov.Imm(asm.R4, size))
	p.load(destination, drop)
	for i, a := range w.routes.Guarded(family) {
		next := fmt.Sprintf("other-than-%s-%d", family, i)
		p.unless(a, fieldsOf6, asm.RFP, destination, next)
		if !slices.Contains(w.routes.Host, a) {
			w.passHostPacket(p, fmt.Sprintf("not-of-host-%s-%d", family, i))
		}
		if w.dns(a) || !w.routes.Bypassed {
			p.transport(family, drop)
		}
		if w.dns(a) {
			w.passDomain(p, drop, next)
		}
		if !w.routes.Bypassed {
			w.passToNetfilter(p, drop)
		}
		p.jump(drop)
		p.at(next)
	}
	p.add(asm.LoadMem(asm.R1, asm.R6, skbSocket, asm.DWord), asm.JEq.Imm(asm.R1, 0, "pass"),
		asm.FnSkFullsock.Call(), asm.JEq.Imm(asm.R0, 0, "pass"), asm.Mov.Reg(asm.R2, asm.R0))
	p.marks(false)
	p.add(asm.JEq.Imm(asm.R0, 0, "pass"), asm.LoadMem(asm.R1, asm.R0, 0, asm.Word), asm.And.Imm(asm.R1, ended), asm.JEq.Imm(asm.R1, 0, "pass"))
	p.jump(drop)
}

// load copies the bytes of a packet that are at the offset in R2, as many as R4 says, to
// below the frame.
func (p *program) load(to int32, fails string) {
	p.add(asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, to), asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, fails))
}

// passHostPacket is passHost for a packet. Its program may have to go by the socket: one that
// is older than the programs, which nobody has marked, is taken for a pod's.
func (w writer) passHostPacket(p *program, ofPod string) {
	if w.skbCookie {
		w.passHost(p)
		return
	}
	p.add(asm.LoadMem(asm.R1, asm.R6, skbSocket, asm.DWord), asm.JEq.Imm(asm.R1, 0, ofPod),
		asm.FnSkFullsock.Call(), asm.JEq.Imm(asm.R0, 0, ofPod), asm.Mov.Reg(asm.R2, asm.R0))
	p.marks(false)
	p.add(asm.JEq.Imm(asm.R0, 0, ofPod), asm.LoadMem(asm.R1, asm.R0, 0, asm.Word), asm.And.Imm(asm.R1, ofHost), asm.JNE.Imm(asm.R1, 0, "pass"))
	p.at(ofPod)
}

// transport gets a packet's protocol into R8 and the offset of that one's header into R9.
// Fragments are dropped. What has extension headers is of no protocol that is looked for.
func (p *program) transport(family routes.Family, drop string) {
	const at = -24
	load := func(size int32) {
		p.add(asm.Mov.Imm(asm.R4, size))
		p.load(at, drop)
	}
	if family == routes.IPv6 { // RFC 8200
		p.add(asm.Mov.Imm(asm.R2, 6))
		load(1)
		p.add(asm.LoadMem(asm.R8, asm.RFP, at, asm.Byte), asm.Mov.Imm(asm.R9, 40))
		return
	}
	p.add(asm.Mov.Imm(asm.R2, 6)) // RFC 791
	load(2)
	p.add(asm.LoadMem(asm.R1, asm.RFP, at, asm.Half), asm.And.Imm(asm.R1, network16(0x3fff)), asm.JNE.Imm(asm.R1, 0, drop),
		asm.Mov.Imm(asm.R2, 9))
	load(1)
	p.add(asm.LoadMem(asm.R8, asm.RFP, at, asm.Byte), asm.Mov.Imm(asm.R2, 0))
	load(1)
	p.add(asm.LoadMem(asm.R9, asm.RFP, at, asm.Byte), asm.And.Imm(asm.R9, 0xf), asm.LSh.Imm(asm.R9, 2))
}

// passDomain lets a packet to the domain port pass.
func (w writer) passDomain(p *program, drop, next string) {
	const at, destinationPort = -24, 2 // RFC 9293, RFC 768
	known := next + "-known"
	p.add(asm.JEq.Imm(asm.R8, unix.IPPROTO_TCP, known), asm.JNE.Imm(asm.R8, unix.IPPROTO_UDP, drop))
	p.at(known)
	p.add(asm.Mov.Reg(asm.R2, asm.R9), asm.Add.Imm(asm.R2, destinationPort), asm.Mov.Imm(asm.R4, 2))
	p.load(at, drop)
	p.add(asm.LoadMem(asm.R1, asm.RFP, at, asm.Half), asm.JEq.Imm32(asm.R1, network16(domain), "pass"))
}

// passToNetfilter lets what goes on in connections of TCP pass. Those that are older than
// the programs get a reset from the rules, which nobody here can send, and those that the
// rules have led go on.
func (w writer) passToNetfilter(p *program, drop string) {
	const at, flags, syn = -24, 13, 2 // RFC 9293
	p.add(asm.JNE.Imm(asm.R8, unix.IPPROTO_TCP, drop),
		asm.Mov.Reg(asm.R2, asm.R9), asm.Add.Imm(asm.R2, flags), asm.Mov.Imm(asm.R4, 1))
	p.load(at, drop)
	p.add(asm.LoadMem(asm.R1, asm.RFP, at, asm.Byte), asm.And.Imm(asm.R1, syn), asm.JEq.Imm(asm.R1, 0, "pass"))
}

// sourceOfEndpoint jumps if the socket in R7 has the address of an endpoint: one that were
// led to itself, or to its neighbour, would get credentials of the role that it hands out.
func (w writer) sourceOfEndpoint(p *program, family routes.Family, label string) {
	offset := int16(sockSource4)
	if family == routes.IPv6 {
		offset = sockSource6
	}
	p.read(family == routes.IPv6, asm.R7, offset)
	var last netip.Addr
	for i, e := range w.routes.Of(family).Live { // sorted, so an address with two ports is once in a row
		if e.Addr() == last {
			continue
		}
		last = e.Addr()
		next := fmt.Sprintf("not-from-%s-%d", family, i)
		p.differs(last, family == routes.IPv6, next)
		p.jump(label)
		p.at(next)
	}
}

// live jumps if the socket in R7 is connected to an endpoint whose connections may go on.
func (w writer) live(p *program, family routes.Family, label string) {
	offset := int16(sockDestination4)
	if family == routes.IPv6 {
		offset = sockDestination6
	}
	p.read(family == routes.IPv6, asm.R7, offset)
	// All 32 bits, because kernels before Linux 5.18 have them in one piece.
	p.add(asm.LoadMem(asm.R5, asm.R7, sockPort, asm.Word), asm.And.Imm(asm.R5, 0xffff))
	for i, e := range w.routes.Of(family).Live {
		next := fmt.Sprintf("not-to-%s-%d", family, i)
		p.differs(e.Addr(), family == routes.IPv6, next)
		p.add(asm.JEq.Imm32(asm.R5, network16(e.Port()), label))
		p.at(next)
	}
}

// ops ends connections that were led to endpoints that are gone, and those of endpoints
// themselves: egress drops their packets, and they have a time-out of a moment. Without that
// they would last until the one of the lead, or the client's.
func (w writer) ops() asm.Instructions {
	const timeoutInit, connecting, sending = 1, 3, 14 // BPF_SOCK_OPS_…: TIMEOUT_INIT, TCP_CONNECT_CB, HDR_OPT_LEN_CB
	p := &program{}
	p.add(asm.Mov.Reg(asm.R6, asm.R1), asm.LoadMem(asm.R8, asm.R6, opsOp, asm.Word),
		asm.JEq.Imm(asm.R8, connecting, "look"), asm.JEq.Imm(asm.R8, timeoutInit, "look"), asm.JNE.Imm(asm.R8, sending, "pass"))
	p.at("look")
	p.add(asm.LoadMem(asm.R7, asm.R6, opsSocket, asm.DWord), asm.JEq.Imm(asm.R7, 0, "pass"), asm.Mov.Reg(asm.R2, asm.R7))
	p.marks(false)
	p.add(asm.JEq.Imm(asm.R0, 0, "pass"), asm.Mov.Reg(asm.R9, asm.R0),
		asm.LoadMem(asm.R1, asm.R9, 0, asm.Word), asm.And.Imm(asm.R1, led), asm.JEq.Imm(asm.R1, 0, "pass"),
		asm.JEq.Imm(asm.R8, sending, "sending"))
	// Fields of the family that the socket is not of have no address of an endpoint.
	for _, family := range routes.Families {
		w.sourceOfEndpoint(p, family, "own")
	}
	p.add(asm.JEq.Imm(asm.R8, timeoutInit, "pass"))
	p.add(asm.LoadMem(asm.R2, asm.R6, opsFlags, asm.Word), asm.Or.Imm(asm.R2, 1<<6), // BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG: before each packet
		asm.Mov.Reg(asm.R1, asm.R6), asm.FnSockOpsCbFlagsSet.Call())
	p.jump("pass")
	if len(w.routes.Live) > 0 {
		// An endpoint's own SYN is dropped, repeated after a moment, and given up then.
		p.at("own")
		p.add(asm.JNE.Imm(asm.R8, timeoutInit, "end"), asm.Mov.Imm(asm.R1, 1), asm.StoreMem(asm.R6, opsReply, asm.R1, asm.Word))
		p.jump("pass")
	}
	p.at("sending")
	for _, family := range routes.Families {
		w.live(p, family, "pass")
	}
	p.at("end")
	p.add(asm.LoadMem(asm.R1, asm.R9, 0, asm.Word), asm.Or.Imm(asm.R1, ended), asm.StoreMem(asm.R9, 0, asm.R1, asm.Word))
	p.userTimeout(1)
	p.at("pass")
	p.end(1)
	return p.ins
}
