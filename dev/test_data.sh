#!/usr/bin/env bash
# Tests of data/shakespeare_char.py. They need python3 and no network (the test server is on 127.0.0.1), write only
# below a temporary folder and take about 15 seconds.
#
#     dev/test_data.sh                          # PYTHON=python3.7 dev/test_data.sh for another Python
#     TP_DATA=../shared/data dev/test_data.sh   # also the tests that need the real tinyshakespeare.txt
#
# Prints `ok <name>`, `FAILED <name>: <why>` or `skipped <name>: <why>` for each test, then
# `test_data: N passed, N failed, N skipped`, and exits with 1 if any failed.
set -u
PYTHON=${PYTHON:-python3}
SCRIPT=$(cd "$(dirname "$0")/.." && pwd)/data/shakespeare_char.py
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

# Every file and folder below $W/box; with inodes, so that a file replaced by one with the same bytes counts too.
box_list() { { find "$W/box" -exec ls -id {} +; find "$W/box" -type f -exec cksum {} +; } | sort; }

# error_check NAME TEXT...: the last run failed as a run should: status 1, nothing on stdout, one line on stderr that
# starts with `error: ` and holds every TEXT, nothing new or changed in the box. Prints why not.
error_check() {
    [ "$rc" = 1 ] || { echo "exit status $rc, expected 1"; return; }
    [ ! -s "$W/stdout" ] || { echo "stdout holds: $(head -1 "$W/stdout")"; return; }
    [ "$(wc -l <"$W/stderr")" -eq 1 ] || { echo "stderr is not one line: $(cat "$W/stderr")"; return; }
    case $(cat "$W/stderr") in "error: "*) ;; *) echo "no 'error: ': $(cat "$W/stderr")"; return;; esac
    local text
    for text in "$@"; do
        grep -qF -e "$text" "$W/stderr" || { echo "no '$text' in: $(cat "$W/stderr")"; return; }
    done
    box_list >"$W/after"
    cmp -s "$W/before" "$W/after" || echo "left behind: $(diff "$W/before" "$W/after" | tr '\n' ' ')"
}

# expect_error NAME TEXTS COMMAND...: COMMAND (which gets --out appended) fails properly twice: where --out and the
# folder above it do not exist, and where --out holds the files of an earlier run. TEXTS are separated by |.
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

# expect_files NAME OUT TEXT: OUT holds exactly the four files and they decode to TEXT (a file). The decoder shares
# nothing with the script: it takes the bytes apart by hand.
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
    need(name + " header", ints(data[name][:1024], 4), [20240520, 1, count, len(symbols)] + [0] * 252)
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
        grep -qF -e "$text" "$file" || { fail "$name" "no '$text' in: $(head -c 500 "$file")"; return; }
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
        body = open(sys.argv[2], "rb").read() if self.path == "/real" else b"To be, or not to be\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if self.path in ("/real", "/wrong") else 1115394))
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
refuse.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused, and nobody else can take it
server = Server(("127.0.0.1", 0), Handler)
with open(sys.argv[1] + ".tmp", "w") as f:
    f.write("%d %d\n" % (server.server_port, refuse.getsockname()[1]))
os.rename(sys.argv[1] + ".tmp", sys.argv[1])
server.serve_forever()
PY
"$PYTHON" "$W/server.py" "$W/ports" "$REAL" 2>"$W/server.log" & SERVER=$!
for _ in $(seq 100); do [ -s "$W/ports" ] && break; sleep 0.05; done
[ -s "$W/ports" ] || { echo "FAILED server: it did not start: $(tail -1 "$W/server.log")"; exit 1; }
read -r port refused <"$W/ports"
http=http://127.0.0.1:$port

# The box: old/ holds the files of an earlier run, a file stands where a folder would have to be made.
mkdir -p "$W/box/old" "$W/none" "$W/bad"
printf 'hello, old world\n' >"$W/old.txt"
run prepare --input "$W/old.txt" --out "$W/box/old"
[ "$rc" = 0 ] || { echo "FAILED setup: $(cat "$W/stderr")"; exit 1; }
echo "not a folder" >"$W/box/file"
printf 'To be, or not to be\n' >"$W/bad/tinyshakespeare.txt"
box_list >"$W/before"

# ----------------------------------------------------------------------------
# texts that work

echo "# a small text gives exactly the bytes of DESIGN.md 4, worked out by hand"
printf 'abcab\ncabca' >"$W/small.txt"                         # 11 characters: 9 train, 2 val; \n a b c = 0 1 2 3
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
for f in train.bin val.bin tokenizer.bin; do cmp "$W/want/$f" "$W/small/a/b/$f" >"$W/cmp" 2>&1 || why="$why$(cat "$W/cmp") "; done
if [ -z "$why" ]; then ok "small text, exact bytes"; else fail "small text, exact bytes" "$why"; fi
expect_lines "small text, source.txt has path and length" "$W/small/a/b/source.txt" "$W/small.txt, 11 characters, sha256 "
expect_lines "small text, stdout has the counts" "$W/stdout" "11 characters" "symbols  4" "9 train, 2 val"

echo "# symbols of 1 to 4 bytes, \\r and NUL come back as they were; the end-of-text token is not 0"
printf '\t\r\nna\303\257ve caf\303\251 \342\202\254 \360\237\230\200\360\237\230\200 \316\261\316\262\000 \303\251t\303\251\n' >"$W/utf8.txt"
run prepare --input "$W/utf8.txt" --out "$W/utf8"
expect_files "UTF-8 symbols" "$W/utf8" "$W/utf8.txt"

echo "# without a newline the end-of-text token is 0"
printf 'no newline in here' >"$W/flat.txt"
run prepare --input "$W/flat.txt" --out "$W/flat"
expect_files "no newline" "$W/flat" "$W/flat.txt"

echo "# ids above 255: 60,000 symbols need both bytes of a token; 65,535 is the most"
"$PYTHON" -c 'import sys
c = [chr(i) for i in range(70000) if not 0xd800 <= i < 0xe000]
for path, n in zip(sys.argv[1:], (60000, 65535, 65536)): open(path, "wb").write("".join(c[:n]).encode())' \
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
run sh -c 'cd "$1" && "$2" "$3" --input tinyshakespeare --out "$1/named"' sh "$W" "$PYTHON" "$SCRIPT"
if grep -q "^tinyshakespeare" "$W/named/source.txt"; then fail "impostor's name" "$(cat "$W/named/source.txt")"
else expect_lines "impostor's name" "$W/named/source.txt" "/tinyshakespeare, 20 characters"; fi

echo "# the real tinyshakespeare: 65 symbols, 1,003,854 / 111,540 tokens, whichever way it comes"
for how in TP_DATA --input file:// http://; do
    if [ -z "$REAL" ] || [ ! -f "$REAL" ]; then
        skip "tinyshakespeare by $how" "set TP_DATA to a folder that holds tinyshakespeare.txt"; continue
    fi
    out=$W/real-${how%%:*}
    case $how in
        TP_DATA) TP_DATA="$(dirname "$REAL")" run prepare --url "http://127.0.0.1:$refused/" --out "$out";;
        --input) run prepare --input "$REAL" --out "$out";;
        file://) run prepare --url "file://$REAL" --out "$out";;
        http://) TP_DATA="$W/none" run prepare --url "$http/real" --out "$out";;
    esac
    if [ $how = TP_DATA ]; then
        expect_files "tinyshakespeare by TP_DATA" "$out" "$REAL"
        expect_lines "tinyshakespeare, counts" "$W/stdout" "symbols  65" "1003854 train, 111540 val"
        expect_lines "tinyshakespeare, source.txt" "$out/source.txt" "tinyshakespeare, 1115394 characters, sha256 $SHA"
    else
        expect_same "tinyshakespeare by $how" "$W/real-TP_DATA" "$out"
    fi
done

# ----------------------------------------------------------------------------
# the text that needs no network

echo "# --offline: the same twice, whatever TP_DATA and --url say; ASCII; never mistaken for Shakespeare"
TP_DATA="$W/bad" run prepare --offline --url "$http/wrong" --out "$W/off1"
expect_lines "--offline is labelled on stdout" "$W/stdout" "NOT Shakespeare"
expect_lines "--offline is labelled in source.txt" "$W/off1/source.txt" "NOT Shakespeare: fallback text, the Python "
PYTHONHASHSEED=7 LC_ALL=C run prepare --offline --out "$W/off2"
expect_same "--offline twice" "$W/off1" "$W/off2"
why=$("$PYTHON" - "$W/off1" 2>&1 <<'PY'
import sys
tok = open(sys.argv[1] + "/tokenizer.bin", "rb").read()
n = sum(int.from_bytes(open(sys.argv[1] + f, "rb").read()[8:12], "little") for f in ("/train.bin", "/val.bin"))
odd = set(tok[1025::2]) - set(range(32, 127)) - {10}
if odd or set(tok[1024::2]) != {1}: sys.exit("not ASCII: %r" % sorted(odd))
if n != 1115394: sys.exit("found %d characters, expected 1115394" % n)
PY
)
if [ -z "$why" ]; then ok "--offline is ASCII"; else fail "--offline is ASCII" "$why"; fi

echo "# --fallback: says why on stderr, then gives the same text as --offline; it never stands in for --input"
run prepare --fallback --url "http://127.0.0.1:$refused/" --out "$W/fall"
expect_lines "--fallback tells" "$W/stderr" "warning: download of http://127.0.0.1:$refused/" "refused" "NOT Shakespeare"
expect_same "--fallback is --offline" "$W/off1" "$W/fall"
expect_error "--fallback with a missing --input" "No such file|expected" prepare --fallback --input "$W/nothing.txt"

# ----------------------------------------------------------------------------
# failures: status 1, one line, nothing left behind, old files unchanged

echo "# sources that are wrong: the line names what was found, what was expected and what to do"
HINT="use --input FILE, set TP_DATA to a folder that holds tinyshakespeare.txt, or --offline"
BAD=$("$PYTHON" -c 'import hashlib; print(hashlib.sha256(b"To be, or not to be\n").hexdigest())')
TP_DATA="$W/bad" expect_error "TP_DATA, wrong sha256" "$W/bad/tinyshakespeare.txt: found 20 bytes|$BAD|$SHA|$HINT" prepare --url "$http/wrong"
TP_DATA="$W/none" expect_error "TP_DATA without the file, download refused" "no $W/none/tinyshakespeare.txt|refused|$HINT" prepare --url "http://127.0.0.1:$refused/"
expect_error "download, refused" "127.0.0.1:$refused|refused|$HINT" prepare --url "http://127.0.0.1:$refused/"
expect_error "download, 404" "$http/missing|404|$HINT" prepare --url "$http/missing"
expect_error "download, truncated" "found 20 bytes, expected 1115394|$HINT" prepare --url "$http/short"
expect_error "download, wrong content" "found 20 bytes|$BAD|$SHA|$HINT" prepare --url "$http/wrong"
expect_error "download, too long" "more than 1115394 bytes|$HINT" prepare --url file:///dev/zero
expect_error "download, missing file" "No such file|$HINT" prepare --url "file://$W/nothing.txt"
expect_error "download, not a URL" "nonsense|$HINT" prepare --url nonsense
# as_module PYTHON-LINES: the script as a module `s` in which something is changed, for what no input can provoke.
as_module() { "$PYTHON" -c "import os, signal, sys; sys.path.insert(0, os.path.dirname(sys.argv[1])); import shakespeare_char as s
$1
sys.exit(s.main(sys.argv[2:]))" "$SCRIPT" "${@:2}"; }
expect_error "download, slow (limit lowered to 0.5 s)" "not finished after 0.5 seconds|$HINT" as_module "s.DOWNLOAD_SECONDS = 0.5" --url "$http/drip"

echo "# input texts that cannot be used"
printf '' >"$W/empty.txt"; printf '0123456789' >"$W/short.txt"; printf 'a long enough text \377 with a bad byte' >"$W/latin.txt"
expect_error "--input, missing" "nothing.txt: No such file|expected a readable text file" prepare --input "$W/nothing.txt"
expect_error "--input, a folder" "directory|expected a readable text file" prepare --input "$W"
expect_error "--input, empty" "found 0 characters, expected 11" prepare --input "$W/empty.txt"
expect_error "--input, one character too short" "found 10 characters, expected 11" prepare --input "$W/short.txt"
expect_error "--input, not UTF-8" "byte 0xff at offset 19|expected UTF-8|iconv" prepare --input "$W/latin.txt"
expect_error "--input, 65,536 symbols" "found 65536 different characters, expected at most 65535" prepare --input "$W/v65536.txt"
expect_error "unknown option" "--bogus|--help" prepare --bogus
expect_error "--input with --offline" "not allowed with|--help" prepare --offline --input "$W/small.txt"

echo "# places that cannot be written, and stops half way: no partial file, no temporary file, no new folder"
run prepare --input "$W/small.txt" --out "$W/box/file/out"    # below a regular file, since root may write anywhere else
why=$(error_check "cannot write into $W/box/file/out" "Not a directory" "use another --out")
if [ -z "$why" ]; then ok "--out below a file"; else fail "--out below a file" "$why"; fi
run prepare --input "$W/small.txt" --out "$W/box/file"
why=$(error_check "cannot write into $W/box/file" "expected a folder")
if [ -z "$why" ]; then ok "--out is a file"; else fail "--out is a file" "$why"; fi
limited() { (ulimit -f 64; "$@"); }                             # in KiB: train.bin is 108, as on a disk that is full
expect_error "disk full" "cannot write into|File too large|bytes free" limited prepare --input "$W/v60000.txt"
stop() { as_module "sync = s.os.fsync
def stop(fd, n=[0]):
    n[0] += 1
    if n[0] == 3: os.kill(os.getpid(), signal.$1)
    sync(fd)
s.os.fsync = stop" "${@:2}"; }
for sig in SIGINT SIGTERM SIGHUP; do
    expect_error "$sig at the third file" "stopped by signal|nothing was written" stop $sig --input "$W/small.txt"
done
"$PYTHON" "$SCRIPT" --fallback --url "$http/drip" --out "$W/box/new/deep" >"$W/stdout" 2>"$W/stderr" & pid=$!
sleep 0.7; kill -TERM $pid; wait $pid; rc=$?                    # and not fall back either: the user wants it to end
why=$(error_check "stopped by signal 15")
if [ -z "$why" ]; then ok "SIGTERM during the download"; else fail "SIGTERM during the download" "$why"; fi
mkdir "$W/box/walled" "$W/box/walled/tokenizer.bin"; cp "$W/box/old/train.bin" "$W/box/walled/"; box_list >"$W/before"
run prepare --input "$W/small.txt" --out "$W/box/walled"
why=$(error_check "walled/tokenizer.bin: found a folder, expected a file")
if [ -z "$why" ]; then ok "a folder in a file's place"; else fail "a folder in a file's place" "$why"; fi

echo "test_data: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
