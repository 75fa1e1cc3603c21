#!/usr/bin/env bash
# The package on a booted Debian, as an operator meets it: PID 1 is systemd, installed by apt, with nginx and Redis.
#
#   tests/booted/run.sh                  Debian 12
#   tests/booted/run.sh trixie           Debian 13
#   KEEP=1 tests/booted/run.sh           leaves the machine's tree behind, to look at
#
# By hand and as root, for it takes minutes: it needs debootstrap, systemd-nspawn, cargo-deb and a Debian mirror
# (MIRROR=http://deb.debian.org/debian). It prints a line for each promise and exits 1 if one does not hold.
# What takes long is kept in BOOTED_CACHE (/var/tmp/webws-booted): the bare Debian and the package of the version
# before, which is the commit PREVIOUS. PACKAGE=FILE.deb tests that package and builds none.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
suite=${1:-bookworm}
cache=${BOOTED_CACHE:-/var/tmp/webws-booted}
mirror=${MIRROR:-http://deb.debian.org/debian}
previous_commit=${PREVIOUS:-5c9bf8b}
failures=0
leader=

. tests/booted/machine.sh
. tests/booted/promises.sh

PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
for program in debootstrap systemd-nspawn cargo-deb; do
    [ "$program" != cargo-deb ] || [ -z "${PACKAGE:-}" ] || continue
    command -v "$program" >/dev/null || {
        echo "tests/booted/run.sh: $program is missing (apt-get install debootstrap systemd-container; cargo install cargo-deb)" >&2
        exit 2
    }
done
[ "$(id -u)" -eq 0 ] || { echo "tests/booted/run.sh: only root can boot a machine" >&2; exit 2; }

mkdir -p "$cache"
prepare_debian
prepare_packages
trap 'power_off; [ -n "${KEEP:-}" ] || rm -rf --one-file-system "$root"' EXIT

section "A first installation"
new_machine
a_first_installation
a_boot
a_wrong_setting
section "Reload, restart, stop and start"
reload_and_restart
stop_and_start
a_crash
section "A password of Redis"
a_password_of_redis
section "Instances"
instances
section "The journal"
journal
section "Remove and purge"
remove_and_purge
section "From the version before, and back"
power_off
new_machine
from_the_version_before

if [ "$failures" -gt 0 ]; then
    echo "$failures promises do not hold"
    exit 1
fi
echo "all promises hold"
