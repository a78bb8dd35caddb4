#!/usr/bin/env bash
# From nothing but Python 3.11+ to a pruned network: makes .venv, installs, trains the demo network, prunes it.
# Running it again reuses all that and makes the next run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

make_environment demo
show() {
    echo
    echo "\$ $*"
    "$venv/bin/$1" "${@:2}"
}
show prunetaylor demo
show prunetaylor prune model.pt
echo
echo "Activate the environment with: source $venv/bin/activate"
