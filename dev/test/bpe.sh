#!/usr/bin/env bash
# Tests of data/bpe.h, which makes tokens of prompts: against a plain encoder on vocabularies made
# here, against tokens that tiktoken gave, and against tiktoken itself and data/gpt2_bpe.py.
#
#     make dev/test/encode && dev/test/bpe.sh
#     TP_DATA=FOLDER dev/test/bpe.sh    # also GPT-2's own vocabulary
#     pip install tiktoken unicodedata2==16.0.0 # also tiktoken's tokens, and the tables of Unicode
#
# The last line is `test_bpe: N passed, N failed, N skipped`; the exit status is 1 if any failed.
set -u
PYTHON=${PYTHON:-python3}
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
export ENCODE=${ENCODE:-$ROOT/dev/test/encode} PYTHONDONTWRITEBYTECODE=1
[ -x "$ENCODE" ] || { echo "FAILED setup: no program $ENCODE; make dev/test/encode"; exit 1; }
W=$(mktemp -d) || exit 1
trap 'rm -rf "$W"' EXIT
trap 'exit 1' INT TERM HUP
. "$(dirname "$0")/verdicts.sh"

# python NAME [ARGUMENT...] <PROGRAM: it exits with 0, and can import data/ and this:
cat >"$W/prompts.py" <<'PY'
import os, re, struct, subprocess, unicodedata
def tokenizer_write(path, tokens, end):
    with open(path, "wb") as f:
        f.write(struct.pack("<256I", 20240328, 2, len(tokens), end, *[0] * 252))
        f.write(b"".join(bytes([len(t)]) + t for t in tokens))
def encode(path, texts):
    """The ids of texts (str or bytes), or None and the message where one is refused."""
    raw = [t if isinstance(t, bytes) else t.encode("utf-8") for t in texts]
    data = b"".join(b"%d\n%s" % (len(t), t) for t in raw)
    # A piece that takes quadratic time would not end; nothing else is timed.
    ran = subprocess.run([os.environ["ENCODE"], path], input=data, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, timeout=60)
    if ran.returncode:
        assert ran.returncode == 1, ran
        return None, ran.stderr.decode("utf-8", "replace").strip()
    lines = ran.stdout.decode().split("\n")[:-1]
    assert len(lines) == len(texts), (len(lines), ran.stderr)
    return [[int(i) for i in line.split()] for line in lines]
def check(path, texts, expected):
    for text, found, ids in zip(texts, encode(path, texts), expected):
        assert found == ids, "%.200a: found %.200s, expected %.200s" % (text, found, ids)
def tables(path):
    """Of data/unicode.h: kind of a code point's character."""
    kinds = {}
    for name, edges in re.findall(r"UNICODE_(\w+)\[\] = \{([^}]*)\}", open(path).read()):
        edges = list(map(int, edges.split(",")))
        for first, end in zip(edges[::2], edges[1::2]):
            kinds.update((c, name[0]) for c in range(first, end))
    return kinds
def characters(path):
    """All that this Python and data/unicode.h know."""
    def version(text): return list(map(int, re.findall(r"\d+", text)[:3]))
    newer = version(unicodedata.unidata_version) > version(open(path).readline())
    known = unicodedata.ucd_3_2_0 if newer else unicodedata
    return [c for c in map(chr, range(0x110000)) if known.category(c) not in ("Cn", "Cs", "Co")]
PARTS = ["'s", "'ll", "'ve", "'", "'Re", "n't", " ", "  ", "    ", "\n", "\n\n", "\t", "\r\n",
         "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u200b", "\u2028", "\u3000",
         "\xe9", "e\u0301", "\u6f22\u5b57", "\u0661\u0662", "\u0663", "\xbd", "\xb2", "\u2167",
         "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0928\u092e\u0938\u094d",
         "\u0645\u0631\u062d\u0628\u0627", "<|endoftext|>", "a", "ab", "The", "123", "...", "\0",
         "\x1b[2J", "\x7f", "\ufeff", "\ufffd", "\U0010fffd"]
PY
python() {
    local name=$1 why; shift
    if why=$(PYTHONPATH=$ROOT/data:$W timeout 200 "$PYTHON" - "$W" "$@" 2>&1); then ok "$name"
    else bad "$name" "$(tail -n 2 <<<"$why" | head -c 800 | tr '\n' ' ')"; fi
}

# ----------------------------------------------------------------------------
# vocabularies made here

echo "# 256 bytes and 300 merges: as an encoder has them that reads a piece again for every merge"
python "bytes and merges, against a plain encoder" <<'PY'
import random, re, sys
from prompts import *
path, r = sys.argv[1] + "/pairs.bin", random.Random(1)
tokens = [bytes([b]) for b in range(256)]
r.shuffle(tokens)
while len(tokens) < 556:  # merges in random order, so that ranks and lengths have nothing in common
    new = r.choice(tokens[256:] * 3 + [b"a", b"b", b"'", b"s", b" ", b"1", b"\xc3", b"\xa9"])
    new += r.choice(tokens[256:] + [b"a", b"b", b"1", b"\xc3\xa9", b"!", b" "])
    if len(new) < 60 and new not in tokens:
        tokens.append(new)
end = len(tokens)
tokens.append(b"aba")  # were it not the end of a text, it would be merged
pattern = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[a-z\xe9]+| ?[0-9]+| ?[^\sa-z\xe90-9]+|\s+(?!\S)|\s+")
def plain(text):
    ids, out = {t: i for i, t in reversed(list(enumerate(tokens[:end])))}, []
    for piece in pattern.findall(text):
        piece = piece.encode("utf-8")
        parts = [piece] if piece in ids else [piece[i:i + 1] for i in range(len(piece))]
        while True:
            pairs = [(ids[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:]))
                     if a + b in ids]
            if not pairs:
                break
            i = min(pairs)[1]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        out += [ids[p] for p in parts]
    return out
tokenizer_write(path, tokens, end)
texts = ["", "a", " ", "aba", "ababab", "a" * 300, "ab" * 200, "'" * 9, "'s's", "it'll've"]
for _ in range(3000):
    texts.append("".join(r.choice("aaabbb'slvetd1123!  \n\t\xe9\xe9")
                         for _ in range(r.randrange(80))))
check(path, texts, map(plain, texts))
tokens.append(tokens[300])  # the same bytes twice: the first counts
tokenizer_write(path, tokens, end)
check(path, texts, map(plain, texts))
# All short words of two letters in random order: many ways to the same token, many equals.
words = [b"a", b"b"]
for _ in range(4):
    words += [w + c for w in words for c in (b"a", b"b") if w + c not in words]
for _ in range(40):
    tokens[256:] = r.sample(words[2:], 40)
    end = len(tokens)
    tokens.append(b"<end>")
    tokenizer_write(path, tokens, end)
    texts = ["".join(r.choice("ab") for _ in range(r.randrange(40))) for _ in range(100)]
    check(path, texts, map(plain, texts))
PY

echo "# characters; what is no UTF-8, and where; vocabularies of neither kind"
python "characters and refusals" <<'PY'
import random, sys
from prompts import *
letters, pairs = sys.argv[1] + "/letters.bin", sys.argv[1] + "/pairs.bin"
symbols = "\n ab\u00e9\u20ac\U0001f600"
tokenizer_write(letters, [c.encode() for c in symbols], 0)
texts = ["", "a", "ab\u00e9\u20ac\U0001f600\n", symbols[::-1] * 50]
check(letters, texts, [[symbols.index(c) for c in t] for t in texts])
def refused(path, text, *expected):
    found = encode(path, [text])
    assert found[0] is None and found[1].startswith("error: -gp: ") and "\n" not in found[1], found
    for part in expected:
        assert part in found[1], "%r: no %r in: %s" % (text, part, found[1])
refused(letters, "aXb", "'X' (U+0058) at offset 1 of the prompt")
refused(letters, "a\u20ac\u00fcb", "'\u00fc' (U+00FC) at offset 4")
refused(letters, "a\tb", "(U+0009) at offset 1")
refused(letters, "ab\0", "(U+0000) at offset 2")
wrong = [(raw, "no character begins with it")
         for raw in (b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xf5\x80\x80\x80",
                     b"\xf7\xbf\xbf\xbf", b"\xf8\x88\x80\x80\x80", b"\xff")]
wrong += [(raw, "cut off")
          for raw in (b"\xc3", b"\xc3(", b"\xe2\x82", b"\xf0\x9f\x98", b"\xf0\x9f\x98a",
                      b"\xe2\xe2\x82\xac")]
wrong += [(b"\xe0\x9f\xbf", "more bytes than it needs"),
          (b"\xf0\x8f\xbf\xbf", "more bytes than it needs"),
          (b"\xed\xa0\x80", "surrogate"), (b"\xed\xbf\xbf", "surrogate"),
          (b"\xf4\x90\x80\x80", "beyond U+10FFFF")]
for path in letters, pairs:
    for before in b"", "ab\u00e9\u20ac\U0001f600 ".encode():
        for raw, why in wrong:
            at = "byte 0x%02X at offset %d of the prompt" % (raw[0], len(before))
            refused(path, before + raw, at, "expected UTF-8", why)
for good in "\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff":
    assert encode(pairs, [good])[0] is not None, ascii(good)
r = random.Random(2)
for _ in range(150):  # the offset is the one that Python finds
    raw = bytearray("a\u00e9\u20ac\U0001f600\u6f22".encode() * 3)
    for _ in range(2):
        raw[r.randrange(len(raw))] = r.randrange(256)
    try:
        raw.decode("utf-8")
        assert encode(pairs, [bytes(raw)])[0] is not None, raw
    except UnicodeDecodeError as e:
        refused(pairs, bytes(raw), "0x%02X at offset %d of" % (raw[e.start], e.start))
neither = sys.argv[1] + "/neither.bin"
for tokens, token, bytes_ in (([b"a", b"ab"], 1, 1), ([bytes([b]) for b in range(255)], 254, 255),
                              ([b"a", b"\xc3"], 1, 2), ([b"a\xff"], 0, 0)):
    tokenizer_write(neither, tokens, 0)
    refused(neither, "a", "token %d of this tokenizer is not one character" % token,
            "only %d of 256 bytes" % bytes_)
PY

echo "# the tables have the characters that this Python knows, and are what the script makes"
python "letters, numbers and white space" "$ROOT/data/unicode.h" <<'PY'
import sys
from prompts import *
kinds = tables(sys.argv[2])
for c in characters(sys.argv[2]):
    expected = unicodedata.category(c)[0]
    if expected not in "LN":
        expected = "S" if c.isspace() and c not in "\x1c\x1d\x1e\x1f" else ""
    assert kinds.get(ord(c), "") == expected, (ascii(c), kinds.get(ord(c)), expected)
PY
version=$(sed -nE '1s/.*Unicode ([0-9.]+)\..*/\1/p' "$ROOT/data/unicode.h")
here=$(cd "$ROOT/data" && "$PYTHON" -c 'import unicode; print(unicode.unicodedata.unidata_version)')
if [ "$here" = "$version" ]; then
    "$PYTHON" "$ROOT/data/unicode.py" >"$W/unicode.h"
    same "data/unicode.h" "$(cmp "$W/unicode.h" "$ROOT/data/unicode.h" 2>&1)" ""
else
    skip "data/unicode.h" "it has Unicode $version, this Python $here; pip install \
unicodedata2==$version"
fi

# ----------------------------------------------------------------------------
# GPT-2's vocabulary

if [ ! -d "${TP_DATA:-}/gpt2_bpe" ]; then
    for name in "tokens that tiktoken gave" "data/gpt2_bpe.py" "tiktoken"; do
        skip "GPT-2's vocabulary, $name" "set TP_DATA to a folder that holds gpt2_bpe"
    done
else
echo "# tokens as tiktoken 0.14 gave them, in many scripts"
python "GPT-2's vocabulary, tokens that tiktoken gave" <<'PY'
import sys
import gpt2_bpe
from prompts import *
path = sys.argv[1] + "/gpt2.bin"
with open(path, "wb") as f:
    f.write(gpt2_bpe.tokenizer_pack(gpt2_bpe.encoder_open("own")))
known = {
    "Hello, I'm a language model,": [15496, 11, 314, 1101, 257, 3303, 2746, 11],
    "we'll they'Re I'd'a can't''s": [732, 1183, 484, 6, 3041, 314, 1549, 6, 64, 460, 470, 7061, 82],
    'a  b   c    \n\n\n  d \t e\r\n  ':
        [64, 220, 275, 220, 220, 269, 220, 220, 220, 220, 628, 198, 220, 288, 220, 197, 304, 201,
         198, 220, 220],
    'na\xefve \u4f60\u597d \u0661\u0662 \xbd x\xb2 \u2167':
        [2616, 38776, 220, 19526, 254, 25001, 121, 18923, 94, 149, 95, 25208, 2124, 31185, 2343,
         227, 100],
    '\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467\xa0!':
        [47249, 222, 50169, 101, 447, 235, 41840, 102, 447, 235, 41840, 100, 1849, 0],
    '<|endoftext|> <|endoftext|>':
        [27, 91, 437, 1659, 5239, 91, 29, 1279, 91, 437, 1659, 5239, 91, 29],
    ' \u3000\x1c\x85z \x00': [220, 5099, 222, 216, 126, 227, 89, 220, 188],
    '\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e':
        [11976, 101, 11976, 106, 11976, 116, 24231, 235, 11976, 97, 24231, 229, 28225, 99, 24231,
         223, 11976, 101, 11976, 123, 11976, 107, 48077],
    '\u0645\u0631\u062d\u0628\u0627 \u0628\u0643\u0645 \u0663\u0664':
        [25405, 26897, 148, 255, 39848, 12919, 17550, 101, 149, 225, 25405, 18923, 96, 149, 97],
    '\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\uff01 \uc548\ub155':
        [46036, 22174, 28618, 2515, 94, 31676, 10310, 244, 45911, 234, 171, 120, 223, 23821, 243,
         230, 167, 227, 243],
    'e\u0301a\u0308 \u1e9e \u0130\u0131':
        [68, 136, 223, 64, 136, 230, 28053, 118, 252, 34754, 108, 30102],
    '\u041f\u0440\u0438\u0432\u0435\u0442, \u03ba\u03cc\u03c3\u03bc\u03b5!'
    ' \u05e9\u05dc\u05d5\u05dd':
        [140, 253, 21169, 18849, 38857, 16843, 20375, 11, 7377, 118, 139, 234, 38392, 34703, 30950,
         0, 14360, 102, 40010, 27072, 147, 251],
    '\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 3.14 1\u20442 \u2460 \U0001d7d8':
        [19567, 103, 19567, 100, 19567, 109, 19567, 103, 19567, 242, 19567, 113, 513, 13, 1415, 352,
         46256, 226, 17, 2343, 239, 254, 220, 47728, 253, 246],
    '\ufeff\u200b\x1b[2J\x7f': [171, 119, 123, 9525, 215, 58, 17, 41, 221],
}
check(path, known, known.values())
PY

# Texts for both of the next two: random ones of awkward parts and of any characters, and pieces of
# up to 200,000 bytes.
cat >>"$W/prompts.py" <<'PY'
def texts_make(known):
    import random
    r = random.Random(3)
    texts = ["".join(r.choice(PARTS) if r.random() < .6 else r.choice(low)
                     for _ in range(r.randrange(1, 40)))
             for low in (known[:300], known[:3000], known) * 800]
    texts += ["".join(known[i:i + 4000]) for i in range(0, len(known), 4000)]
    texts += ["a" * 100000, " " * 100000 + "x", "ab" * 50000, "!" * 50000, "\n" * 30000,
              "1" * 30000, "\u6f22\u5b57" * 20000]
    texts.append("".join(r.choice("abcdefgh") for _ in range(100000)))
    return texts
PY
echo "# the lowest token that two make, or the first of the merges in vocab.bpe: the same tokens"
python "GPT-2's vocabulary, data/gpt2_bpe.py" "$ROOT/data/unicode.h" <<'PY'
import sys
import gpt2_bpe
from prompts import *
texts, own = texts_make(characters(sys.argv[2])), gpt2_bpe.encoder_open("own")
check(sys.argv[1] + "/gpt2.bin", texts, map(own.encode, texts))
PY
if "$PYTHON" -c "import tiktoken" 2>/dev/null; then
    python "GPT-2's vocabulary, tiktoken" "$ROOT/data/unicode.h" <<'PY'
import sys
import gpt2_bpe
from prompts import *
texts, theirs = texts_make(characters(sys.argv[2])), gpt2_bpe.encoder_open("tiktoken")
check(sys.argv[1] + "/gpt2.bin", texts, map(theirs.encode, texts))
PY
else
    skip "GPT-2's vocabulary, tiktoken" "pip install tiktoken"
fi
fi

echo "test_bpe: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
