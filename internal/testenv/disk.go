package testenv

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/trent-kms/trent/internal/pgcluster"
)

// smallDisk has room for a cluster, its first segments of WAL and a few MB.
const smallDisk = "size=128m"

// A Disk is a file system that a test can fill.
type Disk struct {
	Dir string // where it is mounted
}

// SmallDisk mounts a file system for this test alone. That takes root's rights,
// which cannot be installed like what else is missing: the test is skipped
// without them, in CI too.
func SmallDisk(t testing.TB) Disk {
	t.Helper()
	dir, err := scratch()
	need(t, err)
	err = unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, smallDisk)
	if errors.Is(err, unix.EPERM) {
		t.Skipf("mounting a small disk: %v: run this test as root", err)
	}
	need(t, err)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return Disk{dir}
}

// PostgresOnDisk runs a server for this test alone whose folder is a small
// disk.
func PostgresOnDisk(t testing.TB) (*pgcluster.Cluster, Disk) {
	t.Helper()
	disk := SmallDisk(t)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	cluster, err := pgcluster.Start(ctx, pgcluster.Config{Dir: disk.Dir, Unsynced: true})
	need(t, err)
	t.Cleanup(func() { _ = cluster.Stop() })
	return cluster, disk
}

func (d Disk) ballast() string { return filepath.Join(d.Dir, "ballast") }

// Fill leaves no byte free.
func (d Disk) Fill(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	need(t, err)
	defer f.Close() //nolint:errcheck // what it holds is of no interest
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
}

// Free undoes Fill.
func (d Disk) Free(t testing.TB) {
	t.Helper()
	need(t, os.Remove(d.ballast()))
}
