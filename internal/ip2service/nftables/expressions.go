package nftables

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"slices"

	nft "github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/iam4kube/iam4kube/internal/ip2service/routes"
	"github.com/iam4kube/iam4kube/internal/ip2service/ruleset"
)

// Registers of the kernel's rule machine: each match uses the first, NAT both.
const (
	register     = unix.NFT_REG_1
	portRegister = unix.NFT_REG_2
)

// destinationPort is where that field is in the headers of TCP and UDP, RFC 9293 and RFC 768.
const destinationPort = 2

// address says where addresses are in a family's header, RFC 791 and RFC 8200.
type address struct {
	source, destination uint32 // offset in bytes
	originalKey         expr.CtKey
	protocol            uint32
}

var addresses = map[routes.Family]address{
	routes.IPv4: {12, 16, expr.CtKeyDSTIP, unix.NFPROTO_IPV4},
	routes.IPv6: {8, 24, expr.CtKeyDSTIP6, unix.NFPROTO_IPV6},
}

// expressions are what the kernel's rule machine executes for the rule, in the order in
// which nft lists them.
func expressions(family routes.Family, r ruleset.Rule) []expr.Any {
	of := addresses[family]
	var e []expr.Any
	if r.NotLoopback {
		e = append(e, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: interfaceName("lo")})
	}
	if r.OriginalDestination.IsValid() {
		e = append(e, &expr.Ct{Key: expr.CtKeyDIRECTION, Register: register}, equal([]byte{expr.CtDirOriginal}),
			&expr.Ct{Key: of.originalKey, Register: register, OptDirection: true, Direction: expr.CtDirOriginal},
			equal(r.OriginalDestination.AsSlice()))
	}
	if r.Source.IsValid() {
		e = append(e, header(of.source, r.Source), equal(r.Source.AsSlice()))
	}
	if r.Destination.IsValid() {
		e = append(e, header(of.destination, r.Destination), equal(r.Destination.AsSlice()))
	}
	if r.TCP {
		e = append(e, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}, equal([]byte{unix.IPPROTO_TCP}))
	}
	if r.UDP {
		e = append(e, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}, equal([]byte{unix.IPPROTO_UDP}))
	}
	if r.Port != 0 {
		e = append(e, &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: destinationPort, Len: 2},
			equal(binaryutil.BigEndian.PutUint16(r.Port)))
	}
	if r.OneIn > 0 {
		e = append(e, &expr.Numgen{Register: register, Modulus: r.OneIn, Type: unix.NFT_NG_RANDOM}, equal(make([]byte, 4)))
	}
	if r.HalfOpen {
		e = append(e, &expr.Objref{Type: unix.NFT_OBJECT_CT_TIMEOUT, Name: ruleset.HalfOpen})
	}
	if r.Count != "" {
		e = append(e, &expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: r.Count})
	}
	return append(e, verdict(of, r)...)
}

func header(offset uint32, a netip.Addr) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)}
}

func equal(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}

func interfaceName(name string) []byte {
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

func verdict(of address, r ruleset.Rule) []expr.Any {
	switch r.Verdict {
	case ruleset.Jump:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: r.Chain}}
	case ruleset.Return:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}
	case ruleset.Accept:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	case ruleset.Reset:
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	case ruleset.Reject:
		const portUnreachable = 3 // RFC 792
		code := uint8(portUnreachable)
		if of.protocol == unix.NFPROTO_IPV6 {
			code = 4 // RFC 4443
		}
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code}}
	case ruleset.DNAT:
		return []expr.Any{
			&expr.Immediate{Register: register, Data: r.To.Addr().AsSlice()},
			&expr.Immediate{Register: portRegister, Data: binaryutil.BigEndian.PutUint16(r.To.Port())},
			&expr.NAT{
				Type: expr.NATTypeDestNAT, Family: of.protocol, Specified: true,
				// The upper ends are what the kernel answers where they are left out.
				RegAddrMin: register, RegAddrMax: register, RegProtoMin: portRegister, RegProtoMax: portRegister,
			},
		}
	case ruleset.SourcePort:
		return []expr.Any{
			&expr.Immediate{Register: register, Data: binaryutil.BigEndian.PutUint16(ruleset.SourcePortMin)},
			&expr.Immediate{Register: portRegister, Data: binaryutil.BigEndian.PutUint16(math.MaxUint16)},
			&expr.NAT{
				Type: expr.NATTypeSourceNAT, Family: of.protocol, Specified: true, FullyRandom: true,
				RegProtoMin: register, RegProtoMax: portRegister,
			},
		}
	}
	panic(fmt.Sprintf("verdict %d", r.Verdict))
}

// same says that the kernel's rules are these. Both are compared in the form that
// netlink has for them.
func same(family routes.Family, have []*nft.Rule, want [][]expr.Any) bool {
	return slices.EqualFunc(have, want, func(rule *nft.Rule, want []expr.Any) bool {
		return slices.EqualFunc(rule.Exprs, want, func(a, b expr.Any) bool {
			first, err := expr.Marshal(byte(addresses[family].protocol), a)
			if err != nil {
				return false // not an expression that we make
			}
			second, err := expr.Marshal(byte(addresses[family].protocol), b)
			return err == nil && bytes.Equal(first, second)
		})
	})
}
