#!/usr/bin/env bash
# Linter, types and tests, in an environment that it makes if needed.
#
#   scripts/test.sh                     the short tier
#   scripts/test.sh --all               the long tests too
#   scripts/test.sh [--all] ARGUMENT... the rest goes to pytest: -k NAME, tests/cli, -x
#
# PRUNING_TEST_DATA names the folder of the shared CIFAR-10 and MNIST files; tests that need them are skipped without it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

tier=(-m "not long")
extra=dev
if [[ "${1:-}" == --all ]]; then
    tier=()
    extra=long
    shift
fi
make_environment "$extra"

# two workers share two cores: a thread each
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# A developer's settings are no part of the tests, nor is what lies in the checkout beside the project's own files.
unset "${!PRUNETAYLOR_@}" "${!RUFF_@}" "${!PYTEST_@}" MYPYPATH PYTHONPATH
ruff="$PWD/$venv/bin/ruff" mypy="$PWD/$venv/bin/mypy"

echo "ruff check"
"$ruff" check --config ruff.toml .
echo "ruff format --check"
"$ruff" format --check --config ruff.toml .
# Types are checked while the tests run: it takes a minute of one core. mypy looks for modules beside those that it
# checks; it sees the project's through links, where no click.py of a user's lies beside them.
mkdir -p "$venv/types"
ln -sfn ../../prunetaylor ../../cli ../../setup.cfg "$venv/types"
(cd "$venv/types" && exec "$mypy" --config-file setup.cfg) >"$venv/mypy.log" 2>&1 &
types=$!
echo "pytest"
# The tests of a file share what they set up, so one worker has all of them. Files in their order: the command line's,
# few tests and long ones, are among the first, not the last that one worker is left with.
failed=0
"$venv/bin/python" -P -m pytest -c setup.cfg --confcutdir=tests -n 2 --dist loadfile --no-loadscope-reorder \
    ${tier[@]+"${tier[@]}"} "$@" || failed=$?
echo "mypy --strict"
wait "$types" || failed=1
cat "$venv/mypy.log"
exit "$failed"
