#!/usr/bin/env bash
# In the devcontainer, once it is made, from the workspace: mounts that are root's are made writable, and rayprep is
# installed from the workspace, so that an edit counts at once.
set -euo pipefail
umask 002

for folder in /profiles /telemetry /models "$HOME/.cache"; do
    [ ! -d "$folder" ] || [ -w "$folder" ] || sudo chown --from=0 "$(id -u):$(id -g)" "$folder"
done
uv pip install --compile-bytecode --editable '.[sglang,otel,dev]'
rayprep doctor || true # it says what this host lacks, which is no reason to have no container
