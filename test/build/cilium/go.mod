// Cilium's sources: its socket load balancing, bpf/bpf_sock.c, is compiled for test/ebpf. Nothing
// of its Go code is built.
module github.com/iam4kube/iam4kube/test/build/cilium

go 1.26.0

require github.com/cilium/cilium v1.20.2
