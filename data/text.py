#!/usr/bin/env python3
"""Any text with GPT-2's byte-pair encoding: token files for models of GPT-2's vocabulary,
V = 50257.

    python3 data/text.py --input FILE...                 # UTF-8 text files, each a document
    ./train_gpt2 -i data/text/train.bin -j data/text/val.bin

It writes into --out (default: the folder text beside this file) what data/shakespeare_char.py does:
train.bin, val.bin, tokenizer.bin and source.txt. The first 90% of the characters are train, the
rest val, which --val-fraction changes; an end-of-text token stands before each file. It needs no
package: tiktoken, if there is one, only makes it faster. GPT-2's vocabulary comes from
$TP_DATA/gpt2_bpe, else by tiktoken's download, see data/gpt2_bpe.py. A run that fails writes
nothing, changes nothing, prints one line on stderr and exits with status 1.
"""
import argparse
import array
import os
import sys

import gpt2_bpe
from shakespeare_char import DataError, Parser, files_write, input_read, sha256_of, text_decode
from shards import TOKENS_MAX, encoder_option, header_pack, script_main, tokens_pack


def texts_read(paths):
    """Returns the name of the whole, its bytes and the text of each file."""
    read = [input_read(path) for path in paths]
    texts = [text_decode(name, raw) for name, raw in read]
    name = read[0][0]
    if len(read) > 1:
        name = "%d files, %s to %s" % (len(read), read[0][0], read[-1][0])
    return name, b"".join(raw for _, raw in read), texts


def texts_encode(encoder, texts, cut):
    """Tokens of the first `cut` characters, and of the rest."""
    parts, at = (array.array("H"), array.array("H")), 0
    for text in texts:
        here = min(max(cut - at, 0), len(text))
        parts[here == 0].append(gpt2_bpe.END_OF_TEXT)
        parts[0].extend(gpt2_bpe.encode_long(encoder, text[:here]))
        parts[1].extend(gpt2_bpe.encode_long(encoder, text[here:]))
        at += len(text)
    return parts


def tokens_file(name, tokens):
    if not 2 <= len(tokens) <= TOKENS_MAX:
        raise DataError("%s would have %d tokens, expected 2 to %d; use another --val-fraction or "
                        "--input"
                        % (name, len(tokens), TOKENS_MAX))
    return header_pack(len(tokens)) + tokens_pack(tokens)


def run(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "text")
    parser.add_argument("--input", metavar="FILE", nargs="+", required=True,
                        help="UTF-8 text files")
    parser.add_argument("--out", default=beside, help="folder to write into (default %(default)s)")
    parser.add_argument("--val-fraction", type=float, default=0.1, metavar="F",
                        help="default %(default)s")
    encoder_option(parser)
    args = parser.parse_args(argv)
    if not 0 < args.val_fraction < 1:
        raise DataError("--val-fraction: found %g, expected more than 0 and less than 1"
                        % args.val_fraction)

    name, raw, texts = texts_read(args.input)
    encoder = gpt2_bpe.encoder_open(args.encoder)
    characters = sum(map(len, texts))
    train, val = texts_encode(encoder, texts, int((1 - args.val_fraction) * characters))
    line = "%s, %d characters, sha256 %s" % (name, characters, sha256_of(raw))
    files = {"train.bin": tokens_file("train.bin", train), "val.bin": tokens_file("val.bin", val),
             "tokenizer.bin": gpt2_bpe.tokenizer_pack(encoder),
             "source.txt": (line + "\n").encode("utf-8")}
    files_write(args.out, files)
    print("text     %s" % line)
    print("encoder  %s" % encoder.name)
    print("tokens   %d train, %d val" % (len(train), len(val)))
    print("files    %s in %s" % (", ".join(files), args.out), flush=True)


def main(argv=None):
    return script_main(run, "nothing was written, run it again", argv)


if __name__ == "__main__":
    sys.exit(main())
