#!/usr/bin/env bash
# One run of the container: its folders, its log, its telemetry programs, its manifest and the pointer to that.
#
#   init-run.sh [COMMAND [ARGUMENT...]]
#
# Stays until COMMAND ends, and ends with its status; without a COMMAND until SIGTERM (143) or SIGINT (130). Then ends
# all that it started. Wants an init above it that reaps (tini), bash 5.1, util-linux's setsid and setpriv, setcap
# where there is a dcgm-exporter, and rayprep on PATH.
#
# Reads, all optional:
#   RUN_FILE_UID, RUN_FILE_GID       whose the files are to be: as root, or with sudo, it goes on as that user
#   CONTAINER_HOST_TELEMETRY_ROOT    what the host calls the two roots. Not HOST_TELEMETRY_ROOT, HOST_PROFILES_ROOT:
#   CONTAINER_HOST_PROFILES_ROOT     in a container rayprep would take those for its own
#   CONTAINER_HOST_HOME              home of the host's user, which the snapshot's paths are relative to
#   TELEMETRY_ROOT, PROFILES_ROOT    /telemetry, /profiles
#   PORT_BASE                        0; added to every port
#   CONTAINER_RUN_ID                 container-run-<time>-<random>
#   LISTEN_ADDRESS                   127.0.0.1; 0.0.0.0 shows the telemetry to the whole network, unprotected
#   SCRAPE_INTERVAL                  5s
# Writes below TELEMETRY_ROOT:
#   logs/<run_id>.log                                    the session log, with its own output and COMMAND's
#   prometheus/<run_id>/  jaeger/<run_id>/               what the two keep
#   container_runs/<run_id>/prometheus.yml, <program>.log
#   container_runs/<run_id>/container_run_meta.json      the manifest, atomically
#   container_run_meta.env                               the pointer, last; an older run's is removed first
# Says `MANIFEST <path>` when all is there. A program that is missing, finds its port taken or is refused a capability
# degrades its surface and stops nothing. Exit 2: a variable is wrong. 3: the telemetry root cannot be written, or
# rayprep cannot write the manifest.
set -uo pipefail
umask 002

readonly READY_S=30 GRACE_S=10 RESTARTS=3 TEE_TENTHS=20
readonly TELEMETRY=${TELEMETRY_ROOT:-/telemetry} PROFILES=${PROFILES_ROOT:-/profiles}
readonly LISTEN=${LISTEN_ADDRESS:-127.0.0.1} BASE=${PORT_BASE:-0}
export CONTAINER_RUN_ID=${CONTAINER_RUN_ID:-container-run-$(date -u +%Y%m%dT%H%M%SZ)-$(printf %04x $RANDOM)}
readonly RUN=$CONTAINER_RUN_ID
readonly FOLDER=$TELEMETRY/container_runs/$RUN LOG=$TELEMETRY/logs/$RUN.log POINTER=$TELEMETRY/container_run_meta.env
HERE=$(cd -P "$(dirname "$(readlink -f "$0")")" && pwd)
readonly HERE

declare -A pids=() port=() path=() restarts=() # of each program, by its name in the manifest
found=()                                       # NAME=STATUS[:WARNING], as rayprep takes it

# plain TEXT: as it is, or as bash quotes it where not all of it is ASCII that prints, so that no terminal obeys it.
plain() {
    local LC_ALL=C
    if [[ $1 == *[![:print:]]* ]]; then printf '%q' "$1"; else printf '%s' "$1"; fi
}

say() { printf '[init-run] %s\n' "$(plain "$*")"; }

fail() {
    printf 'init-run: error: %s\n' "$(plain "$2")" >&2
    exit "$1"
}

check_variables() {
    if ! [[ $BASE =~ ^(0|[1-9][0-9]{0,4})$ ]] || ((BASE > 34536)); then
        fail 2 "PORT_BASE '$BASE' is not a number from 0 to 34536"
    fi
    [[ $RUN =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$ ]] ||
        fail 2 "CONTAINER_RUN_ID '$RUN' cannot be a folder's name (use letters, digits, '.', '_' and '-')"
    [[ ${RUN_FILE_UID:-0}${RUN_FILE_GID:-0} =~ ^[0-9]+$ ]] ||
        fail 2 "RUN_FILE_UID '${RUN_FILE_UID:-}' and RUN_FILE_GID '${RUN_FILE_GID:-}' must be numbers"
    [[ $LISTEN == 127.0.0.1 || $LISTEN == 0.0.0.0 ]] || fail 2 "LISTEN_ADDRESS '$LISTEN' is not 127.0.0.1 or 0.0.0.0"
}

make_folders() {
    local each why
    # As root, on a folder that a group may share: what is reached through a link could be anywhere.
    for each in "$TELEMETRY/"{logs,prometheus,jaeger,container_runs} "$TELEMETRY/"{prometheus,jaeger}"/$RUN" \
        "$FOLDER" "$LOG" "$POINTER"; do
        [[ ! -L $each ]] || fail 3 "$each is a link, which is not followed (move it away)"
        [[ ! -e $each || -d $each || -f $each ]] || fail 3 "$each is neither a file nor a folder (move it away)"
    done
    for each in "$TELEMETRY/logs" "$FOLDER" "$TELEMETRY/"{prometheus,jaeger}"/$RUN"; do
        why=$(LC_ALL=C mkdir -p "$each" 2>&1) || fail 3 "${why#mkdir: } (mend the mount, or its owner)"
        [[ -w $each ]] || fail 3 "$each cannot be written (mend the mount, or its owner)"
    done
    : >>"$LOG" || fail 3 "$LOG cannot be written (mend the mount, or its owner)"
    rm -f "$FOLDER/container_run_meta.json" # of an earlier run that was given the same id
    # Nobody is to take an older run's for this one. A pointer that is itself a mount point can only be emptied.
    [[ ! -e $POINTER ]] || rm -f "$POINTER" 2>/dev/null || : >"$POINTER" ||
        fail 3 "$POINTER cannot be written (mend the mount, or its owner)"
}

as_root() { if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi; }

# Profiling metrics need CAP_SYS_ADMIN. A file that has it cannot be started at all in a container that has not.
allow_dcgm() {
    local program bounding
    program=$(type -P dcgm-exporter) || return 0
    bounding=$(sed -n 's/^CapBnd:[[:space:]]*//p' /proc/self/status)
    export DCGM_WARNING=""
    (((16#$bounding >> 21) & 1)) && as_root setcap cap_sys_admin=+ep "$(readlink -f "$program")" && return
    DCGM_WARNING="CAP_SYS_ADMIN was refused, so it has no profiling metrics (start it with --cap-add SYS_ADMIN)"
}

# Goes on as the host's user, so that every file is theirs from the start, whatever ends this process. What is another
# user's stays so: the root can be one that several share.
become_user() {
    local uid=${RUN_FILE_UID:-$EUID} gid=${RUN_FILE_GID:-$(id -g)}
    if ((uid == EUID)); then return; fi
    if ((EUID != 0)); then
        sudo -n true 2>/dev/null && exec sudo -n --preserve-env env PATH="$PATH" "$0" "$@"
        say "warning: the files will be of uid $EUID, not of $uid: this is not root, and cannot be by sudo"
        return
    fi
    local ours=("$TELEMETRY" "$TELEMETRY/"{logs,prometheus,jaeger,container_runs} "$LOG" "$FOLDER")
    ours+=("$TELEMETRY/"{prometheus,jaeger}"/$RUN")
    if [[ -e $POINTER ]]; then ours+=("$POINTER"); fi
    chown --from=0 --no-dereference "$uid:$gid" "${ours[@]}" ||
        say "warning: not every folder could be given to uid $uid"
    local home
    home=$(getent passwd "$uid" | cut -d : -f 6)
    exec env HOME="${home:-/}" setpriv --reuid="$uid" --regid="$gid" --clear-groups "$0" "$@"
}

# --- Programs: each in a session of its own, so that what ends it reaches all that it has started ------------------

background() {
    local name=$1
    shift
    setsid "$@" </dev/null &
    pids[$name]=$!
}

start_prometheus() {
    background prometheus "${path[prometheus]}" --config.file="$FOLDER/prometheus.yml" \
        --storage.tsdb.path="$TELEMETRY/prometheus/$RUN" --web.listen-address="$LISTEN:${port[prometheus]}"
}

# By its environment: a variable that one version of Jaeger does not know is ignored, where a flag would stop it.
start_jaeger() {
    local data=$TELEMETRY/jaeger/$RUN
    background jaeger env SPAN_STORAGE_TYPE=badger BADGER_EPHEMERAL=false BADGER_DIRECTORY_VALUE="$data/values" \
        BADGER_DIRECTORY_KEY="$data/keys" COLLECTOR_OTLP_ENABLED=true \
        COLLECTOR_OTLP_GRPC_HOST_PORT="$LISTEN:$((BASE + 4317))" \
        COLLECTOR_OTLP_HTTP_HOST_PORT="$LISTEN:$((BASE + 4318))" \
        QUERY_HTTP_SERVER_HOST_PORT="$LISTEN:${port[jaeger]}" \
        QUERY_GRPC_SERVER_HOST_PORT="127.0.0.1:$((BASE + 16685))" \
        COLLECTOR_GRPC_SERVER_HOST_PORT="127.0.0.1:$((BASE + 14250))" \
        COLLECTOR_HTTP_SERVER_HOST_PORT="127.0.0.1:$((BASE + 14268))" \
        ADMIN_HTTP_HOST_PORT="127.0.0.1:$((BASE + 14269))" HTTP_SERVER_HOST_PORT="127.0.0.1:$((BASE + 5778))" \
        "${path[jaeger]}"
}

# Rayprep's own metrics are a text file beside Prometheus's data.
start_node_exporter() {
    background node_exporter "${path[node_exporter]}" --web.listen-address="$LISTEN:${port[node_exporter]}" \
        --collector.textfile.directory="$TELEMETRY/prometheus"
}

start_dcgm_exporter() {
    local profiling=/etc/dcgm-exporter/dcp-metrics-included.csv flags=()
    if [[ -r $profiling ]]; then flags=(--collectors "$profiling"); fi
    background dcgm_exporter "${path[dcgm_exporter]}" --address "$LISTEN:${port[dcgm_exporter]}" "${flags[@]}"
}

answers() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# try NAME PORT PROGRAM [OTHER-NAME]: starts it, or finds why not.
try() {
    local name=$1
    port[$name]=$((BASE + $2))
    if ! path[$name]=$(type -P "$3" || type -P "${4:-$3}"); then
        found+=("$name=absent:$3 is not installed")
    elif answers "${port[$name]}"; then
        found+=("$name=degraded:port ${port[$name]} is taken by another program")
    else
        "start_$name" >>"$FOLDER/$name.log" 2>&1
    fi
}

# await NAME UNTIL [WARNING]: until it answers; what it lacks then makes it degraded all the same.
await() {
    local name=$1 until=$2 status
    while [[ ${pids[$name]:-} ]]; do
        if ! kill -0 "${pids[$name]}" 2>/dev/null; then
            wait "${pids[$name]}"
            status=$?
            unset "pids[$name]"
            found+=("$name=degraded:it ended with status $status: $(tail -n 1 "$FOLDER/$name.log" | cut -c -200)")
        elif answers "${port[$name]}"; then
            found+=("$name=${3:+degraded:}${3:-live}")
            return
        elif ((SECONDS >= until)); then
            found+=("$name=degraded:it has not answered on port ${port[$name]} within $READY_S s")
            return
        else
            sleep 0.05
        fi
    done
}

configure_prometheus() {
    local text each
    text=$(<"$HERE/prometheus.yml.tmpl")
    text=${text//@CONTAINER_RUN@/"$RUN"}
    text=${text//@SCRAPE_INTERVAL@/"${SCRAPE_INTERVAL:-5s}"}
    for each in 30000 29000 30999 30998 30997 30996 30995 9100 9400; do text=${text//@$each@/$((BASE + each))}; done
    printf '%s\n' "$text" >"$FOLDER/prometheus.yml"
}

start_programs() {
    configure_prometheus
    try prometheus 9090 prometheus
    try jaeger 16686 jaeger-all-in-one
    try node_exporter 9100 node_exporter prometheus-node-exporter
    try dcgm_exporter 9400 dcgm-exporter
    local until=$((SECONDS + READY_S)) # for all of them, or who waits for the manifest would give up before it is there
    await prometheus "$until"
    await jaeger "$until"
    await node_exporter "$until"
    await dcgm_exporter "$until" "${DCGM_WARNING:-}"
}

# In the background, so that a signal is heard while it works.
manifest() {
    background manifest timeout 60 rayprep manifest --run-id "$RUN" --telemetry-root "$TELEMETRY" \
        --profiles-root "$PROFILES" "$@"
    wait "${pids[manifest]}"
    local status=$?
    unset "pids[manifest]"
    return $status
}

write_manifest() {
    local flags=(--port-base "$BASE") each
    if [[ ${CONTAINER_HOST_TELEMETRY_ROOT:-} ]]; then flags+=(--host-telemetry-root "$CONTAINER_HOST_TELEMETRY_ROOT"); fi
    if [[ ${CONTAINER_HOST_PROFILES_ROOT:-} ]]; then flags+=(--host-profiles-root "$CONTAINER_HOST_PROFILES_ROOT"); fi
    if [[ ${CONTAINER_HOST_HOME:-} ]]; then flags+=(--host-home "$CONTAINER_HOST_HOME"); fi
    for each in "${found[@]}"; do
        say "${each/=/: }"
        flags+=(--program "$each")
    done
    manifest "${flags[@]}"
}

# Starts again what has died, so many times each; then its surface is degraded. Ends when the command does.
supervise() {
    local ended status name
    while :; do
        status=0
        wait -n -p ended "${pids[@]}" || status=$?
        if [[ $ended == "${pids[command]}" ]]; then end "$status"; fi
        for name in "${!pids[@]}"; do if [[ ${pids[$name]} == "$ended" ]]; then break; fi; done
        unset "pids[$name]"
        restarts[$name]=$((${restarts[$name]:-0} + 1))
        if ((restarts[$name] <= RESTARTS)); then
            say "$name ended with status $status and is started again"
            sleep 1
            "start_$name" >>"$FOLDER/$name.log" 2>&1
        else
            manifest --program "$name=degraded:it has ended ${restarts[$name]} times, last with status $status"
        fi
    done
}

# Each with its tree. What is still there after GRACE_S is killed.
end_processes() {
    local name until=$((SECONDS + GRACE_S))
    for name in "$@"; do kill -TERM -- "-${pids[$name]}" 2>/dev/null; done
    for name in "$@"; do
        while kill -0 -- "-${pids[$name]}" 2>/dev/null && ((SECONDS < until)); do sleep 0.05; done
        if kill -KILL -- "-${pids[$name]}" 2>/dev/null; then say "$name had to be killed"; fi
        unset "pids[$name]"
    done
}

end() {
    trap '' TERM INT
    if [[ ${pids[command]:-} ]]; then end_processes command; fi # first: its last samples and spans are to be kept
    end_processes "${!pids[@]}"
    if [[ -e $FOLDER/container_run_meta.json ]]; then manifest --stopped; fi
    say "ended with status $1"
    exec >&- 2>&-
    local tenths # a program that has left its group can still hold the log open
    for ((tenths = 0; tenths < TEE_TENTHS; tenths++)); do
        kill -0 "$tee" 2>/dev/null || break
        sleep 0.1
    done
    kill "$tee" 2>/dev/null
    exit "$1"
}

check_variables
make_folders
if [[ ! -v DCGM_WARNING ]]; then allow_dcgm; fi # which the run that goes on as another user has from this one
become_user "$@"
exec > >(exec tee -i -a "$LOG") 2>&1
tee=$!
trap 'end 143' TERM
trap 'end 130' INT
say "run $RUN"
start_programs
write_manifest || { say "error: the manifest could not be written (the lines above say why)" && end 3; }
if (($# == 0)); then set -- sleep infinity; fi
background command "$@"
supervise
