// Bare is what the server is measured against: net/http with nothing but the bytes of one
// answer in memory. It prints its address and serves until it is killed.
package main

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
)

func main() {
	body := flag.String("body", "", "file with the body of every answer")
	flag.Parse()
	if err := serve(*body); err != nil {
		fmt.Fprintln(os.Stderr, "bare:", err)
		os.Exit(1)
	}
}

func serve(file string) error {
	body, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	// As in the server's answer; made once, so that no request allocates them.
	name, text := []string{"iam4kube"}, []string{"text/plain"}
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		header := w.Header()
		header["Server"] = name
		header["Content-Type"] = text
		_, _ = w.Write(body)
	}))
}
