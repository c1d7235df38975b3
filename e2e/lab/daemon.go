package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Daemons lists the processes of the host that HostConfig.Daemons allows, by their ids
// on the host.
func (h *Host) Daemons() ([]int, error) {
	all, err := h.leftovers()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, list := range h.daemons(all) {
		for _, d := range list {
			pids = append(pids, d.pid)
		}
	}
	return pids, nil
}

// daemons are those of a host's processes that HostConfig.Daemons allows.
func (h *Host) daemons(all []leftover) map[string][]leftover {
	found := map[string][]leftover{}
	for _, l := range all {
		path, args, _ := strings.Cut(l.line, " ")
		for _, d := range h.cfg.Daemons {
			if strings.HasPrefix(filepath.Base(path)+" "+args, d) {
				found[d] = append(found[d], l)
			}
		}
	}
	return found
}

// endDaemons asks the host's daemons to end, and waits for it. Two of a kind are an
// error: somebody lost sight of one.
func (h *Host) endDaemons() error {
	if len(h.cfg.Daemons) == 0 {
		return nil
	}
	all, err := h.leftovers()
	if err != nil {
		return nil // the host is down, and says so elsewhere
	}
	var errs []error
	for kind, list := range h.daemons(all) {
		if len(list) > 1 {
			errs = append(errs, fmt.Errorf("host %s: %d processes %q at once", h.name, len(list), kind))
		}
		for _, d := range list {
			// By a program on the host, where the number is. One that has ended is none.
			pid := strconv.Itoa(d.pid)
			if _, err := h.Run(context.Background(), "sh", "-c", "kill -TERM "+pid+"; kill -CONT "+pid+"; true"); err != nil {
				errs = append(errs, err)
			}
		}
	}
	err = Await(context.Background(), "the daemons of "+h.name+" to end", 5*time.Second, func(context.Context) error {
		all, err := h.leftovers()
		if left := h.daemons(all); err == nil && len(left) > 0 {
			err = fmt.Errorf("%v", left)
		}
		return err
	})
	return errors.Join(append(errs, err)...)
}
