#!/usr/bin/env bash
# Builds in the container what its caches lack, and proves it. The result lies in the run's folder, progress in its
# session log. Exit status: 0, or that of the first stage that failed.
#
#   populate_caches.sh [--name NAME] --model MODEL [--tp N] [--all] [--triton] [--inductor] [--flashinfer] [--deep-gemm]
#       [--block-size N] [--max-seq-len N] [--timeout S] [--heartbeat-sec S] [--spec-file FILE] ...
#
#   --name NAME         the container's name (sglang-dev)
#   --model MODEL       as the container sees it: a folder below /models, or a name
#   --spec-file FILE    of this host
# All other flags are those of `rayprep ensure`.
set -euo pipefail
# shellcheck source=scripts/cache/command
source "$(dirname "$(readlink -f "$0")")/command"

run_in_container ensure "$@"
