package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/mdp/qrterminal/v3"
	"github.com/spf13/cobra"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/peers"
	"github.com/weftmesh/weft/peers/conf"
)

// clientKeepalive keeps a client's mapping in a NAT open.
const clientKeepalive = 25 * time.Second

func clients() resource[api.ClientInfo] {
	return resource[api.ClientInfo]{kind: "client", arg: "NAME", table: clientTable, scope: ofOrg("clients"),
		gone: "Cut a client off within seconds: its key, its name and its address are worthless.",
		left: func(cmd *cobra.Command, name string) {
			org, _ := orgOf(cmd)
			stillGranted(cmd, mesh.Party{Org: org, Client: name})
		}}
}

func clientCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "client", Aliases: []string{"wg"}, Short: "People's devices and CI jobs in an org",
		Long: `People's devices and CI jobs in an org. A laptop joins with "weft up" and a token; a
phone, or whatever runs the stock WireGuard app, with a file from "client create".`,
	}
	addOrg(cmd)
	r := clients()
	cmd.AddCommand(createClientCommand(), r.listCommand(), r.showCommand(), r.removeCommand())
	return cmd
}

func createClientCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a client for the stock WireGuard app", Args: cli.Args("NAME"),
		Long: `Make a client for the stock WireGuard app or wg-quick. The key is made here and is
nowhere but in the file, which is never overwritten; without --conf and --qr it goes
to stdout.`,
		Example: `  weft client create --org acme ci-1 --expires 1h > ci.conf
  weft client create --org acme laptop1 --conf acme.conf && sudo wg-quick up ./acme.conf
  weft client create --org acme phone1 --phone --qr`,
		RunE: createClient,
	}
	f := cmd.Flags()
	f.String("gateway", "", "the `HOST` that it connects to (default: one that carries the org)")
	f.String("expires", "", "how `LONG` it lasts, for example 1h or 720h (default: for ever)")
	f.String("conf", "", "write the configuration to this `FILE`, readable by you alone; - is stdout")
	f.Bool("qr", false, "draw it for a phone's camera, on stderr")
	f.Bool("phone", false, "with 2000::/128 among the routes, without which Android asks for no IPv6 addresses")
	return cmd
}

func createClient(cmd *cobra.Command, args []string) error {
	f := cmd.Flags()
	file, _ := f.GetString("conf")
	qr, _ := f.GetBool("qr")
	phone, _ := f.GetBool("phone")
	in := api.CreateClient{Name: args[0]}
	in.Gateway, _ = f.GetString("gateway")
	if in.Gateway != "" {
		if err := named("host", in.Gateway); err != nil {
			return err
		}
	}
	in.TTL, _ = f.GetString("expires")
	if in.TTL != "" {
		if err := checkDuration("expires", in.TTL); err != nil {
			return err
		}
	}
	path, err := clients().path(cmd)
	if err != nil {
		return err
	}
	self, err := clients().path(cmd, args[0])
	if err != nil {
		return err
	}
	toFile := file != "" && file != "-"
	if toFile {
		// The place is taken first: what cannot be written is not created.
		if err := reserve(file); err != nil {
			return err
		}
	}
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return fmt.Errorf("make a WireGuard key: %w", err)
	}
	in.Key = key.PublicKey().String()
	made, err := ask[api.CreatedClient](cmd, "POST", path, in)
	if err != nil {
		if toFile {
			os.Remove(file)
		}
		if errors.Is(err, api.ErrConflict) && mesh.HintOf(err) == "" {
			err = mesh.WithHint(err, "a gateway is a host with an endpoint whose token names the org or all; see: weft host list")
		}
		return err
	}
	text, err := configuration(made, key, phone)
	if err == nil && toFile {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		// Without its file a client is of no use to anybody.
		_, undo := ask[struct{}](cmd, "DELETE", self, nil)
		if toFile {
			os.Remove(file)
		}
		return errors.Join(fmt.Errorf("client %s: %w", args[0], err), undo)
	}
	if qr {
		qrterminal.GenerateHalfBlock(string(text), qrterminal.L, cmd.ErrOrStderr())
	}
	return printCreated(cmd, made, file, text, !toFile && (file == "-" || !qr))
}

// reserve makes an empty file, 0600, that was not there.
func reserve(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return mesh.WithHint(fmt.Errorf("%s: it exists already, and is not overwritten", path), "give another --conf; no client was created")
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// configuration is the wg-quick file of a client.
func configuration(c api.CreatedClient, key wgtypes.Key, phone bool) ([]byte, error) {
	file := conf.File{
		PrivateKey: key,
		Addresses:  []netip.Prefix{netip.PrefixFrom(c.Address, 128)},
		DNS:        []netip.Addr{c.Resolver},
		Peers: []peers.Peer{{
			Key: wgtypes.Key(c.Gateway.Key), Endpoint: c.Gateway.Endpoint, Keepalive: clientKeepalive,
			AllowedIPs: append([]netip.Prefix{c.Network}, c.Granted...),
		}},
	}
	if phone {
		file = file.Phone()
	}
	var b bytes.Buffer
	err := conf.Write(&b, file)
	return b.Bytes(), err
}

// createdClient is what `client create -o json` prints.
type createdClient struct {
	api.CreatedClient
	File string `json:"file,omitempty"` // where the configuration was written
	Conf string `json:"conf,omitempty"` // the configuration, if it was not
}

func printCreated(cmd *cobra.Command, made api.CreatedClient, file string, text []byte, show bool) error {
	if cli.IsJSON(cmd) {
		out := createdClient{CreatedClient: made}
		if show {
			out.Conf = string(text)
		} else {
			out.File = file
		}
		return cli.PrintJSON(cmd, out)
	}
	cli.Notef(cmd, "client %s of %s has %s, through %s", made.Client.Name, made.Client.Org, made.Address, made.Gateway.Name)
	if show {
		_, err := io.Copy(cmd.OutOrStdout(), bytes.NewReader(text))
		return err
	}
	if file != "" {
		cli.Notef(cmd, "its configuration is in %s; to use it: sudo wg-quick up %s", file, asPath(file))
	}
	return nil
}

// asPath makes wg-quick take a name for a file, not for an interface.
func asPath(file string) string {
	if strings.ContainsRune(file, '/') {
		return file
	}
	return "./" + file
}

func clientTable(clients ...api.ClientInfo) cli.Table {
	t := cli.Table{Header: []string{"NAME", "ORG", "ADDRESS", "GATEWAY", "HOME", "KIND", "EXPIRES"}}
	for _, c := range clients {
		kind := "stock WireGuard"
		if c.TLSKey != "" {
			kind = "weft up"
		}
		t.Rows = append(t.Rows, []string{c.Name, c.Org, c.Address.String(), c.Gateway, cmp.Or(c.Home, c.Gateway), kind, cli.Time(c.Expires)})
	}
	return t
}
