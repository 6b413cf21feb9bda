#!/usr/bin/env bash
# Run on the first CUDA device what benchmarks can run there. Results: benchmarks/results/NAME_cuda.txt and .json.
# Usage: benchmarks/gpu.sh [--quick] [NAME ...]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
[ -x .venv/bin/python ] && [ -z "${PYTHON:-}" ] && python=.venv/bin/python
exec "$python" -m benchmarks --device cuda "$@"
