package controller

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/weftmesh/weft/mesh"
	"github.com/weftmesh/weft/mesh/api"
	"github.com/weftmesh/weft/mesh/enroll"
	"github.com/weftmesh/weft/mesh/store"
)

// backup streams a backup. Whether it came whole is seen by its last line alone;
// the connection is cut, too, if it did not.
func (s *server) backup(w http.ResponseWriter, req *http.Request) {
	c := callerOf(req.Context())
	w.Header().Set("Content-Type", api.BackupType)
	w.Header().Set("Cache-Control", "no-store")
	out := &patient{w: w, rc: http.NewResponseController(w), limit: s.cfg.WriteTimeout}
	began := time.Now()
	summary, err := s.store.Dump(req.Context(), c.actor(), out)
	switch {
	case err == nil:
		s.log.Info("backup taken", "actor", c.actor(), "keys", summary.Keys, "bytes", summary.Bytes, "took", time.Since(began).Round(time.Millisecond))
	case !out.begun:
		writeRefusal(w, s.refusal("backup", err))
	default:
		if req.Context().Err() == nil {
			s.log.Warn("backup ended early", "actor", c.actor(), "err", err)
		}
		panic(http.ErrAbortHandler) // how net/http is told to cut the connection
	}
}

// patient gives each write its own deadline: an answer may take long, but not stand
// still.
type patient struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	limit time.Duration
	begun bool
}

func (p *patient) Write(b []byte) (int, error) {
	p.begun = true
	p.rc.SetWriteDeadline(time.Now().Add(p.limit))
	return p.w.Write(b)
}

// describeBackup adds the backup, which is not huma's, to the description.
func (r *router) describeBackup() {
	rule := r.rules["backup"]
	r.huma.OpenAPI().AddOperation(&huma.Operation{
		OperationID: rule.id, Method: rule.method, Path: rule.path, Summary: rule.does,
		Description: "The whole mesh as of one revision: one JSON object a line, of which the last one has the SHA-256 of all before. Without that line it is not whole.",
		Responses: map[string]*huma.Response{
			"200":     {Description: "OK", Content: map[string]*huma.MediaType{api.BackupType: {Schema: &huma.Schema{Type: huma.TypeString}}}},
			"default": r.refusalSchema(),
		},
	})
}

// CheckRestore says whether a controller could serve the mesh of a backup with what
// is in dataDir: "" if so, else what is missing. It returns an error if something
// there is of another mesh. sealKeyFile is as in Config.
func CheckRestore(dataDir, sealKeyFile string, cas []store.CARecord) (missing string, err error) {
	cfg := Config{DataDir: dataDir, SealKeyFile: sealKeyFile}
	if cfg.SealKeyFile == "" {
		cfg.SealKeyFile = filepath.Join(dataDir, sealFile)
	}
	owner, err := readOwner(dataDir)
	if err != nil {
		return "", err
	}
	var pins []string
	for _, ca := range cas {
		pin, err := enroll.CertificatePin(ca.Certificate)
		if err != nil {
			return "", err
		}
		pins = append(pins, pin)
	}
	if owner != "" && !slices.Contains(pins, owner) {
		return "", mesh.WithHint(fmt.Errorf("data directory %s: %w: mesh %s, and the backup is of mesh %s", dataDir, ErrOtherMesh, short(owner), short(pins[0])),
			"choose another --data-dir")
	}
	_, err = unseal(cfg, cas, owner)
	if errors.Is(err, os.ErrNotExist) && sealKeyFile == "" {
		return cfg.SealKeyFile, nil
	}
	return "", err
}
