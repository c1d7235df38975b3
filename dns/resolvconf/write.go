package resolvconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// readFile reads a file that may be absent.
func readFile(path string) (text []byte, mode os.FileMode, absent bool, err error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0o644, true, nil
	}
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err == nil {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, 0, false, err
	}
	return text, st.Mode().Perm(), false, nil
}

// replaceFile gives path a new text: a reader, and a crash, sees the old or the new
// one whole. Where the file cannot be replaced, as one that something is mounted on
// (containers, sandboxes), it is overwritten in place.
func replaceFile(path string, text []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".weft-*")
	if err != nil {
		if e := overwrite(path, text); e == nil {
			return nil
		}
		return err
	}
	defer os.Remove(tmp.Name()) // fails once it is renamed
	_, err = tmp.Write(text)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if old, e := os.Stat(path); err == nil && e == nil {
		keepOwner(tmp, old)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", tmp.Name(), err)
	}
	err = os.Rename(tmp.Name(), path)
	if errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EXDEV) {
		return overwrite(path, text)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// overwrite writes an existing file in place: new text first, then the cut.
func overwrite(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(text, 0)
	if err == nil {
		err = f.Truncate(int64(len(text)))
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}
