package lab

import "fmt"

// Reboot takes the host down as a power failure would, with all that runs on it,
// and makes it anew: same name, addresses and files, an empty /run, no processes.
// Links by Veth are gone. A router cannot be rebooted; see Router.Forget.
func (h *Host) Reboot() error {
	if h.router != nil && !h.behind() {
		return fmt.Errorf("reboot %s: it is a router", h.name)
	}
	if _, err := h.running(); err != nil {
		return err
	}
	h.stop()
	for _, p := range h.lab.of(h) {
		<-p.done
	}
	if err := h.start(); err != nil {
		return fmt.Errorf("reboot: %w", err)
	}
	if h.lab.isClosed() {
		h.stop()
		return fmt.Errorf("reboot %s: the lab is closed", h.name)
	}
	h.lab.log.Info("host rebooted", "host", h.name, "addr", h.addr)
	return nil
}

// of lists the processes that were started on a host.
func (l *Lab) of(h *Host) (list []*Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.processes {
		if p.host == h {
			list = append(list, p)
		}
	}
	return list
}

func (l *Lab) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}
