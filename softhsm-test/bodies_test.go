package softhsmtest

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// peak is the most memory that the server has had, in MiB.
func (s *server) peak(t *testing.T) int {
	t.Helper()
	status := must(os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid)))(t)
	return must(strconv.Atoi(string(regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindSubmatch(status)[1])))(t) >> 10
}

// Whoever can connect can send a large body, of which its signature can be
// verified only when all of it is there: that must not take memory for each
// connection, nor keep others from being answered.
func TestLargeBodiesOfStrangers(t *testing.T) {
	d := newDeployment(t, "")
	s := d.serve(t)
	before := s.peak(t)
	large := []byte(`{"Description":"` + strings.Repeat("x", 1<<20-40) + `"}`)
	stranger := d.signed(t, request{operation: "CreateKey", body: large, key: &secretKey{ID: "AKIAIOSFODNN7EXAMPLE", Secret: "x"}})
	var head strings.Builder
	fmt.Fprintf(&head, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n", stranger.URL.Host, len(large))
	if err := stranger.Header.Write(&head); err != nil {
		t.Fatal(err)
	}
	stall := func(n int) (leave func()) {
		var strangers sync.WaitGroup
		var conns []net.Conn
		for range n {
			conn := must(net.Dial("tcp", stranger.URL.Host))(t)
			conns = append(conns, conn)
			strangers.Go(func() { // all but the last byte, as far as the server takes it
				_ = conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
				_, _ = conn.Write([]byte(head.String() + "\r\n"))
				_, _ = conn.Write(large[:len(large)-1])
			})
		}
		strangers.Wait()
		return func() {
			for _, conn := range conns {
				_ = conn.Close()
			}
		}
	}
	leave := stall(400)
	d.raw(t, request{operation: "ListKeys", body: []byte(`{}`)}).want(t, http.StatusOK, "")
	if grown := s.peak(t) - before; grown > 200 {
		t.Errorf("400 MiB of strangers' bodies took %d MiB", grown)
	}
	leave()
	defer stall(40)() // who stay, and have all the room
	d.raw(t, request{operation: "CreateKey", body: large}).want(t, http.StatusBadRequest, "ValidationException")
}
