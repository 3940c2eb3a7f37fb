#!/usr/bin/env bash
# Install what devcluster.sh needs, on Debian: install.sh [--accounting]
set -euo pipefail
packages=(slurm-wlm munge)
if [[ ${1:-} == --accounting ]]; then packages+=(slurmdbd mariadb-server); fi
if dpkg -s "${packages[@]}" >/dev/null 2>&1; then exit; fi
root=()
if ((EUID)); then root=(sudo); fi
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null
