package store

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weftmesh/weft/mesh"
)

// Keys below the root. Those of State are named as its Changes are.
const (
	keyMesh        = "mesh"
	keyAudit       = "audit/"
	keyHosts       = "hosts/"
	keyRegions     = "regions/"
	keyTokens      = "tokens/"
	keyOperators   = "operators/"
	keyCAs         = "ca/"
	keyAddresses   = "addresses/"
	keyControllers = "controllers/"
	keyRecords     = "records/"
	keyHealth      = "health/"
	keyCoordinates = "coordinates/"
	keyGrants      = "grants/"
	keyElection    = "election/"       // of the controller that does the periodic jobs
	keyRemoving    = "removing/hosts/" // hosts whose removal is not yet complete

	// What stands under volatile/ is not mirrored: it is the last kind in key
	// order, and the mirror's range ends before it.
	keyVolatile = "volatile/"

	keyNextNetwork  = "next/network"
	keyNextHost     = "next/host"
	keyRestingHosts = "next/resting/hosts/"
)

func orgKey(org string) string          { return "orgs/" + org }
func appKey(org, app string) string     { return "apps/" + org + "/" + app }
func regionKey(name string) string      { return keyRegions + name }
func hostKey(name string) string        { return keyHosts + name }
func machineKey(org, id string) string  { return "machines/" + org + "/" + id }
func clientKey(org, name string) string { return "clients/" + org + "/" + name }
func controllerKey(name string) string  { return keyControllers + name }
func healthKey(org, id string) string   { return keyHealth + org + "/" + id }
func coordinateKey(host string) string  { return keyCoordinates + host }
func grantKey(id string) string         { return keyGrants + id }
func recordKey(org, name, kind string) string {
	return keyRecords + org + "/" + name + "/" + kind
}
func reservationKey(org, kind, name string) string {
	return keyAddresses + org + "/" + kind + "/" + name
}
func tokenKey(id string) string             { return keyTokens + id }
func operatorKey(id string) string          { return keyOperators + id }
func caKey(id string) string                { return keyCAs + id }
func presenceKey(host string) string        { return "presence/" + host }
func reportKey(host string) string          { return keyVolatile + "hosts/" + host }
func removingKey(host string) string        { return keyRemoving + host }
func nextSlotKey(n uint64, h uint32) string { return "next/slots/" + spaceOf(n, h) }
func restingSlots(n uint64, h uint32) string {
	return "next/resting/slots/" + spaceOf(n, h) + "/"
}
func spaceOf(n uint64, h uint32) string {
	return strconv.FormatUint(n, 10) + "/" + strconv.FormatUint(uint64(h), 10)
}

// restingKey is the key of a number that may be given again from due on. They
// sort by time, so the ones that are due are one range.
func restingKey(prefix string, due time.Time, number uint64) string {
	return fmt.Sprintf("%s%011d-%d", prefix, due.Unix(), number)
}

// wireguardKey is the key that makes a WireGuard key unique. Base64 has a '/' in
// it, so this is the URL alphabet.
func wireguardKey(k mesh.Key) string { return "keys/" + base64.RawURLEncoding.EncodeToString(k[:]) }

// tlsKey does the same for the hash of a TLS key. No base64 text has a '.'.
func tlsKey(hash string) string {
	return "keys/tls." + base64.RawURLEncoding.EncodeToString([]byte(hash))
}

// mirrored are the kinds that State holds.
var mirrored = []string{
	keyMesh, keyAddresses, "apps/", "clients/", keyControllers, keyCoordinates, keyGrants, keyHealth, keyHosts, "machines/", keyOperators, "orgs/",
	"presence/", keyRecords, keyRegions, keyTokens,
}

// mirrorRange is the range that the mirror watches, whole: the events of one
// transaction come together only within one watch.
func (s *Store) mirrorRange() (from string, to clientv3.OpOption) {
	return s.root, clientv3.WithRange(s.root + keyVolatile)
}
