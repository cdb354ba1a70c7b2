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
	body := flag.String("body", "", "file with the body of every answer, but of "+container)
	containerBody := flag.String("container-body", "", "file with the body of every answer of "+container)
	flag.Parse()
	if err := serve(*body, *containerBody); err != nil {
		fmt.Fprintln(os.Stderr, "bare:", err)
		os.Exit(1)
	}
}

// container is the path of the container credentials protocol, whose answers are JSON.
const container = "/v1/credentials"

func serve(file, containerFile string) error {
	body, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	containerBody, err := os.ReadFile(containerFile)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	// As in the server's answer; made once, so that no request allocates them.
	name, text, json := []string{"iam4kube"}, []string{"text/plain"}, []string{"application/json"}
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header["Server"] = name
		if r.RequestURI == container {
			header["Content-Type"] = json
			_, _ = w.Write(containerBody)
			return
		}
		header["Content-Type"] = text
		_, _ = w.Write(body)
	}))
}
