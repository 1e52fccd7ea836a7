#!/usr/bin/env python3
"""Character-level Shakespeare: makes the token files that the trainers read by default.

    python3 data/shakespeare_char.py              # $TP_DATA/tinyshakespeare.txt, else a download
    python3 data/shakespeare_char.py --input FILE # any UTF-8 text
    python3 data/shakespeare_char.py --offline    # no network: the Python standard library's files
    python3 data/shakespeare_char.py --fallback   # as the first, else --offline (make does this)

It writes into --out (default: the folder shakespeare_char beside this file):

    train.bin, val.bin  256 int32 (20240520, 1, number of tokens, V, 0...), then uint16 tokens
    tokenizer.bin       256 uint32 (20240328, 2, V, end-of-text token, 0...), then per
                        token uint8 length and bytes
    source.txt          one line that names the text; the trainers print it

all little-endian. A token is a character, its id the place in the sorted list of those that occur.
The first 90% is train, the rest val: tinyshakespeare has 1,115,394 characters, 65 symbols and
1,003,854 / 111,540 tokens. A run that fails writes nothing, changes nothing, prints one line on
stderr and exits with status 1. Python 3.7 or newer, standard library only.
"""
import argparse
import array
import contextlib
import fcntl
import glob
import hashlib
import os
import signal
import struct
import sys
import sysconfig
import threading

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# Bytes of tinyshakespeare, all ASCII; the fallback text is cut to the same.
SIZE = 1115394
DOWNLOAD_SECONDS = 20                      # for all of it: name look-up, connection and body
TOKENS_MAGIC, TOKENS_VERSION = 20240520, 1
TOKENIZER_MAGIC, TOKENIZER_VERSION = 20240328, 2
# Two tokens in train and in val; the header counts in int32.
TEXT_MIN, TEXT_MAX = 11, 2**31 - 1
VOCAB_MAX = 65535                          # tokens are uint16
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OTHER_SOURCES = ("use --input FILE, set TP_DATA to a folder that holds tinyshakespeare.txt, "
                 "or --offline for a text that needs no network")


class DataError(Exception):
    """A failure to tell the user in one line: what was found, what was expected, what to do
    next."""


def text_printable(text):
    """What a terminal would obey, a path may hold too."""
    return "".join(c if c.isprintable() else "?" for c in text)


# ----------------------------------------------------------------------------
# sources: each returns (name, bytes)

def sha256_of(raw):
    return hashlib.sha256(raw).hexdigest()


def sha256_check(where, raw):
    if sha256_of(raw) != SHA256:
        raise DataError("%s: found %d bytes with sha256 %s, expected tinyshakespeare, %d bytes "
                        "with sha256 %s"
                        % (where, len(raw), sha256_of(raw), SIZE, SHA256))
    return "tinyshakespeare", raw


def file_read(where, path):
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError as e:
        raise DataError("%s: %s; expected a readable text file" % (where, e.strerror))


def input_read(path):
    raw = file_read("--input " + path, path)
    # The full path, so that a file that is merely called tinyshakespeare is not taken for the real
    # one; without the characters that a file name may have and a line of UTF-8 may not.
    name = text_printable(os.path.abspath(path))
    return ("tinyshakespeare" if sha256_of(raw) == SHA256 else name), raw


def url_read(url):
    # Here, because it is half of the start-up time and most runs need no network.
    import urllib.request
    with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as reply:
        raw = reply.read(SIZE + 1)
        length = reply.headers.get("Content-Length")
    if len(raw) > SIZE:  # wrong already, so the rest was not read
        raise DataError("found more than %d bytes, expected tinyshakespeare, %d bytes"
                        % (SIZE, SIZE))
    # read(n) does not notice that a connection was cut.
    if length is not None and len(raw) != int(length):
        raise DataError("the download is partial: found %d bytes, expected %s" % (len(raw), length))
    return raw


def url_download(url):
    """url_read with a limit on the whole. It runs in a thread, because a socket's timeout bounds
    neither the look-up of a name nor a server that sends a byte now and then."""
    result = []

    def work():
        try:
            result.append(url_read(url))
        except Exception as e:  # whatever it was, it is the main thread's to tell
            result.append(e)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(DOWNLOAD_SECONDS)
    if not result:
        raise DataError("download of %s: not finished after %g seconds" % (url, DOWNLOAD_SECONDS))
    if isinstance(result[0], Exception):
        raise DataError("download of %s: %s" % (url, str(result[0]) or type(result[0]).__name__))
    return sha256_check("download of " + url, result[0])


def tinyshakespeare_find(url):
    folder = os.environ.get("TP_DATA")
    if not folder:
        return url_download(url)
    path = os.path.join(folder, "tinyshakespeare.txt")
    if os.path.lexists(path):  # a wrong or unreadable file is an error, a missing one is not
        return sha256_check(path, file_read(path, path))
    try:
        return url_download(url)
    except DataError as e:
        raise DataError("no %s; %s" % (path, e))


def offline_make():
    """The first SIZE characters of the standard library's .py files in the order of their paths: no
    network, the same on every run of one machine. A file that is not ASCII is left out whole, so
    that no word of it is broken."""
    root = sysconfig.get_paths()["stdlib"]
    paths = []
    for folder, subfolders, names in os.walk(root):
        # Not the library's own.
        subfolders[:] = [d for d in subfolders if d not in ("site-packages", "dist-packages")]
        paths += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    text = ""
    for path in sorted(paths):
        try:
            source = file_read(path, path).decode("ascii").replace("\t", "    ")
        except (DataError, UnicodeDecodeError):
            continue
        text += "".join(c for c in source if c == "\n" or " " <= c <= "~")
        if len(text) >= SIZE:
            break
    if not text:
        raise DataError("--offline: found no .py files below %s, expected the Python standard "
                        "library's; "
                        "use --input FILE or another Python" % root)
    return ("NOT Shakespeare: fallback text, the Python %d.%d standard library's own source files "
            "(made with --offline)"
            % sys.version_info[:2], text[:SIZE].encode("ascii"))


def text_load(args):
    if args.offline:
        return offline_make()
    if args.input is not None:
        return input_read(args.input)
    try:
        return tinyshakespeare_find(args.url)
    except DataError as e:
        if not args.fallback:
            raise DataError("%s; %s" % (e, OTHER_SOURCES))
        line_print("warning: %s; using --offline instead, which is NOT Shakespeare" % e)
        return offline_make()


# ----------------------------------------------------------------------------
# files, as bytes

def text_decode(name, raw):
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise DataError("%s: found byte 0x%02x at offset %d, expected UTF-8 text; convert it "
                        "(iconv -t UTF-8) or use "
                        "another --input FILE" % (name, raw[e.start], e.start))
    if not TEXT_MIN <= len(text) <= TEXT_MAX:
        raise DataError("%s: found %d characters, expected %d to %d; use another --input FILE"
                        % (name, len(text), TEXT_MIN, TEXT_MAX))
    return text


def vocab_make(name, text):
    vocab = sorted(set(text))
    if len(vocab) > VOCAB_MAX:
        raise DataError("%s: found %d different characters, expected at most %d (tokens are "
                        "uint16); "
                        "use another --input FILE" % (name, len(vocab), VOCAB_MAX))
    return vocab


def tokens_pack(text, vocab):
    ids = {c: i for i, c in enumerate(vocab)}
    tokens = array.array("H", (ids[c] for c in text))
    if sys.byteorder == "big":
        tokens.byteswap()
    header = struct.pack("<256i", TOKENS_MAGIC, TOKENS_VERSION, len(text), len(vocab), *[0] * 252)
    return header + tokens.tobytes()


def tokenizer_pack(vocab):
    end_of_text = vocab.index("\n") if "\n" in vocab else 0
    header = struct.pack("<256I", TOKENIZER_MAGIC, TOKENIZER_VERSION, len(vocab), end_of_text,
                         *[0] * 252)
    symbols = [c.encode("utf-8") for c in vocab]
    return header + b"".join(bytes([len(s)]) + s for s in symbols)


# ----------------------------------------------------------------------------
# writing: all files or none

def signals_set(handler):
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, handler)


def signal_raise(number, frame):
    signals_set(signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    raise KeyboardInterrupt("signal %d" % number)


def folders_missing(path):
    """The folders that makedirs(path) will make, the innermost first."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def file_sync(path, data):
    """`data` is bytes, or has a method that writes them to an open file."""
    with open(path, "xb") as f:
        if isinstance(data, bytes):
            f.write(data)
        else:
            data.write(f)
        f.flush()
        os.fsync(f.fileno())


def each_removed(remove, paths):
    for path in paths:
        try:
            remove(path)
        except OSError:
            pass  # it was never made, or is not ours alone


def files_write(out, files):
    """Writes files {name: bytes} into the folder out. Each goes to a temporary file first, and
    names change only when all of them are on the disk, so that whatever fails before leaves no
    trace. Signals wait for the renames. One script at a time writes: what it finds of temporary
    files was left by one that was killed."""
    out = os.path.abspath(out)
    made = folders_missing(out)
    # Not the process id: containers that share a folder share those.
    suffix = ".tmp-" + os.urandom(4).hex()
    temporary = {os.path.join(out, name): os.path.join(out, name + suffix) for name in files}
    folder = None
    try:
        os.makedirs(out, exist_ok=True)
        folder = os.open(out, os.O_RDONLY)
        with contextlib.suppress(OSError):  # where folders have no locks, nothing is removed
            fcntl.flock(folder, fcntl.LOCK_EX)
            for path in temporary:
                each_removed(os.unlink, glob.glob(glob.escape(path) + ".tmp-*"))
        # Its rename would fail, after others that cannot be undone.
        for path in filter(os.path.isdir, temporary):
            raise DataError("%s: found a folder, expected a file or nothing; move it or use "
                            "another --out" % path)
        for path, data in zip(temporary.values(), files.values()):
            file_sync(path, data)
        signals_set(signal.SIG_IGN)
        for path in temporary:
            os.replace(temporary[path], path)
    except BaseException as e:
        signals_set(signal.SIG_IGN)
        each_removed(os.unlink, temporary.values())
        each_removed(os.rmdir, made)
        if not isinstance(e, OSError):
            raise
        raise DataError("cannot write into %s: %s; expected a folder with %d bytes free that this "
                        "user may write to; "
                        "use another --out" % (out, e.strerror, sum(map(len, files.values()))))
    finally:
        if folder is not None:
            os.close(folder)


# ----------------------------------------------------------------------------
# main

class Parser(argparse.ArgumentParser):
    def error(self, message):  # argparse would print its usage too and exit with 2
        raise DataError(message + "; see --help")


def args_parse(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "shakespeare_char")
    parser.add_argument("--out", default=beside, help="folder to write into (default %(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--input", metavar="FILE", help="use this UTF-8 text, and with --fallback "
                                                        "too nothing else")
    source.add_argument("--offline", action="store_true", help="use the Python standard library's "
                                                               "own source files")
    parser.add_argument("--fallback", action="store_true", help="use --offline if TP_DATA and the "
                                                                "download fail")
    parser.add_argument("--url", default=URL, help="where to download from, for tests (default "
                                                   "%(default)s)")
    return parser.parse_args(argv)


def line_print(message):
    print(text_printable(message.replace("\n", " ")), file=sys.stderr)


def run(args):
    name, raw = text_load(args)
    text = text_decode(name, raw)
    vocab = vocab_make(name, text)
    cut = int(0.9 * len(text))
    line = "%s, %d characters, sha256 %s" % (name, len(text), sha256_of(raw))
    files = {"train.bin": tokens_pack(text[:cut], vocab), "val.bin": tokens_pack(text[cut:], vocab),
             "tokenizer.bin": tokenizer_pack(vocab), "source.txt": (line + "\n").encode("utf-8")}
    files_write(args.out, files)
    print("text     %s" % line)
    print("symbols  %d" % len(vocab))
    print("tokens   %d train, %d val" % (cut, len(text) - cut))
    print("files    %s in %s" % (", ".join(files), args.out), flush=True)


def main(argv=None):
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None when closed
        # A terminal without UTF-8 is no reason to fail.
        stream.reconfigure(errors="backslashreplace")
    signals_set(signal_raise)
    try:
        run(args_parse(argv))
        return 0
    except (DataError, OSError, MemoryError) as e:
        line_print("error: " + (str(e) or type(e).__name__))
    except KeyboardInterrupt as e:
        line_print("error: stopped by %s; nothing was written, run it again" % e)
    return 1


if __name__ == "__main__":
    sys.exit(main())
