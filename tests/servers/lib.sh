# Shared by up, down and check; sourced, never run.
# shellcheck shell=bash disable=SC2034 # the variables are for those who source this

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${CDC_TEST_CACHE:-${HOME:?set HOME or CDC_TEST_CACHE}/.cache/cdc-test}
# dockerd writes this file itself. The path is also on dockerd's command line, which is how `down`
# recognises the very process that `up` started, even after pids were reused.
pidfile=$cache/dockerd.pid
# What a server writes to stderr once it listens on its port. The number has to be there: the public
# images also start a throw-away server with port 0. The two blanks matter too: MySQL's X plugin
# reports "port: 33060".
ready_line='port: 3306  '

say() { printf 'servers: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

upper() { printf '%s' "$1" | tr '[:lower:]' '[:upper:]'; }

# The value of CDC_TEST_<KIND>_<WHAT>, or nothing.
setting() { local name; name=CDC_TEST_$(upper "$1")_$2; printf '%s' "${!name-}"; }

engine_answers() { docker info >/dev/null 2>&1; }

# True while the dockerd that `up` started is alive.
our_dockerd_runs() {
  local pid
  pid=$(cat "$pidfile" 2>/dev/null) && [ -n "$pid" ] &&
    tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF -- "--pidfile=$pidfile"
}
