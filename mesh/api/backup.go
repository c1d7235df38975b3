package api

import (
	"context"
	"io"
	"net/http"
)

// BackupType is the media type of a backup: JSON, an object a line.
const BackupType = "application/x-ndjson"

// Backup asks for a backup of the mesh (see mesh/backup for what comes), and returns
// as soon as it begins. The caller closes it, and finds by its last line whether it
// is whole.
func (c *Client) Backup(ctx context.Context) (io.ReadCloser, error) {
	resp, err := c.send(ctx, request{method: http.MethodGet, path: "/v1/backup", accept: BackupType, stream: true})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
