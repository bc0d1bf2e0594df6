#!/usr/bin/env bash
# Stops and removes the container, once its telemetry is drained. Fine where none runs.
#
#   stop_observable_container.sh [--name NAME]
#
#   --name NAME          the container's name (sglang-dev)
#   CONTAINER_ENGINE     docker or podman
#   CONTAINER_STOP_S     seconds until what has not ended by itself is killed (60)
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

choose_engine
case $(state) in
"") say "no container $NAME, nothing to stop" && exit 0 ;;
running)
    # SIGTERM: the run flushes Prometheus and Jaeger, and closes its manifest.
    "$ENGINE" stop -t "${CONTAINER_STOP_S:-60}" "$NAME" >/dev/null || fail "$ENGINE could not stop $NAME, see above"
    ;;
esac
ask rm --force "$NAME" >/dev/null || fail "$ENGINE could not remove $NAME, see above"
say "$NAME is stopped and removed"
