package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// watchers are clients of etcd that watch a prefix.
type watchers struct {
	server, ca, cert, key, prefix string
	count                         int
}

// watch follows until ctx ends.
func watch(ctx context.Context, w watchers, seen *sightings) error {
	config, err := w.tls()
	if err != nil {
		return err
	}
	var following sync.WaitGroup
	defer following.Wait()
	err = inParallel(ctx, w.count, 8, func(_ context.Context, _ int) error {
		client, err := clientv3.New(clientv3.Config{
			Endpoints: []string{w.server}, TLS: config.Clone(), Logger: zap.NewNop(), DialTimeout: 30 * time.Second,
			DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
				return seen.dial(ctx, "tcp", addr)
			})},
		})
		if err != nil {
			return err
		}
		events := client.Watch(ctx, w.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		if r, open := <-events; !open || !r.Created {
			client.Close()
			return fmt.Errorf("watch %s: no answer: %w", w.prefix, r.Err())
		}
		following.Go(func() {
			defer client.Close()
			w.read(events, seen)
		})
		return nil
	})
	if err == nil {
		seen.ready()
		<-ctx.Done()
	}
	return err
}

func (w watchers) read(events clientv3.WatchChan, seen *sightings) {
	for r := range events {
		for _, e := range r.Events {
			sign := "+"
			if e.Type == clientv3.EventTypeDelete {
				sign = "-"
			}
			if name := changed(sign, strings.TrimPrefix(string(e.Kv.Key), w.prefix)); name != "" {
				seen.note(name)
			}
		}
	}
}

func (w watchers) tls() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(w.cert, w.key)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(w.ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", w.ca)
	}
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}, nil
}
