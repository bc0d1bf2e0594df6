#!/usr/bin/env bash
# On the host, before the devcontainer is made: the folders that it mounts. An engine would make them as root.
#
#   setup-storage.sh [FOLDER]    in place of .devcontainer/storage in this checkout
set -euo pipefail
umask 002

storage=${1:-$(dirname "$(readlink -f "$0")")/../../.devcontainer/storage}
mkdir -p "$storage"/{models,profiles,telemetry/{logs,prometheus,jaeger,container_runs}}
