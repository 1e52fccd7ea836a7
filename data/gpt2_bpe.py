"""GPT-2's byte-pair encoding, for the scripts that make GPT-2's token files: tiktoken where it
works, else plain Python.

    encoder = encoder_open()            # or encoder_open("own"), encoder_open("tiktoken")
    encoder.encode("Hello")             # [15496]
    encoder.encode_many(texts)          # a list for each text; tiktoken uses all cores
    encoder.table                       # bytes of each of the 50,257 tokens

A text is cut into pieces (a word with the space before it, a number, a run of punctuation, ...),
and within a piece the pair of tokens that was learned first is merged until none is left. Both
encoders give the same ids; "<|endoftext|>" in a text is text, so that no text can hold the token
that begins documents.

The vocabulary is GPT-2's encoder.json and vocab.bpe: from $TP_DATA/gpt2_bpe, else tiktoken
downloads them. Which characters are letters and numbers is Unicode's to say: tiktoken and each
Python carry a version of their own, so a text with characters younger than this Python may be cut
at other places by the encoder in it. Python 3.7 or newer, standard library only.
"""
import array
import hashlib
import heapq
import json
import os
import re
import struct
import sys
import tempfile
import unicodedata

from shakespeare_char import DataError, TOKENIZER_MAGIC, TOKENIZER_VERSION, file_read

V, END_OF_TEXT = 50257, 50256
END_OF_TEXT_BYTES = b"<|endoftext|>"
# file: its sha256, and the name under which tiktoken looks for it in its cache
FILES = {"encoder.json": ("196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
                          "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"),
         "vocab.bpe": ("1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
                       "6d1cbeee0f20b3d9449abfede4726ed8212e3aee")}
# Unicode's White_Space; Python's \s has more.
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# About 100 MB; the cache is emptied then, a long text fills it again with its own.
CACHE_PIECES = 1 << 19
CHUNK = 1 << 18                        # characters of a long text that are encoded at a time


# ----------------------------------------------------------------------------
# pieces

def class_make(kind):
    """The inside of a regular expression's [...]: all characters of general category L* or N*. `re`
    has no \\p{L}."""
    ranges = []
    for c in range(sys.maxunicode + 1):
        if unicodedata.category(chr(c))[0] != kind:
            continue
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    # Letters and digits need no escape.
    return "".join("%s-%s" % (chr(first), chr(last)) for first, last in ranges)


def pieces_compile():
    # GPT-2's own expression, with S, L and N for \s, \p{L} and \p{N}. A run of spaces before a word
    # leaves it the last one.
    pattern = "'(?:[sdmt]|ll|ve|re)| ?[L]+| ?[N]+| ?[^SLN]+|[S]+(?![^S])|[S]+"
    classes = {"S": SPACE, "L": class_make("L"), "N": class_make("N")}
    return re.compile(re.sub("[SLN]", lambda m: classes[m.group()], pattern))


def text_clean(text):
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes U+FFFD; as tiktoken does
    it."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def text_chunks(text):
    """Cuts a long text where no piece can be: before white space that follows something else."""
    boundary = re.compile("(?<=[^%s])[%s]" % (SPACE, SPACE))
    start = 0
    while start < len(text):
        found = boundary.search(text, start + CHUNK)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


# ----------------------------------------------------------------------------
# the encoder in plain Python

def folder_find():
    """$TP_DATA/gpt2_bpe, or None where there is none. A folder that lacks a file is an error
    later."""
    folder = os.environ.get("TP_DATA")
    folder = folder and os.path.join(folder, "gpt2_bpe")
    return folder if folder and os.path.isdir(folder) else None


def files_load(folder):
    files = {}
    for name, (sha256, _) in FILES.items():
        path = os.path.join(folder, name)
        files[name] = file_read(path, path)
        found = hashlib.sha256(files[name]).hexdigest()
        if found != sha256:
            raise DataError("%s: found %d bytes with sha256 %s, expected GPT-2's, sha256 %s"
                            % (path, len(files[name]), found, sha256))
    return files


def byte_characters():
    """The printable character by which GPT-2's files write each byte: itself, or one from U+0100
    on."""
    shown = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    characters = {b: chr(b) for b in shown}
    for b in range(256):
        characters.setdefault(b, chr(256 + len(characters) - len(shown)))
    return characters


class Own(dict):
    """Maps a piece to its tokens: a dict whose missing entries are worked out, because nearly all
    pieces of a text have occurred in it before."""
    def __init__(self, files):
        super().__init__()
        self.name = "plain Python (data/gpt2_bpe.py)"
        ids = json.loads(files["encoder.json"].decode("utf-8"))
        byte_of = {c: b for b, c in byte_characters().items()}
        self.table = [b""] * V
        for token, i in ids.items():
            is_text = i != END_OF_TEXT
            self.table[i] = bytes(byte_of[c] for c in token) if is_text else END_OF_TEXT_BYTES
        self.byte_ids = [ids[c] for _, c in sorted(byte_characters().items())]
        # Merges are numbered in the order in which they were learned, so the id of the result is
        # the merge's rank too.
        pairs = (line.split(" ") for line in files["vocab.bpe"].decode("utf-8").split("\n")[1:-1])
        self.merges = {(ids[a], ids[b]): ids[a + b] for a, b in pairs}
        self.find_pieces = pieces_compile().findall

    def __missing__(self, piece):
        if len(self) >= CACHE_PIECES:
            self.clear()
        self[piece] = tokens = self.merge([self.byte_ids[b] for b in piece.encode("utf-8")])
        return tokens

    def merge(self, ids):
        """Lowest rank first, leftmost among equals: a heap of (rank, place), in which entries that
        a neighbour's merge has outdated are skipped. Time n log n, so a piece of a million letters
        is no trap."""
        n, rank = len(ids), self.merges.get
        after, before = list(range(1, n + 1)), list(range(-1, n - 1))
        heap = [(r, i) for i, r in enumerate(map(rank, zip(ids, ids[1:]))) if r is not None]
        heapq.heapify(heap)
        while heap:
            r, i = heapq.heappop(heap)
            j = after[i]
            if j == n or rank((ids[i], ids[j])) != r:
                continue
            ids[i], ids[j], after[i] = r, None, after[j]
            if after[i] < n:
                before[after[i]] = i
                pair = rank((r, ids[after[i]]))
                if pair is not None:
                    heapq.heappush(heap, (pair, i))
            if before[i] >= 0:
                pair = rank((ids[before[i]], r))
                if pair is not None:
                    heapq.heappush(heap, (pair, before[i]))
        return [i for i in ids if i is not None]

    def encode(self, text):
        tokens = []
        for piece in self.find_pieces(text_clean(text)):
            tokens += self[piece]
        return tokens

    def encode_many(self, texts):
        return [self.encode(text) for text in texts]


# ----------------------------------------------------------------------------
# tiktoken, and the choice

class Tiktoken:
    def __init__(self, files):
        import tiktoken
        if files is None:
            self.encoding = tiktoken.get_encoding("gpt2")
        else:  # it takes them from its cache, so it gets one that holds them
            variable = "TIKTOKEN_CACHE_DIR"
            before = os.environ.get(variable)
            with tempfile.TemporaryDirectory() as cache:
                for name, (_, key) in FILES.items():
                    with open(os.path.join(cache, key), "wb") as f:
                        f.write(files[name])
                os.environ[variable] = cache
                try:
                    self.encoding = tiktoken.get_encoding("gpt2")
                finally:
                    del os.environ[variable]
                    if before is not None:
                        os.environ[variable] = before
        self.name = "tiktoken %s" % getattr(tiktoken, "__version__", "")
        self.table = [self.encoding.decode_single_token_bytes(i) for i in range(V)]

    def encode(self, text):
        return self.encoding.encode_ordinary(text)

    def encode_many(self, texts):
        return self.encoding.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)


def encoder_open(choice="auto"):
    folder = folder_find()
    files = files_load(folder) if folder else None
    why = ""
    if choice != "own":
        try:
            return Tiktoken(files)
        except ImportError as e:
            why = "cannot import tiktoken: %s; pip install tiktoken" % e
        except Exception as e:  # requests, urllib3, OSError: whatever a download can end with
            why = "tiktoken cannot get GPT-2's vocabulary: %s" % (str(e) or type(e).__name__)
    if choice != "tiktoken" and files:
        return Own(files)
    hint = "set TP_DATA to a folder that holds gpt2_bpe/encoder.json and gpt2_bpe/vocab.bpe"
    if choice == "tiktoken" and files:
        raise DataError(why)
    raise DataError("; or ".join(filter(None, (why, hint))))


def encode_long(encoder, text):
    """The tokens of one text of any length, as an array of uint16."""
    tokens, batch = array.array("H"), []
    for chunk in text_chunks(text):
        batch.append(chunk)
        if len(batch) == 16:
            tokens.extend(i for ids in encoder.encode_many(batch) for i in ids)
            batch = []
    tokens.extend(i for ids in encoder.encode_many(batch) for i in ids)
    return tokens


def table_pack(table, end_of_text):
    """The tokenizer file (data/tokenizer.h): header, then per token uint8 length and bytes."""
    header = struct.pack("<256I", TOKENIZER_MAGIC, TOKENIZER_VERSION, len(table), end_of_text,
                         *[0] * 252)
    return header + b"".join(bytes([len(token)]) + token for token in table)


def tokenizer_pack(encoder):
    return table_pack(encoder.table, END_OF_TEXT)
