#!/usr/bin/env bash
# unpack.sh DIR: QEMU, its libraries and Debian's 6.12 cloud kernel, unpacked below
# DIR/root. Nothing is installed: apt works on lists of its own, with the help of what
# this machine says that it has. About 55 MB are fetched.
set -euo pipefail
mkdir -p "$1"; dir=$(cd "$1" && pwd)
rm -rf "$dir/root"; mkdir -p "$dir"/{lists,archives}/partial "$dir/root"
mirror=${MIRROR:-http://deb.debian.org/debian}
key=/usr/share/keyrings/debian-archive-keyring.gpg
printf "deb [signed-by=$key] $mirror bookworm%s main\n" '' -updates -backports >"$dir/sources.list"
options=(-qq -o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
  -o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir" -o "Dir::Cache::archives=$dir/archives"
  -o Debug::NoLocking=1 -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=2)
apt-get "${options[@]}" update
# The name has the version in it, and older ones vanish.
kernel=$(apt-cache "${options[@]}" depends linux-image-cloud-amd64/bookworm-backports | sed -n 's/.*Depends: \(linux-image-[^ ]*\)$/\1/p')
[ -n "$kernel" ] || { echo "unpack: bookworm-backports has no linux-image-cloud-amd64" >&2; exit 1; }
# Libraries that this machine has already are not fetched, and are used from where they
# are; QEMU itself is, in any case.
apt-get "${options[@]}" -y --no-install-recommends --download-only install qemu-system-x86 xz-utils
(cd "$dir/archives" && apt-get "${options[@]}" download "$kernel" qemu-system-x86 qemu-system-common qemu-system-data seabios ipxe-qemu)
for p in "$dir"/archives/*.deb; do
  case ${p##*/} in libc6_*) ;; *) dpkg-deb -x "$p" "$dir/root" ;; esac
done
xz=$(command -v xz || echo "$dir/root/usr/bin/xz")
find "$dir/root/lib/modules" -name '*.ko.xz' -print0 | xargs -0 -n 64 -P 2 "$xz" -d
rm -rf "$dir/archives" "$dir/lists" "$dir"/*cache.bin
