#!/usr/bin/env bash
# Stops and removes the container, once its telemetry is drained. Fine where none runs.
#
#   stop_observable_container.sh [--name NAME]
#
#   --name NAME          the container's name (sglang-dev)
#   CONTAINER_ENGINE     docker or podman; without it the one that has the container
#   CONTAINER_STOP_S     seconds until what has not ended by itself is killed (60)
#   CONTAINER_ANSWER_S   seconds until the engine has answered anything else (60)
set -euo pipefail
# shellcheck source=scripts/engine
source "$(dirname "$(readlink -f "$0")")/engine"

while (($#)); do
    case $1 in
    --name) needs_value "$@" && NAME=$2 && shift ;;
    --help | -h) help ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    shift
done

stop_s=$(seconds CONTAINER_STOP_S 60)
choose_engine
found=$(state)
if [ -z "$found" ]; then
    say "no container $NAME, nothing to stop"
    exit 0
fi
if [ "$found" = running ]; then
    # SIGTERM: the run flushes Prometheus and Jaeger, and closes its manifest.
    within=$((stop_s + ANSWER_S))
    ANSWER_S=$within ask stop -t "$stop_s" "$NAME" >/dev/null ||
        fail "$(why $? "stop $NAME" "$within" CONTAINER_ANSWER_S)"
fi
ask rm --force "$NAME" >/dev/null || fail "$(why $? "remove $NAME" "$ANSWER_S" CONTAINER_ANSWER_S)"
say "$NAME is stopped and removed"
