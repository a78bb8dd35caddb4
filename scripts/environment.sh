# Sourced by quickstart.sh and test.sh: makes or reuses .venv at the top of the repository.
#
#   make_environment EXTRA     installs prunetaylor[EXTRA], editable, with the versions of constraints.txt
#
# PYTHON names the interpreter to use; otherwise the first of Python 3.11 or newer that can make environments.

venv=.venv
cpu_index=https://download.pytorch.org/whl/cpu

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return 0
        fi
    done
    echo "error: no Python 3.11 or newer with the venv module was found${PYTHON:+ (PYTHON is $PYTHON)}" >&2
    echo "  install one (on Debian and Ubuntu: apt install python3 python3-venv), or name it: PYTHON=/path/to/python3 bash $0" >&2
    return 1
}

# A CPU-only Linux machine must not download CUDA: only wheels with the local version "+cpu" are free of it.
wants_cpu_wheels() {
    [[ "$(uname -s)" == Linux ]] && ! nvidia-smi >/dev/null 2>&1
}

pinned() {
    sed -n "s/^$1==\([^ ;]*\).*/\1/p" constraints.txt
}

install_torch() {
    local torch torchvision extra=()
    torch="$(pinned torch)"
    torchvision="$(pinned torchvision)"
    if wants_cpu_wheels; then
        if ! "${pip[@]}" -c constraints.txt "torch==$torch+cpu" 2>"$venv/pip.log"; then
            echo "torch $torch+cpu is not on the configured package indexes; taking it from $cpu_index"
            extra=(--extra-index-url "$cpu_index")
            "${pip[@]}" ${extra[@]+"${extra[@]}"} -c constraints.txt "torch==$torch+cpu"
        fi
        # without its dependencies, which could bring a CUDA build of torch in; they are installed below
        "${pip[@]}" ${extra[@]+"${extra[@]}"} --no-deps "torchvision==$torchvision"
    else
        "${pip[@]}" -c constraints.txt "torch==$torch" "torchvision==$torchvision"
    fi
}

# What an environment was made for. The code is not part of it: the installation is editable.
fingerprint() {
    local kind=gpu
    if wants_cpu_wheels; then kind=cpu; fi
    "$venv/bin/python" -c 'import hashlib, pathlib, sys
print(sys.argv[1], sys.version_info[:2], pathlib.Path.cwd(),
      *(hashlib.sha256(pathlib.Path(f).read_bytes()).hexdigest() for f in sys.argv[2:]))' \
        "$kind" constraints.txt setup.cfg pyproject.toml
}

make_environment() {
    local wanted="$1" python extra found=
    # an environment whose interpreter went away is of no use
    if ! "$venv/bin/python" -c '' >/dev/null 2>&1; then
        python="$(find_python)" || return 1
        echo "making $venv with $("$python" --version)"
        rm -rf "$venv"
        "$python" -m venv "$venv"
    fi
    # each holds all that those before it do
    for extra in demo dev long; do
        if [[ "$extra" == "$wanted" ]]; then found=yes; fi
        if [[ -z "$found" ]]; then continue; fi
        if [[ -f "$venv/.made-$extra" && "$(cat "$venv/.made-$extra")" == "$(fingerprint)" ]]; then
            return 0
        fi
    done
    pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile)
    echo "installing torch $(pinned torch), torchvision $(pinned torchvision) and prunetaylor[$wanted] (once; minutes)"
    rm -f "$venv"/.made-*
    install_torch
    "${pip[@]}" -c constraints.txt -e ".[$wanted]"
    # on all cores, where pip would compile on one; some packages hold files for other versions of Python
    "$venv/bin/python" -m compileall -qq -j 0 "$venv"/lib/python*/site-packages || true
    fingerprint >"$venv/.made-$wanted"
}
