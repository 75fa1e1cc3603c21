# What run.sh looks at, in the order of a machine's life; sourced.

clients=20

state() { on systemctl show --value --property="$1" "$2"; }
is_state() { [ "$(state "$1" "$2")" = "$3" ]; }
is_up() { is_state ActiveState "$1" active; }
is_down() { is_state ActiveState "$1" inactive; }
main_process() { state MainPID "${1:-webws.service}"; }
is_other_process() { [ "$(main_process)" != "$1" ] && [ "$(main_process)" != 0 ]; }
status_tells_of() { state StatusText webws.service | grep -w "$1" || { state StatusText webws.service; return 1; }; }
status() { on curl --silent --output /dev/null --write-out '%{http_code}' "$@"; }
is_ready() { [ "$(status --unix-socket "${1:-/run/webws/webws.sock}" http://localhost/readyz)" = 200 ]; }
socket_inode() { on stat --format=%i /run/webws/webws.sock; }
is_gone() { ! on test -e "$1"; }
is_there() { on test -e "$1"; }

# Through nginx: 101 is a WebSocket.
handshake() {
    on curl --silent --output /dev/null --write-out '%{http_code}' --max-time "${1:-2}" --http1.1 \
        --header 'Connection: Upgrade' --header 'Upgrade: websocket' --header 'Sec-WebSocket-Version: 13' \
        --header 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' 'http://127.0.0.1/webws?channel=%22a%22' || true
}
is_answered() { [ "$(handshake "${2:-2}")" = "$1" ]; }

crowd() { on sed -n "s/.*\"$1\": \([0-9]*\).*/\1/p" /run/crowd.json; }
crowd_heard() { is_there /run/crowd.json && [ "$(crowd heard)" -ge "$1" ]; }
crowd_start() {
    on systemctl reset-failed crowd.service 2>/dev/null || true
    on rm -f /run/crowd.json
    on systemd-run --quiet --unit=crowd python3 /root/crowd.py /run/crowd.json --clients "$clients" "$@"
    within 20 crowd_heard 10 || { on journalctl --unit=crowd --lines=5 >&2; return 1; }
}
crowd_stop() { on systemctl stop crowd.service; }
# Half a second of messages after now.
crowd_goes_on() { within 10 crowd_heard $(($(crowd heard) + 25)); }
crowd_is_whole() {
    crowd_goes_on || { echo "the crowd hears nothing: $(on cat /run/crowd.json)"; return 1; }
    [ "$(crowd open)" = "$clients" ] && [ "$(crowd twice)" = 0 ] || { on cat /run/crowd.json; return 1; }
}
crowd_lost_nothing() {
    crowd_is_whole && [ "$(crowd lost)" = 0 ] || { on cat /run/crowd.json; return 1; }
}
crowd_was_told() { on grep -q "\"open\": 0, \"codes\": {\"$1\": $clients}" /run/crowd.json; }

position_of() {
    on journalctl --quiet --identifier="$1" --lines=1 --show-cursor | sed -n 's/^-- cursor: //p' | grep .
}
# The position of an entry of this script: --after-cursor of systemd 252 leaves out the first entry that matches,
# even if the entry at the cursor is another one.
now() {
    local mark=booted-$BASHPID
    on logger --tag "$mark" "promises from here on"
    within 10 position_of "$mark"
}
# logged CURSOR ARGUMENTS: what webws and systemd logged of webws since then.
logged() {
    local cursor=$1
    shift
    on journalctl --quiet --output=cat --unit='webws*' --cursor="$cursor" "$@"
}
is_quiet() {
    local said
    said=$(logged "$1" --priority=warning)
    [ -z "$said" ] || { echo "$said"; return 1; }
}

has_logged() {
    local cursor=$1 text=$2
    shift 2
    logged "$cursor" "$@" | grep "$text"
}
units_are_silent() {
    ! on systemd-analyze verify webws.service webws.socket webws@1.service webws@1.socket 2>&1 | grep webws
}

use_nginx() {
    on cp /usr/share/webws/nginx/webws-http.conf /etc/nginx/conf.d/
    on cp /usr/share/webws/nginx/webws-location.conf /etc/nginx/
    on sh -c 'echo "server { listen 80 default_server; include /etc/nginx/webws-location.conf; }" >/etc/nginx/sites-enabled/default'
    on nginx -q -t && on systemctl restart nginx.service
}

a_first_installation() {
    begin=$(now)
    done_ "apt installs it" on apt-get install --yes --quiet --no-install-recommends /root/current.deb
    promise "the service runs" is_up webws.service
    promise "it is ready: Redis is there" is_ready
    promise "it is enabled for the next boot" on systemctl --quiet is-enabled webws.service
    promise "nginx' group may connect" on sh -c '[ "$(stat --format="%U:%G %a" /run/webws/webws.sock)" = "root:www-data 660" ]'
    promise "systemd has nothing to say about the units" units_are_silent
    for file in man/man8/webws.8.gz bash-completion/completions/webws zsh/vendor-completions/_webws \
        fish/vendor_completions.d/webws.fish doc/webws/copyright doc/webws/changelog.Debian.gz; do
        promise "/usr/share/$file is installed" is_there "/usr/share/$file"
    done
    done_ "nginx takes the shipped files" use_nginx
    promise "a handshake through nginx is answered with 101" is_answered 101
    promise "nothing to warn of" is_quiet "$begin"
}

a_boot() {
    power_off
    power_on
    promise "the service runs after a boot, before any client" is_up webws.service
    promise "and serves" is_answered 101
}

a_wrong_setting() {
    local before
    on cp /etc/webws/webws.toml /root/good.toml
    on sh -c 'echo "nonsense = 1" >>/etc/webws/webws.toml'
    before=$(now)
    crowd_start
    done_ "a reload with a wrong setting fails" no on systemctl reload webws.service
    promise "the WebSockets stay, and lose nothing" crowd_lost_nothing
    promise "the journal names the setting" has_logged "$before" nonsense
    promise "at an error's priority" has_logged "$before" nonsense --priority=err
    crowd_stop
    on systemctl stop webws.service
    done_ "a start with a wrong setting fails" no on systemctl start webws.service
    promise "and is tried again" is_state ActiveState webws.service activating
    done_ "a stop ends that" on systemctl stop webws.service
    promise "the socket is down" is_down webws.socket
    done_ "a start with a wrong setting fails" no on systemctl start webws.service
    on cp /root/good.toml /etc/webws/webws.toml
    promise "with a right setting it starts by itself" is_up webws.service
    promise "and serves" is_answered 101
}

reload_and_restart() {
    local cursor process inode
    crowd_start
    cursor=$(now)
    process=$(main_process)
    inode=$(socket_inode)
    done_ "reload" on systemctl reload webws.service
    promise "another process serves" is_other_process "$process"
    promise "no WebSocket is closed, nothing is lost" crowd_lost_nothing
    promise "nothing to warn of" is_quiet "$cursor"
    process=$(main_process)
    done_ "webws upgrade finds the control socket of the service" on webws upgrade
    done_ "and with --config" on webws upgrade --config /etc/webws/webws.toml
    promise "another process serves" is_other_process "$process"
    promise "no WebSocket is closed, nothing is lost" crowd_lost_nothing
    promise "systemctl status tells how many WebSockets there are" status_tells_of "$clients"
    for command in restart try-restart reload-or-restart condrestart; do
        process=$(main_process)
        done_ "$command" on systemctl "$command" webws.service
        promise "another process serves" is_other_process "$process"
        promise "no WebSocket is closed" crowd_is_whole
    done
    promise "the listening socket is the same" test "$(socket_inode)" = "$inode"
    process=$(main_process)
    done_ "restart of the socket" on systemctl restart webws.socket
    promise "another process serves" is_other_process "$process"
    promise "no WebSocket is closed" crowd_is_whole
    promise "new clients come" is_answered 101
    crowd_stop
    cursor=$(now)
    done_ "restart while idle" on systemctl restart webws.service
    promise "it serves" is_ready
    promise "nothing to warn of" is_quiet "$cursor"
    promise "in a dozen lines at most" test "$(logged "$cursor" | wc -l)" -le 12
}

# stops_by UNITS: with a crowd, and looks that nothing starts it again.
stops_by() {
    local cursor
    crowd_start
    cursor=$(now)
    # Clients that come back all the time.
    on systemd-run --quiet --unit=storm sh -c 'while :; do curl -s --unix-socket /run/webws/webws.sock http://x/healthz; done'
    done_ "stop $*" on systemctl stop "$@"
    promise "every WebSocket is told 1001" crowd_was_told 1001
    promise "service and socket are down" is_down webws.service
    promise "the socket as well" is_down webws.socket
    promise "its file is gone" is_gone /run/webws/webws.sock
    promise "a client gets 502" is_answered 502
    promise "and starts nothing" is_down webws.service
    promise "nothing to warn of" is_quiet "$cursor"
    on systemctl stop storm.service
    crowd_stop
}

stop_and_start() {
    stops_by webws.service
    done_ "start of the service" on systemctl start webws.service
    promise "a client gets 101" is_answered 101
    stops_by webws.socket
    done_ "start of the socket" on systemctl start webws.socket
    promise "the first client gets 101" is_answered 101 5
    promise "the service runs" is_up webws.service
    stops_by webws.service webws.socket
    done_ "start of both" on systemctl start webws.socket webws.service
    stops_by webws.socket webws.service
    done_ "start of both, in the other order" on systemctl start webws.service webws.socket
    promise "a client gets 101" is_answered 101
    done_ "start of what runs changes nothing" on systemctl start webws.service
}

a_crash() {
    local inode process
    inode=$(socket_inode)
    process=$(main_process)
    on kill -KILL "$process"
    promise "a client that comes right after a crash waits and gets 101" is_answered 101 5
    promise "another process serves" is_other_process "$process"
    promise "the listening socket is the same" test "$(socket_inode)" = "$inode"
    on kill -KILL "$(main_process)"
    within 5 is_state SubState webws.service auto-restart
    done_ "stop between a crash and the next start" on systemctl stop webws.service
    promise "the service is down" is_down webws.service
    promise "the socket as well" is_down webws.socket
    done_ "start" on systemctl start webws.service
}

# redis_password OLD NEW: set in Redis, and written to the file of the drop-in.
redis_password() {
    on redis-cli ${1:+--no-auth-warning -a "$1"} config set requirepass "$2" >/dev/null
    on sh -c 'echo "$1" >/etc/webws/redis-password' sh "$2"
}

# As the header of redis-password.conf says.
a_password_of_redis() {
    local process
    on groupadd --system webws-redis
    on install -o root -g webws-redis -m 0640 /dev/null /etc/webws/redis-password
    on install -D -m 644 -t /etc/systemd/system/webws.service.d /usr/share/webws/systemd/redis-password.conf
    redis_password "" first
    on systemctl daemon-reload
    done_ "restart with the drop-in for a password" on systemctl restart webws.service
    promise "it is ready: Redis takes the password" is_ready
    promise "others may not read the password" on sh -c '! setpriv --reuid=nobody --clear-groups cat /etc/webws/redis-password'
    crowd_start --password first
    process=$(main_process)
    redis_password first second
    done_ "reload after a new password" on systemctl reload webws.service
    promise "another process serves" is_other_process "$process"
    promise "it is ready: Redis takes the new password" is_ready
    promise "no WebSocket is closed, nothing is lost" crowd_lost_nothing
    redis_password second third
    done_ "Redis ends the links" on sh -c '[ "$(redis-cli --no-auth-warning -a third client kill type pubsub)" -gt 0 ]'
    promise "a lost link comes back with a newer password, without a reload" crowd_is_whole
    crowd_stop
    on rm -r /etc/systemd/system/webws.service.d /etc/webws/redis-password
    on redis-cli --no-auth-warning -a third config set requirepass "" >/dev/null
    on systemctl daemon-reload
    done_ "restart without the drop-in" on systemctl restart webws.service
    promise "it is ready" is_ready
}

instances() {
    done_ "webws@1 and webws@2 are enabled and started" on systemctl --quiet enable --now webws@1.service webws@2.service
    promise "instance 1 is ready" is_ready /run/webws/1.sock
    promise "instance 2 is ready" is_ready /run/webws/2.sock
    done_ "reload of an instance" on systemctl reload webws@1.service
    done_ "restart of an instance" on systemctl restart webws@2.service
    done_ "stop of an instance" on systemctl stop webws@1.service
    promise "its socket is down" is_down webws@1.socket
    promise "the other one serves" is_ready /run/webws/2.sock
    promise "and the service without a number" is_ready
    power_off
    power_on
    promise "both are there after a boot" is_up webws@1.service
    promise "and ready" is_ready /run/webws/2.sock
}

# no_units ARGUMENTS: systemd lists none.
no_units() { ! on systemctl list-units --plain --no-legend "$@" 'webws*' | grep .; }

remove_and_purge() {
    crowd_start
    done_ "apt removes it" on apt-get remove --yes --quiet webws
    promise "every WebSocket is told 1001" crowd_was_told 1001
    crowd_stop
    promise "no process of it is left" no on pgrep -x webws
    promise "no unit of it is active or failed" no_units
    promise "no socket of it is left" is_gone /run/webws
    promise "the settings are kept" is_there /etc/webws/webws.toml
    done_ "apt installs it again" on apt-get install --yes --quiet --no-install-recommends /root/current.deb
    promise "it serves again" is_answered 101
    promise "and so do its instances" is_ready /run/webws/1.sock
    done_ "stop" on systemctl stop webws.service
    done_ "the same version once more, over the stopped one" on dpkg --install /root/current.deb
    promise "what was stopped stays stopped" is_down webws.service
    promise "its socket as well" is_down webws.socket
    promise "an instance runs" is_ready /run/webws/2.sock
    purges_it
}

purges_it() {
    on install -m 600 /dev/null /etc/webws/redis-password
    done_ "apt purges it" on apt-get purge --yes --quiet webws
    promise "no process of it is left" no on pgrep -x webws
    promise "no unit of it is listed" no_units --all
    promise "no file of it is left" on sh -c '[ -z "$(find /etc /usr /var/lib/systemd /run -name "*webws*" -not -path "/etc/nginx/*" -not -path "/usr/share/doc/*" 2>/dev/null | tee /dev/stderr)" ]'
    promise "no password is left" is_gone /etc/webws/redis-password
}

from_the_version_before() {
    local process
    done_ "the version before is installed" on dpkg --install /root/previous.deb
    done_ "nginx takes its files" use_nginx
    on systemctl --quiet enable --now webws@1.socket
    on systemctl start webws@1.service
    promise "it serves" is_answered 101
    crowd_start
    process=$(main_process)
    done_ "upgrade" on dpkg --install /root/current.deb
    promise "another process serves" is_other_process "$process"
    promise "no WebSocket is closed, nothing is lost" crowd_lost_nothing
    promise "an instance runs the new version as well" on sh -c 'cmp -s /proc/$(systemctl show --value -p MainPID webws@1.service)/exe /usr/bin/webws'
    promise "it is enabled for the next boot" on systemctl --quiet is-enabled webws.service
    process=$(main_process)
    done_ "downgrade" on dpkg --install /root/previous.deb
    promise "another process serves" is_other_process "$process"
    promise "no WebSocket is closed, nothing is lost" crowd_lost_nothing
    done_ "upgrade again" on dpkg --install /root/current.deb
    promise "no WebSocket is closed, nothing is lost" crowd_lost_nothing
    crowd_stop
    stops_by webws.service
    done_ "start" on systemctl start webws.service
    power_off
    power_on
    promise "it runs after a boot" is_up webws.service
    promise "its instance as well" is_up webws@1.service
    purges_it
}

# The whole life's texts, of every boot.
lacks() { ! on journalctl --quiet --output=cat --unit='webws*' | grep -E "$1"; }

journal() {
    promise "no message names a field in place of its value" lacks '\<(standstill_ms|length_ms|lost_ms)\>'
    promise "no start lists the settings" lacks '^[a-z_]+ = '
    promise "no restart was an alarm" lacks 'second signal'
    promise "no watchdog ended anything" lacks '[Ww]atchdog timeout'
}
