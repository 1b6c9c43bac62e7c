#!/usr/bin/env bash
# The whole suite on CUDA, then the benchmarks there. Prints the tables that RESULTS.md keeps.
#   bash tests/gpu.sh [folder for the logs]
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/gpu}
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/device.txt"
python -m pytest --device cuda -q -p no:cacheprovider --ignore tests/types 2>&1 | tee "$out/tests.txt"
status=${PIPESTATUS[0]}
for benchmark in gradients layers routing random_draws jit jit_models remat ensemble scan optimizers per_sample meta bridged_modules large_batches; do
  python "tests/benchmarks/$benchmark.py" --device cuda 2>"$out/$benchmark.err" | tee "$out/$benchmark.md"
done
python examples/digits_capsnet.py --device cuda --out "$out/digits" 2>&1 | tee "$out/digits.txt"
exit "$status"
