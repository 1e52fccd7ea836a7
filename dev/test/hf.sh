#!/usr/bin/env bash
# Tests of data/gpt2_hf.py, which brings models from and to Hugging Face's format. What it brings is
# compared with bytes that this test makes by itself, and the hub is a server on 127.0.0.1; whether
# the trainer computes what transformers does is test_gpt2's to say.
#
#     dev/test/hf.sh                            # PYTHON=python3.7 for another Python
#     pip install numpy safetensors             # without them nearly all is skipped
#     TP_DATA=FOLDER dev/test/hf.sh     # also GPT-2's own vocabulary
#     pip install torch transformers            # also what transformers makes of an exported model
#
# The last line is `test_hf: N passed, N failed, N skipped`; the exit status is 1 if any failed.
set -u
PYTHON=${PYTHON:-python3}
DATA=$(cd "$(dirname "$0")/../.." && pwd)/data
export PYTHONDONTWRITEBYTECODE=1 no_proxy=127.0.0.1 NO_PROXY=127.0.0.1
W=$(mktemp -d) || exit 1
SERVER=
cleanup() { [ -z "$SERVER" ] || { kill "$SERVER"; wait "$SERVER"; } 2>/dev/null; rm -rf "$W"; }
trap cleanup EXIT
trap 'exit 1' INT TERM HUP

. "$(dirname "$0")/verdicts.sh"
finish() {
    echo "test_hf: $passed passed, $failed failed, $skipped skipped"; [ "$failed" = 0 ]; exit
}

# hf ARGS...: the script; leaves $rc, $W/stdout, $W/stderr.
hf() { "$PYTHON" "$DATA/gpt2_hf.py" "$@" >"$W/stdout" 2>"$W/stderr"; rc=$?; }

# with MODULE-LINES ARGS...: the script as a module `s` in which something is changed.
with() {
    PYTHONPATH=$DATA "$PYTHON" -c "import os, signal, sys
$1
import gpt2_hf as s
sys.exit(s.main(sys.argv[1:]))" "${@:2}" >"$W/stdout" 2>"$W/stderr"; rc=$?
}

listing() { (cd "$W/box" && find . -printf '%p %y %s %i\n' -type f -exec cksum {} + | sort); }
mkdir "$W/box"
echo "an older model" >"$W/box/old.bin"
listing >"$W/before"

# refused NAME TEXT...: the last run failed with status 1 and one line that holds every TEXT, and
# nothing changed in the box.
refused() {
    local name=$1 text why=; shift
    [ "$rc" = 1 ] || why="exit status $rc, expected 1"
    [ "$(wc -l <"$W/stderr")" = 1 ] || why="$why; stderr is not one line"
    [[ $(cat "$W/stderr") == "error: "* ]] || why="$why; no 'error: '"
    for text; do grep -qF -e "$text" "$W/stderr" || why="$why; no '$text'"; done
    listing >"$W/after"
    cmp -s "$W/before" "$W/after" || why="$why; files changed"
    if [ -z "$why" ]; then ok "refuses $name"
    else bad "refuses $name" "$why: $(head -c 400 "$W/stderr")"; fi
}

# ----------------------------------------------------------------------------
# without packages, without a network

with "sys.modules['safetensors'] = None" import "$W" --out "$W/box/old.bin"
refused "to work without safetensors" "safetensors" "pip install numpy safetensors"
with "sys.modules['numpy'] = None" import "$W" --out "$W/box/old.bin"
refused "to work without numpy" "numpy" "pip install numpy safetensors"
if ! "$PYTHON" -c "import numpy, safetensors" 2>/dev/null; then
    skip "all that reads and writes models" "pip install numpy safetensors"
    finish
fi

# Nobody listens on port 1.
HF_ENDPOINT=http://127.0.0.1:1 hf import gpt2 --out "$W/box/old.bin" --cache "$W/cache"
refused "a name where there is no network" "gpt2: found no such file, or folder" \
    "http://127.0.0.1:1/api/models/gpt2/" "refused"
hf import ./nothing --out "$W/box/old.bin"
refused "a folder that is not there" "./nothing: no such folder" "config.json" "such as gpt2"

# ----------------------------------------------------------------------------
# models, made by hand

# Values are k/64 with |k| < 128, which all three number types hold exactly. Weights of blocks lie
# (inputs, outputs) there and (outputs, inputs) here.
cat >"$W/models.py" <<'PY'
import json, os, random, struct
T, V, L, NH, C = 5, 130, 2, 2, 4
CONFIG = {"model_type": "gpt2", "n_positions": T, "vocab_size": V, "n_layer": L, "n_head": NH,
          "n_embd": C, "activation_function": "gelu_new"}
BLOCK = [("ln_1.weight", [C]), ("ln_1.bias", [C]), ("attn.c_attn.weight", [C, 3 * C]),
         ("attn.c_attn.bias", [3 * C]), ("attn.c_proj.weight", [C, C]), ("attn.c_proj.bias", [C]),
         ("ln_2.weight", [C]), ("ln_2.bias", [C]), ("mlp.c_fc.weight", [C, 4 * C]),
         ("mlp.c_fc.bias", [4 * C]), ("mlp.c_proj.weight", [4 * C, C]), ("mlp.c_proj.bias", [C])]
def numbers(count):
    return [random.randrange(-127, 128) / 64 for _ in range(count)]
def product(shape):
    n = 1
    for x in shape:
        n *= x
    return n
def tensors():
    random.seed(1)
    shapes = [("wte.weight", [V, C]), ("wpe.weight", [T, C]), ("ln_f.weight", [C]),
              ("ln_f.bias", [C])]
    shapes += [("h.%d.%s" % (l, name), shape) for l in range(L) for name, shape in BLOCK]
    return {"transformer." + name: (shape, numbers(product(shape))) for name, shape in shapes}
def pack(kind, values):
    if kind == "BF16":
        return b"".join(struct.pack("<f", v)[2:] for v in values)
    return struct.pack("<%d%s" % (len(values), {"F32": "f", "F16": "e", "F64": "d"}[kind]), *values)
def st_write(path, entries, kind="F32"):
    """entries {name: (shape, numbers, or bytes of any kind)}; a third value is another type."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, (shape, values, *other) in entries.items():
        data = pack((other or [kind])[0], values)
        header[name] = {"dtype": (other or [kind])[0], "shape": shape,
                        "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + body)
def st_read(path):
    data = open(path, "rb").read()
    body = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:body])
    meta = header.pop("__metadata__")
    assert meta == {"format": "pt"}, meta
    assert all(e["dtype"] == "F32" for e in header.values())
    def values(begin, end): return list(struct.unpack("<%df" % ((end - begin) // 4),
                                                      data[body + begin:body + end]))
    return {name: (e["shape"], values(*e["data_offsets"])) for name, e in header.items()}
def folder(path, entries, config=CONFIG, kind="F32"):
    os.makedirs(path, exist_ok=True)
    with open(path + "/config.json", "w") as f:
        json.dump(config, f)
    st_write(path + "/model.safetensors", entries, kind)
def header(*extension):
    head = (20240326, 3, T, V, L, NH, C, 256, *extension)
    return struct.pack("<256i", *head, *[0] * (256 - len(head)))
def model_bin(entries):
    def here(name):
        shape, values = entries["transformer." + name]
        if name.startswith("h.") and len(shape) == 2:
            rows, cols = shape
            values = [values[r * cols + c] for c in range(cols) for r in range(rows)]
        return pack("F32", values)
    out = header() + here("wte.weight") + bytes(4 * C * (256 - V)) + here("wpe.weight")
    for name, _ in BLOCK:
        for l in range(L):
            out += here("h.%d.%s" % (l, name))
    return out + here("ln_f.weight") + here("ln_f.bias")
PY
export PYTHONPATH=$W

# equal NAME FILE: the last run worked, and FILE is the model made by hand.
equal() {
    if [ "$rc" = 0 ] && cmp "$W/expected.bin" "$2" >"$W/cmp" 2>&1; then ok "$1"
    else bad "$1" "exit status $rc: $(tail -n 1 "$W/stderr") $(tail -n 1 "$W/cmp")"; fi
}

"$PYTHON" - "$W" <<'PY' || { echo "FAILED setup: no models"; exit 1; }
import sys
from models import *
out = sys.argv[1]
good = tensors()
short = {name[12:]: value for name, value in good.items()}
with open(out + "/expected.bin", "wb") as f:
    f.write(model_bin(good))
folder(out + "/good", good)
folder(out + "/short", short)
mask = {"h.%d.attn.%s" % (l, name): ([1, 1, T, T], [1.0] * (T * T))
        for l in range(L) for name in ("bias", "masked_bias")}
folder(out + "/mask", {**short, **mask})
folder(out + "/head", {**good, "lm_head.weight": good["transformer.wte.weight"]})
folder(out + "/F16", good, kind="F16")
folder(out + "/BF16", good, kind="BF16")
folder(out + "/mixed", {name: (*value, ("F32", "F16", "BF16")[i % 3])
                        for i, (name, value) in enumerate(good.items())})
said = dict(CONFIG, n_inner=4 * C, activation_function="gelu_pytorch_tanh", n_ctx=T,
            tie_word_embeddings=True, layer_norm_epsilon=1e-5, scale_attn_weights=True,
            scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=True,
            add_cross_attention=False, attn_pdrop=0.1)
folder(out + "/said", good, said)
folder(out + "/shards", good)
os.remove(out + "/shards/model.safetensors")
names, index = list(good), {}
for i in range(3):
    file = "model-%05d-of-00003.safetensors" % (i + 1)
    st_write(out + "/shards/" + file, {name: good[name] for name in names[i::3]})
    index.update((name, file) for name in names[i::3])
with open(out + "/shards/model.safetensors.index.json", "w") as f:
    json.dump({"metadata": {}, "weight_map": index}, f)
PY

echo "# one model in every form: broken by a matrix that is not transposed, a tensor in another's" \
    "place, padding that is not zero"
for form in good short mask head F16 BF16 mixed said shards; do
    hf import "$W/$form" --out "$W/$form.bin"
    equal "import of a model as '$form'" "$W/$form.bin"
done
hf import "$W/good/model.safetensors" --out "$W/file.bin"
equal "import of a .safetensors file" "$W/file.bin"
(cd "$W/good" && hf import . --out there.bin; exit $rc); rc=$?
equal "import from where one stands" "$W/good/there.bin"
rm "$W/good/there.bin"

echo "# every finite float16 and bfloat16: broken by a number that is rounded on its way"
for kind in F16 BF16; do
    "$PYTHON" - "$W/$kind" "$kind" <<'PY'
import sys, math
import models
from models import *
path, kind = sys.argv[1:]
models.V = 1 << 14
good = tensors()
bits = [b if (b >> (10 if kind == "F16" else 7)) & (31 if kind == "F16" else 255) !=
        (31 if kind == "F16" else 255) else 0 for b in range(1 << 16)]
def value(b): return struct.unpack("<e", struct.pack("<H", b))[0] if kind == "F16" else \
    struct.unpack("<f", struct.pack("<HH", 0, b))[0]
wide = [value(b) for b in bits]
assert all(map(math.isfinite, wide)) and len(set(wide)) > 60000
good["transformer.wte.weight"] = ([1 << 14, 4], wide)
folder(path, good, dict(CONFIG, vocab_size=1 << 14), kind)
open(path + ".wte", "wb").write(pack("F32", wide))
PY
    hf import "$W/$kind" --out "$W/$kind.bin"
    if [ $rc = 0 ] && cmp -s <(tail -c +1025 "$W/$kind.bin" | head -c 262144) "$W/$kind.wte"; then
        ok "import of every finite $kind"
    else
        bad "import of every finite $kind" "exit status $rc: $(tail -n 1 "$W/stderr")"
    fi
done

# ----------------------------------------------------------------------------
# export

echo "# export: the tensors that were imported, under transformers' names; and back, bit by bit"
hf export "$W/good.bin" "$W/exported"
same "export" "$rc $(cat "$W/stderr")" "0 "
holds "exported tensors and config.json" "$PYTHON" -c '
import sys
from models import *
assert st_read(sys.argv[1] + "/model.safetensors") == tensors()
config = json.load(open(sys.argv[1] + "/config.json"))
assert dict(config, **CONFIG) == config and config["architectures"] == ["GPT2LMHeadModel"]
assert config["tie_word_embeddings"] is True and config["layer_norm_epsilon"] == 1e-5
assert sorted(os.listdir(sys.argv[1])) == ["config.json", "model.safetensors"]' "$W/exported"
hf import "$W/exported" --out "$W/again.bin"
equal "import of an exported model" "$W/again.bin"
"$PYTHON" - "$W" <<'PY'
import sys
from models import *
whole = open(sys.argv[1] + "/expected.bin", "rb").read()
def write(name, data): open("%s/%s.bin" % (sys.argv[1], name), "wb").write(data)
halves = b"".join(whole[i + 2:i + 4] for i in range(1024, len(whole), 4))
write("halves", whole[:4] + struct.pack("<i", 5) + whole[8:1024] + halves)
for name, pattern in (("s", "s"), ("tp", "tp"), ("l", "l"), ("d", "d"), ("tt", "tt")):
    write(name, header(2, 0, len(pattern), *map(ord, pattern)) + whole[1024:])
for name, pattern in (("one_s", "s"), ("one_pp", "pp."), ("one_td", "td"), ("one_l", "tl")):
    write(name, header(1, 1, len(pattern), *map(ord, pattern)) + whole[1024:])
def listed(own, text): # what -pe stores behind the own pattern
    at = [*map(ord, own + text)]
    return header(2, 0, len(own), *at, *[0] * (242 - len(at)), len(text))
for name, own in (("listed", "t"), ("listed_s", "s")):
    write(name, listed(own, "t,s") + whole[1024:])
write("removed", header(*[0] * 243, 1) + whole[1024:])
write("length", header(0, 0, -1) + whole[1024:])
write("cut", whole[:-4])
write("small", whole[:1023])
write("magic", b"\0" + whole[1:])
write("heads", whole[:20] + struct.pack("<i", 3) + whole[24:])
write("nan", whole[:-4] + pack("F32", [float("nan")]))
write("text", b"To be, or not to be\n" * 100)
PY
for name in halves tt listed one_s one_pp one_td; do
    hf export "$W/$name.bin" "$W/exported_$name" && hf import "$W/exported_$name" --out "$W/x.bin"
    equal "export and import of a model file, $name" "$W/x.bin"
done
while IFS='|' read -r name texts; do
    IFS='|' read -r -a expected <<<"$texts"
    hf export "$W/$name.bin" "$W/box/new/deep"
    refused "to export a model, $name" "$W/$name.bin" "${expected[@]}"
done <<'LIST'
s|pattern s at R 2|t blocks only|transformers has none
tp|pattern tp at R 2
listed_s|pattern s at R 2
l|pattern l at R 2
one_l|pattern tl at R 1|s, p and d at R 1
d|pattern d at R 2
removed|t blocks only
length|t blocks only
cut|bytes|expected
small|1023 bytes|too short
magic|magic 20240128|expected a model file, 20240326
heads|4 channels|3 heads
nan|tensor ln_f.bias holds nan at [3]
text|expected a model file
missing|No such file
LIST

# ----------------------------------------------------------------------------
# what is no GPT-2

"$PYTHON" - "$W" >"$W/wrong.txt" <<'PY' || { echo "FAILED setup: no wrong models"; exit 1; }
import sys
from models import *
good, out = tensors(), sys.argv[1]
def wrong(name, texts, config=None, **changed):
    """None as a value removes."""
    def change(what, changes):
        return {k: v for k, v in {**what, **changes}.items() if v is not None}
    entries = change(good, {k.replace("__", "."): v for k, v in changed.items()})
    folder("%s/wrong_%s" % (out, name), entries, {**CONFIG, **(config or {})})
    print("%s|%s" % (name, texts))
wrong("activation", 'activation_function is "gelu"|"gelu_new" or "gelu_pytorch_tanh"',
      {"activation_function": "gelu"})
wrong("inner", "n_inner is 8|expected null or 16", {"n_inner": 8})
wrong("untied", "tie_word_embeddings is false|expected true", {"tie_word_embeddings": False})
wrong("scale", "scale_attn_by_inverse_layer_idx is true",
      {"scale_attn_by_inverse_layer_idx": True})
wrong("unscaled", "scale_attn_weights is false", {"scale_attn_weights": False})
wrong("epsilon", "layer_norm_epsilon is 1e-06|expected 1e-05", {"layer_norm_epsilon": 1e-6})
wrong("cross", "add_cross_attention is true", {"add_cross_attention": True})
wrong("kind", 'model_type is "llama"|expected "gpt2"', {"model_type": "llama"})
wrong("heads", "4 channels (n_embd) cannot be divided by 3 heads (n_head)", {"n_head": 3})
wrong("layers", "n_layer is 0, expected 1 to 1024", {"n_layer": 0})
wrong("word", "n_layer is '2', expected 1 to 1024", {"n_layer": "2"})
wrong("deeper", "tensor h.2.ln_1.weight is missing (12 of 40 are)", {"n_layer": 3})
wrong("flatter", "unknown tensor 'transformer.h.1.ln_1.weight'|1 blocks", {"n_layer": 1})
wrong("wider", "transformer.wte.weight has shape [130, 4], expected [131, 4]", {"vocab_size": 131})
prefix = "transformer__"
one = {prefix + "h__0__attn__c_attn__bias": None}
wrong("missing", "tensor h.0.attn.c_attn.bias is missing (1 of 28 are)", **one)
wrong("unknown", "unknown tensor 'transformer.h.0.attn.rotary'",
      **{prefix + "h__0__attn__rotary": ([1], [1.0])})
wrong("control", r"unknown tensor '\x1b[2J'", **{"\x1b[2J": ([1], [1.0])})
wrong("turned", "transformer.h.1.mlp.c_fc.weight has shape [16, 4], expected [4, 16]",
      **{prefix + "h__1__mlp__c_fc__weight": ([16, 4], [0.5] * 64)})
wrong("double", "transformer.ln_f.bias is of type F64, expected F32, F16, BF16",
      **{prefix + "ln_f__bias": ([4], [0.5] * 4, "F64")})
wrong("twice", "tensor 'wte.weight' is there twice", wte__weight=good["transformer.wte.weight"])
nan, inf = float("nan"), float("inf")
wrong("nan", "wpe.weight holds nan at [1, 2]",
      **{prefix + "wpe__weight": ([5, 4], [0.5] * 6 + [nan] + [0.5] * 13)})
wrong("inf", "h.1.mlp.c_proj.bias holds -inf at [3]",
      **{prefix + "h__1__mlp__c_proj__bias": ([4], [0.5] * 3 + [-inf])})
wrong("inf16", "h.1.mlp.c_proj.bias holds inf at [0]",
      **{prefix + "h__1__mlp__c_proj__bias": ([4], [inf] + [0.5] * 3, "BF16")})
shape, values = good["transformer.wte.weight"]
wrong("head", "lm_head.weight is not wte.weight",
      lm_head__weight=(shape, values[:-1] + [values[-1] + 1]))
for key in "n_embd", "vocab_size":
    wrong("no_" + key, key + " is missing")
    config = {k: v for k, v in CONFIG.items() if k != key}
    json.dump(config, open("%s/wrong_no_%s/config.json" % (out, key), "w"))
def spoiled(name, texts, file, data):
    wrong(name, texts)
    open("%s/wrong_%s/%s" % (out, name, file), "wb").write(data)
spoiled("json", "config.json: found no JSON", "config.json", b"{")
spoiled("bytes", "config.json: found no JSON", "config.json", b'{"\xff": 1}')
spoiled("nested", "config.json: found no JSON", "config.json", b"[" * 100000)
spoiled("list", "config.json: found [1], expected a JSON object", "config.json", b"[1]")
whole = open(out + "/good/model.safetensors", "rb").read()
spoiled("cut", "model.safetensors: |expected a .safetensors file", "model.safetensors", whole[:-1])
spoiled("empty", "model.safetensors: |expected a .safetensors file", "model.safetensors", b"")
spoiled("long", "model.safetensors: |expected a .safetensors file", "model.safetensors",
        b"\xff" * 8 + whole[8:])
def sharded(name, texts, index):
    wrong(name, texts)
    os.remove("%s/wrong_%s/model.safetensors" % (out, name))
    json.dump(index, open("%s/wrong_%s/model.safetensors.index.json" % (out, name), "w"))
sharded("index", "found no weight_map", {"weight_map": 3})
sharded("shard", "model-1.safetensors|expected a .safetensors file",
        {"weight_map": {"a": "model-1.safetensors"}})
sharded("outside", "found the file name '../good/model.safetensors'",
        {"weight_map": {"a": "../good/model.safetensors"}})
wrong("pytorch", "model.safetensors|expected a .safetensors file, as save_pretrained writes it")
os.rename(out + "/wrong_pytorch/model.safetensors", out + "/wrong_pytorch/pytorch_model.bin")
wrong("config", "config.json: No such file")
os.remove(out + "/wrong_config/config.json")
PY

echo "# what is not plain GPT-2: an error that names it; the older model stays, nothing new is left"
while IFS='|' read -r name texts; do
    IFS='|' read -r -a expected <<<"$texts"
    hf import "$W/wrong_$name" --out "$W/box/old.bin"
    refused "to import a model, $name" "wrong_$name" "${expected[@]}"
done <"$W/wrong.txt"
same "models that were refused" "$(grep -c . "$W/wrong.txt")" 38

hf; refused "no command" "import|export" "--help"
hf import "$W/good"; refused "import without --out" "--out"
hf export "$W/good.bin"; refused "export without a folder" "FOLDER"
(ulimit -f 2; hf import "$W/good" --out "$W/box/old.bin"; exit $rc); rc=$?
refused "to import onto a full disk" "cannot write into" "File too large" "7184 bytes free"
(ulimit -f 2; hf export "$W/good.bin" "$W/box/new"; exit $rc); rc=$?
refused "to export onto a full disk" "cannot write into" "File too large"
hf import "$W/good" --out "$W/box"; refused "a folder in the model's place" "found a folder"
with "sync = os.fsync
def stop(fd):
    os.kill(os.getpid(), signal.SIGTERM)
    sync(fd)
os.fsync = stop" import "$W/good" --out "$W/box/new/old.bin"
refused "to go on after SIGTERM" "stopped by signal 15" "no model was written"

# ----------------------------------------------------------------------------
# tokenizer.bin

echo "# vocab.json and merges.txt become tokenizer.bin; not if merges are in another order than" \
    "their numbers, which is all that the file keeps of them"
"$PYTHON" - "$W" <<'PY' || { echo "FAILED setup: no vocabularies"; exit 1; }
import sys, models
from models import *
out = sys.argv[1]
shown = [b for b in range(256) if 33 <= b < 127 or 161 <= b < 173 or b > 173]
name = {b: chr(b) for b in shown}
for b in range(256):
    name.setdefault(b, chr(256 + len(name) - len(shown)))
texts = [bytes([b]) for b in shown] + [bytes([b]) for b in range(256) if b not in shown]
texts += [b" t", b"he", b" the", b"<|endoftext|>"]
merges = [(b" ", b"t"), (b"h", b"e"), (b" t", b"he")]
models.V = len(texts)
def vocabulary(path, texts, merges):
    write = lambda text: "".join(name[b] for b in text)
    folder(path, tensors(), dict(CONFIG, vocab_size=models.V, eos_token_id=models.V - 1))
    json.dump({write(t): i for i, t in enumerate(texts)}, open(path + "/vocab.json", "w"))
    with open(path + "/merges.txt", "w") as f:
        f.write("#version: 0.2\n" + "".join("%s %s\n" % tuple(map(write, m)) for m in merges))
vocabulary(out + "/words", texts, merges)
vocabulary(out + "/order", texts, merges[::-1])
vocabulary(out + "/fewer", texts[:-1], merges)
def tokenizer(path, merges, **changed):
    """As transformers 5 saves it: all in tokenizer.json."""
    write = lambda text: "".join(name[b] for b in text)
    vocabulary(path, texts, [])
    os.remove(path + "/vocab.json"), os.remove(path + "/merges.txt")
    model = {"type": "BPE", "vocab": {write(t): i for i, t in enumerate(texts[:-1])},
             "merges": merges}
    json.dump({"added_tokens": [{"id": len(texts) - 1, "content": "<|endoftext|>"}], "model": model,
               "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
               "normalizer": None, **changed}, open(path + "/tokenizer.json", "w"))
pairs = [["".join(name[b] for b in part) for part in merge] for merge in merges]
tokenizer(out + "/json_pairs", pairs)
tokenizer(out + "/json_lines", [" ".join(pair) for pair in pairs])
tokenizer(out + "/json_order", pairs[::-1])
tokenizer(out + "/json_lower", pairs, normalizer={"type": "Lowercase"})
tokenizer(out + "/json_word", pairs, model={"type": "WordPiece", "vocab": {}})
tokenizer(out + "/json_none", pairs, model=None)
head = struct.pack("<256I", 20240328, 2, len(texts), len(texts) - 1, *[0] * 252)
open(out + "/tokenizer.expected", "wb").write(head + b"".join(bytes([len(t)]) + t for t in texts))
models.V = 50257
folder(out + "/gpt2", tensors(), dict(CONFIG, vocab_size=50257))
PY
mkdir "$W/words_out"
hf import "$W/words" --out "$W/words_out/model.bin"
same "import with a vocabulary" "$rc $(cd "$W/words_out" && echo *)" "0 model.bin tokenizer.bin"
same "its tokenizer.bin" "$(cmp "$W/tokenizer.expected" "$W/words_out/tokenizer.bin" 2>&1)" ""
hf import "$W/words" --out "$W/words_out/again.bin"
same "the same vocabulary again" "$rc" 0
for form in pairs lines; do
    hf import "$W/json_$form" --out "$W/json_out_$form/model.bin"
    same "the same from tokenizer.json, merges as $form" \
        "$rc $(cmp "$W/tokenizer.expected" "$W/json_out_$form/tokenizer.bin" 2>&1)" "0 "
done
cp -r "$W/box" "$W/box_kept"; echo "of another text" >"$W/box/tokenizer.bin"; listing >"$W/before"
hf import "$W/words" --out "$W/box/model.bin"
refused "to replace another vocabulary" "box/tokenizer.bin" "another vocabulary" "--out"
rm "$W/box/tokenizer.bin"; listing >"$W/before"
while IFS='|' read -r name text; do
    hf import "$W/$name" --out "$W/x_$name/model.bin"
    same "no tokenizer.bin, $name" "$rc $(cd "$W/x_$name" && echo *)" "0 model.bin"
    holds "and it says why" grep -F "none: $text" "$W/stdout"
done <<'LIST'
order|merges.txt: merges are not in the order
fewer|vocab.json has 259 tokens, not numbers 0 to 259
good|no vocab.json and merges.txt, or tokenizer.json
json_order|tokenizer.json: merges are not in the order
json_lower|tokenizer.json is not as GPT-2's: it has BPE, ByteLevel, use_regex True, add_prefix_space
json_word|tokenizer.json is not as GPT-2's: KeyError 'merges'
json_none|tokenizer.json is not as GPT-2's: TypeError
LIST
if [ -d "${TP_DATA:-}/gpt2_bpe" ]; then
    hf import "$W/gpt2" --out "$W/x_gpt2/model.bin"
    same "GPT-2's vocabulary from TP_DATA" "$rc $(cksum <"$W/x_gpt2/tokenizer.bin")" \
        "0 1622017744 372108"
else
    skip "GPT-2's vocabulary" "set TP_DATA to a folder that holds gpt2_bpe"
fi

# ----------------------------------------------------------------------------
# the hub

cat >"$W/hub.py" <<'PY'
import hashlib, http.server, json, os, socket, struct, sys, time
ports, folder = sys.argv[1:]
# The first request for the model's bytes is cut off; a name says what else goes wrong.
cut = {"cut": 1}
def files(name):
    found = {}
    for file in sorted(os.listdir(folder)):
        data = open(os.path.join(folder, file), "rb").read()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry = {"rfilename": file, "size": len(data), "blobId": blob}
        if file.endswith(".safetensors"):
            sha = hashlib.sha256(data if name != "wrong" else b"").hexdigest()
            entry["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 134}
        found[file] = data, entry
    if name == "bare":
        del found["model.safetensors"]
    if name == "other":
        found["config.json"] = (b'{"model_type": "qwen2"}', dict(
            found["config.json"][1], size=23, blobId=hashlib.sha1(
                b'blob 23\0{"model_type": "qwen2"}').hexdigest()))
    return found
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0].strip("/").split("/")
        if path[:2] == ["api", "models"]:
            name = path[-3]
            if name == "secret":
                return self.send_error(401)
            entries = [entry for _, entry in files(name).values()]
            return self.reply(json.dumps({"sha": "abc", "siblings": entries}).encode())
        name, file = path[-4], path[-1]
        if path[0] != "cdn":  # as large files are: the bytes are elsewhere
            self.send_response(308 if name == "moved" else 302)
            self.send_header("Location", "/cdn" + self.path)
            return self.end_headers()
        self.reply(files(name)[file][0], name)
    def reply(self, data, name=""):
        begin = int((self.headers["Range"] or "bytes=0-")[6:-1]) if name != "ranges" else 0
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        half = name in ("cut", "ranges", "reset") and len(data) > 5000 and cut.setdefault(name, 1)
        if half:
            cut[name] = 0
        self.wfile.write(data[begin:len(data) // 2 if half else len(data)])
        if half and name == "reset":  # without a word: closed with bytes unsent
            time.sleep(0.2)
            hard = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
            self.connection.close()
    def log_message(self, *args):
        sys.stderr.write("%s %s\n" % (self.path, self.headers["Range"]))
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
with open(ports + ".tmp", "w") as f:
    f.write("%d\n" % server.server_port)
os.rename(ports + ".tmp", ports)
server.serve_forever()
PY
rm -f "$W/words/there.bin"
"$PYTHON" "$W/hub.py" "$W/port" "$W/words" 2>"$W/hub.log" & SERVER=$!
for _ in $(seq 1200); do [ -s "$W/port" ] && break; sleep 0.05; done
[ -s "$W/port" ] || { echo "FAILED server: it did not start: $(tail -n 1 "$W/hub.log")"; exit 1; }
export HF_ENDPOINT=http://127.0.0.1:$(cat "$W/port")
hub() { hf import "$1" --out "$2" --cache "$W/cache"; }
cp "$W/words_out/model.bin" "$W/expected.bin"

echo "# a name on the hub: redirected, cut off and gone on with, checked"
hub plain "$W/hub1/model.bin"
equal "import of a name" "$W/hub1/model.bin"
same "with its vocabulary" "$(cmp "$W/tokenizer.expected" "$W/hub1/tokenizer.bin" 2>&1)" ""
asked=$(wc -l <"$W/hub.log")
hub plain "$W/hub1/model.bin"
same "what is there already is not downloaded again" "$rc $(($(wc -l <"$W/hub.log") - asked))" "0 1"
for name in some/cut ranges; do
    hub $name "$W/box/old.bin"
    refused "half of a download ($name)" "the connection was cut after" "it goes on there"
    hub $name "$W/hub2/model.bin"
    equal "the other half ($name)" "$W/hub2/model.bin"
done
holds "which alone was asked for" grep -E "^/cdn/some/cut/.*model.safetensors bytes=[1-9][0-9]+-$" \
    "$W/hub.log"
hub reset "$W/box/old.bin"
refused "half of a download (reset)" "reset/resolve/abc/model.safetensors, into " \
    "run it again, it goes on with what has come"
holds "and does not say that there is no such model" grep -vq "no such" "$W/stderr"
hub reset "$W/hub3/model.bin"
equal "the other half (reset)" "$W/hub3/model.bin"
hub moved "$W/hub4/model.bin"
equal "a name whose files are moved for ever (308)" "$W/hub4/model.bin"
HF_ENDPOINT=http://127.0.0.1:1 hub moved "$W/hub5/model.bin"
equal "without a network, what was downloaded before" "$W/hub5/model.bin"
holds "and it says so" grep -F "taking what came before" "$W/stderr"
HF_ENDPOINT=http://127.0.0.1:1 hub wrong "$W/box/old.bin"
refused "a model of which nothing came" "wrong: found no such file"
hub other "$W/box/old.bin"
refused "a name that is no GPT-2" "config.json: n_positions is missing"
same "before its weights are downloaded" "$(grep -c '^/cdn/other/.*model' "$W/hub.log")" 0
hub wrong "$W/box/old.bin"
refused "a download with another hash" "wrong" "has not the hub's size and hash"
same "and it is removed" "$(cd "$W/cache/wrong" && echo *)" "config.json merges.txt vocab.json"
hub bare "$W/box/old.bin"
refused "a name without safetensors" "the hub has no such file" "model.safetensors"
hub secret "$W/box/old.bin"
refused "a name that the hub does not know" "secret: found no such file, or folder" "401" \
    "from a folder"
mkdir "$W/named"
for time in first again; do
    (cd "$W/named" && hub plain plain/model.bin; exit $rc); rc=$?
    equal "import of a name, $time into a folder of that name" "$W/named/plain/model.bin"
done

# ----------------------------------------------------------------------------
# transformers itself

if "$PYTHON" -c "import torch, transformers" 2>/dev/null; then
    hf export "$W/good.bin" "$W/exported"
    holds "transformers reads an exported model" "$PYTHON" -c '
import sys, torch, transformers
from models import *
model = transformers.GPT2LMHeadModel.from_pretrained(sys.argv[1])
state = model.state_dict()
for name, (shape, values) in tensors().items():
    assert list(state[name].shape) == shape and state[name].flatten().tolist() == values, name
assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()' \
        "$W/exported"
else
    skip "transformers reads an exported model" "pip install torch transformers"
fi
finish
