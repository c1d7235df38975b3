package main

import (
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
)

// ask sends one request to the controllers of the context in use. in may be nil.
func ask[T any](cmd *cobra.Command, method, path string, in any) (out T, err error) {
	cred, err := inUse(cmd)
	if err != nil {
		return out, err
	}
	client, err := cred.client(func(age time.Duration) {
		cli.Notef(cmd, "note: this is %s old: the controller cannot reach etcd", age)
	})
	if err != nil {
		return out, err
	}
	defer client.Close()
	if err := client.Do(cmd.Context(), method, path, in, &out); err != nil {
		return out, advise(cmd, cred, err)
	}
	learn(cmd, cred, client)
	return out, nil
}

// advise adds what to do about a refusal that only the context can explain.
func advise(cmd *cobra.Command, cred credential, err error) error {
	if err == nil || mesh.HintOf(err) != "" {
		return err
	}
	switch {
	case errors.Is(err, api.ErrUnauthorized):
		return mesh.WithHint(err, "the controller does not know the credential %q of %s; get a new file from an operator and \"weft context add\" it", cred.who.ID, cred.path)
	case errors.Is(err, api.ErrExists):
		return mesh.WithHint(err, "choose another name, or remove that one first")
	case errors.Is(err, api.ErrForbidden):
		return mesh.WithHint(err, "you are %q there; \"weft context list\" shows what else you are, --context takes it", cred.who.ID)
	}
	return err
}

// path joins the parts of a resource's path; each is escaped.
func path(parts ...string) string {
	var b strings.Builder
	b.WriteString("/v1")
	for _, p := range parts {
		b.WriteString("/" + url.PathEscape(p))
	}
	return b.String()
}

// named checks the names that a command was given, so that a typing error does
// not travel.
func named(kind, name string) error {
	if err := mesh.CheckName(kind, name); err != nil {
		return cli.WithCode(err, cli.CodeUsage)
	}
	return nil
}

// addOrg gives a noun the flag --org, which is also WEFT_ORG.
func addOrg(cmd *cobra.Command) {
	cmd.PersistentFlags().String("org", "", "the `ORG` that it is about (default: WEFT_ORG, or that of the context)")
}

// orgOf is the org that a command is about: the flag, else the context's.
func orgOf(cmd *cobra.Command) (string, error) {
	if org, _ := cmd.Flags().GetString("org"); org != "" {
		return org, named("org", org)
	}
	if cred, err := inUse(cmd); err == nil && cred.Org != "" {
		return cred.Org, nil
	}
	return "", cli.Required(cmd, "org")
}
