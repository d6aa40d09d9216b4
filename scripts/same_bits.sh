#!/usr/bin/env bash
# Do two commits write the same bits? same_bits.sh OLD NEW [EXAMPLE …]
# Each example runs one round with the code of both commits, with this environment's packages; a federation of
# bare vectors runs also over a network. Compared: adapter, state, wire bytes, files of the run folder, lines of rounds.
set -euo pipefail
old=${1:?usage: same_bits.sh OLD NEW [EXAMPLE ...]} new=${2:?usage: same_bits.sh OLD NEW [EXAMPLE ...]}
shift 2
root=$(git rev-parse --show-toplevel)
python=$root/.venv/bin/python
[ -x "$python" ] || { echo "same_bits: no $python: run make demo once" >&2; exit 2; }
scratch=$(mktemp -d)
trap 'git -C "$root" worktree remove --force "$scratch/old" 2>/dev/null; git -C "$root" worktree remove --force "$scratch/new" 2>/dev/null; rm -rf "$scratch"' EXIT
site=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])')
for side in old new; do
    git -C "$root" worktree add --quiet --detach "$scratch/$side" "${!side}"
    "$python" -m venv --without-pip "$scratch/$side/.venv" # its children run the commit's code, too
    printf '%s\n%s\n' "$scratch/$side" "$site" >"$(echo "$scratch/$side"/.venv/lib/python3.*/site-packages)/paths.pth"
    [ ! -e "$root/.cache" ] || ln -s "$root/.cache" "$scratch/$side/.cache"
done
mkdir -p "$scratch/vectors"
cat >"$scratch/vectors/federation.toml" <<'X'
[federation]
name = "vectors"
rounds = 3
[model]
kind = "vector"
size = 1000
[data]
kind = "none"
clients = 3
[training]
kind = "noop"
[codec.up]
kind = "compeft"
X
examples=("$@")
[ ${#examples[@]} -gt 0 ] || examples=(sentiment own-data prompt-tuning seeds-only low-memory glosses presidents)
failed=0
compare() { # NAME FILE-UNDER-CHECKOUT OPTIONS…
    local name=$1 file=$2
    shift 2
    for side in old new; do
        local path=$file
        [ -e "$path" ] || path=$scratch/$side/$file
        (cd "$scratch/$side" && HF_HUB_OFFLINE=1 .venv/bin/python -m headwater simulate "$path" --quiet \
            --out "$scratch/runs/$name/$side" "$@" >/dev/null)
    done
    "$python" "$root/scripts/run_bits.py" "$name" "$scratch/runs/$name/old" "$scratch/runs/$name/new" || failed=1
}
compare vectors "$scratch/vectors/federation.toml"
compare vectors-network "$scratch/vectors/federation.toml" --engine network
for example in "${examples[@]}"; do
    compare "$example" "examples/$example/federation.toml" --set federation.rounds=1 --set baselines.alone=false
done
exit $failed
