package controller

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/weftmesh/weft/mesh/enroll"
)

const (
	ownLifetime = 24 * time.Hour
	ownRetry    = time.Minute // after an attempt to renew that failed
)

// ownCertificate is the controller's own, which only ever is in memory.
type ownCertificate struct {
	ca       *enroll.CA
	lifetime time.Duration
	current  atomic.Pointer[tls.Certificate]
}

// renew makes a new key and certificate.
func (o *ownCertificate) renew() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("controller's certificate: %w", err)
	}
	der, err := o.ca.SignController(key.Public(), o.lifetime, time.Now())
	if err != nil {
		return fmt.Errorf("controller's certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("controller's certificate: %w", err)
	}
	// The CA goes with it, for those who know nothing but its pin.
	o.current.Store(&tls.Certificate{Certificate: [][]byte{der, o.ca.Certificate()}, PrivateKey: key, Leaf: leaf})
	return nil
}

// run renews the certificate at two thirds of its life, until ctx ends.
func (o *ownCertificate) run(ctx context.Context, failed func(error)) {
	for {
		wait := enroll.RenewAt(o.current.Load().Leaf).Sub(time.Now())
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		for err := o.renew(); err != nil; err = o.renew() {
			failed(err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(ownRetry):
			}
		}
	}
}
