#!/usr/bin/env bash
# The test command: finds or installs the programs the tests talk to (a real nginx, a real Redis, a
# real browser, systemd's tools), then runs all tests. With arguments, runs `cargo test` with them instead:
#
#   tests/run.sh                                      everything
#   tests/run.sh --test main golden                   what has "golden" in its name
#   tests/run.sh --all-features --test main inside::  what needs more than the features that ship
#
# Exit status: that of cargo test; 2 if something is missing that this script may not install.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Debian keeps nginx in sbin, which is not in every user's PATH.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
[ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
export PATH

say() { printf 'tests/run.sh: %s\n' "$*" >&2; }

if ! command -v cargo >/dev/null; then
    say "cargo is missing: install Rust as https://rustup.rs says, then run this again"
    exit 2
fi

# program, or a file by its whole path, and the Debian package it comes in
needed=(
    script bsdutils
    nginx                    nginx
    /usr/lib/nginx/modules/ngx_http_lua_module.so libnginx-mod-http-lua
    redis-server             redis-server
    redis-cli                redis-tools
    ip                       iproute2
    chromium                 chromium
    chromedriver             chromium-driver
    systemd-analyze          systemd
    systemd-socket-activate  systemd
    prlimit                  util-linux
    curl                     curl
    python3                  python3
    openssl                  openssl
    npm                      npm
    # ring, the TLS library's cryptography, and jemalloc are partly C
    cc                       gcc
    make                     make
)

is_there() {
    case "$1" in
        /*) [ -e "$1" ] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

# Prints the packages of what is missing, one a line, each once.
missing_packages() {
    local i
    for ((i = 0; i < ${#needed[@]}; i += 2)); do
        is_there "${needed[i]}" || echo "${needed[i + 1]}"
    done | sort -u
}

# Installs packages without letting their services start. On a machine run by systemd a unit that is
# masked until the next boot is left alone by the package's scripts; elsewhere (a container) RUNLEVEL=1
# makes them believe that it is not the time for services. Units that exist already are not touched.
install() {
    local unit masked=() status=0
    if [ -d /run/systemd/system ]; then
        for unit in nginx.service redis-server.service; do
            if ! "${as_root[@]}" systemctl cat "$unit" >/dev/null 2>&1; then
                "${as_root[@]}" systemctl mask --runtime --quiet "$unit" && masked+=("$unit")
            fi
        done
    fi
    # An outdated list of packages names files that the mirror has no more.
    "${as_root[@]}" apt-get update -qq || say "apt-get update failed; trying with the lists there are"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "$@" || status=$?
    for unit in "${masked[@]}"; do
        "${as_root[@]}" systemctl unmask --runtime --quiet "$unit" || true
        # The package enabled it for the next boot; it is here for the tests only.
        "${as_root[@]}" systemctl disable --quiet "$unit" 2>/dev/null || true
    done
    return "$status"
}

mapfile -t packages < <(missing_packages)
if [ "${#packages[@]}" -gt 0 ]; then
    say "missing packages: ${packages[*]}"
    if ! command -v apt-get >/dev/null; then
        say "there is no apt-get here; the tests need these programs in PATH, or files:"
        for ((i = 0; i < ${#needed[@]}; i += 2)); do
            is_there "${needed[i]}" || say "  ${needed[i]} (Debian package ${needed[i + 1]})"
        done
        exit 2
    elif [ "$(id -u)" -eq 0 ]; then
        as_root=(env)
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root=(sudo)
    else
        say "this user may not install them (not root, and sudo asks for a password). Install them by:"
        say "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${packages[*]}"
        exit 2
    fi
    install "${packages[@]}" || {
        say "apt-get failed; see above. By hand: apt-get install -y --no-install-recommends ${packages[*]}"
        exit 2
    }
    mapfile -t packages < <(missing_packages)
    if [ "${#packages[@]}" -gt 0 ]; then
        say "still missing after installing: ${packages[*]} (Ubuntu has chromium as a snap: put chromium and chromedriver into PATH)"
        exit 2
    fi
fi

# The page is judged by axe-core (MPL, so no part of this project), which npm fetches.
axe=axe-core-4.10.3
if [ ! -s "target/$axe/axe.min.js" ] && [ -z "${WEBWS_TEST_WITHOUT_AXE:-}" ]; then
    mkdir -p "target/$axe"
    timeout 60 npm pack --silent --pack-destination "target/$axe" "${axe/core-/core@}" >/dev/null 2>&1 \
        && tar -xzf "target/$axe/$axe.tgz" -C "target/$axe" --strip-components=1 package/axe.min.js || true
fi
if [ -s "target/$axe/axe.min.js" ]; then
    export AXE_CORE="$PWD/target/$axe/axe.min.js"
else
    say "npm cannot fetch axe-core: its test fails, unless WEBWS_TEST_WITHOUT_AXE=1 is set"
fi

# Some containers let every user bind every port.
if [ "$(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)" -le 81 ]; then
    say "no port is privileged here: the test of such a port is left out (sysctl net.ipv4.ip_unprivileged_port_start)"
    export WEBWS_TEST_WITHOUT_PRIVILEGED_PORTS=1
fi

# 9,000 WebSockets through nginx and back are some 20,000 descriptors in the tests' own process.
ulimit -n "$(ulimit -Hn)" || say "cannot raise the limit of open files ($(ulimit -n)); the big tests may fail"

# They wait more than they compute, so more of them than there are cores run at a time.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-4}"

if [ $# -gt 0 ]; then
    exec cargo test --locked "$@"
fi

# What ships, with the features that ship.
cargo test --locked

# A program that embeds the library: the release profile, because only there do levels disappear; optimised by
# nothing, because that takes a minute more and changes no level.
CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo run --release --locked --quiet -p webws-embedder --target-dir target/embedder

# What ships to nobody: the load generator (feature "bench"); parsers called directly, and processes that fail at a
# chosen step (feature "internals").
cargo test --locked --all-features --bin webws-bench
cargo test --locked --all-features --test main inside::
