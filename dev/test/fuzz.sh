#!/usr/bin/env bash
# Fuzzes the readers of files (dev/test/fuzz/fuzz_files.c) and of the command line
# (dev/test/fuzz/fuzz_options.c) with clang's libFuzzer and sanitizers, starting from valid and
# nearly valid inputs. Not a proof: it looks for as long as it is told.
#
#     dev/test/fuzz.sh                      # 15 seconds each
#     FUZZ_SECONDS=600 dev/test/fuzz.sh     # longer; CLANG=clang-16, FUZZ_SEED=2: another search
#
# Prints `ok NAME: N executions` or `FAILED NAME: why` for each of the two, then `test_fuzz: N
# passed, N failed, N skipped`, and exits with 1 if any failed. An input that fails is kept in
# dev/test/fuzz/corpus/. Without clang both are skipped.
set -u
CLANG=${CLANG:-clang} PYTHON=${PYTHON:-python3} SECONDS_EACH=${FUZZ_SECONDS:-15} \
    SEED=${FUZZ_SEED:-1}
FUZZ=$(cd "$(dirname "$0")" && pwd)/fuzz
FLAGS=(-O1 -g -std=gnu11 -Wall -Wextra -Wno-unused-function
    -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all)

case $SECONDS_EACH in
    *[!0-9]* | '' | 0*)
        echo "error: FUZZ_SECONDS '$SECONDS_EACH': expected a number of seconds from 1" >&2
        exit 1;;
esac
W=$(mktemp -d) || exit 1
trap 'rm -rf "$W"' EXIT
trap 'exit 1' INT TERM HUP

passed=0 failed=0 skipped=0
finish() {
    echo "test_fuzz: $passed passed, $failed failed, $skipped skipped"; [ "$failed" = 0 ]; exit
}

# ----------------------------------------------------------------------------
# is there a clang that can do it

cat >"$W/probe.c" <<'C'
int LLVMFuzzerTestOneInput(const char *data, unsigned long size) { return data && size > 1u << 30; }
C
if ! "$CLANG" "${FLAGS[@]}" "$W/probe.c" -o "$W/probe" >"$W/probe.log" 2>&1; then
    echo "skip fuzz: install clang (Debian: clang, libclang-rt-14-dev / libclang-rt-dev)"
    skipped=2
    finish
fi

# ----------------------------------------------------------------------------
# inputs to start from; the headers of the two C files say what an input is

mkdir "$W/fuzz_files" "$W/fuzz_options"
"$PYTHON" - "$W" <<'PY' || { echo "FAILED fuzz_files: no corpus to start from"; failed=2; finish; }
import os, struct, sys

def header(*head): return struct.pack("<256i", *(list(head) + [0] * (256 - len(head))))
def write(target, name, data): open(os.path.join(sys.argv[1], target, name), "wb").write(data)
def text(s): return s.encode()

# Token files: 7 tokens of 5, GPT-2's vocabulary (0), two shards, two vocabularies;
# an id too high, a token too few.
def tokens(V, *ids, **k):
    return header(20240520, 1, k.get("count", len(ids)), V) + struct.pack("<%dH" % len(ids), *ids)
def shards(a, b): return b"d" + struct.pack("<H", len(a)) + a + b
files = {"tokens": b"t" + tokens(5, 0, 1, 2, 3, 4, 3, 2), "gpt2": b"t" + tokens(0, 50256, 1),
         "high": b"t" + tokens(5, 4, 5), "short": b"t" + tokens(5, 1, 2, 3, count=4),
         "none": b"t" + tokens(5), "large": b"t" + tokens(65536, 65535),
         "million": b"t" + tokens(5, *[i % 5 for i in range(500)], count=1 << 20),
         "shards": shards(tokens(5, 0, 1, 2), tokens(5, 3, 4)),
         "mixed": shards(tokens(5, 0, 1, 2), tokens(6, 3, 4))}

# Tokenizers: characters of one to four bytes, byte pairs, words, a token cut off, an empty one, a
# byte too many. The last 256 bytes of a file are a prompt too: here they are some pieces.
def tokenizer(end, *words, **k):
    body = b"".join(bytes([len(w)]) + w for w in words)
    return b"v" + header(20240328, 2, k.get("V", len(words)), end) + body
letters = [text(c) for c in "\nab\u00e9\u20ac\U0001f600"]
pairs = [bytes([b]) for b in range(256)] + text("ab abab th \u00e9\u00e9 aaaa 's 12").split(b" ")
pairs += [text("%d ababab's  the \u00e9\u00e9\u00e9 121\n\n aaaaaaaaa" % i) for i in range(9)]
tokenizer(0, *pairs)[-256:].decode("utf-8")
files.update({"letters": tokenizer(0, *letters), "pairs": tokenizer(0, *pairs),
              "words": tokenizer(1, b"the ", b"cat", b"<|endoftext|>"),
              "cut": tokenizer(0, *letters)[:-2], "empty": tokenizer(0, b"a", b""),
              "long": tokenizer(0, b"x" * 255), "more": tokenizer(0, b"a", b"b") + b"c",
              "missing": tokenizer(0, b"a", V=65536), "end": tokenizer(2, b"a", b"b"),
              "parts": tokenizer(0, b"\xc3", b"\xa9", b"\xe2\x80", b"\xae", b"\xc2\x9b\x9b",
                                 b"\xf0\x9f")})

# Models: fp32 and bf16, plain and with a pattern; and each with something that does not fit.
def count(L, C, Vp, T): return Vp * C + T * C + L * (12 * C * C + 13 * C) + 2 * C
def model(T=1, V=1, L=1, NH=1, C=1, Vp=128, R=0, rule=0, pattern="", version=3, length=None,
          extra=0, removed=0, drawn=""):
    n = (count(L, C, Vp, T) + extra) * (4 if version == 3 else 2)
    body = bytes((i * 37 + 11) % 251 for i in range(n))
    letters = [*map(ord, pattern + drawn)]
    if len(letters) <= 240: letters += [0] * (240 - len(letters)) + [removed, 0, len(drawn)]
    if length is None: length = len(pattern)
    return b"m" + header(20240326, version, T, V, L, NH, C, Vp, R, rule, length, *letters) + body
files.update({"model": model(), "bf16": model(version=5),
              "heads": model(T=3, V=7, L=2, NH=2, C=4, R=2, rule=1, pattern="sp", version=5),
              "deep": model(L=12, NH=1, C=1, R=1, rule=2, pattern="pp.", version=5),
              "letter": model(pattern="x"), "dots": model(pattern=".."),
              "pattern": model(L=120, version=5, pattern="p." * 120),
              "overlong": model(length=241, pattern="t" * 245), "negative": model(length=-1),
              "ranks": model(R=2), "rule": model(rule=3, pattern="p"), "padding": model(V=129),
              "wider": model(C=2), "extra": model(extra=1),
              "removed": model(L=4, NH=2, C=4, R=2, pattern="sp", removed=1),
              "ladder": model(L=2, R=1, pattern="l"),
              "drawn": model(L=2, NH=2, C=2, R=2, pattern="t", drawn="t,sp,p."),
              "gap": model(R=1, pattern="t", drawn="t,,p"), "end": model(pattern="t", drawn="s,"),
              "lists": model(R=1, pattern="p", drawn="t" + ",p" * 119)})

# Optimizer state of the model in state_config.
def state(updates=3, n=2 * count(1, 1, 128, 1)):
    body = bytes(i % 253 for i in range(4 * n))
    return b"s" + header(20261121, 1, 1, 1, 1, 1, 1, 128, updates) + body
files.update({"state": state(), "older": state(2), "half": state(3, count(1, 1, 128, 1))})

# DONE of a checkpoint: whole, without its record, with numbers missing or too large.
files.update({"done": b"cmodel 5312 0123456789abcdef\nstate 9600 fedcba9876543210\nrun 12\n-b 2\n",
              "bare": b"cmodel 1 0\nstate 2 1\n", "half-done": b"cmodel 1 0\nstate\n",
              "huge": b"cmodel 99999999999999999999 fffffffffffffffffff\nstate -1 -1\nx"})

# Every entry of a header at the ends of its type, around 0 and too large for its neighbours.
for name, entries in (("tokens", 4), ("letters", 4), ("heads", 12), ("state", 9)):
    for entry in range(entries):
        for value in (-1 << 31, -1, 0, 1, 1 << 16, (1 << 31) - 1):
            data = files[name]
            name_of = "%s-%d-%d" % (name, entry, value)
            files[name_of] = data[:1 + 4 * entry] + struct.pack("<i", value) + data[5 + 4 * entry:]
for name, data in files.items(): write("fuzz_files", name, data)

lines = ["", "-b 8 -t 64 -x 10 -l 1e-3 -k linear", "-e 4x4x128 -p sppp -tp 4 -pm mean -fold 2",
         "-q 0.1 -b1 0.9 -b2 0.999999999 -gc 0", "-x -1 -m -1 -u 2147483647", "-b 0", "-b 65537",
         "-b 9223372036854775808", "-b 8x", "-l nan", "-l inf", "-c -0", "-k wsd -k fast",
         "-gt 1e-320 -nl 12.5 -nb 0x1p3 -cm nccl", "-w bf16 -vp -1 -z 1", "-o out -n 5 -nk 2 -y 1",
         "-s 5 -g 9 -gk 40 -tk tok.bin -gp hello", "-b", "-zz 1", "-sh 0 -rs 7 -wi linear -a 1",
         "-i a*.bin -j b.bin -d 1024 -v 0", "-pm sum -pm streams", "-tp 6 -fold 4",
         "-tp 4096 -fold 4096"]
for i, line in enumerate(lines):
    write("fuzz_options", "line%d" % i, b"o" + text(line.replace(" ", "\n")))
patterns = [("t", 12), ("ts", 12), ("tss", 12), ("spps", 12), ("sppp", 12), ("pp.", 12),
            ("pppppp.", 12), ("p", 12), ("p.p", 12), ("tsp", 3), ("l", 12), ("slpl", 12), ("l.", 4),
            ("p.", 1), (".", 4), ("s.", 4), ("p..", 4), ("", 4), ("tx", 4), ("spp", 4),
            ("t" * 240, 240), ("t" * 241, 241), ("p." * 120, 120), ("p", 1024), ("t", 1024)]
for i, (p, L) in enumerate(patterns):
    write("fuzz_options", "plan%d" % i, b"p" + struct.pack("<BBH", i % 3, i % 4, L - 1) + text(p))
names = ["d12", "d24", "d36", "d48", "d13", "4x4x128", "1x1x1", "1024x16x65536", "1025x1x1",
         "0x1x1", "2x3x128", "4x4", "4x4x128x", "4x4x128 ", "04x04x0128", "x", "", "-4x4x128",
         "4294967300x4x128", "2147483648x1x1", "1x1x99999999999999999"]
for i, e in enumerate(names):
    write("fuzz_options", "name%d" % i, b"e" + struct.pack("<HH", 64, 63) + text(e))
PY

# ----------------------------------------------------------------------------
# build and run

# -detect_leaks=0: a reader that fails ends the program, and what it held with it. The
# targets free what they can reach.
fuzz() {
    local name=$1 log=$W/$1.log kept
    if ! "$CLANG" "${FLAGS[@]}" "$FUZZ/$name.c" -o "$FUZZ/$name" -lm >"$log" 2>&1; then
        failed=$((failed + 1))
        echo "FAILED $name: does not build: $(grep -m 1 -E 'error|undefined' "$log")"
        return
    fi
    mkdir -p "$FUZZ/corpus" "$W/$name.new"
    UBSAN_OPTIONS=print_stacktrace=1 "$FUZZ/$name" -seed="$SEED" -max_total_time="$SECONDS_EACH" \
        -max_len=8192 -timeout=60 -rss_limit_mb=2048 -detect_leaks=0 -print_final_stats=1 \
        -artifact_prefix="$FUZZ/corpus/$name-" "$W/$name.new" "$W/$name" \
        >"$log" 2>&1
    local status=$? executions coverage
    executions=$(sed -nE 's/^stat::number_of_executed_units: ([0-9]+)$/\1/p' "$log")
    if [ $status -eq 0 ] && [ "${executions:-0}" -gt 0 ]; then
        passed=$((passed + 1))
        coverage=$(sed -nE 's/^#[0-9]+[[:space:]]+DONE +(cov: [0-9]+ ft: [0-9]+).*$/, \1/p' "$log")
        echo "ok $name: $executions executions$coverage"
        return
    fi
    failed=$((failed + 1))
    kept=$(sed -nE 's/.*Test unit written to (.*)$/\1/p' "$log" | tail -n 1)
    echo "FAILED $name: $(grep -m 1 -E 'does not hold|runtime error|ERROR: |error' "$log" ||
        echo "exit status $status")"
    local ours='fuzz_|tokens_|tokenizer_|piece_|pair_|heap_|utf8_|index_'
    ours+='|model_|tensors_|state_|header_|config_|plan_|option'
    grep -E "^ +#[0-9]+ .* in ($ours)" "$log" | head -n 4
    if [ -n "$kept" ]; then echo "   run it again with: $FUZZ/$name $kept"
    else tail -n 5 "$log" | sed 's/^/   /'; fi
}

fuzz fuzz_files
fuzz fuzz_options
rmdir "$FUZZ/corpus" 2>/dev/null # when nothing was kept
finish
