#!/bin/sh
# The published weights, to weights/ beside this file; models/download.py does the work and explains its options.
set -eu
cd "$(dirname "$0")"
python=$(command -v python || command -v python3) || { echo "no python in PATH" >&2; exit 1; }
"$python" -c 'import gdown' 2>/dev/null || {
    echo "$python has no gdown: pip install -r requirements.txt, or activate the environment that has it" >&2
    exit 1
}
exec "$python" -m models.download "$@"
