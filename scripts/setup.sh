#!/usr/bin/env bash
# Make or update the virtual environment: setup.sh PYTHON VENV EXTRAS
# Every version comes from constraints.txt, so a fresh machine gets what was tested.
set -u
python=$1 venv=$2 extras=$3

fail() {
    echo "headwater setup: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "no '$python' found: install Python 3.11 to 3.14, or run make PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "'$python' does not run"
case $version in
    3.11 | 3.12 | 3.13 | 3.14) ;;
    *) fail "Python 3.11 to 3.14 is needed, '$python' is $version: run make PYTHON=/path/to/python3.11" ;;
esac
if [ ! -x "$venv/bin/python" ]; then
    echo "headwater setup: making $venv with Python $version"
    "$python" -m venv "$venv" || fail "could not make $venv (on Debian: apt install python3-venv)"
fi
echo "headwater setup: installing headwater[$extras] and its pinned dependencies (minutes, the first time)"
log=$(mktemp)
if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
    -c constraints.txt -e ".[$extras]" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    fail "pip could not install the packages above: is the Python package index reachable? then run make again"
fi
rm -f "$log"
# eight million lines, which pip compiles on one core; as with pip, what is no Python of this version stays as it is
"$venv/bin/python" -m compileall -q -j 0 "$venv"/lib/python*/site-packages headwater >/dev/null 2>&1 || true
