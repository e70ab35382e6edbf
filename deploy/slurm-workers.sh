#!/bin/bash
# Workers as an array job, for clusters where `umscale sweep --executor slurm` cannot run: sbatch deploy/slurm-workers.sh /shared/mine
#SBATCH --job-name=umscale
#SBATCH --array=0-15
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
exec umscale worker "$1"
