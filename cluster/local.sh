#!/usr/bin/env bash
# A Ray cluster on this machine: a head and N workers, each a node of its own, with token authentication.
#
#   cluster/local.sh start 2        # a head and 2 workers; needs ray and python on the PATH
#   eval "$(cluster/local.sh env)"  # address and token, for mgc and for ray job submit
#   cluster/local.sh stop
#
# CPUS is the number of CPUs of a node (1), STORE the bytes of its object store (1000000000). MGC_CLUSTER is the folder
# of the cluster's process ids, token and logs (/tmp/mgc-cluster). «stop» ends the processes that «start» started, by
# process id, and no others.
set -euo pipefail

folder=${MGC_CLUSTER:-/tmp/mgc-cluster} # short, because Ray makes sockets below it
mark=MGC_LOCAL_CLUSTER=$folder          # in the environment of every process of the cluster, which inherit it

say() { echo "cluster: $*" >&2; }

start() {
    local workers=${1:-1} token gcs dashboard client agents
    [[ $workers =~ ^[0-9]+$ ]] || usage
    if ! mkdir -m 700 "$folder" 2> /dev/null; then
        say "$folder is there already: «$0 stop», or set MGC_CLUSTER to another folder"
        exit 2
    fi
    token=$(python -c 'import secrets; print(secrets.token_hex(32))')
    read -r gcs dashboard client agents < <(free_ports $((workers + 4)))
    cat > "$folder/env" << ENV
export RAY_ADDRESS=127.0.0.1:$gcs
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN=$token
ENV
    # shellcheck disable=SC2086
    set -- $agents
    node head --dashboard-agent-listen-port "$1" --head --port "$gcs" --temp-dir "$folder/ray" \
        --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" --ray-client-server-port "$client"
    for ((i = 1; i <= workers; i++)); do
        shift
        node "worker-$i" --dashboard-agent-listen-port "$1" --address "127.0.0.1:$gcs"
    done
    say "head and workers: $((workers + 1)) nodes; the dashboard is at http://127.0.0.1:$dashboard"
    cat "$folder/env"
}

free_ports() {
    python -c 'if True:
        import socket, sys
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
        print(*(each.getsockname()[1] for each in sockets))' "$1"
}

# Start one node and wait until it is up: two raylets that start at once time out on a busy machine.
node() {
    local name=$1 log=$folder/$1.log pid
    shift
    touch "$log"
    (
        # shellcheck disable=SC1091
        source "$folder/env"
        unset RAY_ADDRESS
        exec env "$mark" setsid ray start "$@" --block --disable-usage-stats --node-ip-address 127.0.0.1 \
            --num-cpus "${CPUS:-1}" --object-store-memory "${STORE:-1000000000}"
    ) > "$log" 2>&1 < /dev/null &
    pid=$!
    echo "$pid" >> "$folder/pids"
    for _ in {1..300}; do
        grep --quiet 'Ray runtime started' "$log" && return
        kill -0 "$pid" 2> /dev/null || break
        sleep 0.3
    done
    say "$name did not start:"
    cat "$log" >&2
    stop
    exit 1
}

# Whether a process is of this cluster: process ids are used again by others.
ours() { grep --quiet --null-data --line-regexp --fixed-strings "$mark" "/proc/$1/environ" 2> /dev/null; }

stop() {
    local pids pid
    if [[ ! -f $folder/env ]]; then
        say "none in $folder"
        return
    fi
    mapfile -t pids < <(tac "$folder/pids" 2> /dev/null) # the head last
    for pid in "${pids[@]}"; do
        ours "$pid" && kill -TERM "$pid" 2> /dev/null
        for _ in {1..50}; do
            ours "$pid" || break
            sleep 0.2
        done
    done
    # Ray's workers and the jobs have process groups of their own.
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        ours "$pid" && kill -KILL "$pid" 2> /dev/null
    done
    rm -rf "$folder"/{env,pids,ray} "$folder"/{head,worker-*}.log
    rmdir "$folder"
    say "stopped"
}

usage() {
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

case ${1:-} in
    start) start "${2:-1}" ;;
    env) cat "$folder/env" ;;
    stop) stop ;;
    *) usage ;;
esac
