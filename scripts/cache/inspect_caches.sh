#!/usr/bin/env bash
# What lies in each cache of the container, and whether it can be used there.
#
#   inspect_caches.sh [--name NAME] [--triton] [--inductor] [--flashinfer] [--deep-gemm] [--json] ...
#
#   --name NAME    the container's name (sglang-dev)
#   --json         for tools in place of a table
# All other flags are those of `rayprep inspect`. Without any cache named, all are shown.
set -euo pipefail
# shellcheck source=scripts/cache/command
source "$(dirname "$(readlink -f "$0")")/command"

run_in_container inspect "$@"
