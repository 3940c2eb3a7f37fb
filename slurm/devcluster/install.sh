#!/usr/bin/env bash
# Install what devcluster.sh needs and this machine lacks, on Debian: install.sh [--accounting]
set -euo pipefail
packages=(slurm-wlm munge) programs=(slurmctld slurmd sbatch munged)
if [[ ${1:-} == --accounting ]]; then
    packages+=(slurmdbd mariadb-server) programs+=(slurmdbd mariadbd)
fi
if PATH="$PATH:/usr/sbin:/sbin" type -P "${programs[@]}" >/dev/null; then exit; fi
root=()
if ((EUID)); then root=(sudo); fi
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${packages[@]}" >/dev/null
