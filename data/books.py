#!/usr/bin/env python3
"""Books in English, up to 1922 and in the public domain: 655 to train on, 17 to validate with.

    python3 data/books.py                   # as characters, V = 97: $TP_DATA/books
    python3 data/books.py --bpe             # as GPT-2's tokens, V = 50257
    git clone https://github.com/mlschmitt/classic-books-markdown
    python3 data/books.py --input classic-books-markdown

It writes into --out (default: the folder books_char or books_bpe beside this file) what
data/shakespeare_char.py does: train.bin, val.bin, tokenizer.bin and source.txt. An end-of-text
token stands before each book. It holds one book at a time.

$TP_DATA/books has the text packed: train.txt.xz and val.txt.xz, with a line <|endoftext|> between
books. A clone gives the same books in the same order. It has a folder for each author, and what it
says above a line ------- is no part of a book. Left out are books whose year has no number of three
digits or is above 1922 (BC counts as AD), those of less than 20,000 characters, Clarissa and the
King James Bible. Blanks before a line's end and more than one empty line go, and Unicode is
composed (NFC). A book validates if the SHA-256 of its name (Author/Title.md) is a multiple of 50.

The characters are the newline, the form feed as end of text, and the 95 of ASCII that print. Three
in 10,000 are others. Of those, Unicode's decomposition (NFKD) keeps what is ASCII: the e of an e
with an accent, the points of an ellipsis. FOLDS adds dashes, as -- like in most of the books,
quotation marks, ae and oe. The rest is dropped: byte order marks, Greek, pounds, degrees. The byte
pairs take the text as it is; GPT-2's vocabulary comes from $TP_DATA/gpt2_bpe, else by tiktoken's
download, see data/gpt2_bpe.py.

A run that fails writes nothing, changes nothing, prints one line on stderr and exits with status 1.
Python 3.7 or newer, standard library only.
"""
import argparse
import array
import glob
import hashlib
import itertools
import os
import re
import sys
import unicodedata

try:
    import lzma
except ImportError:
    lzma = None

import gpt2_bpe
from shakespeare_char import (DataError, Parser, file_read, files_write, text_decode,
                              text_printable)
from shards import (HEADER_BYTES, TOKENS_MAX, encoder_option, header_pack, script_main,
                    tokens_pack)

CLONE = "https://github.com/mlschmitt/classic-books-markdown"
SEPARATOR = gpt2_bpe.END_OF_TEXT_BYTES + b"\n"
YEAR_MAX, CHARACTERS_MIN = 1922, 20000
LEFT_OUT = ("Samuel Richardson/Clarissa.md", "Various/King James Bible.md")
VAL_ONE_IN = 50
# Of the text of all books, those of train first.
SHA256 = "0cc16a89d035286169e41452a96cb8ddfb80ebe514b263ba390f32e089ef1956"

TEXT_SYMBOLS = "\n" + "".join(map(chr, range(32, 127)))
END_OF_TEXT = "\f"
SYMBOLS = sorted(TEXT_SYMBOLS + END_OF_TEXT)
IDS = bytes(SYMBOLS.index(chr(b)) if chr(b) in SYMBOLS else 0 for b in range(256))
DROPPED = bytes(b for b in range(256) if chr(b) not in TEXT_SYMBOLS)
# What NFKD does not take to ASCII, and half of a fraction that it makes.
FOLDS = str.maketrans({"\u2014": "--", "\u2013": "-", "\u2018": "'", "\u2019": "'", "\u201c": '"',
                       "\u201d": '"', "\u2044": "/", "\xe6": "ae", "\xc6": "Ae", "\u0153": "oe",
                       "\u0152": "Oe"})


# ----------------------------------------------------------------------------
# sources: each returns for train and val (books, bytes of text that they are about)

def packed_read(path):
    try:
        with lzma.open(path) as f:
            for between, lines in itertools.groupby(f, SEPARATOR.__eq__):
                if not between:
                    yield text_decode(path, b"".join(lines)).strip() + "\n"
    except (OSError, EOFError, lzma.LZMAError) as e:
        raise DataError("%s: %s; expected books, packed by xz" % (path, e))


def packed_open(folder):
    if lzma is None:
        raise DataError("%s: its files are packed by xz, expected a Python with the module lzma; "
                        "use another, or a clone of %s" % (folder, CLONE))
    paths = [os.path.join(folder, name + ".txt.xz") for name in ("train", "val")]
    for path in paths:
        if not os.path.isfile(path):
            raise DataError("%s: no such file; expected train.txt.xz and val.txt.xz" % path)
    # English packs to a quarter.
    return [(packed_read(path), 4 * os.path.getsize(path)) for path in paths]


def book_read(path):
    """The text of a book of the clone, or None where it is left out."""
    text = text_decode(path, file_read(path, path)).replace("\r\n", "\n")
    head, line, text = text.partition("\n-------\n")
    year = re.search(r"^## Year:(?:.*?(\d{3,4}))?", head, re.MULTILINE)
    if not line or not year:
        raise DataError("%s: found no '## Year:' above a line '-------', expected a book of %s"
                        % (path, CLONE))
    text = re.sub("\n{3,}", "\n\n", re.sub("[ \t]+\n", "\n", text)).strip()
    if not year.group(1) or int(year.group(1)) > YEAR_MAX or len(text) < CHARACTERS_MIN:
        return None
    return unicodedata.normalize("NFC", text) + "\n"


def validates(name):
    return int(hashlib.sha256(os.fsencode(name)).hexdigest(), 16) % VAL_ONE_IN == 0


def clone_open(folder):
    parts = [], []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*", "*.md"))):
        name = os.path.relpath(path, folder)
        if name not in LEFT_OUT:
            parts[validates(name)].append(path)
    return [(filter(None, map(book_read, paths)), sum(map(os.path.getsize, paths)))
            for paths in parts]


def source_open(folder):
    if folder is None:
        folder = os.path.join(os.environ.get("TP_DATA", ""), "books")
        if not os.environ.get("TP_DATA") or not os.path.isdir(folder):
            raise DataError("no folder $TP_DATA/books; git clone %s and use --input "
                            "classic-books-markdown" % CLONE)
    folder = os.path.abspath(folder)
    packed = os.path.exists(os.path.join(folder, "train.txt.xz"))
    return folder, (packed_open if packed else clone_open)(folder)


# ----------------------------------------------------------------------------
# encoders: each returns (name, V, function from a book to its tokens' bytes, tokenizer file)

def fold(match):
    return unicodedata.normalize("NFKD", match.group()).translate(FOLDS)


def characters_encode(text):
    text = re.sub("[^\0-\x7f]+", fold, text).encode("ascii", "ignore")
    ids = bytes([SYMBOLS.index(END_OF_TEXT)]) + text.translate(IDS, DROPPED)
    tokens = bytearray(2 * len(ids))
    tokens[::2] = ids
    return tokens


def characters_open():
    table = [c.encode("ascii") for c in SYMBOLS]
    return ("%d characters" % len(SYMBOLS), len(SYMBOLS), characters_encode,
            gpt2_bpe.table_pack(table, SYMBOLS.index(END_OF_TEXT)))


def pairs_open(choice):
    encoder = gpt2_bpe.encoder_open(choice)

    def encode(text):
        tokens = array.array("H", [gpt2_bpe.END_OF_TEXT])
        return tokens_pack(tokens + gpt2_bpe.encode_long(encoder, text))

    return encoder.name, gpt2_bpe.V, encode, gpt2_bpe.tokenizer_pack(encoder)


# ----------------------------------------------------------------------------
# files, for files_write: a book is read when its place is reached

class SourceLine:
    """source.txt, complete when all books have been read."""
    def __init__(self, folder):
        self.folder, self.books = folder, []
        self.characters, self.hash = 0, hashlib.sha256()

    def add(self, text):
        self.characters += len(text)
        self.hash.update(text.encode("utf-8"))

    def __str__(self):
        digest = self.hash.hexdigest()
        name = "classic books" if digest == SHA256 else text_printable(self.folder)
        return "%s, %s books, %d characters, sha256 %s" % (
            name, " and ".join(map(str, self.books)), self.characters, digest)

    def __len__(self):
        return len(str(self))

    def write(self, f):
        f.write((str(self) + "\n").encode("utf-8"))


class TokenFile:
    """The tokens of a part, book by book, and then the header, which counts them."""
    def __init__(self, name, books, text_bytes, encode, V, source):
        self.name, self.books, self.text_bytes = name, books, text_bytes
        self.encode, self.V, self.source = encode, V, source

    def __len__(self):
        return HEADER_BYTES + 2 * self.text_bytes

    def write(self, f):
        books = 0
        f.write(bytes(HEADER_BYTES))
        for text in self.books:
            books += 1
            self.source.add(text)
            f.write(self.encode(text))
        self.tokens = (f.tell() - HEADER_BYTES) // 2
        if not 2 <= self.tokens <= TOKENS_MAX:
            raise DataError("%s: found %d books for %s, which would have %d tokens, expected 2 to "
                            "%d" % (self.source.folder, books, self.name, self.tokens, TOKENS_MAX))
        self.source.books.append(books)
        f.seek(0)
        f.write(header_pack(self.tokens, self.V))


# ----------------------------------------------------------------------------
# main

def run(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", metavar="FOLDER", help="a clone, or a folder as $TP_DATA/books")
    parser.add_argument("--bpe", action="store_true", help="GPT-2's tokens instead of characters")
    parser.add_argument("--out", help="folder to write into (default: see above)")
    encoder_option(parser)
    args = parser.parse_args(argv)
    out = args.out
    if out is None:
        beside = os.path.dirname(os.path.abspath(__file__))
        out = os.path.join(beside, "books_bpe" if args.bpe else "books_char")

    folder, parts = source_open(args.input)
    encoder, V, encode, tokenizer = pairs_open(args.encoder) if args.bpe else characters_open()
    source = SourceLine(folder)
    train, val = (TokenFile(name, books, text_bytes, encode, V, source)
                  for name, (books, text_bytes) in zip(("train.bin", "val.bin"), parts))
    files = {"train.bin": train, "val.bin": val, "tokenizer.bin": tokenizer, "source.txt": source}
    files_write(out, files)
    print("text     %s" % source)
    print("encoder  %s" % encoder)
    print("tokens   %d train, %d val" % (train.tokens, val.tokens))
    print("files    %s in %s" % (", ".join(files), out), flush=True)


def main(argv=None):
    return script_main(run, "nothing was written, run it again", argv)


if __name__ == "__main__":
    sys.exit(main())
