#!/bin/sh
# Makes the virtual environment. Debian ships Python without the part that makes one (python3-venv): as root it is
# installed, else the one line to type is printed.
set -eu
python=$1 venv=$2

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "memu-backup needs Python 3.11 or newer; '$python' is older or not there. Type: make PYTHON=python3.11 …" >&2
    exit 2
}
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if [ "$(id -u)" != 0 ]; then
        echo "Python's venv is missing. Type this once, then try again:  sudo apt install python$version-venv" >&2
        exit 2
    fi
    echo "Installing python$version-venv …"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "python$version-venv" >/dev/null
fi
rm -rf "$venv"
"$python" -m venv "$venv"
