#!/bin/bash
# Make a folder of Debian unstable with Python 3.14 and 3.15, to chroot into.
#
#   debian_pythons.sh DIR
#
# Needs root, and the mirror that this machine's own apt sources name. Mounts nothing that outlives it: whoever
# enters the folder binds /proc, /dev and /sys. A complete folder is left as it is; a folder under construction
# bears another name, so that DIR is either complete or not there. Exits 77 ("skipped") with one sentence when
# the folder cannot be made.
set -euo pipefail

# Where debootstrap is, and not every PATH has it.
PATH=$PATH:/usr/sbin:/sbin

packages=python3.14,python3.14-venv,python3.15,python3.15-venv,ca-certificates
marker=.complete

skip() {
    echo "debian_pythons.sh: $1" >&2
    exit 77
}

# The first Debian archive in the apt sources: its path ends in /debian, which the security archive's does not.
mirror() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        grep -E '^(deb |URIs:)' | grep -oE '[a-z+]+://[^ ]*/debian/?( |$)' | tr -d ' ' | head -n 1
}

# Give the file $1 of this machine, if it has it, to the folder under construction, as $2.
hand_over() {
    [ -f "$1" ] || return 0
    mkdir -p "$(dirname "$building$2")"
    cp -L --remove-destination "$1" "$building$2" || skip "\`$1\` cannot be copied to \`$building$2\`."
}

[ $# = 1 ] || { echo "usage: debian_pythons.sh DIR" >&2; exit 2; }
dir=$(realpath -m -- "$1")
[ ! -e "$dir/$marker" ] || exit 0

[ "$(id -u)" = 0 ] || skip "only root can make a Debian folder, and this is $(id -un)."
[ ! -e "$dir" ] || [ -z "$(ls -A "$dir")" ] || skip "\`$dir\` is there already, and was not made by this script."
mirror=$(mirror) || true
[ -n "$mirror" ] || skip "the apt sources of this machine name no Debian mirror."
mkdir -p "$(dirname "$dir")" 2>/dev/null || skip "\`$(dirname "$dir")\` cannot be made."
log=$(mktemp) && building=$(mktemp -d "$dir.XXXXXX" 2>/dev/null) || skip "\`$(dirname "$dir")\` cannot be written to."
# One file system only: an interrupted debootstrap may leave /proc mounted inside.
trap 'rm -rf --one-file-system "$building" "$log"' EXIT

if ! command -v debootstrap >/dev/null; then
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends debootstrap
    } >"$log" 2>&1 || skip "debootstrap cannot be installed: $(tail -n 1 "$log")"
fi
debootstrap --variant=minbase --include="$packages" sid "$building" "$mirror" >"$log" 2>&1 ||
    skip "debootstrap cannot make \`$dir\` from $mirror: $(tail -n 1 "$log")"

hand_over /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
hand_over /etc/resolv.conf /etc/resolv.conf
hand_over /etc/pip.conf /etc/pip.conf
hand_over ~/.config/pip/pip.conf /root/.config/pip/pip.conf

chmod 755 "$building"  # mktemp made it for root alone
touch "$building/$marker"
# Another run may have been faster.
mv -T "$building" "$dir" 2>/dev/null || [ -e "$dir/$marker" ] || skip "\`$dir\` cannot be put in place."
