package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/enroll"
)

// cmdAhead is the command `ahead YEARS`: a controller whose clock is so far ahead
// of this machine's, which is the same as this machine's clock being behind. It
// leaves its operator's file in operator.yaml, a host's token in ahead.token and
// its address in $AHEAD.
func cmdAhead(ts *testscript.TestScript, neg bool, args []string) {
	var years int
	if len(args) != 1 {
		ts.Fatalf("usage: ahead YEARS")
	}
	_, err := fmt.Sscan(args[0], &years)
	ts.Check(err)
	then := time.Now().AddDate(years, 0, 0)
	ca, err := enroll.NewCA(then)
	ts.Check(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	der, err := ca.SignController(key.Public(), 24*time.Hour, then)
	ts.Check(err)
	cert := &tls.Certificate{Certificate: [][]byte{der, ca.Certificate()}, PrivateKey: key}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = nil
	server.TLS = enroll.ServerTLS(func() *tls.Certificate { return cert })
	server.StartTLS()
	ts.Defer(server.Close)
	ts.Setenv("AHEAD", server.URL)

	credential, err := enroll.NewCredential("admin")
	ts.Check(err)
	operator := fmt.Sprintf("controllers: [%q]\npin: %s\ncredential: %s\n", server.URL, ca.Pin(), credential.Text())
	ts.Check(os.WriteFile(ts.MkAbs("operator.yaml"), []byte(operator), 0o600))
	token, err := enroll.NewToken(mesh.KindHost, ca.Pin())
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("ahead.token"), []byte(token.Text()+"\n"), 0o600))
}
