#!/usr/bin/env bash
# A whole experiment by plain sbatch: each Hessian a chain of jobs, the measurements of a round an array.
#
#     slurm/submit_all.sh EXPERIMENT.yaml [key=value …]
#
# What to ask the cluster for stands below, in stage.sbatch, and in the variables that sbatch reads:
# SBATCH_PARTITION, SBATCH_ACCOUNT, … A job that fails takes down what needs it, and the same command
# resumes once no job is left: training and measurements go on, what comes after them is done anew.
# `python -m skerch submit` does more: it submits only what is missing, requeues tasks at their time
# limit, gives them more memory, and splits arrays beyond MaxArraySize (here: raise
# launcher.blocks_per_task).
set -euo pipefail

measuring=() # further options for layouts and measurements, say (--partition=gpu --gpus=1 --time=4:00:00)
throttle=64  # tasks of an array that run at once

job() { # ID [OPTION …] -- STAGE [ARGUMENT …]: submits a job that starts once job $after is done, and is $after then
    local id=$1 options=()
    while shift && [[ $1 != -- ]]; do options+=("$1"); done
    [[ -z $after ]] || options+=(--dependency="afterok:$after" --kill-on-invalid-dep=yes)
    after=$(sbatch --parsable --chdir="$run" --job-name="$id" --output="logs/%x.log" "${options[@]}" "$script" "$run" "${@:2}")
    after=${after%;*}
    echo "job $after: $id"
}

script=$(dirname "${BASH_SOURCE[0]}")/stage.sbatch
(($#)) || { sed -n '/submit_all.sh/s/^# *//p' "$0" >&2 && exit 2; }
prepared=$(python -m skerch.jobs.launchers.prepare "$@")
{
    IFS= read -r run
    read -r name
    after=
    job train -- train
    trained=$after
    while read -r step split arrays; do
        printf -v hessian '%s.step-%06d-%s' "$name" "$step" "$split"
        which=(--name "$name" --step "$step" --split "$split")
        after=$trained round=0
        for tasks in $arrays; do
            round=$((round + 1))
            ((round == 1)) || job "$hessian.range_finder-$round" -- range_finder "${which[@]}" --round $round
            job "$hessian.layout-$round" "${measuring[@]}" -- layout "${which[@]}" --round $round
            job "$hessian.measure-$round" "${measuring[@]}" --array="0-$((tasks - 1))%$throttle" \
                --output="logs/%x.%a.log" -- measure "${which[@]}" --round $round
        done
        for stage in merge decompose analyze; do job "$hessian.$stage" -- "$stage" "${which[@]}"; done
    done
} <<<"$prepared"
