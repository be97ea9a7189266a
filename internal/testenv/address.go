package testenv

import (
	"context"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
)

// lowest and ports are where Address looks: below the ports that systems give
// to connections by themselves, one of which would sooner or later be there
// before the server is.
const lowest, ports = 20_000, 12_000

// given is how many this process has been given.
var given atomic.Int64

// Address returns a loopback address for a server that a test starts. No other
// test of this process is given it.
func Address(t testing.TB) string {
	t.Helper()
	from := int64(os.Getpid()) * 101 // apart from other processes'
	for range ports {
		address := net.JoinHostPort("127.0.0.1", strconv.FormatInt(lowest+(from+given.Add(1))%ports, 10))
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
		if err != nil {
			continue // it is somebody's
		}
		need(t, l.Close())
		return address
	}
	t.Fatal("no port is free")
	return ""
}
