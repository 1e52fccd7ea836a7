#!/usr/bin/env bash
# Tests of data/*.py. They need python3, make and ./train_gpt2, no network (the test server is on
# 127.0.0.1), write only below a temporary folder and take about 55 seconds.
#
#     dev/test/data.sh                          # PYTHON=python3.7 for another Python
#     TP_DATA=FOLDER dev/test/data.sh   # also those that need the real tinyshakespeare.txt
#                                               # or GPT-2's vocabulary
#     pip install tiktoken datasets             # also those that compare with tiktoken, and that
#                                               # read as from the hub
#
# Prints `ok <name>`, `FAILED <name>: <why>` or `skipped <name>: <why>` for each test, then
# `test_data: N passed, N failed, N skipped`, and exits with 1 if any failed.
set -u
PYTHON=${PYTHON:-python3}
DATA=$(cd "$(dirname "$0")/../.." && pwd)/data
SCRIPT=$DATA/shakespeare_char.py
REAL=${TP_DATA:+$(cd "$TP_DATA" 2>/dev/null && pwd)/tinyshakespeare.txt}
unset TP_DATA                           # each test says itself where it looks
export PYTHONDONTWRITEBYTECODE=1        # no __pycache__ in data/
export no_proxy=127.0.0.1 NO_PROXY=127.0.0.1
SHA=86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed

W=$(mktemp -d) || exit 1
SERVER=
cleanup() { [ -z "$SERVER" ] || { kill "$SERVER"; wait "$SERVER"; } 2>/dev/null; rm -rf "$W"; }
trap cleanup EXIT
trap 'exit 1' INT TERM HUP

# ----------------------------------------------------------------------------
# verdicts

passed=0 failed=0 skipped=0
ok()   { passed=$((passed + 1));   echo "ok $1"; }
fail() { failed=$((failed + 1));   echo "FAILED $1: $2"; }
skip() { skipped=$((skipped + 1)); echo "skipped $1: $2"; }

prepare() { "$PYTHON" "$SCRIPT" "$@"; }

# run COMMAND...: leaves its exit status in $rc, its output in $W/stdout and $W/stderr.
run() { "$@" >"$W/stdout" 2>"$W/stderr"; rc=$?; }

# Every file and folder below $W/box; with inodes, so that a file replaced by one
# with the same bytes counts too.
box_list() { { find "$W/box" -exec ls -id {} +; find "$W/box" -type f -exec cksum {} +; } | sort; }

# error_check NAME TEXT...: the last run failed as a run should: status 1, nothing on
# stdout, one line on stderr that starts with `error: ` and holds every TEXT, nothing new or
# changed in the box. Prints why not.
error_check() {
    [ "$rc" = 1 ] || { echo "exit status $rc, expected 1"; return; }
    [ ! -s "$W/stdout" ] || { echo "stdout holds: $(head -1 "$W/stdout")"; return; }
    [ "$(wc -l <"$W/stderr")" -eq 1 ] || {
        echo "stderr is not one line: $(cat "$W/stderr")"; return
    }
    case $(cat "$W/stderr") in
        "error: "*) ;;
        *) echo "no 'error: ': $(cat "$W/stderr")"; return;;
    esac
    local text
    for text in "$@"; do
        grep -qF -e "$text" "$W/stderr" || { echo "no '$text' in: $(cat "$W/stderr")"; return; }
    done
    box_list >"$W/after"
    cmp -s "$W/before" "$W/after" ||
        echo "left behind: $(diff "$W/before" "$W/after" | tr '\n' ' ')"
}

# expect_error NAME TEXTS COMMAND...: COMMAND (which gets --out appended) fails properly twice:
# where --out and the folder above it do not exist, and where --out holds the files of an earlier
# run. TEXTS are separated by |.
expect_error() {
    local name=$1 out why texts
    IFS='|' read -r -a texts <<<"$2"; shift 2
    for out in new/deep old; do
        run "$@" --out "$W/box/$out"
        why=$(error_check "${texts[@]}")
        [ -z "$why" ] || { fail "$name" "--out $out: $why"; return; }
    done
    ok "$name"
}

# expect_files NAME OUT TEXT: OUT holds exactly the four files and they decode to TEXT (a file). The
# decoder shares nothing with the script: it takes the bytes apart by hand.
expect_files() {
    local why
    [ "$rc" = 0 ] || { fail "$1" "exit status $rc: $(cat "$W/stderr")"; return; }
    why=$("$PYTHON" - "$2" "$3" 2>&1 <<'PY'
import os, sys
out, text = sys.argv[1], open(sys.argv[2], "rb").read()
def need(what, found, expected):
    if found != expected:
        sys.exit("%s: found %.200r, expected %.200r" % (what, found, expected))
def ints(data, width):
    return [int.from_bytes(data[i:i + width], "little") for i in range(0, len(data), width)]
need("files", sorted(os.listdir(out)), ["source.txt", "tokenizer.bin", "train.bin", "val.bin"])
data = {n: open(os.path.join(out, n), "rb").read() for n in os.listdir(out)}
symbols = sorted(set(text.decode("utf-8")))
n = len(text.decode("utf-8"))
cut = n * 9 // 10

tok = data["tokenizer.bin"]
newline = symbols.index("\n") if "\n" in symbols else 0
need("tokenizer header", ints(tok[:1024], 4), [20240328, 2, len(symbols), newline] + [0] * 252)
table, at = [], 1024
while at < len(tok):
    table.append(tok[at + 1:at + 1 + tok[at]])
    at += 1 + tok[at]
need("tokenizer length", at, len(tok))
need("tokens", table, [s.encode("utf-8") for s in symbols])

decoded = b""
for name, count in ("train.bin", cut), ("val.bin", n - cut):
    need(name + " header", ints(data[name][:1024], 4),
         [20240520, 1, count, len(symbols)] + [0] * 252)
    need(name + " size", len(data[name]), 1024 + 2 * count)
    decoded += b"".join(table[i] for i in ints(data[name][1024:], 2))
need("decoded text", decoded, text)
need("lines of source.txt", data["source.txt"].count(b"\n"), 1)
PY
)
    if [ -z "$why" ]; then ok "$1"; else fail "$1" "$why"; fi
}

# expect_lines NAME FILE TEXT...: FILE holds every TEXT.
expect_lines() {
    local name=$1 file=$2 text; shift 2
    for text in "$@"; do
        grep -qF -e "$text" "$file" || {
            fail "$name" "no '$text' in: $(head -c 500 "$file")"; return
        }
    done
    ok "$name"
}

# expect_same NAME WANT OUT: the last run worked, and OUT holds the same files as WANT.
expect_same() {
    if [ "$rc" = 0 ] && diff -r "$2" "$3" >"$W/cmp" 2>&1; then ok "$1"
    else fail "$1" "exit status $rc: $(tail -1 "$W/stderr") $(tail -1 "$W/cmp")"; fi
}

# ----------------------------------------------------------------------------
# a server on 127.0.0.1 for downloads that go wrong, and a port on which nobody listens

cat >"$W/server.py" <<'PY'
import http.server, os, socket, socketserver, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/drip":
            open(sys.argv[1] + ".drip", "w").close()
        body = open(sys.argv[2], "rb").read() if self.path == "/real" else b"To be, or not to be\n"
        self.send_response(200)
        whole = self.path in ("/real", "/wrong")
        self.send_header("Content-Length", str(len(body) if whole else 1115394))
        self.end_headers()
        self.wfile.write(body)
        for _ in range(100 if self.path == "/drip" else 0):  # a socket timeout never fires here
            time.sleep(0.1)
            self.wfile.write(b".")
    def log_message(self, *args):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    def handle_error(self, *args):  # a client that went away
        pass
refuse = socket.socket()
# Bound and not listening: connections are refused, and nobody else can take it.
refuse.bind(("127.0.0.1", 0))
server = Server(("127.0.0.1", 0), Handler)
with open(sys.argv[1] + ".tmp", "w") as f:
    f.write("%d %d\n" % (server.server_port, refuse.getsockname()[1]))
os.rename(sys.argv[1] + ".tmp", sys.argv[1])
server.serve_forever()
PY
"$PYTHON" "$W/server.py" "$W/ports" "$REAL" 2>"$W/server.log" & SERVER=$!
for _ in $(seq 1200); do [ -s "$W/ports" ] && break; sleep 0.05; done
[ -s "$W/ports" ] || { echo "FAILED server: it did not start: $(tail -1 "$W/server.log")"; exit 1; }
read -r port refused <"$W/ports"
http=http://127.0.0.1:$port

# The box: old/ holds the files of an earlier run, a file stands where a folder would have to be
# made.
mkdir -p "$W/box/old" "$W/none" "$W/bad"
printf 'hello, old world\n' >"$W/old.txt"
run prepare --input "$W/old.txt" --out "$W/box/old"
[ "$rc" = 0 ] || { echo "FAILED setup: $(cat "$W/stderr")"; exit 1; }
echo "not a folder" >"$W/box/file"
printf 'To be, or not to be\n' >"$W/bad/tinyshakespeare.txt"
box_list >"$W/before"

# ----------------------------------------------------------------------------
# texts that work

echo "# a small text gives exactly the bytes of the format, worked out by hand"
# 11 characters: 9 train, 2 val; \n a b c = 0 1 2 3.
printf 'abcab\ncabca' >"$W/small.txt"
run prepare --input "$W/small.txt" --out "$W/small/a/b"
"$PYTHON" - "$W/want" <<'PY'
import sys
pad = lambda *head: b"".join(i.to_bytes(4, "little") for i in head) + bytes(1024 - 4 * len(head))
ids = lambda *i: b"".join(bytes([k, 0]) for k in i)
import os
os.mkdir(sys.argv[1])
for name, data in (("train.bin", pad(20240520, 1, 9, 4) + ids(1, 2, 3, 1, 2, 0, 3, 1, 2)),
                   ("val.bin", pad(20240520, 1, 2, 4) + ids(3, 1)),
                   ("tokenizer.bin", pad(20240328, 2, 4, 0) + b"\1\n\1a\1b\1c")):
    open(os.path.join(sys.argv[1], name), "wb").write(data)
PY
why=
for f in train.bin val.bin tokenizer.bin; do
    cmp "$W/want/$f" "$W/small/a/b/$f" >"$W/cmp" 2>&1 || why="$why$(cat "$W/cmp") "
done
if [ -z "$why" ]; then ok "small text, exact bytes"; else fail "small text, exact bytes" "$why"; fi
expect_lines "small text, source.txt has path and length" "$W/small/a/b/source.txt" \
    "$W/small.txt, 11 characters, sha256 "
expect_lines "small text, stdout has the counts" "$W/stdout" "11 characters" "symbols  4" \
    "9 train, 2 val"

echo "# symbols of 1 to 4 bytes, \\r and NUL come back as they were; the end-of-text token is not 0"
{
    printf '\t\r\nna\303\257ve caf\303\251 \342\202\254 \360\237\230\200\360\237\230\200 '
    printf '\316\261\316\262\000 \303\251t\303\251\n'
} >"$W/utf8.txt"
run prepare --input "$W/utf8.txt" --out "$W/utf8"
expect_files "UTF-8 symbols" "$W/utf8" "$W/utf8.txt"

echo "# without a newline the end-of-text token is 0"
printf 'no newline in here' >"$W/flat.txt"
run prepare --input "$W/flat.txt" --out "$W/flat"
expect_files "no newline" "$W/flat" "$W/flat.txt"

echo "# ids above 255: 60,000 symbols need both bytes of a token; 65,535 is the most"
"$PYTHON" -c 'import sys
c = [chr(i) for i in range(70000) if not 0xd800 <= i < 0xe000]
for path, n in zip(sys.argv[1:], (60000, 65535, 65536)):
    open(path, "wb").write("".join(c[:n]).encode())' \
    "$W/v60000.txt" "$W/v65535.txt" "$W/v65536.txt"
run prepare --input "$W/v60000.txt" --out "$W/v60000"
expect_files "60,000 symbols" "$W/v60000" "$W/v60000.txt"
run prepare --input "$W/v65535.txt" --out "$W/v65535"
expect_files "65,535 symbols" "$W/v65535" "$W/v65535.txt"

echo "# a second run replaces the files of the first and leaves nothing else in the folder"
run prepare --input "$W/utf8.txt" --out "$W/small/a/b"
expect_files "replaces an earlier run" "$W/small/a/b" "$W/utf8.txt"

echo "# a file that is only called tinyshakespeare is not named so"
printf 'To be, or not to be\n' >"$W/tinyshakespeare"
run sh -c 'cd "$1" && "$2" "$3" --input tinyshakespeare --out "$1/named"' sh "$W" "$PYTHON" \
    "$SCRIPT"
if grep -q "^tinyshakespeare" "$W/named/source.txt"; then
    fail "impostor's name" "$(cat "$W/named/source.txt")"
else
    expect_lines "impostor's name" "$W/named/source.txt" "/tinyshakespeare, 20 characters"
fi

echo "# the real tinyshakespeare: 65 symbols, 1,003,854 / 111,540 tokens, whichever way it comes"
for how in TP_DATA --input file:// http://; do
    if [ -z "$REAL" ] || [ ! -f "$REAL" ]; then
        skip "tinyshakespeare by $how" "set TP_DATA to a folder that holds tinyshakespeare.txt"
        continue
    fi
    out=$W/real-${how%%:*}
    case $how in
        TP_DATA)
            TP_DATA="$(dirname "$REAL")" run prepare --url "http://127.0.0.1:$refused/" \
                --out "$out";;
        --input) run prepare --input "$REAL" --out "$out";;
        file://) run prepare --url "file://$REAL" --out "$out";;
        http://) TP_DATA="$W/none" run prepare --url "$http/real" --out "$out";;
    esac
    if [ $how = TP_DATA ]; then
        expect_files "tinyshakespeare by TP_DATA" "$out" "$REAL"
        expect_lines "tinyshakespeare, counts" "$W/stdout" "symbols  65" "1003854 train, 111540 val"
        expect_lines "tinyshakespeare, source.txt" "$out/source.txt" \
            "tinyshakespeare, 1115394 characters, sha256 $SHA"
    else
        expect_same "tinyshakespeare by $how" "$W/real-TP_DATA" "$out"
    fi
done

echo "# make runs the script where one of its files is missing, but for source.txt, and once"
mkdir -p "$W/made/dev" "$W/made/data/shakespeare_char"
touch "$W/made/train_gpt2.c" "$W/made/tp_blocks.h"
made=
for missing in none train.bin val.bin tokenizer.bin source.txt '*'; do
    touch "$W/made/data/shakespeare_char/"{train.bin,val.bin,tokenizer.bin,source.txt}
    rm -f "$W/made/data/shakespeare_char/"$missing
    made+=$(cd "$W/made" && env -u MAKEFLAGS make -n -f "$DATA/../Makefile" all 2>&1 |
        grep -c shakespeare_char.py)
done
if [ "$made" = 011101 ]; then ok "make, a file that is missing"
else fail "make, a file that is missing" "found $made, expected 011101"; fi

# ----------------------------------------------------------------------------
# the text that needs no network

echo "# --offline: the same twice, whatever TP_DATA and --url say; ASCII; never mistaken for" \
    "Shakespeare"
TP_DATA="$W/bad" run prepare --offline --url "$http/wrong" --out "$W/off1"
expect_lines "--offline is labelled on stdout" "$W/stdout" "NOT Shakespeare"
expect_lines "--offline is labelled in source.txt" "$W/off1/source.txt" \
    "NOT Shakespeare: fallback text, the Python "
PYTHONHASHSEED=7 LC_ALL=C run prepare --offline --out "$W/off2"
expect_same "--offline twice" "$W/off1" "$W/off2"
why=$("$PYTHON" - "$W/off1" 2>&1 <<'PY'
import sys
tok = open(sys.argv[1] + "/tokenizer.bin", "rb").read()
n = sum(int.from_bytes(open(sys.argv[1] + f, "rb").read()[8:12], "little")
        for f in ("/train.bin", "/val.bin"))
odd = set(tok[1025::2]) - set(range(32, 127)) - {10}
if odd or set(tok[1024::2]) != {1}: sys.exit("not ASCII: %r" % sorted(odd))
if n != 1115394: sys.exit("found %d characters, expected 1115394" % n)
PY
)
if [ -z "$why" ]; then ok "--offline is ASCII"; else fail "--offline is ASCII" "$why"; fi

echo "# --fallback: says why on stderr, then gives the same text as --offline; it never stands" \
    "in for --input"
run prepare --fallback --url "http://127.0.0.1:$refused/" --out "$W/fall"
expect_lines "--fallback tells" "$W/stderr" "warning: download of http://127.0.0.1:$refused/" \
    "refused" "NOT Shakespeare"
expect_same "--fallback is --offline" "$W/off1" "$W/fall"
expect_error "--fallback with a missing --input" "No such file|expected" prepare \
    --fallback --input "$W/nothing.txt"

# ----------------------------------------------------------------------------
# failures: status 1, one line, nothing left behind, old files unchanged

echo "# sources that are wrong: the line names what was found, what was expected and what to do"
HINT="use --input FILE, set TP_DATA to a folder that holds tinyshakespeare.txt, or --offline"
BAD=$("$PYTHON" -c 'import hashlib; print(hashlib.sha256(b"To be, or not to be\n").hexdigest())')
TP_DATA="$W/bad" expect_error "TP_DATA, wrong sha256" \
    "$W/bad/tinyshakespeare.txt: found 20 bytes|$BAD|$SHA|$HINT" prepare --url "$http/wrong"
TP_DATA="$W/none" expect_error "TP_DATA without the file, download refused" \
    "no $W/none/tinyshakespeare.txt|refused|$HINT" prepare --url "http://127.0.0.1:$refused/"
expect_error "download, refused" "127.0.0.1:$refused|refused|$HINT" prepare \
    --url "http://127.0.0.1:$refused/"
expect_error "download, 404" "$http/missing|404|$HINT" prepare --url "$http/missing"
expect_error "download, truncated" "found 20 bytes, expected 1115394|$HINT" prepare \
    --url "$http/short"
expect_error "download, wrong content" "found 20 bytes|$BAD|$SHA|$HINT" prepare --url "$http/wrong"
expect_error "download, too long" "more than 1115394 bytes|$HINT" prepare --url file:///dev/zero
expect_error "download, missing file" "No such file|$HINT" prepare --url "file://$W/nothing.txt"
expect_error "download, not a URL" "nonsense|$HINT" prepare --url nonsense
# A test that is run by nohup, or in the background, inherits signals that are
# ignored; the scripts leave them so.
HEARD="for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(n, signal.SIG_DFL)"
# as_module PYTHON-LINES: the script as a module `s` in which something is changed,
# for what no input can provoke.
as_module() { "$PYTHON" -c "import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import shakespeare_char as s
$HEARD
$1
sys.exit(s.main(sys.argv[2:]))" "$SCRIPT" "${@:2}"; }
expect_error "download, slow (limit lowered to 0.5 s)" "not finished after 0.5 seconds|$HINT" \
    as_module "s.DOWNLOAD_SECONDS = 0.5
import urllib.request as u
of_the_socket = u.urlopen # whose own time limit is another error
u.urlopen = lambda url, timeout: of_the_socket(url, timeout=60)" --url "$http/drip"

echo "# input texts that cannot be used"
printf '' >"$W/empty.txt"
printf '0123456789' >"$W/short.txt"
printf 'a long enough text \377 with a bad byte' >"$W/latin.txt"
expect_error "--input, missing" "nothing.txt: No such file|expected a readable text file" prepare \
    --input "$W/nothing.txt"
expect_error "--input, missing, with controls in its name" "nothing??[31m?.txt: No such file" \
    prepare --input "$W/"$'nothing\302\233\e[31m\233.txt'
expect_error "--input, a folder" "directory|expected a readable text file" prepare --input "$W"
expect_error "--input, empty" "found 0 characters, expected 11" prepare --input "$W/empty.txt"
expect_error "--input, one character too short" "found 10 characters, expected 11" prepare \
    --input "$W/short.txt"
expect_error "--input, not UTF-8" "byte 0xff at offset 19|expected UTF-8|iconv" prepare \
    --input "$W/latin.txt"
expect_error "--input, 65,536 symbols" "found 65536 different characters, expected at most 65535" \
    prepare --input "$W/v65536.txt"
expect_error "unknown option" "--bogus|--help" prepare --bogus
expect_error "--input with --offline" "not allowed with|--help" prepare --offline --input \
    "$W/small.txt"

echo "# places that cannot be written, and stops half way: no partial file, no temporary file," \
    "no new folder"
# Below a regular file, since root may write anywhere else.
run prepare --input "$W/small.txt" --out "$W/box/file/out"
why=$(error_check "cannot write into $W/box/file/out" "Not a directory" "use another --out")
if [ -z "$why" ]; then ok "--out below a file"; else fail "--out below a file" "$why"; fi
run prepare --input "$W/small.txt" --out "$W/box/file"
why=$(error_check "cannot write into $W/box/file" "expected a folder")
if [ -z "$why" ]; then ok "--out is a file"; else fail "--out is a file" "$why"; fi
# In KiB: train.bin is 108, as on a disk that is full.
limited() { (ulimit -f 64; "$@"); }
expect_error "disk full" "cannot write into|File too large|bytes free" limited prepare \
    --input "$W/v60000.txt"
stop() { as_module "sync = s.os.fsync
def stop(fd, n=[0]):
    n[0] += 1
    if n[0] == 3: os.kill(os.getpid(), signal.$1)
    sync(fd)
s.os.fsync = stop" "${@:2}"; }
for sig in SIGINT SIGTERM SIGHUP; do
    expect_error "$sig at the third file" "stopped by signal|nothing was written" stop $sig \
        --input "$W/small.txt"
done
rm -f "$W/ports.drip"
"$PYTHON" "$SCRIPT" --fallback --url "$http/drip" --out "$W/box/new/deep" >"$W/stdout" \
    2>"$W/stderr" & pid=$!
# And not fall back either: the user wants it to end.
for _ in {1..1500}; do [ -e "$W/ports.drip" ] && break; sleep 0.02; done
kill -TERM $pid; wait $pid; rc=$?
why=$(error_check "stopped by signal 15")
if [ -z "$why" ]; then
    ok "SIGTERM during the download"
else
    fail "SIGTERM during the download" "$why"
fi
echo "# a script that was killed before its renames leaves temporary files, which the next removes;
# it waits for one that is writing, and lets its files alone"
run as_module "s.os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)" \
    --input "$W/small.txt" --out "$W/shot"
left=$(ls "$W/shot" | wc -l)
touch "$W/shot/notes.tmp-1"
flock "$W/shot" sh -c 'touch "$1/shot/train.bin.tmp-1"; echo >"$1/held"; sleep 0.7
    ls "$1/shot" >"$1/listed"' sh "$W" & pid=$!
until [ -e "$W/held" ]; do sleep 0.02; done
run prepare --input "$W/utf8.txt" --out "$W/shot"
grep -q train.bin.tmp-1 "$W/listed" || rc="temporary files removed that another script was writing"
wait $pid
[ "$left" = 4 ] || rc="$left temporary files after a kill, expected 4"
rm "$W/shot/notes.tmp-1" || rc="a file of another name was removed"
expect_files "after a killed script" "$W/shot" "$W/utf8.txt"
mkdir "$W/box/walled" "$W/box/walled/tokenizer.bin"
cp "$W/box/old/train.bin" "$W/box/walled/"
box_list >"$W/before"
run prepare --input "$W/small.txt" --out "$W/box/walled"
why=$(error_check "walled/tokenizer.bin: found a folder, expected a file")
if [ -z "$why" ]; then
    ok "a folder in a file's place"
else
    fail "a folder in a file's place" "$why"
fi

# ----------------------------------------------------------------------------
# GPT-2's encoding, data/gpt2_bpe.py

BPE=
[ -z "$REAL" ] || [ ! -d "$(dirname "$REAL")/gpt2_bpe" ] || BPE=$(dirname "$REAL")
NO_BPE="set TP_DATA to a folder that holds gpt2_bpe/encoder.json and gpt2_bpe/vocab.bpe"
has() { "$PYTHON" -c "import $1" 2>/dev/null; }

# expect_python NAME [ARGUMENT...] <PROGRAM: the program, for which data/ can be imported,
# prints nothing and exits with 0.
expect_python() {
    local name=$1 why; shift
    why=$(TP_DATA=$BPE PYTHONPATH=$DATA:$W "$PYTHON" - "$@" 2>&1) && [ -z "$why" ] && {
        ok "$name"; return
    }
    fail "$name" "$(echo "$why" | tail -3 | head -c 800 | tr '\n' ' ')"
}

if [ -z "$BPE" ]; then
    for name in "known tokens" "pieces of a long text" "speed" "tiktoken's tokens"; do
        skip "GPT-2 encoding, $name" "$NO_BPE"
    done
else
echo "# tokens as tiktoken 0.14 gave them: contractions, runs of spaces, spaces that only Python
# counts as such (1C), digits that are none in ASCII, emoji, <|endoftext|> as plain text, half a
# surrogate pair"
expect_python "GPT-2 encoding, known tokens" <<'PY'
import gpt2_bpe
own = gpt2_bpe.encoder_open("own")
for text, ids in [
    ("Hello, I'm a language model,", [15496, 11, 314, 1101, 257, 3303, 2746, 11]),
    ("we'll they'Re I'd'a can't''s",
     [732, 1183, 484, 6, 3041, 314, 1549, 6, 64, 460, 470, 7061, 82]),
    ('a  b   c    \n\n\n  d \t e\r\n  ',
     [64, 220, 275, 220, 220, 269, 220, 220, 220, 220, 628, 198, 220, 288, 220, 197, 304, 201, 198,
      220, 220]),
    ('na\xefve \u4f60\u597d \u0661\u0662 \xbd x\xb2',
     [2616, 38776, 220, 19526, 254, 25001, 121, 18923, 94, 149, 95, 25208, 2124, 31185]),
    ('\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467\xa0!',
     [47249, 222, 50169, 101, 447, 235, 41840, 102, 447, 235, 41840, 100, 1849, 0]),
    ('<|endoftext|> <|endoftext|>',
     [27, 91, 437, 1659, 5239, 91, 29, 1279, 91, 437, 1659, 5239, 91, 29]),
    (' \u3000\x1c\x85z \x00', [220, 5099, 222, 216, 126, 227, 89, 220, 188]),
    ('\ud800x', [4210, 87]), ("", [])]:
    found = own.encode(text)
    assert found == ids, "%a: found %s, expected %s" % (text, found, ids)
    if "\ud800" not in text:
        assert b"".join(own.table[i] for i in found) == text.encode(), "%a does not decode" % text
PY

echo "# a text cut into chunks of about 1 to 40 characters gives the tokens of the whole: chunks" \
    "end where pieces do"
expect_python "GPT-2 encoding, pieces of a long text" <<'PY'
import random
import gpt2_bpe
own, r = gpt2_bpe.encoder_open("own"), random.Random(5)
parts = ["a", "The", "'s", " ", "  ", "\n", "\n\n", "\t", "\x1c", "\xa0", "\u3000", "42", "...",
         "\xe9", "\U0001f600"]
for _ in range(500):
    text = "".join(r.choice(parts) for _ in range(200))
    gpt2_bpe.CHUNK = r.randrange(1, 40)
    assert list(gpt2_bpe.encode_long(own, text)) == own.encode(text), ascii(text)
    assert "".join(gpt2_bpe.text_chunks(text)) == text
assert len(list(gpt2_bpe.text_chunks(text))) > 3
PY

echo "# no slower than 0.3 MB of text per second of processor time, a piece of 50,000 letters no" \
    "trap"
expect_python "GPT-2 encoding, speed" "$REAL" <<'PY'
import random, sys, time
import gpt2_bpe
own, r = gpt2_bpe.encoder_open("own"), random.Random(5)
text = open(sys.argv[1], encoding="utf-8").read()
begin = time.process_time()
own.encode(text)
rate = len(text) / 1e6 / (time.process_time() - begin)
assert rate > 0.3, "%.2f MB/s" % rate
begin = time.process_time()
own.encode("".join(r.choice("abcdefgh") for _ in range(50000)))
assert time.process_time() - begin < 3, "50,000 letters: %.1f s" % (time.process_time() - begin)
PY

echo "# random strings of awkward parts and of any characters this Python knows, tables, long" \
    "pieces: as tiktoken has them"
if ! has tiktoken; then skip "GPT-2 encoding, tiktoken's tokens" "pip install tiktoken"; else
expect_python "GPT-2 encoding, tiktoken's tokens" <<'PY'
import random, unicodedata
import gpt2_bpe
own, theirs, r = gpt2_bpe.encoder_open("own"), gpt2_bpe.encoder_open("tiktoken"), random.Random(5)
assert own.table == theirs.table
parts = ["'s", "'ll", "'", "'Re", " ", "  ", "\n", "\t", "\r\n", "\x1c", "\x1f", "\x85", "\xa0",
         "\u2003", "\u200b", "\u3000", "\xe9", "e\u0301", "\u6f22\u5b57", "\u0661\u0662", "\xbd",
         "\u2167", "\U0001f600", "<|endoftext|>", "a", "ab", "The", "123", "...", "\ud800",
         "\udc00", "\0", "\ufeff"]
known = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
for k in range(2500):
    low = known[:r.choice([300, 3000, len(known)])]
    text = "".join(r.choice(parts) if r.random() < .6 else r.choice(low)
                   for _ in range(r.randrange(1, 30)))
    found, expected = own.encode(text), theirs.encode(text)
    assert found == expected, "%a: found %s, expected %s" % (text, found, expected)
letters = "".join(r.choice("abcdefgh") for _ in range(20000))
for text in "a" * 20000, " " * 20000 + "x", "ab" * 3000, "!" * 5000, letters:
    assert own.encode(text) == theirs.encode(text), "%.20a..." % text
PY
fi
fi

# ----------------------------------------------------------------------------
# data/text.py

text_py() { TP_DATA=${BPE:-$W/none} "$PYTHON" "$DATA/text.py" "$@"; }
# changed MODULE PYTHON-LINES ARGUMENT...: a script of data/ as a module `s` in which something is
# changed.
changed() { TP_DATA=${BPE:-$W/none} PYTHONPATH=$DATA "$PYTHON" -c "import os, signal, sys
import $1 as s
$HEARD
$2
sys.exit(s.main(sys.argv[1:]))" "${@:3}"; }

echo "# texts and options that cannot be used; a vocabulary that is missing or damaged"
expect_error "text.py, missing file" "nothing.txt: No such file|expected a readable text file" \
    text_py --input "$W/nothing.txt"
expect_error "text.py, second file missing" "nothing.txt: No such file" text_py \
    --input "$W/utf8.txt" "$W/nothing.txt"
expect_error "text.py, empty file" "found 0 characters, expected 11" text_py --input "$W/empty.txt"
expect_error "text.py, not UTF-8" "byte 0xff at offset 19|expected UTF-8|iconv" text_py \
    --input "$W/latin.txt"
expect_error "text.py, --val-fraction 1" "--val-fraction: found 1, expected" text_py \
    --input "$W/utf8.txt" --val-fraction 1
expect_error "text.py, no --input" "--input|--help" text_py
TP_DATA=$W/none expect_error "text.py, no vocabulary" \
    "set TP_DATA to a folder that holds gpt2_bpe/encoder.json" \
    "$PYTHON" "$DATA/text.py" --input "$W/utf8.txt" --encoder own
mkdir -p "$W/damaged/gpt2_bpe"; echo '{"a": 0}' >"$W/damaged/gpt2_bpe/encoder.json"
TP_DATA=$W/damaged expect_error "text.py, damaged vocabulary" \
    "encoder.json: found 9 bytes with sha256|expected GPT-2's" \
    "$PYTHON" "$DATA/text.py" --input "$W/utf8.txt"
expect_error "text.py, tiktoken asked for and not there" \
    "cannot import tiktoken|pip install tiktoken" \
    changed text "sys.modules['tiktoken'] = None" --input "$W/utf8.txt" --encoder tiktoken

if [ -z "$BPE" ]; then
    for name in "two files" "tinyshakespeare" "val would be empty" "disk full" \
        "SIGTERM at the third file"; do
        skip "text.py, $name" "$NO_BPE"
    done
else
echo "# two files: each begins with end-of-text, the tokens decode to the files, the cut is at" \
    "70% of the characters"
run text_py --input "$W/utf8.txt" "$W/old.txt" --val-fraction 0.3 --out "$W/text"
[ "$rc" = 0 ] || cat "$W/stderr"
expect_python "text.py, two files" "$W/text" "$W/utf8.txt" "$W/old.txt" <<'PY'
import os, struct, sys
out, texts = sys.argv[1], [open(p, "rb").read() for p in sys.argv[2:]]
assert sorted(os.listdir(out)) == ["source.txt", "tokenizer.bin", "train.bin", "val.bin"]
table = open(out + "/tokenizer.bin", "rb").read()
assert struct.unpack("<256I", table[:1024]) == (20240328, 2, 50257, 50256) + (0,) * 252
words, at = [], 1024
while at < len(table):
    words.append(table[at + 1:at + 1 + table[at]])
    at += 1 + table[at]
assert at == len(table) and len(words) == 50257 and words[50256] == b"<|endoftext|>" and all(words)
parts = []
for name in "/train.bin", "/val.bin":
    data = open(out + name, "rb").read()
    n = len(data) // 2 - 512
    assert struct.unpack("<256i", data[:1024]) == (20240520, 1, n, 50257) + (0,) * 252
    parts.append(b"".join(words[i] for i in struct.unpack("<%dH" % n, data[1024:])))
end = b"<|endoftext|>"
assert b"".join(parts) == end + texts[0] + end + texts[1], parts
characters = sum(len(t.decode()) for t in texts)
train = parts[0].replace(end, b"").decode()
assert len(train) == int(0.7 * characters), (len(train), characters)
line = open(out + "/source.txt", encoding="utf-8").read()
assert line.startswith("2 files, ") and line.count("\n") == 1, line
assert ", %d characters, sha256 " % characters in line, line
PY

echo "# tinyshakespeare has 301,966 and 36,059 tokens, as nanoGPT says; train begins with one" \
    "end-of-text more"
if [ ! -f "$REAL" ]; then
    skip "text.py, tinyshakespeare" "set TP_DATA to a folder that holds tinyshakespeare.txt"
else
    run text_py --input "$REAL" --out "$W/text-real"
    expect_lines "text.py, tinyshakespeare" "$W/stdout" "301967 train, 36059 val" \
        "tinyshakespeare, 1115394 characters, sha256 $SHA"
fi
expect_error "text.py, val would be empty" "val.bin would have 1 tokens, expected 2 to" text_py \
    --input "$W/small.txt" --val-fraction 0.1
limited8() { (ulimit -f 8; "$@"); }
expect_error "text.py, disk full" "cannot write into|File too large|bytes free" limited8 text_py \
    --input "$W/utf8.txt" --encoder own
expect_error "text.py, SIGTERM at the third file" "stopped by signal|nothing was written" \
    changed text "sync = os.fsync
def stop(fd, n=[0]):
    n[0] += 1
    if n[0] == 3: os.kill(os.getpid(), signal.SIGTERM)
    sync(fd)
os.fsync = stop" --input "$W/utf8.txt"
fi

# ----------------------------------------------------------------------------
# data/books.py

# books_py FOLDER ARGUMENT...: with FOLDER as TP_DATA's books
books_py() { TP_DATA=$1 "$PYTHON" "$DATA/books.py" "${@:2}"; }
# In clone/ five books stay, of which one validates, and packed/ has their text packed. want-char
# and want-bpe are what a program of the test's own expects of their tokens.
"$PYTHON" - "$W" <<'PY' || exit 1
import hashlib, lzma, os, sys
root = sys.argv[1]
TITLE = next("Val %d" % k for k in range(1000)
             if int(hashlib.sha256(b"Z. Last/Val %d.md" % k).hexdigest(), 16) % 50 == 0)
filler = "The quick brown fox, and so on.\n" * 640
FOLDED = "\u2026 \u201cno\u201d\u2014\u2018\xbd\u2019\u2013\u0153\u0152\xe6\xc6"
# name, year, text as it stands, as it is packed, as characters; None: left out
BOOKS = [
    ("A. Author/Plain", "1922", "One.\n", "One.", "One."),
    ("A. Author/Untidy", "380 BC", "\r\n \r\n Two.  \t\r\n\r\n\r\n\r\nThree \r\nfour.\r\n\r\n",
     "Two.\n\nThree\nfour.", "Two.\n\nThree\nfour."),
    ("A/Zed", "170 AD", "Cafe\u0301" + FOLDED, "Caf\xe9" + FOLDED,
     "Cafe... \"no\"--'1/2'-oeOeaeAe"),
    ("B. Author/Odd", "1600", "\ufeffx \u03b1\u1f00\xa35\xb0\x03\x0cy\xa0~\t!",
     "\ufeffx \u03b1\u1f00\xa35\xb0\x03\x0cy\xa0~\t!", "x 5y ~!"),
    ("Z. Last/" + TITLE, "1900", "Validation.\n\n-------\nOf it.",
     "Validation.\n\n-------\nOf it.", "Validation.\n\n-------\nOf it."),
    ("C/Late", "1923", "no", None, None), ("C/Old", "58 BC", "no", None, None),
    ("C/None", "", "no", None, None), ("C/Short", "1922", "", None, None),
    ("Samuel Richardson/Clarissa", "1748", "no", None, None),
    ("Various/King James Bible", "1611", "no", None, None)]
texts = {"train": [], "val": []}
for name, year, raw, packed, plain in BOOKS:
    path = os.path.join(root, "clone", name + ".md")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    text = raw + "\n\n" + filler if name != "C/Short" else "x" * 19999
    head = "# Title: %s\n\n## Author: X\n\n## Year: %s\n\n-------\n" % (name, year)
    with open(path, "wb") as f:
        f.write((head + text).encode("utf-8"))
    if packed:
        texts["val" if "Val" in name else "train"].append(
            (packed + "\n\n" + filler, plain + "\n\n" + filler))
open(root + "/clone/README.md", "w").write("# Classic Books\n")
os.makedirs(root + "/packed/books")
for part, books in texts.items():
    with lzma.open(root + "/packed/books/%s.txt.xz" % part, "wb") as f:
        f.write("\n<|endoftext|>\n\n".join(packed for packed, _ in books).encode("utf-8"))
    for kind, end, at in ("char", "\f", 1), ("bpe", "<|endoftext|>", 0):
        with open(root + "/want-%s-%s" % (kind, part), "wb") as f:
            f.write("".join(end + book[at] for book in books).encode("utf-8"))
PY
# expect_books NAME OUT KIND: OUT holds exactly the four files, and they decode to want-KIND.
expect_books() {
    [ "$rc" = 0 ] || { fail "$1" "exit status $rc: $(cat "$W/stderr")"; return; }
    expect_python "$1" "$2" "$W/want-$3" <<'PY'
import os, struct, sys
out, want = sys.argv[1:]
assert sorted(os.listdir(out)) == ["source.txt", "tokenizer.bin", "train.bin", "val.bin"]
data = open(out + "/tokenizer.bin", "rb").read()
V, end = struct.unpack("<256I", data[:1024])[2:4]
words, at = [], 1024
while at < len(data):
    words.append(data[at + 1:at + 1 + data[at]])
    at += 1 + data[at]
assert at == len(data) and len(words) == V
if "char" in want:
    assert words == [b"\n", b"\f"] + [bytes([c]) for c in range(32, 127)] and words[end] == b"\f"
else:
    assert V == 50257 and words[end] == b"<|endoftext|>"
for part in "train", "val":
    data = open("%s/%s.bin" % (out, part), "rb").read()
    n = len(data) // 2 - 512
    ids = struct.unpack("<%dH" % n, data[1024:])
    assert struct.unpack("<256i", data[:1024]) == (20240520, 1, n, V) + (0,) * 252
    found, expected = (b"".join(words[i] for i in ids), open(want + "-" + part, "rb").read())
    assert found == expected, "%s: found %.90r, expected %.90r" % (part, found, expected)
    assert ids[0] == end and ids.count(end) == {"train": 4, "val": 1}[part]
line = open(out + "/source.txt", encoding="utf-8").read()
assert "4 and 1 books, " in line and line.count("\n") == 1, line
PY
}

echo "# a clone with books that stay, tidied and folded, and books that are left out; the packed" \
    "books give the same tokens, and source.txt the same hash"
run books_py "$W/none" --input "$W/clone" --out "$W/books"
expect_books "books.py, a clone" "$W/books" char
run books_py "$W/packed" --out "$W/books-packed"
expect_books "books.py, packed books" "$W/books-packed" char
sed -i 's/^.*, 4 and/4 and/' "$W/books/source.txt" "$W/books-packed/source.txt"
expect_same "books.py, both ways" "$W/books" "$W/books-packed"
if [ -z "$BPE" ]; then skip "books.py, --bpe" "$NO_BPE"; else
    TP_DATA=$BPE run "$PYTHON" "$DATA/books.py" --bpe --input "$W/clone" --out "$W/books-bpe"
    expect_books "books.py, --bpe" "$W/books-bpe" bpe
fi

echo "# 60 books of 1 MB, packed, do not take the memory of their 120 MB of tokens"
mkdir -p "$W/large/books"
expect_python "books.py, memory" "$W/large" "$DATA/books.py" <<'PY'
import lzma, os, resource, subprocess, sys
folder, script = sys.argv[1:]
book = b"The quick brown fox, and so on.\n" * 31250
for part, n in ("train", 60), ("val", 1):
    with lzma.open("%s/books/%s.txt.xz" % (folder, part), "wb", preset=0) as f:
        for k in range(n):
            f.write((b"\n<|endoftext|>\n\n" if k else b"") + book)
subprocess.run([sys.executable, script, "--input", folder + "/books", "--out", folder + "/out"],
               stdout=subprocess.DEVNULL, check=True)
assert os.path.getsize(folder + "/out/train.bin") == 1024 + 2 * 60 * (1 + len(book))
used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
assert used < 80, "%d MiB" % used
PY
rm -r "$W/large"

echo "# the real books: split by name as the lists beside them say, 4,265,058 characters validate"
if [ -z "$REAL" ] || [ ! -d "$(dirname "$REAL")/books" ]; then
    skip "books.py, the real books" "set TP_DATA to a folder that holds books"
else
    expect_python "books.py, the real books" "$(dirname "$REAL")/books" <<'PY'
import sys
import books
for part, count in ("train", 655), ("val", 17):
    names = open("%s/%s.list" % (sys.argv[1], part), encoding="utf-8").read().splitlines()
    assert len(names) == count and names == sorted(names)
    assert {books.validates(name) for name in names} == {part == "val"}
tokens = b"".join(map(books.characters_encode, books.packed_read(sys.argv[1] + "/val.txt.xz")))
assert len(tokens) == 2 * 4265058 and tokens[::2].count(1) == 17 and not any(tokens[1::2])
PY
fi

echo "# folders and books that cannot be used"
BOOKS_HINT="git clone https://github.com/mlschmitt/classic-books-markdown and use --input"
expect_error "books.py, no TP_DATA" "no folder \$TP_DATA/books|$BOOKS_HINT" \
    env -u TP_DATA "$PYTHON" "$DATA/books.py"
expect_error "books.py, TP_DATA without books" "no folder \$TP_DATA/books|$BOOKS_HINT" \
    books_py "$W/none"
expect_error "books.py, an empty folder" \
    "$W/none: found 0 books for train.bin|0 tokens, expected 2 to" books_py "$W/none" \
    --input "$W/none"
mkdir "$W/half" "$W/cut" "$W/latin" "$W/yearless"
cp "$W/packed/books/train.txt.xz" "$W/half"
expect_error "books.py, no val.txt.xz" "half/val.txt.xz: no such file|expected train.txt.xz and" \
    books_py "$W/none" --input "$W/half"
cp "$W/packed/books"/* "$W/cut"
truncate -s -20 "$W/cut/val.txt.xz"
expect_error "books.py, a packed file cut off" "cut/val.txt.xz: |expected books, packed by xz" \
    books_py "$W/none" --input "$W/cut"
cp "$W/old.txt" "$W/cut/val.txt.xz"
expect_error "books.py, a file that is not packed" "cut/val.txt.xz: |expected books, packed by xz" \
    books_py "$W/none" --input "$W/cut"
expect_error "books.py, no module lzma" "expected a Python with the module lzma|a clone of" \
    changed books "s.lzma = None" --input "$W/packed/books"
cp -r "$W/clone/A" "$W/latin"
printf '\377' >>"$W/latin/A/Zed.md"
expect_error "books.py, not UTF-8" "A/Zed.md: found byte 0xff at offset|expected UTF-8" \
    books_py "$W/none" --input "$W/latin"
cp -r "$W/clone/A" "$W/yearless"
sed -i '/^## Year/d' "$W/yearless/A/Zed.md"
expect_error "books.py, a book without a year" "A/Zed.md: found no '## Year:'|expected a book of" \
    books_py "$W/none" --input "$W/yearless"
expect_error "books.py, disk full" "cannot write into|File too large|bytes free" \
    limited books_py "$W/none" --input "$W/clone"
expect_error "books.py, SIGTERM in the second book" "stopped by signal|nothing was written" \
    changed books "encode = s.characters_encode
def stop(text, n=[0]):
    n[0] += 1
    if n[0] == 2: os.kill(os.getpid(), signal.SIGTERM)
    return encode(text)
s.characters_encode = stop" --input "$W/clone"

# ----------------------------------------------------------------------------
# data/openwebtext.py and data/fineweb.py

# set_py NAME ARGUMENT...
set_py() { TP_DATA=${BPE:-$W/none} "$PYTHON" "$DATA/$1.py" "${@:2}"; }

# docs_make FOLDER FILES DOCUMENTS WORDS: FOLDER/0.jsonl, ... of so many documents of up to so many
# words
docs_make() { "$PYTHON" - "$@" <<'PY'
import json, os, random, sys
folder, files, documents, words = sys.argv[1], *map(int, sys.argv[2:])
r = random.Random(files)
vocabulary = ["".join(r.choice("etaoinshrdlu") for _ in range(r.randrange(1, 9)))
              for _ in range(3000)]
vocabulary += ["\n", "\n\n", "na\xefve", "\u4f60\u597d", "\U0001f600", "<|endoftext|>", "42", ""]
os.mkdir(folder)
for f in range(files):
    with open("%s/%d.jsonl" % (folder, f), "w") as out:
        for k in range(documents):
            text = " ".join(r.choice(vocabulary) for _ in range(r.randrange(words)))
            row = {"id": k, "text": "%d.%d %s" % (f, k, text) if k else ""}
            out.write(json.dumps(row) + "\n" * r.choice([1, 1, 2]))
PY
}
docs_make "$W/docs" 3 70 60; docs_make "$W/more" 3 200 400
few="--tokens-per-shard 2000 --shuffle-buffer 50"

echo "# sources and options that cannot be used"
printf '{"text": "one"}\n{"text": 2}\n' >"$W/two.jsonl"
printf '{"text": "one"}\n\n{"text"\n' >"$W/cut.jsonl"
printf '{"text": "a\377"}\n' >"$W/latin.jsonl"
printf '["text"]\n' >"$W/list.jsonl"
printf '\n\n' >"$W/none.jsonl"
expect_error "shards, missing file" "nothing.jsonl: No such file|expected a file" set_py \
    openwebtext --input "$W/nothing.jsonl"
expect_error "shards, a folder" "directory|expected a file" set_py openwebtext --input "$W" \
    --encoder auto
expect_error "shards, --max-tokens without training" \
    "--max-tokens: found 100, expected 0 or more than" set_py fineweb --max-tokens 100
expect_error "shards, --tokens-per-shard 0" "--tokens-per-shard: found 0, expected 1 to" set_py \
    fineweb --tokens-per-shard 0
expect_error "shards, --seed inf" "--seed: invalid count value|--help" set_py fineweb --seed inf
expect_error "shards, --version 1T" "--version: invalid choice|--help" set_py fineweb --version 1T
mkdir "$W/50% of it"; cp "$DATA"/*.py "$W/50% of it"
run env COLUMNS=200 "$PYTHON" "$W/50% of it/openwebtext.py" --help
[ "$rc" = 0 ] || cat "$W/stderr"
expect_lines "shards, --help in a folder with a % in its name" "$W/stdout" \
    "(default $W/50% of it/openwebtext)"
expect_error "shards, datasets not installed" \
    "HuggingFaceFW/fineweb-edu sample-100BT|pip install datasets tiktoken|--input FILE.jsonl" \
    changed fineweb "sys.modules['datasets'] = None" --type edu --version 100B
expect_error "shards, tiktoken not installed, no vocabulary" \
    "pip install tiktoken; or set TP_DATA" \
    changed openwebtext "sys.modules['tiktoken'] = None; os.environ['TP_DATA'] = ''" \
    --input "$W/two.jsonl"
if ! has datasets; then skip "shards, no network" "pip install datasets"; else
    export HF_ENDPOINT=http://127.0.0.1:$refused
    run set_py openwebtext --out "$W/box/new/deep"
    unset HF_ENDPOINT
    why=$(error_check "Skylion007/openwebtext: cannot read it from the Hugging Face hub" \
        "check the network")
    if [ -z "$why" ]; then ok "shards, no network"; else fail "shards, no network" "$why"; fi
fi

if [ -z "$BPE" ]; then
    for name in "format" "max-tokens" "seeds" "errors" "stops" "kills" "the hub's files" \
        "train_gpt2 reads them"; do
        skip "shards, $name" "$NO_BPE"
    done
else
expect_error "shards, not a text" 'two.jsonl, line 2|expected a JSON object {"text"' set_py \
    openwebtext --input "$W/two.jsonl" --tokens-per-shard 1000
expect_error "shards, JSON cut off" "cut.jsonl, line 3" set_py openwebtext --input "$W/cut.jsonl"
expect_error "shards, not UTF-8" "latin.jsonl, line 1: found byte 0xff, which is not UTF-8" set_py \
    openwebtext --input "$W/latin.jsonl"
expect_error "shards, not an object" 'list.jsonl, line 1: found' set_py openwebtext \
    --input "$W/list.jsonl"
expect_error "shards, no documents" "none.jsonl: found no documents" set_py openwebtext \
    --input "$W/none.jsonl"

echo "# the files are as data/shards.py says: names, headers, sizes, every document once after" \
    "an end-of-text, the first shard full"
run set_py openwebtext --input "$W"/docs/*.jsonl $few --encoder own --out "$W/set"
[ "$rc" = 0 ] || cat "$W/stderr"
cat >"$W/set_reader.py" <<'PY'
import glob, json, os, re, struct
import gpt2_bpe
table = gpt2_bpe.encoder_open("own").table
def tokens_read(out, name):
    """The tokens of each shard."""
    found, paths = [], sorted(glob.glob(out + "/*.bin"), key=lambda p: p[-10:])
    paths.remove(out + "/tokenizer.bin")
    names = ["%s_%s_%06d.bin" % (name, "train" if i else "val", i) for i in range(len(paths))]
    assert [os.path.basename(p) for p in paths] == names, paths
    for path in paths:
        data = open(path, "rb").read()
        n = len(data) // 2 - 512
        assert struct.unpack("<256i", data[:1024]) == (20240520, 1, n, 50257) + (0,) * 252, path
        found.append(struct.unpack("<%dH" % n, data[1024:]))
    return found
def documents_of(shards):
    text = [[]]
    for i in (i for shard in shards for i in shard):
        if i == 50256: text.append([])
        else: text[-1].append(table[i])
    assert text[0] == []
    return [b"".join(t).decode("utf-8") for t in text[1:]]
def documents_given(folder):
    return [json.loads(line)["text"] for path in sorted(glob.glob(folder + "/*.jsonl"))
            for line in open(path) if line.strip()]
PY
expect_python "shards, format" "$W/set" "$W/docs" <<'PY'
import json, os, sys
from set_reader import *
out, docs = sys.argv[1:]
shards, given = tokens_read(out, "openwebtext"), documents_given(docs)
found = documents_of(shards)
sizes = [len(s) for s in shards]
assert len(sizes) > 3 and set(sizes[:-1]) == {2000} and 0 < sizes[-1] <= 2000, sizes
assert sorted(found) == sorted(given), (len(found), len(given))
assert found != given, "not shuffled"
assert not [n for n in os.listdir(out) if n.endswith((".part", ".tmp"))]
state = json.load(open(out + "/openwebtext_state.json"))
kept = [(s["tokens"], s["documents"]) for s in state["shards"]]
assert kept == [(len(s), s.count(50256)) for s in shards], state
line = open(out + "/source.txt").read()
expected = "docs/0.jsonl and 2 more, %d documents, %d GPT-2 tokens, seed 1337, shuffle buffer 50\n"
assert expected % (len(given), sum(sizes)) in line, line
PY

echo "# --max-tokens ends at exactly that many, with the same tokens; other seeds give other" \
    "orders, buffer 0 the source's own"
run set_py fineweb --input "$W"/docs/*.jsonl $few --max-tokens 4500 --out "$W/set-max"
expect_python "shards, max-tokens" "$W/set" "$W/set-max" <<'PY'
import sys
from set_reader import *
full, cut = tokens_read(sys.argv[1], "openwebtext"), tokens_read(sys.argv[2], "fineweb")
assert [len(s) for s in cut] == [2000, 2000, 500]
assert cut[:2] == full[:2] and cut[2] == full[2][:500]
PY
run set_py fineweb --input "$W"/docs/*.jsonl $few --seed 7 --type edu --out "$W/set-7"
run set_py openwebtext --input "$W"/docs/*.jsonl --tokens-per-shard 2e3 --shuffle-buffer 0 \
    --out "$W/set-0"
expect_python "shards, seeds" "$W/set" "$W/set-7" "$W/set-0" "$W/docs" <<'PY'
import sys
from set_reader import *
a, b, c = (documents_of(tokens_read(out, name)) for out, name in
           zip(sys.argv[1:4], ("openwebtext", "edu_fineweb", "openwebtext")))
assert sorted(a) == sorted(b) and a != b and c == documents_given(sys.argv[4])
PY

echo "# a set that is complete is checked and left alone; a run that does not fit what is there" \
    "changes nothing"
rm -rf "$W/box/old"; cp -r "$W/set" "$W/box/old"; box_list >"$W/before"
# expect_refused NAME TEXTS ARGUMENT...: openwebtext.py on the set in the box fails
# properly. TEXTS are separated by |.
expect_refused() {
    local name=$1 texts; IFS='|' read -r -a texts <<<"$2"; shift 2
    box_list >"$W/before"
    run set_py openwebtext "$@" --out "$W/box/old"
    why=$(error_check "${texts[@]}")
    if [ -z "$why" ]; then ok "$name"; else fail "$name" "$why"; fi
}
expect_refused "shards, other options" "set was begun with --seed 1337, this command says 2" \
    --input "$W"/docs/*.jsonl $few --seed 2
expect_refused "shards, other input" "set was begun from|use another --out" \
    --input "$W"/docs/0.jsonl $few
expect_refused "shards, no input" \
    "begun from $W/docs/0.jsonl and 2 more, this command reads Skylion007/openwebtext" $few
expect_refused "shards, input gone" "nothing.jsonl: No such file" --input "$W/nothing.jsonl" $few
printf 'x' >>"$W/box/old/openwebtext_train_000001.bin"
expect_refused "shards, one of another size" \
    "train_000001.bin: found 5025 bytes and a header of 2000 tokens, expected 5024" \
    --input "$W"/docs/*.jsonl $few
# flip FILE AT: another lowest bit in that byte; the size stays.
flip() { "$PYTHON" -c 'import sys
f = open(sys.argv[1], "r+b"); f.seek(int(sys.argv[2])); c = f.read(1)[0]
f.seek(-1, 1); f.write(bytes([c ^ 1]))' "$@"; }
cp "$W/set/openwebtext_train_000001.bin" "$W/box/old"
flip "$W/box/old/openwebtext_train_000001.bin" 3000
expect_refused "shards, a bit of a token" "train_000001.bin: found tokens with sha256|expected" \
    --input "$W"/docs/*.jsonl $few
cp -r "$W/docs" "$W/altered"
run set_py openwebtext --input "$W"/altered/*.jsonl $few --out "$W/box/altered"
[ "$rc" = 0 ] || cat "$W/stderr"
sed -i 's/"1.40 /"1.41 /' "$W/altered/1.jsonl"
box_list >"$W/before"
run set_py openwebtext --input "$W"/altered/*.jsonl $few --out "$W/box/altered"
why=$(error_check "set was begun from ['$W/altered/1.jsonl'" "use another --out")
if [ -z "$why" ]; then ok "shards, input of another text"
else fail "shards, input of another text" "$why"; fi
rm "$W/box/old/openwebtext_train_000001.bin"
expect_refused "shards, one missing" "train_000001.bin: No such file|expected a finished shard" \
    --input "$W"/docs/*.jsonl $few
echo '{"settings": 3' >"$W/box/old/openwebtext_state.json"
expect_refused "shards, state damaged" "found no state of an earlier run" \
    --input "$W"/docs/*.jsonl $few
cp "$W/set"/*.bin "$W/box/old"
while IFS='|' read -r name change; do
    "$PYTHON" -c "import json, sys
text = open(sys.argv[1]).read()
state = json.loads(text)
$change
open(sys.argv[2], 'w').write(text if change_text else json.dumps(state))" \
        "$W/set/openwebtext_state.json" "$W/box/old/openwebtext_state.json"
    expect_refused "shards, state with $name" "_state.json: found no state of an earlier run" \
        --input "$W"/docs/*.jsonl $few
done <<'TABLE'
one digit changed|text = text.replace('"complete": true', '"complete": null'); change_text = 1
no list of shards|state["shards"] = 3; change_text = 0
shards of no name|del state["shards"][1]["name"]; change_text = 0
settings that are none|state["settings"] = []; change_text = 0
a list instead|text = "[1, 2]"; change_text = 1
a word instead|text = '"sha256"'; change_text = 1
too many brackets|text = "[" * 100000; change_text = 1
a zeroed tail|text = text[:300] + chr(0) * (len(text) - 300); change_text = 1
TABLE
rm "$W/box/old/openwebtext_state.json"
expect_refused "shards, made by others" \
    "val_000000.bin: found a shard without openwebtext_state.json" --input "$W"/docs/*.jsonl $few
cp -r "$W/set" "$W/set-again"; ls -li "$W/set-again"/*.bin >"$W/inodes"
run set_py openwebtext --input "$W"/docs/*.jsonl $few --out "$W/set-again"
ls -li "$W/set-again"/*.bin | cmp -s - "$W/inodes" || rc="shards were written again"
expect_same "shards, complete already" "$W/set" "$W/set-again"
rm "$W/set-again/tokenizer.bin"
run set_py openwebtext --input "$W"/docs/*.jsonl $few --out "$W/set-again"
expect_same "shards, tokenizer.bin gone" "$W/set" "$W/set-again"

# failed_after NAME TEXT...: as error_check, but what it had understood stands on stdout.
failed_after() {
    local name=$1
    shift
    : >"$W/stdout"
    why=$(error_check "$@")
    if [ -z "$why" ]; then ok "$name"; else fail "$name" "$why"; fi
}
box_list >"$W/before"
run set_py openwebtext --input "$W"/docs/*.jsonl --out "$W/box/new"
failed_after "shards, too few tokens for training" \
    "leaves none for training after a validation shard of 100000000; lower --tokens-per-shard"
all=$(sed -nE 's/.*, ([0-9]+) GPT-2 tokens, .*/\1/p' "$W/set/source.txt")
run set_py openwebtext --input "$W"/docs/*.jsonl --tokens-per-shard "$all" --out "$W/box/new"
failed_after "shards, tokens for validation only" \
    "the source has $all tokens" "leaves none for training after a validation shard of $all;"
run set_py openwebtext --input "$W"/docs/*.jsonl --tokens-per-shard $((all / 2)) --out "$W/half-set"
[ "$rc" = 0 ] || cat "$W/stderr"
expect_lines "shards, two full ones" "$W/stdout" \
    "$((all / 2)) train in 1 shards, $((all - all / 2)) val"
run limited8 set_py openwebtext --input "$W"/docs/*.jsonl --tokens-per-shard 6000 --encoder own \
    --out "$W/box/new/deep"
failed_after "shards, disk full" "cannot write into $W/box/new/deep: File too large" \
    "13024 bytes free"
run set_py openwebtext --input "$W"/docs/*.jsonl $few --out "$W/box/file/out"
failed_after "shards, --out below a file" "Not a directory"
mkdir "$W/box/theirs"; cp "$W"/utf8/{tokenizer.bin,source.txt} "$W/box/theirs"
while read -r file text; do
    box_list >"$W/before"
    run set_py openwebtext --input "$W"/docs/*.jsonl $few --out "$W/box/theirs"
    failed_after "shards, another data set's $file" "theirs/$file: $text" "use another --out"
    rm "$W/box/theirs/$file"
done <<'TABLE'
tokenizer.bin found the tokenizer of another vocabulary
source.txt found that of another data set
TABLE
mkdir "$W/box/locked"; box_list >"$W/before"
TP_DATA=$BPE run flock "$W/box/locked" "$PYTHON" "$DATA/openwebtext.py" --input "$W"/docs/*.jsonl \
    $few --out "$W/box/locked"
failed_after "shards, two runs in one folder" "locked: another run writes into it"

echo "# a process that ends at any step (before and after each write, sync and rename) goes on to
# the same bytes and does no finished shard again; one set stopped at random again and again, too"
expect_python "shards, stopped at every step" "$W/steps-want" "$W/steps" "$W/docs" <<'PY'
import os, random, shutil, sys
import gpt2_bpe, openwebtext, shards
from set_reader import documents_given
encoder = gpt2_bpe.encoder_open("own")
# So that the processes forked below find all pieces in its cache.
encoder.encode_many(documents_given(sys.argv[3]))
gpt2_bpe.encoder_open = lambda choice: encoder
packed = gpt2_bpe.tokenizer_pack(encoder)
gpt2_bpe.tokenizer_pack = lambda encoder: packed
want, out, docs = sys.argv[1:]
def run(out, last):
    """A run that ends at step `last`, without a word and with nothing cleaned up. Returns its
    status: 9, or 0 if it got to its end."""
    child = os.fork()
    if child: return os.waitpid(child, 0)[1] >> 8
    step = [0]
    def steps(function, every=1):
        calls = [0]
        def stepped(*arguments, **named):
            calls[0] += 1
            counted = calls[0] % every == 0
            step[0] += counted
            if counted and step[0] == last: os._exit(9)
            result = function(*arguments, **named)
            step[0] += counted
            if counted and step[0] == last: os._exit(9)
            return result
        return stepped
    os.fsync = steps(lambda file: None)  # what a process has written outlives it without
    os.replace, os.makedirs = steps(os.replace), steps(os.makedirs)
    shards.Writer.add = steps(shards.Writer.add, 10)  # of the documents one in ten
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os._exit(openwebtext.main(["--input", docs + "/0.jsonl", docs + "/1.jsonl", "--out", out,
                               "--tokens-per-shard", "2000", "--shuffle-buffer", "30"]))
def finished():
    names = os.listdir(out) if os.path.isdir(out) else []
    return {n: os.stat(os.path.join(out, n)).st_ino for n in names
            if n.endswith(".bin") and n != "tokenizer.bin"}
def same():
    for n in set(os.listdir(want)) | set(os.listdir(out)):
        a, b = (open(os.path.join(folder, n), "rb").read() for folder in (want, out))
        assert a == b, n
    shutil.rmtree(out)
assert run(want, 0) == 0 and len(os.listdir(want)) > 6
last = 1
while run(out, last):
    before = finished()
    assert run(out, 0) == 0 and before.items() <= finished().items(), last
    same()
    last += 1
assert last > 50, last
r = random.Random(11)
for _ in range(3):
    shutil.rmtree(out, ignore_errors=True)
    runs = 0
    while run(out, r.randrange(1, 60)):
        runs += 1
        assert runs < 1000
    same()
PY

echo "# kill -9 of the real thing at random moments after another shard or two, then the same" \
    "command to its end"
large=("$DATA/openwebtext.py" --input "$W"/more/*.jsonl --tokens-per-shard 5e3
    --shuffle-buffer 100 --encoder own --out)
run env TP_DATA="$BPE" "$PYTHON" "${large[@]}" "$W/large"; want=$rc
kills=0
while [ $kills -lt 4 ]; do
    : >"$W/stdout"
    TP_DATA=$BPE "$PYTHON" "${large[@]}" "$W/killed" >"$W/stdout" 2>"$W/stderr" & pid=$!
    until [ "$(grep -c ^shard "$W/stdout")" -gt $((kills % 2)) ] || ! kill -0 $pid 2>/dev/null; do
        sleep 0.02
    done
    sleep 0.0$((RANDOM % 10)); kill -KILL $pid 2>/dev/null; wait $pid 2>/dev/null && break
    kills=$((kills + 1))
done
run env TP_DATA="$BPE" "$PYTHON" "${large[@]}" "$W/killed"
[ "$want" = 0 ] && [ $kills -gt 0 ] || rc="$want without kills, $kills kills"
expect_same "shards, killed at random moments" "$W/large" "$W/killed"

echo "# SIGTERM: one line that says how to go on, no .part left, and it does go on"
step_stop="write = s.shards.Writer.add
def add(self, *a, n=[0], **named):
    n[0] += 1
    if n[0] == 120: os.kill(os.getpid(), signal.SIGTERM)
    write(self, *a, **named)
s.shards.Writer.add = add"
run changed openwebtext "$step_stop" --input "$W"/docs/*.jsonl $few --out "$W/term"
if [ "$rc" = 1 ] && ! ls "$W/term" | grep -q part; then
    expect_lines "shards, SIGTERM" "$W/stderr" \
        "error: stopped by signal 15; run the same command again to go on"
else
    fail "shards, SIGTERM" "exit status $rc, $(ls "$W/term" | tr '\n' ' ')"
fi
run set_py openwebtext $few --out "$W/term"
[ "$rc $(wc -l <"$W/stderr")" = "1 1" ] || echo "exit status $rc" >"$W/stderr"
expect_lines "shards, half of a set, then no input" "$W/stderr" \
    "begun from $W/docs/0.jsonl and 2 more, this command reads Skylion007/openwebtext"
run set_py openwebtext --input "$W"/docs/*.jsonl $few --out "$W/term"
expect_same "shards, after SIGTERM" "$W/set" "$W/term"

echo "# the way to the hub, with the package datasets reading a folder of three files: the same" \
    "shards, after a stop too"
if ! has datasets; then skip "shards, the hub's files" "pip install datasets"; else
    mkdir -p "$W/hub/sample"
    printf '%s\n' --- configs: '- config_name: sample-10BT' '  data_files:' '  - split: train' \
        '    path: sample/*' --- >"$W/hub/README.md"
    "$PYTHON" - "$W/docs" "$W/hub/sample" <<'PY'
import glob, json, os, sys
import pyarrow, pyarrow.parquet
for path in glob.glob(sys.argv[1] + "/*.jsonl"):
    texts = [json.loads(line)["text"] for line in open(path) if line.strip()]
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    name = os.path.basename(path)[:-6] + ".parquet"
    pyarrow.parquet.write_table(table, sys.argv[2] + "/" + name, row_group_size=20)
PY
    export HF_HOME=$W/hf HF_HUB_OFFLINE=1
    local_hub="s.HUB = {'classic': ('openwebtext', '$W/hub')}"
    run changed fineweb "$local_hub
import shards
shards_finish = shards.Writer.finish
def finish(self, *a):
    shards_finish(self, *a)
    if self.index == 1: os._exit(9)
shards.Writer.finish = finish" $few --out "$W/hub-set"
    [ "$rc" = 9 ] ||
        fail "shards, the hub's files, stopped" "exit status $rc: $(tail -1 "$W/stderr")"
    run changed fineweb "$local_hub" $few --out "$W/hub-set"
    while IFS='|' read -r option text; do
        changed fineweb "$local_hub" $few $option --out "$W/hub-set" >"$W/stdout" 2>&1
        expect_lines "shards, complete, then $option" "$W/stdout" "error: " "set was begun $text"
    done <<TABLE
--version 100B|from $W/hub sample-10BT, this command reads $W/hub sample-100BT
--revision main|without --revision, this command says main
--input $W/docs/0.jsonl|from $W/hub, this command reads ['$W/docs/0.jsonl'
TABLE
    rm -f "$W/hub-set"/source.txt "$W/hub-set"/*_state.json
    mkdir "$W/hub-want"
    cp "$W/set"/*.bin "$W/hub-want"
    expect_same "shards, the hub's files" "$W/hub-want" "$W/hub-set"
    unset HF_HOME HF_HUB_OFFLINE
fi

echo "# the trainer reads shards and tokenizer, and prints the text's name and a sample"
TRAIN=$DATA/../train_gpt2
if [ ! -x "$TRAIN" ]; then fail "shards, train_gpt2 reads them" "no program; make train_gpt2"; else
    small="-e 1x1x16 -tp 1 -t 16 -b 1 -x 1 -s 1 -g 8 -m 2"
    run "$TRAIN" -i "$W/set/*train*.bin" -j "$W/set/*val*.bin" $small
    [ "$rc" = 0 ] || { cat "$W/stderr"; : >"$W/stdout"; }
    expect_lines "shards, train_gpt2 reads them" "$W/stdout" \
        "# text $W/docs/0.jsonl and 2 more, 210 documents" " V 50257 " "--- sample after update 1"
    run "$TRAIN" -i "$W/text/train.bin" -j "$W/text/val.bin" $small -t 4
    [ "$rc" = 0 ] || { cat "$W/stderr"; : >"$W/stdout"; }
    expect_lines "text.py, train_gpt2 reads its files" "$W/stdout" "# text 2 files, " " V 50257 " \
        "--- sample after update 1"
    run "$TRAIN" -i "$W/books/train.bin" -j "$W/books/val.bin" $small -gp "The fox"
    [ "$rc" = 0 ] || { cat "$W/stderr"; : >"$W/stdout"; }
    expect_lines "books.py, train_gpt2 reads its characters" "$W/stdout" "# text 4 and 1 books, " \
        " V 97 " "The fox"
fi
fi

echo "test_data: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
