#!/bin/sh
# produce.sh ID [REDIS-CLI ARGUMENTS]: publishes an answer on answer:ID, some twenty tokens a second. PAUSE is the time
# between two tokens, in seconds.
set -eu
id=${1:?"produce.sh ID [redis-cli arguments, such as -p 6380]"}
shift

n=0
say() {
    printf "PUBLISH answer:%s '{\"n\":%d,%s}'\n" "$id" "$n" "$1"
    n=$((n + 1))
}

{
    for round in 1 2 3 4 5; do
        for word in Part "$round:" a page that comes late or is loaded again shows every word of this answer, each once \
            and in order, because a position tells how much of it the page has seen.; do
            say "\"token\":\"$word \""
            sleep "${PAUSE:-0.05}"
        done
    done
    say '"end":true'
} | redis-cli "$@" >/dev/null
