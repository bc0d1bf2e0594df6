#!/usr/bin/env bash
# Starts the container with SGLang, rayprep and the telemetry around them, and prints where its run's manifest is.
#
#   start_observable_container.sh [--name NAME] [--image IMAGE] [--port-base N] [--dry-run] [-- ENGINE OPTIONS]
#
#   --name NAME      the container's name (sglang-dev)
#   --image IMAGE    what cluster/container/Dockerfile.gh200 was built as (sglang-dev:gh200); nothing is pulled
#   --port-base N    shifts every port of the run, for a second container on one host; up to 34536
#   --dry-run        shows the folders and the command, and does nothing
#   --               what follows goes to the engine's `run`, such as -v "$PWD:/workspace"
#
# From the environment:
#   HOST_TELEMETRY_ROOT   at /telemetry (${XDG_DATA_HOME:-~/.local/share}/sglang-dev/telemetry)
#   HOST_PROFILES_ROOT    at /profiles (${XDG_CACHE_HOME:-~/.cache}/sglang/profiles)
#   HOST_MODELS_ROOT      at /models (${XDG_DATA_HOME:-~/.local/share}/sglang-dev/models)
#   RUN_FILE_UID, RUN_FILE_GID   whose files all this is to be: yours, under sudo those of who called it
#   CONTAINER_ENGINE      docker or podman; without it the one that has the container, or else that answers
#   CONTAINER_START_S     seconds for the engine to start it, until the run has written its manifest, and for the
#                         snapshot of its caches, each (120)
#   CONTAINER_ANSWER_S    seconds until the engine has answered anything else (60)
#   CONTAINER_SHM_SIZE    shared memory for Ray and NCCL (32g)
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=scripts/engine
source "$here/engine"
umask 002

image=sglang-dev:gh200 port_base="" dry_run="" extra=()
while (($#)); do
    case $1 in
    --name) needs_value "$@" && NAME=$2 && shift ;;
    --image) needs_value "$@" && image=$2 && shift ;;
    --port-base) needs_value "$@" && port_base=$2 && shift ;;
    --dry-run) dry_run=yes ;;
    --help | -h) help ;;
    --) shift && extra=("$@") && break ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift
done
if ! [[ $port_base =~ ^(|0|[1-9][0-9]{0,4})$ ]] || ((${port_base:-0} > 34536)); then
    misuse "--port-base '$port_base' is not a number from 0 to 34536"
fi
start_s=$(seconds CONTAINER_START_S 120)

log_lines=20 stop_s=10
run_id=container-run-$(date -u +%Y%m%dT%H%M%SZ)-$(printf %04x "$RANDOM")
uid=${RUN_FILE_UID:-${SUDO_UID:-$(id -u)}}
gid=${RUN_FILE_GID:-${SUDO_GID:-$(id -g)}}
home=$HOME
[ -z "${SUDO_UID:-}" ] || home=$(getent passwd "$SUDO_UID" | cut -d : -f 6 | grep . || echo "$HOME")
data=${XDG_DATA_HOME:-$home/.local/share}
telemetry=$(realpath -ms "${HOST_TELEMETRY_ROOT:-$data/sglang-dev/telemetry}")
profiles=$(realpath -ms "${HOST_PROFILES_ROOT:-${XDG_CACHE_HOME:-$home/.cache}/sglang/profiles}")
models=$(realpath -ms "${HOST_MODELS_ROOT:-$data/sglang-dev/models}")

# As the user whose files they are to be, also under sudo.
as_owner() {
    if [ "$(id -u)" = 0 ] && [ "$uid" != 0 ]; then
        setpriv --reuid "$uid" --regid "$gid" --clear-groups "$@"
    else
        "$@"
    fi
}

make_folders() {
    local folder why
    for folder in "$telemetry"/{logs,prometheus,jaeger,container_runs} "$profiles" "$models"; do
        why=$(as_owner mkdir -p "$folder" 2>&1) || fail "${why#mkdir: } (mend it, or choose another root, see --help)"
    done
    for folder in "$telemetry"/{,logs,prometheus,jaeger,container_runs} "$profiles"; do
        as_owner test -w "$folder" || fail "$folder cannot be written by user $uid (mend it, or choose another root)"
    done
}

# One mount. The folder of the pointer is mounted and not the pointer: a rename onto a mounted file fails.
mount_at() {
    [[ $2 != *,* ]] || misuse "'$2' has a comma, which the engine's --mount cannot take"
    run+=(--mount "type=bind,source=$2,target=$1")
}

compose_run() {
    run=("$ENGINE" run --detach --name "$NAME" --pull never)
    run+=(--network host --cap-add SYS_ADMIN --shm-size "${CONTAINER_SHM_SIZE:-32g}")
    # Root at first, for the owners of files and for DCGM's capability. The image's tini reaps, so there is no --init.
    run+=(--user 0:0)
    mount_at /telemetry "$telemetry"
    mount_at /profiles "$profiles"
    mount_at /models "$models"
    run+=(--env-file "$here/../cluster/container/caches.env")
    # A server that is led to a folder without configs/ dies; without the variable it takes its own configs.
    [ ! -d "$profiles/moe_configs/configs" ] || run+=(--env SGLANG_MOE_CONFIG_DIR=/profiles/moe_configs)
    run+=(--env "CONTAINER_HOST_TELEMETRY_ROOT=$telemetry" --env "CONTAINER_HOST_PROFILES_ROOT=$profiles")
    run+=(--env "CONTAINER_HOST_HOME=$home" --env "CONTAINER_RUN_ID=$run_id" ${port_base:+--env "PORT_BASE=$port_base"})
    add_owner
    add_gpus
    run+=(${extra[@]+"${extra[@]}"} "$image")
}

is_podman() { [[ $(ask --version) == podman* ]]; }

# Where the engine runs without root, the container's ids are not the host's.
add_owner() {
    if is_podman && [ "$(ask info --format '{{.Host.Security.Rootless}}')" = true ]; then
        run+=(--userns keep-id)
    elif ! is_podman && [[ $(ask info --format '{{.SecurityOptions}}') == *rootless* ]]; then
        uid=0 gid=0 # which is you, outside
    fi
    run+=(--env "RUN_FILE_UID=$uid" --env "RUN_FILE_GID=$gid")
}

add_gpus() {
    if [ ! -e /dev/nvidiactl ]; then
        say "no GPU on this host: the container gets none" >&2
    elif is_podman; then
        run+=(--device nvidia.com/gpu=all)
    else
        run+=(--gpus all)
    fi
}

show() {
    local word
    printf 'mkdir -p'
    printf ' %q' "$telemetry"/{logs,prometheus,jaeger,container_runs} "$profiles" "$models"
    printf '\n%q' "${run[0]}"
    for word in "${run[@]:1}"; do printf ' %q' "$word"; done
    echo
}

# What the run says of itself: the manifest's path, inside and on the host.
print_pointer() { ask exec "$NAME" cat "$POINTER"; }

# One start of this user's at a time: two could have one name, one pointer, or the same ports. A kill frees the lock.
lock_starts() {
    local lock=${TMPDIR:-/tmp}/rayprep-start-$UID.lock until=$((SECONDS + 3 * start_s + ANSWER_S))
    # Nobody else may open it: whoever can read a file can lock it. And what others have put there is not opened, for a
    # pipe would hold this up.
    [ -e "$lock" ] || (umask 077 && set -o noclobber && : >"$lock") 2>/dev/null || true
    { [ ! -L "$lock" ] && [ -f "$lock" ] && [ -O "$lock" ]; } ||
        fail "$lock is not a file of yours (remove it, or set TMPDIR)"
    chmod 600 "$lock"
    exec 9<"$lock"
    flock --nonblock 9 || say "another start goes on: it is waited for" >&2
    until flock --nonblock 9; do
        ((SECONDS < until)) || fail "another start has held $lock for too long (\`lslocks\` says which; end that)"
        sleep 0.2
    done
}

# Nothing half started is left running; the container stays for its logs until the next start.
give_up() {
    trap - INT TERM HUP
    ask logs --tail "$log_lines" "$NAME" >&2 || true
    ANSWER_S=$((stop_s + ANSWER_S)) ask stop -t "$stop_s" "$NAME" >/dev/null 2>&1 || true
    fail "$1 (its last lines are above; all of them: $ENGINE logs $NAME)"
}

# wait_for_manifest RUN_ID FAILURE: the pointer of an old run may still stand there. FAILURE is called with why.
wait_for_manifest() {
    local until=$((SECONDS + start_s)) now
    until [[ $(print_pointer 2>/dev/null) == */"$1"/* ]]; do
        now=$(state) || "$2" "$ENGINE has not said how $NAME is"
        [ "$now" = running ] || "$2" "$NAME has ended before its run began"
        ((SECONDS < until)) || "$2" "$NAME has written no manifest within $start_s s"
        sleep 0.2
    done
}

# take_snapshot RUN_ID FAILURE: with the container's versions, since the host may have neither torch nor SGLang. One
# that is there stays: a start takes it, and the next one where that was killed before.
take_snapshot() {
    local manifest=${POINTER%/*}/container_runs/$1/container_run_meta.json
    ANSWER_S=$start_s inside rayprep snapshot --if-missing --manifest "$manifest" >/dev/null ||
        "$2" "the snapshot of the caches could not be taken"
}

# Whether the container is of this run. Another user's can have taken the name.
is_ours() { [ "$(setting CONTAINER_RUN_ID 2>/dev/null)" = "$run_id" ]; }

start_container() {
    local status=0
    ANSWER_S=$start_s ask "${run[@]:1}" >/dev/null || status=$?
    if ((status)); then
        ! is_ours || ask rm --force "$NAME" >/dev/null 2>&1 || true
        fail "$(why "$status" "start $NAME" "$start_s" CONTAINER_START_S)"
    fi
}

choose_engine
compose_run
if [ -n "$dry_run" ]; then
    show
    exit 0
fi
lock_starts
found=$(state)
[ -z "$found" ] || [ -n "$(setting CONTAINER_RUN_ID)" ] ||
    fail "there is a container $NAME that this script has not started: remove it, or give another --name"
if [ "$found" = running ]; then
    run_id=$(setting CONTAINER_RUN_ID)
    wait_for_manifest "$run_id" fail # a start that was killed may just have begun it
    take_snapshot "$run_id" warn # its image may be older than this script
    say "$NAME is running already"
    print_pointer
    exit 0
fi
ask image inspect "$image" >/dev/null 2>&1 ||
    fail "there is no image $image: build it (cluster/container/README.md), or pull it"
make_folders
ask rm "$NAME" >/dev/null 2>&1 || true # what a start that failed has left
trap '(give_up "interrupted") || exit 130' INT TERM HUP
start_container
wait_for_manifest "$run_id" give_up
take_snapshot "$run_id" give_up
say "$NAME is running"
print_pointer
