package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// viewers are hosts that join, have a machine each, and follow their views.
type viewers struct {
	server, token, org string
	count              int
}

// view follows until ctx ends.
func view(ctx context.Context, v viewers, seen *sightings) error {
	token, err := enroll.ParseToken(v.token)
	if err != nil {
		return err
	}
	hosts := make([]*viewer, v.count)
	err = inParallel(ctx, v.count, 8, func(ctx context.Context, i int) (err error) {
		if hosts[i], err = v.join(ctx, fmt.Sprintf("stream-%d", i), token, seen); err == nil {
			err = hosts[i].register(ctx, v.org)
		}
		return err
	})
	if err != nil {
		return err
	}
	var following sync.WaitGroup
	defer following.Wait()
	err = inParallel(ctx, v.count, 8, func(_ context.Context, i int) error {
		begun := make(chan struct{})
		following.Go(func() { hosts[i].follow(ctx, sync.OnceFunc(func() { close(begun) })) })
		select {
		case <-begun:
		case <-ctx.Done():
		}
		return ctx.Err()
	})
	if err == nil {
		seen.ready()
		<-ctx.Done()
	}
	return err
}

// viewer is one host.
type viewer struct {
	name   string
	client *api.Client
	seen   *sightings
}

func (v viewers) join(ctx context.Context, name string, token enroll.Token, seen *sightings) (*viewer, error) {
	wireguard, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return nil, err
	}
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	keys := enroll.Keys{WireGuard: wireguard, TLS: signer}
	public, err := keys.TLSPublic()
	if err != nil {
		return nil, err
	}
	dial := seen.dial
	stranger, err := api.New(api.Config{Servers: []string{v.server}, TLS: enroll.ClientTLS(enroll.ClientConfig{Pin: token.Pin}), Dial: dial})
	if err != nil {
		return nil, err
	}
	defer stranger.Close()
	var answer api.EnrollResponse
	request := api.EnrollRequest{Token: v.token, Name: name, Key: wireguard.PublicKey().String(), TLSKey: public, Endpoint: "192.0.2.1:51820"}
	if err := stranger.Do(ctx, http.MethodPost, "/v1/enroll", request, &answer); err != nil {
		return nil, fmt.Errorf("enrol %s: %w", name, err)
	}
	certificate, err := keys.Certificate(answer.Certificate)
	if err != nil {
		return nil, err
	}
	trust := enroll.ClientConfig{Roots: answer.Roots, Certificate: func() *tls.Certificate { return certificate }}
	client, err := api.New(api.Config{Servers: []string{v.server}, TLS: enroll.ClientTLS(trust), Dial: dial})
	return &viewer{name, client, seen}, err
}

// register makes the host carry the org.
func (v *viewer) register(ctx context.Context, org string) error {
	err := v.client.Do(ctx, http.MethodPost, "/v1/orgs/"+org+"/machines", api.CreateMachine{App: "stay", ID: "on-" + v.name}, nil)
	v.client.Close()
	return err
}

// follow reads the view's stream, from where it was if it ends. begun is called
// after the first event.
func (v *viewer) follow(ctx context.Context, begun func()) {
	var last mesh.Revision
	for ctx.Err() == nil {
		if stream, err := v.client.View(ctx, last, 0); err == nil {
			v.read(ctx, stream, &last, begun)
			stream.Close()
		}
		if ctx.Err() == nil {
			v.seen.broken.Add(1)
			time.Sleep(100 * time.Millisecond)
		}
	}
}

func (v *viewer) read(ctx context.Context, stream *api.Stream, last *mesh.Revision, begun func()) {
	defer context.AfterFunc(ctx, stream.Close)()
	for {
		e, err := stream.Next()
		if err != nil {
			return
		}
		switch {
		case e.Snapshot != nil:
			*last = e.Snapshot.Revision
		case e.Delta != nil:
			*last = e.Delta.Revision
			v.delta(e.Delta)
		case e.Ping != nil:
			*last = e.Ping.Revision
		}
		begun()
	}
}

func (v *viewer) delta(d *mesh.Delta) {
	for _, m := range d.Machines {
		if name := changed("+", m.ID); name != "" {
			v.seen.note(name)
		}
	}
	for _, key := range d.Removed {
		if name := changed("-", key[strings.LastIndexByte(key, '/')+1:]); name != "" {
			v.seen.note(name)
		}
	}
}
