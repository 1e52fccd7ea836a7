#!/usr/bin/env python3
"""Makes data/unicode.h, the tables by which data/bpe.h cuts a text into pieces:

    pip install unicodedata2==16.0.0; python3 data/unicode.py >data/unicode.h

What a letter is depends on the version of Unicode. The one to take is that of the tokenizer to
agree with: tiktoken 0.14 has 16.0. Without unicodedata2 it is this Python's.
"""
import re
import sys
import textwrap

try:
    import unicodedata2 as unicodedata
except ImportError:
    import unicodedata

from gpt2_bpe import SPACE

HEAD = """\
// Letters, numbers and white space of Unicode %s. Made by data/unicode.py; do not edit.
//
// Each table holds the code points at which its kind begins and ends, in turn: 65, 91 are A to Z.
#ifndef UNICODE_H
#define UNICODE_H

#include <stdint.h>
"""


def edges(members):
    """Where a set of code points begins and ends."""
    return [c for c in range(sys.maxunicode + 2) if (c in members) != (c - 1 in members)]


def category(letter):
    return {c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c))[0] == letter}


def spaces():
    is_space = re.compile("[%s]" % SPACE).match
    return {c for c in range(sys.maxunicode + 1) if is_space(chr(c))}


def main():
    print(HEAD % unicodedata.unidata_version)
    for name, members in (("LETTERS", category("L")), ("NUMBERS", category("N")),
                          ("SPACES", spaces())):
        print("static const int32_t UNICODE_%s[] = {" % name)
        print(textwrap.fill(", ".join(map(str, edges(members))) + "};", 100,
                            initial_indent="    ", subsequent_indent="    "))
        print()
    print("#endif")


if __name__ == "__main__":
    main()
