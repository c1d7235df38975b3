//go:build !windows

package resolvconf

import "errors"

// systemRegistry is that of a system that has none.
func systemRegistry() registry { return noRegistry{} }

type noRegistry struct{}

var errNoRegistry = errors.New("this system has no registry")

func (noRegistry) Exists(string) (bool, error)         { return false, errNoRegistry }
func (noRegistry) Read(string) (nrptRule, bool, error) { return nrptRule{}, false, errNoRegistry }
func (noRegistry) Write(string, nrptRule) error        { return errNoRegistry }
func (noRegistry) Delete(string) error                 { return errNoRegistry }
func (noRegistry) Refresh(bool) error                  { return errNoRegistry }
