package resolvconf

import (
	"errors"
	"fmt"

	"golang.org/x/sys/windows"
	win "golang.org/x/sys/windows/registry"
)

// systemRegistry is this machine's.
func systemRegistry() registry { return machineRegistry{} }

type machineRegistry struct{}

const root = win.LOCAL_MACHINE

func (machineRegistry) Exists(path string) (bool, error) {
	k, err := win.OpenKey(root, path, win.QUERY_VALUE)
	if errors.Is(err, win.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, k.Close()
}

func (machineRegistry) Read(path string) (rule nrptRule, ok bool, err error) {
	k, err := win.OpenKey(root, path, win.QUERY_VALUE)
	if errors.Is(err, win.ErrNotExist) {
		return rule, false, nil
	}
	if err != nil {
		return rule, false, err
	}
	defer k.Close()
	names, _, errNames := k.GetStringsValue("Name")
	servers, _, errServers := k.GetStringValue("GenericDNSServers")
	version, _, errVersion := k.GetIntegerValue("Version")
	options, _, errOptions := k.GetIntegerValue("ConfigOptions")
	if err := errors.Join(errNames, errServers, errVersion, errOptions); err != nil || version != nrptVersion || options != nrptOwnServers {
		return rule, false, nil // half written
	}
	return nrptRule{Names: names, Servers: servers}, true, nil
}

func (machineRegistry) Write(path string, rule nrptRule) error {
	k, _, err := win.CreateKey(root, path, win.SET_VALUE)
	if err != nil {
		return err
	}
	return errors.Join(
		k.SetDWordValue("Version", nrptVersion),
		k.SetStringsValue("Name", rule.Names),
		k.SetStringValue("GenericDNSServers", rule.Servers),
		k.SetDWordValue("ConfigOptions", nrptOwnServers),
		k.Close(),
	)
}

func (machineRegistry) Delete(path string) error {
	if err := win.DeleteKey(root, path); err != nil && !errors.Is(err, win.ErrNotExist) {
		return err
	}
	return nil
}

// Refresh tells the DNS client, and drops what it remembers.
func (machineRegistry) Refresh(policy bool) error {
	if policy {
		const machine, force = 1, 1 // RP_FORCE
		refresh := windows.NewLazySystemDLL("userenv.dll").NewProc("RefreshPolicyEx")
		if ok, _, err := refresh.Call(machine, force); ok == 0 {
			return fmt.Errorf("RefreshPolicyEx: %w", err)
		}
	}
	flush := windows.NewLazySystemDLL("dnsapi.dll").NewProc("DnsFlushResolverCache")
	if err := flush.Find(); err != nil {
		return nil // negative answers from before stay for a while
	}
	_, _, _ = flush.Call() // as above
	return nil
}
