#!/usr/bin/env bash
# Removes entries of the container's caches, whole ones only, and says which in the session log.
#
#   reset_caches.sh [--name NAME] [--older-than DAYS] [--match-slug PREFIX] [--triton] [--inductor] [--flashinfer]
#       [--deep-gemm] [--dry-run] [--yes] [--json] ...
#
#   --name NAME    the container's name (sglang-dev)
#   --yes          do not ask
#   --json         a report for tools
# All other flags are those of `rayprep reset`.
set -euo pipefail
# shellcheck source=scripts/cache/command
source "$(dirname "$(readlink -f "$0")")/command"

run_in_container reset "$@"
