package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// bareBody is as long as the answer to Encrypt.
var bareBody = `{"CiphertextBlob":"` + strings.Repeat("A", 152) + `","EncryptionAlgorithm":"SYMMETRIC_DEFAULT",` +
	`"KeyId":"arn:aws:kms:us-east-1:111122223333:key/00000000-0000-4000-8000-000000000000"}`

// bareCmd is the cheapest server that still speaks HTTP in Go: it reads the
// body and answers a fixed one.
type bareCmd struct {
	Listen string `required:""`
}

// Run serves until it is interrupted: main catches the signal.
func (b bareCmd) Run(ctx context.Context) error {
	server := &http.Server{
		Addr:              b.Listen,
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/x-amz-json-1.1")
			w.Header().Set("Content-Length", fmt.Sprint(len(bareBody)))
			_, _ = io.WriteString(w, bareBody)
		}),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
