//go:build linux

package bpf

import (
	"encoding/binary"
	"net/netip"

	"github.com/cilium/ebpf/asm"
)

// program is instructions that are being written, with labels as the targets of jumps.
type program struct {
	ins asm.Instructions
	// label is that of the next instruction.
	label string
}

func (p *program) add(ins ...asm.Instruction) {
	for _, i := range ins {
		if p.label != "" {
			i = i.WithSymbol(p.label)
			p.label = ""
		}
		p.ins = append(p.ins, i)
	}
}

// at gives the next instruction a label.
func (p *program) at(label string) {
	if p.label != "" { // an instruction has one
		p.add(asm.Ja.Label(label))
	}
	p.label = label
}

func (p *program) jump(label string) { p.add(asm.Ja.Label(label)) }

// end returns the verdict, which for most hooks is 1 to go on and 0 to refuse.
func (p *program) end(verdict int32) { p.add(asm.Mov.Imm(asm.R0, verdict), asm.Return()) }

// words are an address as the kernel's structures have it, 32 bits at a time. In the
// fields for IPv6 an IPv4 address is a mapped one.
func words(a netip.Addr, fieldsOf6 bool) (w []int32) {
	all := a.As16()
	bytes := all[:]
	if !fieldsOf6 {
		bytes = all[12:]
	}
	for ; len(bytes) > 0; bytes = bytes[4:] {
		w = append(w, int32(binary.NativeEndian.Uint32(bytes)))
	}
	return w
}

// network16 is a number of 16 bits in the order of the network, as it is read from memory.
func network16(n uint16) int32 {
	return int32(binary.NativeEndian.Uint16([]byte{byte(n >> 8), byte(n)}))
}

// unless jumps if the words at an offset from a register are not those of the address.
func (p *program) unless(a netip.Addr, fieldsOf6 bool, from asm.Register, offset int16, label string) {
	for i, w := range words(a, fieldsOf6) {
		p.add(asm.LoadMem(asm.R1, from, offset+int16(4*i), asm.Word), asm.JNE.Imm32(asm.R1, w, label))
	}
}

// read gets the words at an offset from a register into R1 and those that follow, for differs:
// the kernel makes several instructions of a read from its structures, and moves all behind
// them each time.
func (p *program) read(fieldsOf6 bool, from asm.Register, offset int16) {
	count := 1
	if fieldsOf6 {
		count = 4
	}
	for i := range count {
		p.add(asm.LoadMem(asm.R1+asm.Register(i), from, offset+int16(4*i), asm.Word))
	}
}

// differs jumps if the words that were read are not those of the address.
func (p *program) differs(a netip.Addr, fieldsOf6 bool, label string) {
	for i, w := range words(a, fieldsOf6) {
		p.add(asm.JNE.Imm32(asm.R1+asm.Register(i), w, label))
	}
}

// marks gets what is known of the socket in R2 into R0, a pointer to 32 bits or null. With
// create it is made.
func (p *program) marks(create bool) {
	flags := int32(0)
	if create {
		flags = 1 // BPF_SK_STORAGE_GET_F_CREATE
	}
	p.add(asm.LoadMapPtr(asm.R1, 0).WithReference(marksMap), asm.Mov.Imm(asm.R3, 0), asm.Mov.Imm(asm.R4, flags), asm.FnSkStorageGet.Call())
}

// count adds one to a counter. It overwrites R0 to R5.
func (p *program) count(counter int32, label string) {
	p.add(asm.Mov.Imm(asm.R1, counter), asm.StoreMem(asm.RFP, -8, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -8),
		asm.LoadMapPtr(asm.R1, 0).WithReference(countersMap), asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, label),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord), asm.Add.Imm(asm.R1, 1), asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord))
	p.at(label)
}

// userTimeout sets TCP_USER_TIMEOUT of the socket of the context in R6.
func (p *program) userTimeout(milliseconds int32) {
	p.add(asm.Mov.Imm(asm.R1, milliseconds), asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word))
	p.socketOption(asm.FnSetsockopt)
}

// socketOption gets or sets TCP_USER_TIMEOUT, which is, or comes to, 4 bytes below the frame.
func (p *program) socketOption(call asm.BuiltinFunc) {
	const tcp, userTimeout = 6, 18 // IPPROTO_TCP, linux/tcp.h
	p.add(asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, tcp), asm.Mov.Imm(asm.R3, userTimeout),
		asm.Mov.Reg(asm.R4, asm.RFP), asm.Add.Imm(asm.R4, -4), asm.Mov.Imm(asm.R5, 4), call.Call())
}
