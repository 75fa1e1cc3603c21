# The machine of run.sh: a Debian in a directory, booted by systemd-nspawn; sourced.

# What the machine has besides systemd. Python is for crowd.py.
debian_packages=systemd,systemd-sysv,dbus,redis-server,nginx-light,python3,procps,curl

prepare_debian() {
    base=$cache/$suite
    [ "$(cat "$base.packages" 2>/dev/null)" = "$debian_packages" ] && return
    rm -rf --one-file-system "$base" "$base.packages"
    debootstrap --variant=minbase --include="$debian_packages" "$suite" "$base" "$mirror" >"$base.log" || {
        tail "$base.log" >&2
        exit 2
    }
    echo "$debian_packages" >"$base.packages"
}

# Two packages: of this tree, and of the commit before it.
prepare_packages() {
    local target=${CARGO_TARGET_DIR:-$PWD/target}
    previous=$cache/webws_previous_$previous_commit.deb
    if [ ! -f "$previous" ]; then
        rm -rf "$cache/previous" && mkdir "$cache/previous"
        git archive "$previous_commit" | tar x -C "$cache/previous"
        (cd "$cache/previous" && CARGO_TARGET_DIR="$target" cargo build --locked --release --bin webws &&
            CARGO_TARGET_DIR="$target" cargo deb --no-build --deb-version 0.1.0~previous --maintainer 'webws <root@localhost>' --output "$previous")
    fi
    current=${PACKAGE:-}
    if [ -z "$current" ]; then
        current=$cache/webws_current.deb
        debian/build --output "$current"
    fi
}

new_machine() {
    root=$(mktemp -d "$cache/machine.XXXXXX")
    cp -a --reflink=auto "$base/." "$root"
    cp "$previous" "$root/root/previous.deb"
    cp "$current" "$root/root/current.deb"
    cp tests/booted/crowd.py "$root/root/"
    echo machine >"$root/etc/hostname"
    # One journal for all boots.
    systemd-id128 new >"$root/etc/machine-id"
    mkdir -p "$root/var/log/journal"
    # No network, so no mirror either: what is asked of apt must be there.
    rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
    power_on
}

# nspawn takes over the cgroups of this machine as they are: unified, or hybrid where PID 1 is not systemd. Debian
# 13 wants to be told that hybrid is meant (PID 1 reads its arguments like the kernel's command line).
power_on() {
    setsid systemd-nspawn --quiet --register=no --keep-unit --private-network --machine=webws-booted \
        --console=read-only --directory="$root" --boot SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1 </dev/null >"$root.console" 2>&1 &
    nspawn=$!
    within 60 is_booted || {
        echo "the machine does not boot:" >&2
        tail "$root.console" >&2
        exit 2
    }
}

is_booted() {
    leader=$(pgrep -P "$nspawn") || return 1
    case $(on systemctl is-system-running 2>/dev/null) in running | degraded) ;; *) return 1 ;; esac
}

power_off() {
    [ -n "$leader" ] || return 0
    # SIGRTMIN+4 is "power off" to systemd.
    kill -RTMIN+4 "$leader" 2>/dev/null || true
    within 60 has_ended || kill -KILL "$leader"
    wait "$nspawn" || true
    leader=
}

has_ended() { ! kill -0 "$nspawn" 2>/dev/null; }

# Runs a command on the machine, as root.
on() {
    nsenter --target "$leader" --all -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive SYSTEMD_PAGER= SYSTEMD_COLORS=0 "$@"
}

# within SECONDS COMMAND: until it succeeds.
within() {
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.1
    done
}

section() { printf '\n%s\n' "$1"; }

# promise TEXT COMMAND: prints whether it holds within ten seconds, and what the command said if not.
promise() {
    local text=$1 said until=$((SECONDS + 10))
    shift
    while ! said=$("$@" 2>&1); do
        if [ "$SECONDS" -ge "$until" ]; then
            printf '  FAIL  %s\n' "$text"
            printf '        %s\n' "$*" "$said" | sed -n '1,6p' | cut -c 1-300
            failures=$((failures + 1))
            return 0
        fi
        sleep 0.1
    done
    printf '  ok    %s\n' "$text"
}

# done_ TEXT COMMAND: a command that is to succeed, once.
done_() {
    local text=$1 said
    shift
    if said=$("$@" 2>&1); then
        printf '  ok    %s\n' "$text"
    else
        printf '  FAIL  %s\n' "$text"
        printf '        %s\n' "$*" "$said" | sed -n '1,6p' | cut -c 1-300
        failures=$((failures + 1))
    fi
}

no() { ! "$@"; }
