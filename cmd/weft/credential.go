package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/weftmesh/weft/cmd/internal/cli"
	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
)

// credential is who somebody is at a mesh's controllers. On disk it is YAML, mode
// 0600: what the controller writes when a mesh is made (operator.yaml), with the
// role where it is not the whole mesh's.
type credential struct {
	enroll.OperatorFile `yaml:",inline"`
	Role                string `yaml:"role,omitempty"`
	Org                 string `yaml:"org,omitempty"` // with an org role

	who  enroll.Credential
	path string // where it was read from
}

// readCredential reads and checks a credential file.
func readCredential(cmd *cobra.Command, path string) (c credential, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("credential: %w", err)
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		cli.Notef(cmd, "warning: others can read %s, which holds a secret: chmod 600 %s", path, path)
	}
	if c, err = parseCredential(text); err != nil {
		return c, mesh.WithHint(cli.Usagef("credential %s: %w", path, err),
			"it should be a file that a controller (operator.yaml in its data directory) or \"weft context create\" wrote")
	}
	c.path = path
	return c, nil
}

func parseCredential(text []byte) (c credential, err error) {
	if err := yaml.UnmarshalWithOptions(text, &c, yaml.Strict()); err != nil {
		// What the library shows of the file may be the secret: only place and reason.
		var e yaml.Error
		if errors.As(err, &e) && e.GetToken() != nil {
			return c, fmt.Errorf("line %d: %s", e.GetToken().Position.Line, e.GetMessage())
		}
		return c, errors.New("it is not YAML")
	}
	if err := c.Check(); err != nil {
		return c, err
	}
	c.who, err = enroll.ParseCredential(c.Credential)
	return c, err
}

// contexts is the directory where credentials are kept by name.
//
//	<dir>/contexts/NAME.yaml   a credential, 0600
//	<dir>/current              the name of the one in use
type contexts struct{ dir string }

// contextsDir is WEFT_CONFIG_DIR, else weft in the user's configuration directory.
func contextsDir() (contexts, error) {
	if dir := os.Getenv("WEFT_CONFIG_DIR"); dir != "" {
		return contexts{dir}, nil
	}
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		return contexts{filepath.Join(dir, "weft")}, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return contexts{}, mesh.WithHint(fmt.Errorf("directory of contexts: %w", err), "set WEFT_CONFIG_DIR")
	}
	return contexts{filepath.Join(home, ".config", "weft")}, nil
}

func (c contexts) file(name string) string { return filepath.Join(c.dir, "contexts", name+".yaml") }

func (c contexts) names() ([]string, error) {
	files, err := os.ReadDir(filepath.Join(c.dir, "contexts"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list contexts: %w", err)
	}
	var out []string
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".yaml"); ok {
			out = append(out, name)
		}
	}
	return out, nil
}

// current returns the name of the context in use, or "".
func (c contexts) current() string {
	text, _ := os.ReadFile(filepath.Join(c.dir, "current"))
	return strings.TrimSpace(string(text))
}

func (c contexts) use(name string) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("use context %s: %w", name, err)
	}
	// Written aside and renamed: another weft never reads half a name.
	temp := filepath.Join(c.dir, "current.new")
	if err := os.WriteFile(temp, []byte(name+"\n"), 0o600); err != nil {
		return fmt.Errorf("use context %s: %w", name, err)
	}
	if err := os.Rename(temp, filepath.Join(c.dir, "current")); err != nil {
		return fmt.Errorf("use context %s: %w", name, err)
	}
	return nil
}

// read returns the credential of a context.
func (c contexts) read(cmd *cobra.Command, name string) (credential, error) {
	if err := named("context", name); err != nil {
		return credential{}, err
	}
	cred, err := readCredential(cmd, c.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return cred, c.unknown(name)
	}
	return cred, err
}

func (c contexts) unknown(name string) error {
	err := cli.WithCode(fmt.Errorf("context %q: there is none of this name in %s", name, c.dir), cli.CodeNotFound)
	names, _ := c.names()
	if near := cli.Nearest(name, names); near != "" {
		return mesh.WithHint(err, "did you mean %q?", near)
	}
	if len(names) > 0 {
		return mesh.WithHint(err, "there are: %s", strings.Join(names, ", "))
	}
	return mesh.WithHint(err, "weft context add %s --file operator.yaml", name)
}

// inUse returns the credential that --context or WEFT_CONTEXT name, by name or by
// path, else that of the context in use.
func inUse(cmd *cobra.Command) (credential, error) {
	name, _ := cmd.Flags().GetString("context")
	if strings.ContainsRune(name, '/') || strings.HasSuffix(name, ".yaml") {
		cred, err := readCredential(cmd, name)
		return cred, cli.Missing(err, name)
	}
	dir, err := contextsDir()
	if err != nil {
		return credential{}, err
	}
	if name == "" {
		name = dir.current()
	}
	if name != "" {
		return dir.read(cmd, name)
	}
	if names, _ := dir.names(); len(names) > 0 {
		return credential{}, mesh.WithHint(errors.New("no context is in use"), "weft context use %s", names[0])
	}
	return credential{}, mesh.WithHint(errors.New("no context: weft does not know which mesh, and who you are there"),
		"copy operator.yaml from the controller's data directory, then: weft context add NAME --file operator.yaml; weft context use NAME")
}

// writeSecret makes a file that only its owner can read and that was not there.
func writeSecret(path string, text []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(path)
	}
	return err
}

// client returns a client that believes only controllers of the credential's mesh.
// onAge, which may be nil, is told of answers that are old.
func (c credential) client(onAge func(time.Duration)) (*api.Client, error) {
	return api.New(api.Config{
		Servers: c.Controllers,
		TLS:     enroll.ClientTLS(enroll.ClientConfig{Pin: c.Pin}),
		Bearer:  c.who.Text(),
		OnAge:   onAge,
	})
}

// checkServers tells bad addresses before they are kept.
func checkServers(servers []string) error {
	client, err := api.New(api.Config{Servers: servers})
	if err != nil {
		return cli.WithCode(err, cli.CodeUsage)
	}
	client.Close()
	return nil
}
