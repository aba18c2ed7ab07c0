#!/bin/sh
# Says what is missing before anything is downloaded. Usage: check_machine.sh PYTHON
set -eu
python=${1:-python3}
missing() {
    echo "lrsa_lightning: $1" >&2
    exit 1
}
command -v "$python" >/dev/null 2>&1 || missing "$python not found: install Python 3.10 or newer, or call make PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    missing "$("$python" --version) is too old: Python 3.10 or newer is needed; call make PYTHON=/path/to/python3"
"$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
    missing "the venv module is missing: install it (Debian, Ubuntu: apt install python3-venv)"
command -v g++ >/dev/null 2>&1 || missing "g++ not found: install a C++ compiler (Debian, Ubuntu: apt install g++)"
