#!/bin/sh
# ImageNet at 32x32; download_imagenet32.py beside this file does the work and explains its options (--help).
set -eu
python=$(command -v python || command -v python3) || { echo "no python in PATH" >&2; exit 1; }
"$python" -c 'import gdown, torch' 2>/dev/null || {
    echo "$python lacks what this needs: pip install -r requirements.txt, or activate the environment that has it" >&2
    exit 1
}
exec "$python" "$(dirname "$0")/download_imagenet32.py" "$@"
