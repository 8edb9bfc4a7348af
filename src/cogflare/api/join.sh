#!/bin/sh
# Makes this machine a worker of the Cogflare server @SERVER@:
#
#     curl -fsSL @SERVER@/join | sh -s -- TOKEN OWNER/MODEL [FOLDER] [OPTIONS]
#
# It looks at the machine, puts the agent into a Python environment of its own below ~/.local/share/cogflare, and runs
# it. Nothing else is changed, nothing needs root, and the same line again reuses what is there.
# TOKEN is a worker token, or - for the one in COGFLARE_WORKER_TOKEN. What follows the model goes to `cogflare worker`:
# FOLDER, --image, --function, --runpod-handler or --url say what to run; without them it is looked for. With the word
# doctor there, more is examined and no worker runs; with install a systemd unit is printed.
# Exit codes: 1 this machine lacks something, 2 the server or this line is wrong; then those of the worker.
set -eu

server='@SERVER@'
base=${COGFLARE_HOME:-${XDG_DATA_HOME:-${HOME:-/tmp}/.local/share}/cogflare}

say() { printf '%s\n' "$*" >&2; }

has() { command -v "$1" >/dev/null 2>&1; }

soon() { # COMMAND: what hangs is ended
    if has timeout; then timeout 10 "$@"; else "$@"; fi
}

die() { # EXIT_CODE WORDS: the last line says what to do
    code=$1
    shift
    say "cogflare: $*"
    exit "$code"
}

row() { # NAME STATE DETAIL [WHAT TO DO]
    printf '  %-8s %-8s %s\n' "$1" "$2" "$3" >&2
    [ -z "${4-}" ] || printf '  %-17s -> %s\n' '' "$4" >&2
}

# --- what is here -----------------------------------------------------------------------------------------------------

# Sets python (one for the agent), any_python (good enough to lock and ask), and means: venv, uv, pip or nothing.
look_at_python() {
    python='' any_python='' means=''
    for each in python3 python3.14 python3.13 python3.12 python3.11 python; do
        "$each" -c 'import sys; sys.exit(sys.version_info < (3, 6))' 2>/dev/null || continue
        any_python=${any_python:-$each}
        "$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || continue
        python=$("$each" -c 'import sys; print(sys.executable)')
        break
    done
    if [ -n "$python" ] && "$python" -I -c 'import ensurepip, venv; ensurepip.version()' 2>/dev/null; then
        means=venv
    elif has uv; then
        means=uv
    elif [ -n "$any_python" ] && "$any_python" -m pip --version >/dev/null 2>&1; then
        means=pip
    fi
    found=${python:-$any_python}
    [ -z "$found" ] || found="$found $("$found" -c 'import platform; print(platform.python_version())')"
    if [ -n "$means" ]; then
        row python ok "${found:-none}, $means"
    else
        row python missing "${found:-none}, without venv, pip and uv" \
            'install Python 3.11 or newer with venv (Debian, Ubuntu: apt-get install python3 python3-venv), or uv'
    fi
}

look_at_gpu() {
    PATH=$PATH:/usr/lib/wsl/lib
    gpu=$(soon nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>/dev/null) || gpu=''
    if [ -n "$gpu" ]; then
        row gpu ok "$(printf '%s' "$gpu" | tr '\n' ';')"
    elif [ -e /dev/nvidia0 ] || has nvidia-smi; then
        row gpu broken 'nvidia-smi does not name it' 'install or repair its driver, until nvidia-smi lists it'
    else
        row gpu none 'no NVIDIA GPU or driver' 'models run on the CPU; for an NVIDIA GPU, install its driver'
    fi
}

look_at_docker() { # sets docker: ok, or nothing
    docker=ok socket=/var/run/docker.sock
    if soon docker version >/dev/null 2>&1; then
        row docker ok 'its daemon answers'
    elif [ -S $socket ] && [ -w $socket ]; then
        row docker ok "$socket"
    elif [ -S $socket ]; then
        docker=''
        row docker denied "$socket is not for this user" "usermod -aG docker $(id -un), and log in anew"
    else
        docker=''
        row docker none 'no Docker daemon' 'only images need it (--image): https://docs.docker.com/engine/install'
    fi
}

look_at_disk() {
    if ! mkdir -p "$base" 2>/dev/null || ! [ -w "$base" ]; then
        row disk denied "$base" 'set COGFLARE_HOME to a folder that this user may write to'
        die 1 "$base cannot be written to"
    fi
    free=$(df -Pk "$base" | awk 'NR == 2 { print int($4 / 1048576) }')
    if [ "$free" -ge 2 ]; then
        row disk ok "$free GB free for $base"
    else
        row disk low "$free GB free for $base" 'the agent takes 0.3 GB, models more; COGFLARE_HOME names another folder'
    fi
}

ask() { # prints the HTTP status of the worker link for the token, 000 without an answer
    if has curl; then
        printf 'header = "Authorization: Bearer %s"\n' "$token" |
            curl -sS -m 20 -o /dev/null -w '%{http_code}' --config - "$server/worker/v1/link" || true
    else
        printf '%s\n' "$token" | "$any_python" -I -c '
import sys, urllib.error, urllib.request
sent = {"Authorization": "Bearer " + sys.stdin.readline().strip()}
try:
    print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=sent), timeout=20).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError:
    print("000")' "$server/worker/v1/link"
    fi
}

look_at_server() {
    status=$(ask)
    case $status in
        000)
            row server away "$server" 'its operator sets its address with the setting public_url'
            die 1 "$server does not answer this machine"
            ;;
        401 | 403)
            row server refused "$server: HTTP $status" 'its operator makes tokens: cogflare tokens create --kind worker'
            die 2 "$server does not take this worker token"
            ;;
        *) row server ok "$server, which takes the token" ;;
    esac
}

# --- what to run ------------------------------------------------------------------------------------------------------

is_named() { # whether these options say what to run
    case ${1--} in -*) ;; *) return 0 ;; esac
    for each; do
        case ${each%%=*} in --image | --function | --runpod-handler | --url) return 0 ;; esac
    done
    return 1
}

find_cog() { # inside a Cog image: sets cog to the interpreter that has the model's packages
    cog=''
    [ -d /src ] || return 0
    [ -n "${COG_PREDICT_TYPE_STUB-}" ] || [ -e /src/cog.yaml ] || return 0
    for each in python python3; do
        cog=$(cd / && "$each" -c '
import importlib.util, sys
print(sys.executable) if importlib.util.find_spec("cog") else sys.exit(1)' 2>/dev/null) && return
    done
    cog=''
}

# --- the agent --------------------------------------------------------------------------------------------------------

fetch() { # URL FILE SHA256
    if has curl; then
        curl -fsSL --retry 3 -o "$2" "$1"
    else
        "$any_python" -I -c '
import sys, urllib.request
open(sys.argv[2], "wb").write(urllib.request.urlopen(sys.argv[1]).read())' "$1" "$2"
    fi || die 1 "$1 could not be fetched; run the line again"
    sum=$({ sha256sum "$2" || shasum -a 256 "$2"; } 2>/dev/null)
    [ "${sum%% *}" = "$3" ] || die 1 "$1 did not come whole, or was changed meanwhile; run the line again"
}

make_environment() { # makes an empty one at $agent, and `install`, which puts packages into it
    if [ "$means" = venv ] && "$python" -I -m venv "$agent" >&2; then
        install() { "$agent/bin/python" -I -m pip --disable-pip-version-check --quiet install --no-input "$@"; }
        return
    fi
    rm -rf "$agent"
    uv=$(command -v uv || true)
    if [ -z "$uv" ]; then
        sed -n '/^uv==/,/[^\\]$/p' "$parts/requirements.txt" >"$parts/uv.txt"
        "$any_python" -m pip --disable-pip-version-check --quiet install --require-hashes --no-deps \
            --target "$parts/uv" -r "$parts/uv.txt"
        uv=$parts/uv/bin/uv
    fi
    "$uv" venv --quiet --python "${python:->=3.11}" "$agent"
    install() { "$uv" pip install --quiet --python "$agent/bin/python" "$@"; }
}

install_agent() { # sets agent
    agent=$base/agent/@KEY@
    parts=$agent.parts
    mkdir -p "$base/agent" "$base/bin"
    # Held until this process ends or becomes the worker: a second line waits here for the first.
    exec 9>"$base/agent/lock"
    [ -z "$any_python" ] || "$any_python" -I -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    if [ ! -e "$agent/.complete" ]; then
        say "Installing the agent @VERSION@ into $agent (once, some 40 MB)"
        rm -rf "$agent" "$parts"
        mkdir "$parts"
        fetch "$server/join/requirements.txt" "$parts/requirements.txt" '@REQUIREMENTS_SHA256@'
        fetch "$server/join/@WHEEL@" "$parts/@WHEEL@" '@WHEEL_SHA256@'
        trap 'die 1 "the agent was not installed; the lines above say why (it takes a package index in reach)"' EXIT
        make_environment
        install --require-hashes -r "$parts/requirements.txt"
        install --no-index --no-deps "$parts/@WHEEL@"
        trap - EXIT
        rm -rf "$parts"
        : >"$agent/.complete"
    fi
    ln -sfn "$agent/bin/cogflare-worker" "$base/bin/cogflare-worker"
}

keep_token() { # sets token_file, which only this user can read
    token_file=$base/tokens/$(printf '%s' "${server#*://}-$model" | LC_ALL=C tr -c 'A-Za-z0-9._-' '_')
    mkdir -p "$base/tokens"
    (umask 077 && printf '%s\n' "$token" >"$token_file.$$")
    mv -f "$token_file.$$" "$token_file"
}

# ----------------------------------------------------------------------------------------------------------------------

read_words() { # sets token and model
    usage="curl -fsSL $server/join | sh -s -- TOKEN OWNER/MODEL [FOLDER] [OPTIONS]"
    [ $# -ge 2 ] || die 2 "say with which token, and which model: $usage"
    token=$1 model=$2
    [ "$token" != - ] || token=${COGFLARE_WORKER_TOKEN-}
    unset COGFLARE_WORKER_TOKEN
    [ -n "$token" ] || die 2 'COGFLARE_WORKER_TOKEN holds no worker token'
    [ -z "$(printf '%s' "$token" | LC_ALL=C tr -d '!#-[]-~')" ] ||
        die 2 'the token has characters that no token has; was it copied whole?'
    printf '%s' "$model" | LC_ALL=C tr '\n' ' ' | grep -Eqx '[0-9A-Za-z][0-9A-Za-z._-]*/[0-9A-Za-z][0-9A-Za-z._-]*' ||
        die 2 "the second word is not OWNER/MODEL: $usage"
    [ "$model" != OWNER/MODEL ] || die 2 'put the name of a model in the place of OWNER/MODEL'
}

main() {
    read_words "$@"
    shift 2
    action=''
    case ${1-} in doctor | install) action=$1 && shift ;; esac
    say 'This machine:'
    look_at_python
    look_at_gpu
    look_at_docker
    look_at_disk
    [ -n "$means" ] || die 1 'no Python that can run the agent; the table says what to do'
    look_at_server
    if [ "$action" != doctor ] && ! is_named "$@"; then
        find_cog
        if [ -n "$cog" ]; then
            row model ok "this Cog image's, in /src"
            set -- /src --python "$cog" "$@"
        elif [ -e cog.yaml ]; then
            row model ok "the folder $PWD"
            set -- "$PWD" "$@"
        elif [ -n "$docker" ]; then
            row model ok "the image r8.im/$model"
            set -- --image "r8.im/$model" "$@"
        else
            row model missing 'no Cog image around, no cog.yaml here, no Docker'
            die 2 'say what to run: a FOLDER with cog.yaml, --function MODULE:NAME, --runpod-handler, --url or --image'
        fi
    fi
    install_agent
    keep_token
    [ -n "$action" ] || say "Any time later: $base/bin/cogflare-worker doctor --server $server --token-file $token_file"
    # -I: of what a model's environment sets for Python, such as PYTHONPATH, the agent takes nothing.
    exec "$agent/bin/python" -I -m cogflare.cli.workergroup ${action:+"$action"} \
        --server "$server" --model "$model" --token-file "$token_file" "$@" 9>&- </dev/null
}

# Called on the last line: of a script that did not come whole nothing runs.
main "$@"
