package link

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weftmesh/weft/peers/netns"
)

func (k *kernel) rename(l netlink.Link, name string) error {
	err := k.nl.LinkSetName(l, name)
	if errors.Is(err, unix.EBUSY) { // before Linux 6.2 only one that is down gets another name
		if err = k.nl.LinkSetDown(l); err == nil {
			err = errors.Join(k.nl.LinkSetName(l, name), k.nl.LinkSetUp(l))
		}
	}
	if err != nil {
		return fmt.Errorf("name link %s: %w", name, err)
	}
	return nil
}

// Recall gives links their names back that somebody renamed while nobody watched. name
// tells how a link of an alias is to be called, "" if that is no matter. It returns the
// names that it gave. One that another link has by now is not taken from it.
func Recall(plane *netns.Handle, name func(alias string) string) (given []string, err error) {
	k, err := openKernel(plane)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	links, err := netns.List(k.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("look for links that were renamed: %w", err)
	}
	taken := make(map[string]bool, len(links))
	for _, l := range links {
		taken[l.Attrs().Name] = true
	}
	var errs []error
	for _, l := range links {
		want := ""
		if alias := l.Attrs().Alias; alias != "" {
			want = name(alias)
		}
		if want == "" || taken[want] {
			continue
		}
		if err := k.rename(l, want); err != nil {
			errs = append(errs, err)
			continue
		}
		taken[want], given = true, append(given, want)
	}
	return given, errors.Join(errs...)
}
