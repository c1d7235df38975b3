// Command etcdmember is one member of an etcd cluster for the lab: etcd's own
// program, at the version that the controller has inside. It is no part of the
// product.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
