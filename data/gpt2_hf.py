#!/usr/bin/env python3
"""GPT-2 models from and to Hugging Face's format.

    python3 data/gpt2_hf.py import gpt2 --out gpt2.bin      # a name on the hub: gpt2-xl, distilgpt2
    python3 data/gpt2_hf.py import FOLDER --out model.bin   # config.json and model.safetensors
    python3 data/gpt2_hf.py export model.bin FOLDER         # for GPT2LMHeadModel.from_pretrained

import reads float32, float16 or bfloat16, in one file or in those of model.safetensors.index.json,
and writes the fp32 model file of data/checkpoint.h. SOURCE may also be the .safetensors file, with
config.json beside it. A model that is not plain GPT-2 (another activation, n_inner, a head of its
own, tensors missing or unknown) is an error that names what is different. tokenizer.bin is written
beside the model if it can be had: from vocab.json and merges.txt of the source, or tokenizer.json;
if it has none of these, for GPT-2's 50,257 tokens from $TP_DATA/gpt2_bpe.

A name on the hub is downloaded from https://huggingface.co, or $HF_ENDPOINT, into --cache. A
stopped download goes on where it was, and what has come is checked against the hub's hashes. Where
the hub cannot be reached, a model that is whole in --cache is taken from there.

export writes config.json and model.safetensors, float32. Models with l blocks, or with s, p or d
at R above 1, are refused: transformers has no such blocks.

Needs numpy and safetensors. A run that fails leaves no model behind, prints one line on stderr and
exits with status 1. Python 3.7 or newer.
"""
import argparse
import collections
import hashlib
import json
import os
import re
import struct
import sys

import gpt2_bpe
from shakespeare_char import DataError, Parser, file_read, files_write
from shards import script_main

try:
    import numpy
    import safetensors
    import safetensors.numpy
    PACKAGES = None
except ImportError as e:
    PACKAGES = e

MODEL_MAGIC, MODEL_FP32, MODEL_BF16 = 20240326, 3, 5
HEADER_BYTES = 1024
PATTERN_LENGTH, PATTERN, REMOVED = 10, 11, 251  # places in the header, as in data/checkpoint.h
HUB_SECONDS = 30                           # without a byte
DTYPES = ("F32", "F16", "BF16")

# What config.json may say, and where it says nothing: anything else is another function.
PLAIN = {"model_type": ("gpt2",), "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
         "layer_norm_epsilon": (1e-5,), "tie_word_embeddings": (True,),
         "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
         "add_cross_attention": (False,)}
# The causal mask, which older versions stored with the weights.
BUFFERS = re.compile(r"h\.\d+\.attn\.(masked_)?bias$")


# ----------------------------------------------------------------------------
# shapes: the same model there and here

# Field, its name in config.json, its largest value here (tp_blocks.h: config_check).
FIELDS = (("maxT", "n_positions", 1 << 20), ("V", "vocab_size", 65536), ("L", "n_layer", 1024),
          ("NH", "n_head", 4096), ("C", "n_embd", 65536))
Shape = collections.namedtuple("Shape", [field for field, _, _ in FIELDS])


def shape_check(where, shape, names):
    for value, name, (_, _, largest) in zip(shape, names, FIELDS):
        if type(value) is not int or not 1 <= value <= largest:
            raise DataError("%s: %s is %r, expected 1 to %d" % (where, name, value, largest))
    if shape.C % shape.NH:
        raise DataError("%s: %d channels (%s) cannot be divided by %d heads (%s)"
                        % (where, shape.C, names[4], shape.NH, names[3]))


def vocabulary_pad(V):
    return (V + 127) // 128 * 128


def tensors_list(s):
    """Name and shape of all tensors as they are there, in the order of the model file here. A
    matrix of a block is a Conv1D there, (inputs, outputs), and (outputs, inputs) here."""
    C = s.C
    block = (("ln_1.weight", (C,)), ("ln_1.bias", (C,)),
             ("attn.c_attn.weight", (C, 3 * C)), ("attn.c_attn.bias", (3 * C,)),
             ("attn.c_proj.weight", (C, C)), ("attn.c_proj.bias", (C,)),
             ("ln_2.weight", (C,)), ("ln_2.bias", (C,)),
             ("mlp.c_fc.weight", (C, 4 * C)), ("mlp.c_fc.bias", (4 * C,)),
             ("mlp.c_proj.weight", (4 * C, C)), ("mlp.c_proj.bias", (C,)))
    yield "wte.weight", (s.V, C)
    yield "wpe.weight", (s.maxT, C)
    for name, shape in block:
        for layer in range(s.L):
            yield "h.%d.%s" % (layer, name), shape
    yield "ln_f.weight", (C,)
    yield "ln_f.bias", (C,)


def turned(name, values):
    return values.T if name.startswith("h.") else values


def parameters_count(s):
    """Without the rows that pad wte."""
    C = s.C
    return s.V * C + s.maxT * C + s.L * (12 * C * C + 13 * C) + 2 * C


def model_bytes(s, width=4):
    padding = (vocabulary_pad(s.V) - s.V) * s.C
    return HEADER_BYTES + width * (parameters_count(s) + padding)


def finite_check(where, name, values):
    if not numpy.isfinite(values).all():
        at = numpy.argwhere(~numpy.isfinite(values))[0]
        raise DataError("%s: tensor %s holds %s at %s, expected finite numbers"
                        % (where, name, values[tuple(at)], at.tolist()))


def bf16_widen(halves):
    return (halves.astype(numpy.uint32) << 16).view(numpy.float32)


# ----------------------------------------------------------------------------
# a model in Hugging Face's format

def json_read(path):
    try:
        found = json.loads(file_read(path, path).decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise DataError("%s: found no JSON: %s" % (path, e))
    if not isinstance(found, dict):
        raise DataError("%s: found %.60r, expected a JSON object" % (path, found))
    return found


def config_read(path):
    """The shape that config.json says, if the model is GPT-2 and nothing else."""
    config = json_read(path)
    names = [name for _, name, _ in FIELDS]
    for name in names:
        if name not in config:
            raise DataError("%s: %s is missing, expected the config.json of a GPT-2 model"
                            % (path, name))
    shape = Shape(*(config[name] for name in names))
    shape_check(path, shape, names)
    for name, allowed in [*PLAIN.items(), ("n_inner", (None, 4 * shape.C))]:
        if config.get(name, allowed[0]) not in allowed:
            raise DataError("%s: %s is %s, expected %s: plain GPT-2 is all there is here"
                            % (path, name, json.dumps(config[name]),
                               " or ".join(map(json.dumps, allowed))))
    return config, shape


class Source:
    """The tensors of one or several .safetensors files, by name without "transformer."."""
    def __init__(self, paths):
        self.where, self.tensors = paths[0], {}
        for path in paths:
            self.file_open(path)

    def file_open(self, path):
        # The package checks that the header is sound and fits the file. It tells no offsets, which
        # bf16 needs: numpy has no such type.
        try:
            file = safetensors.safe_open(path, framework="numpy")
        except (OSError, safetensors.SafetensorError) as e:
            raise DataError("%s: %s; expected a .safetensors file, as save_pretrained writes it"
                            % (path, e))
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(length).decode("utf-8"))
        for name, entry in header.items():
            short = re.sub(r"^transformer\.", "", name)
            if name == "__metadata__" or BUFFERS.match(short):
                continue
            if short in self.tensors:
                raise DataError("%s: tensor %r is there twice" % (path, short))
            self.tensors[short] = (path, file, name, entry, 8 + length)

    def check(self, shape):
        expected = dict(tensors_list(shape))
        if "lm_head.weight" in self.tensors:
            expected["lm_head.weight"] = expected["wte.weight"]
        missing = [name for name in expected if name not in self.tensors]
        if missing:
            raise DataError("%s: tensor %s is missing (%d of %d are), expected those of GPT-2 with "
                            "%d blocks" % (self.where, missing[0], len(missing), len(expected),
                                           shape.L))
        for short, (path, _, name, entry, _) in self.tensors.items():
            if short not in expected:
                raise DataError("%s: unknown tensor %r, expected those of GPT-2 with %d blocks"
                                % (path, name, shape.L))
            if entry["shape"] != list(expected[short]):
                raise DataError("%s: tensor %s has shape %s, expected %s as config.json says"
                                % (path, name, entry["shape"], list(expected[short])))
            if entry["dtype"] not in DTYPES:
                raise DataError("%s: tensor %s is of type %s, expected %s"
                                % (path, name, entry["dtype"], ", ".join(DTYPES)))

    def read(self, short):
        path, file, name, entry, body = self.tensors[short]
        if entry["dtype"] == "BF16":
            begin, end = entry["data_offsets"]
            with open(path, "rb") as f:
                f.seek(body + begin)
                values = bf16_widen(numpy.frombuffer(f.read(end - begin), "<u2"))
            values = values.reshape(entry["shape"])
        else:
            values = file.get_tensor(name).astype(numpy.float32)
        finite_check(path, name, values)
        return values


def safetensors_find(folder):
    """The model's files, all in the folder."""
    path = os.path.join(folder, "model.safetensors")
    index = path + ".index.json"
    if os.path.exists(path) or not os.path.exists(index):
        return [path]
    names = json_read(index).get("weight_map")
    names = sorted(set(names.values())) if isinstance(names, dict) else []
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name:
            raise DataError("%s: found the file name %r, expected one in the same folder"
                            % (index, name))
    if not names:
        raise DataError("%s: found no weight_map, expected the names of the model's files" % index)
    return [os.path.join(folder, name) for name in names]


# ----------------------------------------------------------------------------
# tokenizer.bin

def vocabulary_open(folder):
    """The number of each token, and the merges, from vocab.json and merges.txt."""
    merges_path = os.path.join(folder, "merges.txt")
    merges = file_read(merges_path, merges_path).decode("utf-8").split("\n")
    return (json_read(os.path.join(folder, "vocab.json")),
            [line.split(" ") for line in merges if line and not line.startswith("#version")])


def tokenizer_open(folder):
    """The same from tokenizer.json, which is all that transformers writes from version 5 on."""
    whole = json_read(os.path.join(folder, "tokenizer.json"))
    try:
        model, splits = whole["model"], whole["pre_tokenizer"]
        found = (model["type"], splits["type"], splits.get("use_regex", True),
                 splits["add_prefix_space"], whole["normalizer"])
        ids = dict(model["vocab"], **{t["content"]: t["id"] for t in whole["added_tokens"]})
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ValueError("tokenizer.json is not as GPT-2's: %s %s" % (type(e).__name__, e))
    if found != ("BPE", "ByteLevel", True, False, None):
        raise ValueError("tokenizer.json is not as GPT-2's: it has %s, %s, use_regex %s, "
                         "add_prefix_space %s, normalizer %.60s" % found)
    return ids, merges


def vocabulary_read(where, ids, pairs, config, V):
    """tokenizer.bin of these tokens and merges. ValueError says why that cannot be."""
    if sorted(ids.values(), key=repr) != sorted(range(V), key=repr):
        raise ValueError("%s has %d tokens, not numbers 0 to %d" % (where[0], len(ids), V - 1))
    byte_of = {c: b for b, c in gpt2_bpe.byte_characters().items()}
    table = [b""] * V
    for token, i in ids.items():
        table[i] = bytes(byte_of.get(c, 0) for c in token)
        if not 1 <= len(table[i]) <= 255 or not set(token) <= set(byte_of):
            raise ValueError("%s: %.60r is no token of 1 to 255 bytes" % (where[0], token))
    # A tokenizer file has no merges: they are numbered in the order in which they are done.
    results = [ids.get("".join(pair), -1) for pair in pairs]
    if results != sorted(set(results)) or -1 in results:
        raise ValueError("%s: merges are not in the order of their tokens' numbers" % where[-1])
    end_of_text = config.get("eos_token_id")
    if type(end_of_text) is not int or not 0 <= end_of_text < V:
        end_of_text = ids.get(gpt2_bpe.END_OF_TEXT_BYTES.decode(), 0)
    return gpt2_bpe.table_pack(table, end_of_text)


VOCABULARIES = ((("vocab.json", "merges.txt"), vocabulary_open),
                (("tokenizer.json",), tokenizer_open))


def tokenizer_find(folder, config, V):
    """The bytes of tokenizer.bin, or None, and where they are from or why there are none."""
    try:
        for names, read in VOCABULARIES:
            if all(os.path.exists(os.path.join(folder, name)) for name in names):
                return vocabulary_read(names, *read(folder), config, V), " and ".join(names)
        if V != gpt2_bpe.V:
            raise ValueError("no vocab.json and merges.txt, or tokenizer.json, in the source")
        return gpt2_bpe.tokenizer_pack(gpt2_bpe.encoder_open("own")), "GPT-2's, from $TP_DATA"
    except (ValueError, DataError) as e:
        return None, str(e)


def tokenizer_check(path, data):
    """Another model's must not be lost."""
    if os.path.isfile(path) and file_read(path, path) != data:
        raise DataError("%s: found the tokenizer of another vocabulary; use --out in another "
                        "folder, or remove it" % path)


# ----------------------------------------------------------------------------
# the hub

def hub_open(url, begin=0):
    # Here, because it is half of the start-up time and most runs need no network.
    import urllib.request

    class Redirects(urllib.request.HTTPRedirectHandler):  # which before Python 3.11 knows no 308
        def http_error_308(self, request, reply, code, message, headers):
            return self.http_error_307(request, reply, 307, message, headers)

    headers = {"Range": "bytes=%d-" % begin} if begin else {}
    request = urllib.request.Request(url, headers=headers)
    return urllib.request.build_opener(Redirects).open(request, timeout=HUB_SECONDS)


def hash_check(path, entry):
    """Large files have a sha256 on the hub, small ones git's hash of a blob."""
    size = os.path.getsize(path)
    lfs = entry.get("lfs")
    found = hashlib.sha256() if lfs else hashlib.sha1(b"blob %d\0" % size)
    with open(path, "rb") as f:
        for piece in iter(lambda: f.read(1 << 20), b""):
            found.update(piece)
    return size == entry["size"] and found.hexdigest() == (lfs["sha256"] if lfs
                                                           else entry["blobId"])


def hub_file(url, path, entry):
    """Downloads a file, or the rest of it, beside its name; a file has its name when its hash is
    right."""
    if os.path.exists(path) and hash_check(path, entry):
        return
    part = path + ".part"
    begin = os.path.getsize(part) if os.path.exists(part) else 0
    print("download %s, %d bytes%s" % (url, entry["size"], " from %d on" % begin if begin else ""),
          flush=True)
    if begin < entry["size"]:
        with hub_open(url, begin) as reply:
            # A server that knows no ranges sends all of it.
            with open(part, "ab" if reply.status == 206 else "wb") as f:
                for piece in iter(lambda: reply.read(1 << 20), b""):
                    f.write(piece)
    if os.path.getsize(part) < entry["size"]:
        raise DataError("the connection was cut after %d of %d bytes; run it again, it goes on "
                        "there" % (os.path.getsize(part), entry["size"]))
    if not hash_check(part, entry):
        os.unlink(part)
        raise DataError("the file that came has not the hub's size and hash; it is removed, run it "
                        "again")
    os.replace(part, path)


def hub_list(name, endpoint):
    """What the hub says of the newest revision: its sha, and an entry for each file."""
    url = "%s/api/models/%s/revision/main?blobs=true" % (endpoint, name)
    try:
        with hub_open(url) as reply:
            model = json.loads(reply.read().decode("utf-8"))
        return model["sha"], {entry["rfilename"]: entry for entry in model["siblings"]}
    except Exception as e:  # urllib's, http.client's, ssl's and json's errors have no common class
        private = getattr(e, "code", 0) in (401, 403)
        raise DataError("%s: found no such file, or folder with config.json, here, and as a name "
                        "on the hub: %s: %s%s" % (name, url, str(e) or type(e).__name__,
                                                  "; a private or gated model cannot be had by "
                                                  "name, but from a folder" if private else ""))


def hub_fetch(name, cache):
    """A folder with the model's files of the newest revision."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    folder = os.path.join(cache, name.replace("/", "--"))
    try:
        sha, entries = hub_list(name, endpoint)
    except DataError as e:  # a file has its name when all of it was there
        config = os.path.join(folder, "config.json")
        if not all(map(os.path.exists, [config, *safetensors_find(folder)])):
            raise
        print("warning: %s; taking what came before, in %s" % (e, folder), file=sys.stderr)
        return folder

    def fetch(file):
        url = "%s/%s/resolve/%s/%s" % (endpoint, name, sha, file)
        if file not in entries:
            raise DataError("%s: the hub has no such file of this model; it has %.200s"
                            % (url, ", ".join(sorted(entries))))
        try:
            os.makedirs(folder, exist_ok=True)
            hub_file(url, os.path.join(folder, file), entries[file])
        except DataError as e:
            raise DataError("%s: %s" % (url, e))
        except Exception as e:
            raise DataError("%s, into %s: %s; run it again, it goes on with what has come"
                            % (url, folder, str(e) or type(e).__name__))

    fetch("config.json")
    config_read(os.path.join(folder, "config.json"))  # before gigabytes of what is no GPT-2
    for names, _ in VOCABULARIES:
        if all(file in entries for file in names):
            for file in names:
                fetch(file)
            break
    index = "model.safetensors.index.json"
    if "model.safetensors" in entries or index not in entries:
        fetch("model.safetensors")
    else:
        fetch(index)
        for path in safetensors_find(folder):
            fetch(os.path.basename(path))
    return folder


# ----------------------------------------------------------------------------
# import

def source_find(source, cache):
    """A folder, and the model's files in it. A folder without config.json is not the source where
    its name may be one on the hub: an import may have made it."""
    is_name = re.match(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", source)
    if os.path.isdir(source):
        if os.path.exists(os.path.join(source, "config.json")) or not is_name:
            return source, safetensors_find(source)
    elif os.path.exists(source):
        return os.path.dirname(source) or ".", [source]
    if not is_name:
        raise DataError("%s: no such folder or file, and no name on the hub; expected a folder "
                        "with config.json and model.safetensors, or a name such as gpt2" % source)
    folder = hub_fetch(source, cache)
    return folder, safetensors_find(folder)


class ModelFile:
    """The model file of a source, for files_write: a tensor is read when its place is reached."""
    def __init__(self, source, shape):
        self.source, self.shape = source, shape

    def __len__(self):
        return model_bytes(self.shape)

    def write(self, f):
        Vp = vocabulary_pad(self.shape.V)
        f.write(struct.pack("<256i", MODEL_MAGIC, MODEL_FP32, *self.shape, Vp, *[0] * 248))
        for name, _ in tensors_list(self.shape):
            values = self.source.read(name)
            if name == "wte.weight":
                self.head_check(values)
                values = numpy.pad(values, ((0, Vp - self.shape.V), (0, 0)))
            f.write(numpy.ascontiguousarray(turned(name, values), "<f4"))

    def head_check(self, embedding):
        head = "lm_head.weight"
        if head in self.source.tensors and not numpy.array_equal(embedding, self.source.read(head)):
            raise DataError("%s: lm_head.weight is not wte.weight, expected the same: here the "
                            "head is the embedding" % self.source.where)


def run_import(args):
    folder, paths = source_find(args.source, args.cache)
    config, shape = config_read(os.path.join(folder, "config.json"))
    source = Source(paths)
    source.check(shape)
    out = os.path.abspath(args.out)
    files = {os.path.basename(out): ModelFile(source, shape)}
    tokenizer, origin = tokenizer_find(folder, config, shape.V)
    if tokenizer and "tokenizer.bin" not in files:
        tokenizer_check(os.path.join(os.path.dirname(out), "tokenizer.bin"), tokenizer)
        files["tokenizer.bin"] = tokenizer
    files_write(os.path.dirname(out), files)
    print("source     %s" % ", ".join(paths))
    print("model      maxT %d, V %d, L %d, NH %d, C %d: %d parameters"
          % (*shape, parameters_count(shape)))
    print("tokenizer  %s" % (origin if tokenizer else "none: " + origin))
    print("files      %s in %s" % (", ".join(files), os.path.dirname(out)), flush=True)


# ----------------------------------------------------------------------------
# export

def header_read(path):
    """The shape that a model file has, and whether it is bf16."""
    try:
        with open(path, "rb") as f:
            head, size = f.read(HEADER_BYTES), os.fstat(f.fileno()).st_size
    except OSError as e:
        raise DataError("%s: %s; expected a model file" % (path, e.strerror))
    if len(head) < HEADER_BYTES:
        raise DataError("%s: %d bytes, too short for the header of a model file" % (path, size))
    h = struct.unpack("<256i", head)
    if h[0] != MODEL_MAGIC or h[1] not in (MODEL_FP32, MODEL_BF16):
        raise DataError("%s: magic %d and version %d, expected a model file, %d and %d or %d"
                        % (path, h[0], h[1], MODEL_MAGIC, MODEL_FP32, MODEL_BF16))
    shape = Shape(*h[2:7])
    shape_check(path, shape, Shape._fields)
    length = h[PATTERN_LENGTH]
    letters = h[PATTERN:PATTERN + length] if 0 <= length <= REMOVED - PATTERN else [0]
    pattern = "".join(chr(c) if 32 < c < 127 else "?" for c in letters)
    plain = "tspd." if h[8] in (0, 1) else "t"  # on one rank all of these are GPT-2
    if pattern.strip(plain) or any(h[REMOVED:REMOVED + 2]):
        raise DataError("%s: a model of pattern %s at R %d, expected t blocks only, or s, p and d "
                        "at R 1: the others are other functions than GPT-2's, and transformers has "
                        "none of them" % (path, pattern, h[8]))
    width = 4 if h[1] == MODEL_FP32 else 2
    if h[7] != vocabulary_pad(shape.V) or size != model_bytes(shape, width):
        raise DataError("%s: %d bytes and a vocabulary padded to %d, expected %d and %d by its "
                        "header" % (path, size, h[7], model_bytes(shape, width),
                                    vocabulary_pad(shape.V)))
    return shape, width == 2


def tensors_read(path, shape, bf16):
    """All tensors under their names there, widened to float32."""
    body = numpy.memmap(path, "<u2" if bf16 else "<f4", "r", HEADER_BYTES)
    tensors, at = {}, 0
    for name, there in tensors_list(shape):
        rows = turned(name, numpy.empty(there, bool)).shape
        count = int(numpy.prod(rows))
        values = body[at:at + count]
        values = turned(name, (bf16_widen(values) if bf16 else values).reshape(rows))
        finite_check(path, name, values)
        tensors["transformer." + name] = numpy.ascontiguousarray(values)
        at += count
        if name == "wte.weight":
            at += (vocabulary_pad(shape.V) - shape.V) * shape.C
    return tensors


def config_make(shape):
    end_of_text = gpt2_bpe.END_OF_TEXT if shape.V == gpt2_bpe.V else None
    config = {"architectures": ["GPT2LMHeadModel"], "torch_dtype": "float32",
              "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "n_inner": None,
              "bos_token_id": end_of_text, "eos_token_id": end_of_text}
    config.update((name, values[0]) for name, values in PLAIN.items())
    config.update((name, value) for (_, name, _), value in zip(FIELDS, shape))
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode("ascii")


def run_export(args):
    shape, bf16 = header_read(args.model)
    tensors = tensors_read(args.model, shape, bf16)
    files = {"config.json": config_make(shape),
             "model.safetensors": safetensors.numpy.save(tensors, {"format": "pt"})}
    files_write(args.folder, files)
    print("model      maxT %d, V %d, L %d, NH %d, C %d: %d parameters"
          % (*shape, parameters_count(shape)))
    print("files      %s in %s" % (", ".join(files), args.folder), flush=True)


# ----------------------------------------------------------------------------
# main

def run(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="import|export", dest="command")
    commands.required = True
    about = "Hugging Face's format to a model file"
    one = commands.add_parser("import", help=about, description=about)
    one.add_argument("source", metavar="SOURCE",
                     help="folder, .safetensors file or name on the hub")
    one.add_argument("--out", required=True, metavar="MODEL", help="model file to write")
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hub")
    one.add_argument("--cache", default=beside, metavar="FOLDER",
                     help="where downloads are kept (default %(default)s)")
    one.set_defaults(run=run_import)
    about = "a model file to Hugging Face's format"
    one = commands.add_parser("export", help=about, description=about)
    one.add_argument("model", metavar="MODEL", help="model file of this project or llm.c")
    one.add_argument("folder", metavar="FOLDER", help="folder to write into")
    one.set_defaults(run=run_export)
    args = parser.parse_args(argv)
    if PACKAGES:
        raise DataError("cannot import the packages that read and write this format (%s): pip "
                        "install numpy safetensors" % PACKAGES)
    args.run(args)


def main(argv=None):
    return script_main(run, "no model was written, run it again", argv)


if __name__ == "__main__":
    sys.exit(main())
