# shellcheck shell=bash
# What the tests of ./train_gpt2 as one process share, read by `. dev/test/trainer.sh`: the program
# (TRAIN), a folder for the test (W), runs and what they said, good files and spoiled ones,
# refusals. The test defines `finish`.
TRAIN=${TRAIN:-./train_gpt2}
[ -f "$TRAIN" ] && [ -x "$TRAIN" ] || {
    echo "FAILED setup: no program $TRAIN; make train_gpt2, or set TRAIN"; exit 1
}
TRAIN=$(cd "$(dirname "$TRAIN")" && pwd)/$(basename "$TRAIN")
export LC_ALL=C OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TRAIN
W=$(mktemp -d) || exit 1
CHILD=
trap '[ -z "$CHILD" ] || kill -9 "$CHILD" 2>/dev/null; rm -rf "$W"' EXIT
trap 'exit 1' INT TERM HUP
mkdir "$W/box" "$W/runs"

. "$(dirname "$0")/verdicts.sh"

# ----------------------------------------------------------------------------
# runs

# Every test starts from these; an option given again later wins.
SMALL=(-i train.bin -j val.bin -e 2x2x16 -t 16 -b 2 -x 2 -v 0)

# train ARGS...: runs in the folder $W/runs; leaves $rc, $W/stdout, $W/stderr. A run that should
# work and does not is a failed test of its own.
train() {
    (cd "$W/runs" && exec "$TRAIN" "${SMALL[@]}" "$@") >"$W/stdout" 2>"$W/stderr"; rc=$?
    [ "$rc" = 0 ] && [ ! -s "$W/stderr" ] ||
        bad "train_gpt2 $*" "exit status $rc: $(head -c 600 "$W/stderr")"
}

# Values of a key in the lines `s:` of a log or of the last run's output; these lines
# without what depends on the clock.
column() { sed -nE "s/^s:.* $1:([^ ]+).*/\\1/p" "${2:-$W/stdout}" | tr '\n' ' '; }
steps()  { sed -nE '/^s:/ { s/ ms:[0-9.]+ tok:[0-9]+//; s/ comm:[0-9.]+//; p }' "$1"; }

# banner WORD...: options and facts with their values, as the last run said them at its
# start, whatever the layout of lines.
banner() {
    local word
    for word; do
        sed -n 's/^# / /p' "$W/stdout" | grep -oE -m1 -e " $word [^ ]+" | head -n 1 | cut -c2- |
            tr '\n' ' '
    done
}

# ----------------------------------------------------------------------------
# files

# Reads lines `format patch | ...` on stdin and writes bad/format_patch.bin for each: a good file
# spoiled by the patch, which is missing, empty, dir, or changes joined with commas: i=v header
# entry i; at_i=v token i (tokens); cut=n the first n bytes only; add=n bytes more; text: no
# header at all. Formats state and kept make bad/format_patch/, a folder of checkpoint 4 whose
# state, or whose model, is the bad file.
cat >"$W/make.py" <<'PY'
import os, random, struct, sys
random.seed(1)
V, T = 27, 16
def header(*ints): return struct.pack("<256i", *(ints + (0,) * (256 - len(ints))))
def tokens(ids, V=V): return header(20240520, 1, len(ids), V) + struct.pack("<%dH" % len(ids), *ids)
def parameters(L, C): return 128 * C + T * C + L * (12 * C * C + 13 * C) + 2 * C
def floats(n): return struct.pack("<%df" % n, *[random.gauss(0, 0.1) for _ in range(n)])
def model(L, NH, C, *extension):
    return header(20240326, 3, T, V, L, NH, C, 128, *extension) + floats(parameters(L, C))
def tokenizer(texts, end=0):
    body = b"".join(bytes([len(t)]) + t for t in texts)
    return header(20240328, 2, len(texts), end) + body
letters = [b"\n"] + [bytes([c]) for c in range(ord("a"), ord("z") + 1)]
good = {
    "tokens": tokens([random.randrange(V - 1) for _ in range(2000)] + [V - 1]),
    "model": model(2, 4, 4),
    "smodel": model(2, 4, 4, 4, 1, 2, ord("s"), ord("s")), # R 4, rule mean, pattern ss
    "state": header(20261121, 1, T, V, 2, 4, 4, 128, 4) + floats(parameters(2, 4)) +
             struct.pack("<f", 0.01) * parameters(2, 4), # second moments are not negative
    "tokenizer": tokenizer(letters),
}
good["kept"] = good["model"]
def write(path, data):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as f: f.write(data)
def spoil(data, patch, path):
    for change in patch.split(","):
        what, _, value = change.partition("=")
        if what == "missing": return
        if what == "dir": return os.makedirs(path)
        if what == "empty": data = b""
        elif what == "text": data = b"To be, or not to be\n" * 100
        elif what == "cut": data = data[:int(value)]
        elif what == "add": data += b"\0" * int(value)
        elif what.startswith("at_"):
            data = bytearray(data)
            struct.pack_into("<H", data, 1024 + 2 * int(what[3:]), int(value))
        else: data = bytearray(data); struct.pack_into("<i", data, 4 * int(what), int(value))
    write(path, data)
for line in sys.stdin:
    if not line.strip() or line.startswith("#"): continue
    name, patch = line.split("|")[0].split()
    path = "bad/%s_%s" % (name, patch)
    if name in ("state", "kept"):
        kinds = {"model_00000004.bin": good["model"], "state_00000004.bin": good["state"],
                 "DONE_00000004": b""}
        wrong = "state_00000004.bin" if name == "state" else "model_00000004.bin"
        for kind, data in kinds.items():
            if kind != wrong: write(path + "/" + kind, data)
        spoil(good[name], patch, path + "/" + wrong)
    else:
        os.makedirs("bad", exist_ok=True)
        spoil(good[name], patch, path + ".bin")
write("train.bin", good["tokens"])
write("val.bin", tokens([random.randrange(V) for _ in range(200)]))
write("few.bin", tokens([1] * 32))                          # one batch of 2 x 16 needs 33
write("enough.bin", tokens([1] * 33))
write("v28.bin", tokens([1] * 500, 28))
write("tokenizer.bin", good["tokenizer"])
write("words.bin", tokenizer(letters[:-1] + [b"ab"]))       # neither characters nor byte pairs
write("model.bin", good["model"])
write("smodel.bin", good["smodel"])
nan = struct.pack("<f", float("nan")) # in fcprojw
write("nan.bin", good["model"][:-400] + nan + good["model"][-396:])
large = struct.pack("<4f", *[3e38] * 4) # the embedding of token 0
write("large.bin", good["model"][:1024] + large + good["model"][1040:])
for name in "model", "smodel": # checkpoints of update 4
    write("ck_%s/model_00000004.bin" % name, good[name])
    write("ck_%s/state_00000004.bin" % name, good["state"])
    write("ck_%s/DONE_00000004" % name, b"")
for name, second in (("shards_bad", good["tokens"][:-1]), ("shards_v", tokens([1] * 500, 28)),
                     ("shards_id", tokens([1] * 400 + [27]))):
    write(name + "/0.bin", good["tokens"])
    write(name + "/1.bin", second)
PY

# ----------------------------------------------------------------------------
# refusals

# All there is in the box. The times of folders do not count: a folder made and
# removed again changes its parent's.
listing() {
    (cd "$W/box" && find . \( -type d -printf '%p %y %i\n' \) -o \
        \( -printf '%p %y %s %T@ %i\n' -exec cksum {} + \) | sort)
}

# refused TEXT...: the last run failed as it should; prints why it did not.
refused() {
    local text
    [ "$rc" = 1 ] || { echo "exit status $rc, expected 1: $(head -c 600 "$W/stderr")"; return; }
    [ "$(wc -l <"$W/stderr")" = 1 ] || {
        echo "stderr is not one line: $(head -c 600 "$W/stderr")"; return
    }
    [[ $(cat "$W/stderr") == "error: "* ]] || {
        echo "no 'error: ' in: $(cat "$W/stderr")"; return
    }
    for text in "$@"; do
        grep -qF -e "$text" "$W/stderr" || { echo "no '$text' in: $(cat "$W/stderr")"; return; }
    done
}

# fails FOLDER ARGS...: as train, for what should fail. What an error leaves unfreed is the system's
# to free, so the leak sanitizer is off here.
fails() {
    (cd "$W/$1" && ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0 exec "$TRAIN" "${SMALL[@]}" \
        "${@:2}") >"$W/stdout" 2>"$W/stderr"; rc=$?
}

# refuses NAME TEXT... -- ARGS...: fails with status 1 and one line that holds
# every TEXT, and touches no file.
refuses() {
    local name=$1 texts=() why; shift
    while [ "$1" != -- ]; do texts+=("$1"); shift; done; shift
    fails box -o new/deep "$@"
    why=$(refused "${texts[@]}")
    listing >"$W/after"
    cmp -s "$W/before" "$W/after" ||
        why="$why; files changed: $(diff "$W/before" "$W/after" | grep '^[<>]' | head -4 |
            tr '\n' ' ')"
    if [ -z "$why" ]; then
        ok "refuses $name"
    else
        bad "refuses $name" "$why"
        rm -rf "$W/box/new"
        listing >"$W/before"
    fi
}
