#!/bin/bash
# Unpack Debian packages, and what they need that is not installed here, into a folder. Installs nothing.
#
#   debian_packages.sh DIR PACKAGE...
#
# A complete folder is left as it is; a folder under construction bears another name, so that DIR is either complete
# or not there. Exits 77 ("skipped") with one sentence when the packages cannot be had.
set -euo pipefail

marker=.complete

skip() {
    echo "debian_packages.sh: $1" >&2
    exit 77
}

[ $# -gt 1 ] || { echo "usage: debian_packages.sh DIR PACKAGE..." >&2; exit 2; }
dir=$(realpath -m -- "$1")
shift
[ ! -e "$dir/$marker" ] || exit 0

for tool in apt-get dpkg-deb; do
    command -v $tool >/dev/null || skip "the packages $* need \`$tool\`, which is not here: this is no Debian."
done
[ "$(id -u)" = 0 ] || skip "only root can ask apt for packages, and this is $(id -un)."
[ ! -e "$dir" ] || skip "\`$dir\` is there already, and was not made by this script."
mkdir -p "$(dirname "$dir")" 2>/dev/null || skip "\`$(dirname "$dir")\` cannot be made."
log=$(mktemp) && building=$(mktemp -d "$dir.XXXXXX" 2>/dev/null) || skip "\`$(dirname "$dir")\` cannot be written to."
trap 'rm -rf "$building" "$log"' EXIT

mkdir -p "$building/debs/partial"
apt() {
    apt-get --option Acquire::Retries=0 --option Acquire::http::Timeout=30 --option APT::Sandbox::User=root \
        --option Dir::Cache::archives="$building/debs" "$@" >"$log" 2>&1
}
fetch() {
    apt install --yes --download-only --no-install-recommends "$@"
}
# The lists of packages may be old, or not there.
fetch "$@" || { apt update && fetch "$@"; } ||
    skip "the packages $* cannot be had: $(grep -m 1 '^E: ' "$log" || tail -n 1 "$log")"
shopt -s nullglob  # nothing comes where all is installed
for deb in "$building"/debs/*.deb; do
    dpkg-deb --extract "$deb" "$building" 2>"$log" || skip "\`$deb\` cannot be unpacked: $(tail -n 1 "$log")"
done
rm -r "$building/debs"

chmod 755 "$building"  # mktemp made it for root alone
touch "$building/$marker"
# Another run may have been faster.
mv -T "$building" "$dir" 2>/dev/null || [ -e "$dir/$marker" ] || skip "\`$dir\` cannot be put in place."
